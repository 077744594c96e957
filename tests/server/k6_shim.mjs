// Runs a k6 script without k6: `node k6_shim.mjs script.js`, with the script's __ENV in the environment.
// Scenarios run one after the other, virtual users too. Ends with 99 where a threshold is crossed, as k6 does.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { register } from "node:module";
import { pathToFileURL } from "node:url";

const counts = { checks: [0, 0], http_req_failed: [0, 0] }; // true ones, all
const failed = new Set();
const count = (name, value) => {
  counts[name][0] += value ? 1 : 0;
  counts[name][1] += 1;
};
const trends = {};

const SENDER = `
  const [url, head, ...chunks] = [process.argv[1], JSON.parse(process.argv[2])];
  for await (const chunk of process.stdin) chunks.push(chunk);
  const begun = performance.now();
  const answer = await fetch(url, { method: "POST", headers: head, body: Buffer.concat(chunks) });
  const body = await answer.text();
  console.log(JSON.stringify({ status: answer.status, body, duration: performance.now() - begun }));
`;

globalThis.k6 = {
  http: {
    file: (data, filename, type) => ({ data, filename, type }),
    post(url, form, { headers = {} } = {}) {
      const boundary = "k6-shim-boundary";
      const parts = Object.entries(form).flatMap(([name, value]) => {
        const file = value.data !== undefined;
        const more = file ? `; filename="${value.filename}"\r\nContent-Type: ${value.type}` : "";
        const head = `--${boundary}\r\nContent-Disposition: form-data; name="${name}"${more}\r\n\r\n`;
        return [Buffer.from(head), Buffer.from(file ? value.data : String(value)), Buffer.from("\r\n")];
      });
      const input = Buffer.concat([...parts, Buffer.from(`--${boundary}--\r\n`)]);
      const sent = { ...headers, "Content-Type": `multipart/form-data; boundary=${boundary}` };
      const node = ["--input-type=module", "-e", SENDER, url, JSON.stringify(sent)];
      const got = JSON.parse(execFileSync(process.execPath, node, { input, maxBuffer: 1 << 28 }));
      count("http_req_failed", got.status >= 400);
      const json = (selector) => (selector ? JSON.parse(got.body)[selector] : JSON.parse(got.body));
      return { status: got.status, body: got.body, timings: { duration: got.duration }, json };
    },
  },
  check(value, checks) {
    return Object.entries(checks).every(([name, test]) => {
      const passed = Boolean(test(value));
      count("checks", passed);
      if (!passed) failed.add(name);
      return passed;
    });
  },
  Trend: class {
    constructor(name) {
      this.values = trends[name] = [];
    }
    add(value) {
      this.values.push(value);
    }
  },
};
globalThis.__ENV = { ...process.env };
globalThis.open = (path, mode) => (mode === "b" ? readFileSync(path) : readFileSync(path, "utf8"));

const modules = {
  "k6/http": "export default globalThis.k6.http;",
  k6: "export const check = globalThis.k6.check;",
  "k6/metrics": "export const Trend = globalThis.k6.Trend;",
};
const hooks = `
  const modules = ${JSON.stringify(modules)};
  export const resolve = (name, context, next) =>
    name in modules ? { url: "data:text/javascript," + encodeURIComponent(modules[name]), shortCircuit: true } : next(name, context);
  export const load = async (url, context, next) =>
    url.endsWith(".k6.js") ? next(url, { ...context, format: "module" }) : next(url, context);
`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);

const script = await import(pathToFileURL(process.argv[2]));
for (const { vus, iterations, env } of Object.values(script.options.scenarios)) {
  Object.assign(__ENV, env);
  for (let turn = 0; turn < vus * iterations; turn += 1) script.default();
}
const rates = Object.fromEntries(Object.entries(counts).map(([name, [yes, all]]) => [name, all ? yes / all : 0]));
const crossed = Object.entries(script.options.thresholds).flatMap(([name, limits]) =>
  limits.filter((limit) => !new Function("rate", `return ${limit}`)(rates[name])).map((limit) => `${name} ${limit}`),
);
console.log(JSON.stringify({ counts, rates, trends, crossed, failed: [...failed] }));
process.exit(crossed.length ? 99 : 0);
