"""The original's contract: its requests, its answers, and its regressions R1-R26 as far as a server is concerned."""

import io
import json
import time

import av
import httpx2
import pytest
from fake_engine import FakeEngine, say

FAKE = b"fake: say Hello there. Hi you. Bye."


def predict(running, content=FAKE, parameters=None, path="/predict", content_type="audio/wav", **options):
    data = (
        {}
        if parameters is None
        else {"parameters": parameters if isinstance(parameters, str) else json.dumps(parameters)}
    )
    files = {"file": ("a.wav", content, content_type)}
    return httpx2.post(running.url + path, files=files, data=data, timeout=120, **options)


def asked(running):
    return running.engine.submitted[-1].work.request


@pytest.fixture(scope="module")
def answer(real, sample_recording):
    response = predict(real, sample_recording.wav.read_bytes())
    assert response.status_code == 200
    return response.json()


def test_the_three_keys(answer):
    assert [set(part) for part in answer["speakers"]] == [{"speaker", "text", "timestamp"}] * len(answer["speakers"])
    assert [set(part) for part in answer["chunks"]] == [{"text", "timestamp"}] * len(answer["chunks"])
    assert "".join(part["text"] for part in answer["speakers"]).split() == answer["text"].split()
    assert "".join(part["text"] for part in answer["chunks"]).split() == answer["text"].split()
    assert answer["chunks"][0]["text"].startswith(" ")
    times = [time for part in answer["chunks"] for time in part["timestamp"]]
    assert times == sorted(times)
    assert all(isinstance(time, float) and 0 <= time <= answer["duration"] for time in times)
    assert {part["speaker"] for part in answer["speakers"]} == {"SPEAKER_00", "SPEAKER_01"}


def test_ours_beside_them(answer):
    assert [word["text"] for word in answer["words"]] == answer["text"].split()
    assert " ".join(part["text"] for part in answer["utterances"]) == answer["text"]
    assert isinstance(answer["warnings"], list)


def test_every_way_to_send_it_gives_the_same(real, clip):
    """As curl and browsers do: any content type, or none; sniffed from the bytes."""
    recording = clip.read_bytes()
    answer = predict(real, recording).json()
    for headers in ({"content-type": "audio/x-wav"}, {"content-type": "text/plain"}):
        raw = httpx2.post(f"{real.url}/?num_speakers=2", content=recording, headers=headers, timeout=120)
        assert raw.json()["text"] == answer["text"]


@pytest.mark.parametrize("path", ["/", "/health"])
def test_health_is_ok_in_plain_text(fake, path):
    response = httpx2.get(fake.url + path)
    assert (response.status_code, response.text) == (200, "OK")
    assert response.headers["content-type"].startswith("text/plain")
    assert httpx2.head(fake.url + path).status_code == 200


# --- parameters -------------------------------------------------------------------------------------------------------


def test_defaults_of_the_original_are_accepted_as_it_sends_them(fake):
    original = {
        "task": "transcribe", "batch_size": 24, "assisted": False, "chunk_length_s": 30, "sampling_rate": 16000,
        "language": None, "num_speakers": None, "min_speakers": None, "max_speakers": None,
    }  # fmt: skip
    assert predict(fake, parameters=original).status_code == 200
    strings = {"batch_size": "24", "assisted": "false", "num_speakers": "2", "unknown": {"a": 1}}
    assert predict(fake, parameters=strings).status_code == 200
    assert asked(fake).hints.num_speakers == 2
    blank = {"language": "", "num_speakers": " ", "initial_prompt": "", "temperature": ""}
    assert predict(fake, parameters=blank).status_code == 200
    assert predict(fake, parameters="").status_code == 200
    assert predict(fake, parameters="null").status_code == 200


def test_parameters_reach_the_engine(fake):
    predict(fake, parameters={"task": "translate", "language": "fr", "max_speakers": 3, "diarize": False})
    request = asked(fake)
    assert (request.decoding.task, request.decoding.language) == ("translate", "fr")
    assert (request.hints.max_speakers, request.diarize) == (3, False)


def test_without_a_diarization_model_speakers_is_empty(start):
    engine = FakeEngine()
    engine._info = type(engine.info)(models={"asr": {"name": "m"}}, diarizes=False)
    running = start(engine)
    assert predict(running).json()["speakers"] == []
    assert predict(running, parameters={"diarize": True}).status_code == 400


@pytest.mark.parametrize("text", ["[]", "[1]", "3", '"x"', "true"])
def test_r18_parameters_that_are_no_object(fake, text):
    response = predict(fake, parameters=text)
    assert response.status_code == 400
    assert response.json()["error"].startswith("Error validating parameters: ")


@pytest.mark.parametrize("text", ["{", "nonsense", '{"num_speakers": NaN}', '{"a": Infinity}'])
def test_parameters_that_are_no_json(fake, text):
    assert predict(fake, parameters=text).status_code == 422


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 10**6}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"chunk_length_s": 0}, "chunk_length_s"),
        ({"chunk_length_s": 31}, "chunk_length_s"),
        ({"sampling_rate": 7999}, "sampling_rate"),
        ({"sampling_rate": 192001}, "sampling_rate"),
        ({"num_speakers": 0}, "num_speakers"),
        ({"num_speakers": 65}, "num_speakers"),
        ({"num_speakers": 3, "max_speakers": 2}, "num_speakers"),
        ({"min_speakers": 3, "max_speakers": 2}, "max_speakers"),
        ({"min_speakers": 2.5}, "min_speakers"),
        ({"task": "sing"}, "task"),
        ({"language": "klingon"}, "language"),
        ({"language": 3}, "language"),
        ({"assisted": "perhaps"}, "assisted"),
        ({"temperature": 2.1}, "temperature"),
        ({"generation_parameters": {"num_beams": 99}}, "generation_parameters.num_beams"),
    ],
)
def test_r19_bounds(fake, parameters, name):
    response = predict(fake, parameters=parameters)
    assert response.status_code == 400
    assert response.json()["error"].startswith(f"Error validating parameters: {name}: ")
    assert response.json()["error"] == response.json()["detail"]


def test_r12_r13_assisted(start):
    engine = FakeEngine()
    running = start(engine)
    response = predict(running, parameters={"assisted": True})
    assert response.status_code == 400
    assert "no assistant model" in response.json()["detail"]
    engine._info = type(engine.info)(models=engine.info.models, diarizes=True, assists=True)
    assert predict(running, parameters={"assisted": "true"}).status_code == 200


def test_r16_an_english_only_model(start):
    engine = FakeEngine()
    engine._info = type(engine.info)(models=engine.info.models, diarizes=True, multilingual=False, languages=("en",))
    running = start(engine)
    assert predict(running).status_code == 200
    assert predict(running, parameters={"task": "transcribe", "language": "en"}).status_code == 200
    assert predict(running, parameters={"language": "de"}).status_code == 400
    assert predict(running, parameters={"task": "translate"}).status_code == 400


def test_r01_silence(real):
    response = predict(real, silence())
    assert response.status_code == 200
    body = response.json()
    assert (body["speakers"], body["chunks"], body["text"]) == ([], [], "")


def silence(seconds=3.0, rate=16_000):
    samples = bytes(round(seconds * rate) * 2)
    size = len(samples)
    return (
        b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little") + b"\x01\x00\x01\x00"
        + rate.to_bytes(4, "little") + (rate * 2).to_bytes(4, "little") + b"\x02\x00\x10\x00"
        + b"data" + size.to_bytes(4, "little") + samples
    )  # fmt: skip


def test_r05_every_word_once():
    from diarist import original
    from diarist.request import Request
    from diarist.server import responses

    transcript = say("One two. Three four five. Six. Seven", Request())
    body = json.loads(responses.dump(original.answer(transcript, original.parse({}))))
    assert "".join(part["text"] for part in body["speakers"]) == f" {transcript.text}"
    assert "".join(part["text"] for part in body["chunks"]) == f" {transcript.text}"
    assert [part["timestamp"] for part in body["chunks"]] == [[0.0, 1.8], [2.0, 4.8], [5.0, 5.8], [6.0, 6.8]]


def test_r11_the_sampling_rate_changes_nothing(fake):
    bodies = [predict(fake, parameters={"sampling_rate": rate}).json() for rate in (8000, 16000, 24000, 48000)]
    assert all(body == bodies[0] for body in bodies)


def test_r14_health_answers_while_requests_run(fake):
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(predict, fake, b"fake: slow 1") for _ in range(4)]
        time.sleep(0.3)
        begun = time.perf_counter()
        assert httpx2.get(f"{fake.url}/health").text == "OK"
        assert b"diarist_engine_running" in httpx2.get(f"{fake.url}/metrics").content
        assert time.perf_counter() - begun < 0.5
        assert [future.result().status_code for future in slow] == [200] * 4


@pytest.mark.parametrize(
    "content_type",
    ["audio/mp4", "audio/aac", "audio/opus", "audio/mp3", "video/mp4", "application/octet-stream",
     "audio/webm; codecs=opus", "text/html", ""],
)  # fmt: skip
def test_r20_the_bytes_decide(fake, content_type):
    assert predict(fake, content_type=content_type).status_code == 200
    raw = httpx2.post(fake.url, content=FAKE, headers={"content-type": content_type} if content_type else {})
    assert raw.status_code == 200


def test_r17_an_m4a_with_its_index_at_the_end(real, clip):
    out = io.BytesIO()
    with av.open(str(clip)) as source, av.open(out, "w", "ipod") as target:
        stream = target.add_stream("aac", rate=16_000, layout="mono")
        for frame in source.decode(audio=0):
            for packet in stream.encode(frame):
                target.mux(packet)
        for packet in stream.encode(None):
            target.mux(packet)
    assert out.getvalue().index(b"moov") > out.getvalue().index(b"mdat")
    response = predict(real, out.getvalue(), content_type="audio/m4a")
    assert response.status_code == 200
    assert response.json()["text"].lower().startswith("hello")


def test_h27_degenerate_audio(real):
    for seconds in (1 / 16_000, 0.1):
        assert predict(real, silence(seconds)).status_code == 200
    assert predict(real, silence(0.0)).status_code in (200, 422)
    assert predict(real, silence(1.0)[:40]).status_code in (415, 422)
    assert predict(real, b"no audio at all").status_code == 415


def test_h11_client_file_names_are_only_names(fake):
    for name in ("../../etc/passwd", "a\x00b", "%2e%2e/", "x" * 4000, "CON", "a.html", "-rf", "$(id)", "`id`"):
        response = httpx2.post(f"{fake.url}/predict", files={"file": (name, FAKE, "audio/wav")})
        assert response.status_code == 200, name
    assert fake.spooled() == []
