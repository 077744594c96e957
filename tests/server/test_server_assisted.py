"""Assistance through every door of a server, and `diarist benchmark --url` against it."""

import contextlib
import http.server
import json
import threading

import httpx2
import openai
import pytest
from listening import serving

from diarist.benchmark.cells import Cell, make_cells
from diarist.benchmark.remote import Server
from diarist.benchmark.rounds import PLAIN, Way, measure
from diarist.engine.engine import Engine, EngineOptions
from diarist.errors import DiaristError


@pytest.fixture(scope="module")
def assisted(base_model, segmentation_model, tmp_path_factory):
    """The base model with an assistant that repeats what was said before, in float32."""
    options = {"asr_model": "base", "diarization_model": None, "assistant_model": "ngram", "threads": 1}
    engine = Engine(EngineOptions(pipeline={**options, "dtype": "float32"}))
    with serving(engine, tmp_path_factory.mktemp("spool")) as running:
        yield running


@pytest.fixture(scope="module")
def cells(sample_recording):
    """Two clips at once."""
    return make_cells([sample_recording.wav], ["concurrent"], rows=1, requests=2)


def counted(running):
    """The counters of the assistant, by name with labels."""
    lines = httpx2.get(f"{running.url}/metrics").text.splitlines()
    wanted = ("diarist_assist", "diarist_decoder")
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith(wanted))}


def test_a_running_server_is_measured(assisted, cells):
    server = Server(assisted.url, language="en")
    assert server.ways == [PLAIN, Way("ngram", True), Way("ngram", "auto")]
    assert server.description["models"]["asr"]["name"] == "base"
    rows = measure(server, [Cell("short", cells[0].sounds[:1])], 1)
    assert {row.words_differ for row in rows} == {0}
    assert all(row.seconds > 0 and row.decoding_faster is None for row in rows)
    assert [row.chosen for row in rows if row.way == PLAIN] == ["not assisted"]
    assert all(row.assistance["tokens_per_pass"] >= 1 for row in rows)


PROMPT = "Hello. Hello. Oh, hello. I didn't know you were there. Hello. Hello. Oh, hello. I didn't know you were there."


def ask(running, clip, **parameters):
    form = {"parameters": json.dumps({"language": "en", "temperature": 0, "initial_prompt": PROMPT, **parameters})}
    with clip.open("rb") as file:
        return httpx2.post(running.url, files={"file": file}, data=form, timeout=300).json()


def test_answers_and_metrics_tell_what_came_of_it(assisted, clip):
    before = counted(assisted)
    plainly, always = ask(assisted, clip, assisted=False), ask(assisted, clip, assisted=True)
    auto = ask(assisted, clip, assisted="auto")
    assert plainly["text"] == always["text"] == auto["text"]
    assert (plainly["assistance"]["assisted"], plainly["assistance"]["chosen"]) == (False, "not assisted")
    assert (always["assistance"]["assisted"], auto["assistance"]["assisted"]) == (True, "auto")
    assert always["assistance"]["drafted"] > 0
    assert always["assistance"]["passes"] < plainly["assistance"]["passes"] == plainly["assistance"]["tokens"]
    assert always["timings"]["recognition"] > 0
    gained = {name: value - before.get(name, 0.0) for name, value in counted(assisted).items()}
    told = [answer["assistance"] for answer in (plainly, always, auto)]
    for name, expected in (
        ('diarist_assistant_tokens_total{outcome="accepted"}', sum(each["accepted"] for each in told)),
        (
            'diarist_assistant_tokens_total{outcome="rejected"}',
            sum(each["drafted"] - each["accepted"] for each in told),
        ),
        ("diarist_decoder_tokens_total", sum(each["tokens"] for each in told)),
    ):
        assert gained[name] == expected
    passes = [gained[f'diarist_decoder_passes_total{{assisted="{word}"}}'] for word in ("true", "false")]
    assert sum(passes) == sum(each["passes"] for each in told)
    assert passes[0] > 0
    chosen = {name: value for name, value in gained.items() if name.startswith("diarist_assisted_requests_total")}
    assert sum(chosen.values()) == len(told)


@pytest.mark.parametrize("asked", [True, False, "auto"])
def test_openais_clients_may_ask(assisted, clip, asked):
    with openai.OpenAI(base_url=f"{assisted.url}/v1", api_key="x", max_retries=0) as client, clip.open("rb") as file:
        answer = client.audio.transcriptions.create(
            model="whisper-1", file=file, language="en", response_format="verbose_json", extra_body={"assisted": asked}
        )
    assert answer.assistance["assisted"] == asked
    assert (answer.assistance["chosen"] == "not assisted") or asked is not False


def test_without_an_assistant_nobody_can_be_assisted(fake):
    server = Server(fake.url)
    assert server.ways == [PLAIN]
    say = {"file": b"fake: say Hello there."}
    form = {"model": "m", "response_format": "verbose_json"}
    refused = httpx2.post(f"{fake.url}/v1/audio/transcriptions", files=say, data={**form, "assisted": "true"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "assisted")
    left = httpx2.post(f"{fake.url}/v1/audio/transcriptions", files=say, data={**form, "assisted": "auto"})
    assert (left.status_code, "assistance" in left.json()) == (200, False)
    answer = httpx2.post(fake.url, files=say, data={"parameters": '{"assisted": "auto"}'})
    assert (answer.status_code, answer.json()["assistance"]) == (200, None)
    wrong = httpx2.post(fake.url, files=say, data={"parameters": '{"assisted": "always"}'})
    assert wrong.status_code == 400
    assert "assisted: 'always' is refused" in wrong.json()["detail"]


def test_a_server_that_refuses_is_told(start, cells):
    running = start(api_keys="the-key")
    with pytest.raises(DiaristError, match="answered 401, not 200"):
        Server(running.url, "another").answer(cells[0], PLAIN)
    with pytest.raises(DiaristError, match="answered 415, not 200"):  # it takes no real sound
        Server(running.url, "the-key").answer(cells[0], PLAIN)
    with pytest.raises(DiaristError, match="does not answer"):
        Server("http://127.0.0.1:9").answer(cells[0], PLAIN)


class Original(http.server.BaseHTTPRequestHandler):
    """Speaks the original's contract and nothing else."""

    asked: list = []  # noqa: RUF012

    def log_message(self, *_):
        pass

    def reply(self, status, body, media_type):
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(200 if self.path == "/" else 404, b"OK", "text/plain")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        assert b'name="file"; filename="recording.wav"' in body
        assert b"RIFF" in body
        parameters = body.partition(b'name="parameters"\r\n\r\n')[2].partition(b"\r\n--")[0]
        self.asked.append(json.loads(parameters)["assisted"])
        text = {"speakers": [], "chunks": [], "text": "Hello."} if self.path == "/" else {"detail": "no"}
        self.reply(200, json.dumps(text).encode(), "application/json")


@contextlib.contextmanager
def original():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Original) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_the_original_is_measured_too(cells):
    with original() as url:
        server = Server(url)
        assert server.ways == [PLAIN, Way("assistant", True)]
        rows = measure(server, cells, 1)
        assert Original.asked == [False, False, True, True] * 2
        assert [(row.chosen, row.words_differ) for row in rows] == [("", 0)] * 2
        with pytest.raises(DiaristError, match="does not speak the original's contract"):
            Server(f"{url}/elsewhere").answer(cells[0], PLAIN)
