// The original's scenario for k6: short and long recordings, assisted or not; statuses and texts are checked.
//
//   k6 run -e URL=http://127.0.0.1:7860 -e SHORT=short.wav -e LONG=long.wav -e SHORT_TEXT=hello original.k6.js
//
// ASSISTED=1 expects an assistant model; without one an assisted request must be refused with 400. KEY is a bearer key.
import http from "k6/http";
import { check } from "k6";
import { Trend } from "k6/metrics";

const url = __ENV.URL || "http://127.0.0.1:7860";
const recordings = { short: open(__ENV.SHORT, "b"), long: open(__ENV.LONG, "b") };
const texts = { short: (__ENV.SHORT_TEXT || "").toLowerCase(), long: (__ENV.LONG_TEXT || "").toLowerCase() };
const hasAssistant = __ENV.ASSISTED === "1";
const headers = __ENV.KEY ? { Authorization: `Bearer ${__ENV.KEY}` } : {};

const cells = ["short", "long"].flatMap((length) => [true, false].map((assisted) => ({ length, assisted })));
const nameOf = ({ length, assisted }) => `${length}_${assisted ? "assisted" : "plain"}`;
const seconds = Object.fromEntries(cells.map((cell) => [nameOf(cell), new Trend(`seconds_${nameOf(cell)}`)]));

export const options = {
  scenarios: Object.fromEntries(
    cells.map((cell, place) => [
      nameOf(cell),
      {
        executor: "per-vu-iterations",
        vus: Number(__ENV.VUS || 1),
        iterations: Number(__ENV.ITERATIONS || 10),
        startTime: `${place * Number(__ENV.CELL_SECONDS || 60)}s`,
        env: { LENGTH: cell.length, WITH_ASSISTANT: cell.assisted ? "1" : "0" },
      },
    ]),
  ),
  thresholds: { checks: ["rate==1"], http_req_failed: hasAssistant ? ["rate==0"] : ["rate<=0.5"] },
};

export default function () {
  const cell = { length: __ENV.LENGTH, assisted: __ENV.WITH_ASSISTANT === "1" };
  const parameters = { batch_size: cell.assisted ? 1 : 24, assisted: cell.assisted };
  const form = {
    file: http.file(recordings[cell.length], `${cell.length}.wav`, "audio/wav"),
    parameters: JSON.stringify(parameters),
  };
  const response = http.post(url, form, { headers, timeout: "600s" });
  if (cell.assisted && !hasAssistant) {
    check(response, {
      "refused without an assistant": (r) => r.status === 400 && r.json("error").includes("assisted"),
    });
    return;
  }
  seconds[nameOf(cell)].add(response.timings.duration / 1000);
  if (!check(response, { "status is 200": (r) => r.status === 200 })) {
    return;
  }
  check(response, {
    "text is there": (r) => r.json("text").trim().length > 0 && r.json("text").toLowerCase().includes(texts[cell.length]),
    "chunks hold the text": (r) =>
      r.json("chunks").map((c) => c.text).join("").split(/\s+/).join(" ").trim() === r.json("text").split(/\s+/).join(" ").trim(),
    "times are numbers": (r) => r.json("chunks").every((c) => c.timestamp.every((t) => typeof t === "number")),
  });
}
