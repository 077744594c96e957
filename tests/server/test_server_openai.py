"""OpenAI's contract, by its own client against a server that really listens."""

import base64
import io
import time

import openai
import pysubs2
import pytest

from diarist.errors import DeadlineError, NotReadyError, QueueFullError

KEYS_OF_SEGMENT = {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob"} | {
    "compression_ratio",
    "no_speech_prob",
}


def client_of(running, **options):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", **{"max_retries": 0, "timeout": 120, **options})


@pytest.fixture(scope="module")
def client(real):
    with client_of(real) as made:
        yield made


@pytest.fixture(scope="module")
def fakes(fake):
    with client_of(fake) as made:
        yield made


@pytest.fixture(scope="module")
def plain(client, clip):
    """The text of the sample, as `json` gives it."""
    return client.audio.transcriptions.create(file=clip, model="whisper-1").text


def normal(text):
    return " ".join(text.split())


# --- the six formats, real model --------------------------------------------------------------------------------------


def test_json(client, plain, clip):
    answer = client.audio.transcriptions.create(
        file=clip, model="whisper-1", language="en", temperature=0, include=["logprobs"]
    )
    assert "hello" in answer.text.lower()
    assert answer.text == plain
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == pytest.approx(10.0, abs=0.1)
    assert "".join(entry.token for entry in answer.logprobs) == answer.text
    assert all(entry.logprob <= 0 for entry in answer.logprobs)
    assert all(bytes(map(int, entry.bytes)).decode() == entry.token for entry in answer.logprobs)
    assert answer.languages[0].code == "en"


def test_text_srt_and_vtt(client, plain, clip):
    def get(response_format):
        return client.audio.transcriptions.create(file=clip, model="whisper-1", response_format=response_format)

    assert get("text") == f"{plain}\n"
    srt = pysubs2.SSAFile.from_string(get("srt"), format_="srt")
    assert normal(" ".join(line.plaintext.replace("\n", " ") for line in srt)) == plain
    vtt = get("vtt")
    assert vtt.startswith("WEBVTT\n\n")
    assert normal(" ".join(line.plaintext for line in pysubs2.SSAFile.from_string(vtt, format_="vtt"))) == plain


def test_verbose_json(client, plain, clip):
    answer = client.audio.transcriptions.create(
        file=clip,
        model="whisper-1",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (answer.language, answer.text) == ("english", plain)
    assert answer.duration == pytest.approx(10.0, abs=0.1)
    assert normal("".join(segment.text for segment in answer.segments)) == normal(plain)
    assert [segment.id for segment in answer.segments] == list(range(len(answer.segments)))
    assert all(segment.model_dump().keys() >= KEYS_OF_SEGMENT for segment in answer.segments)
    assert any(segment.tokens for segment in answer.segments)
    assert normal(" ".join(word.word for word in answer.words)) == plain
    times = [time for word in answer.words for time in (word.start, word.end)]
    assert times == sorted(times)
    words = client.audio.transcriptions.create(
        file=clip,
        model="whisper-1",
        response_format="verbose_json",
        timestamp_granularities=["word"],
    )
    assert words.segments is None
    assert len(words.words) == len(answer.words)


def test_diarized_json(client, sample_recording):
    answer = client.audio.transcriptions.create(
        file=sample_recording.wav,
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        chunking_strategy="auto",
        extra_body={"num_speakers": 2},
    )
    assert {segment.speaker for segment in answer.segments} == {"A", "B"}
    assert answer.segments[0].speaker == "A"
    assert answer.segments[0].id == "seg_001"
    assert all(segment.type == "transcript.text.segment" for segment in answer.segments)
    plain = client.audio.transcriptions.create(file=sample_recording.wav, model="whisper-1").text
    assert normal(" ".join(segment.text for segment in answer.segments)) == plain
    assert answer.text.split("\n") == [f"{segment.speaker}: {segment.text}" for segment in answer.segments]


def test_streams(client, plain, clip):
    for response_format in ("json", "diarized_json"):
        events = list(
            client.audio.transcriptions.create(
                file=clip, model="gpt-4o-transcribe", response_format=response_format, stream=True
            )
        )
        kinds = [event.type for event in events]
        assert kinds[0] == "transcript.text.delta"
        assert kinds[-1] == "transcript.text.done"
        assert "".join(event.delta for event in events if event.type.endswith("delta")) == plain
        assert events[-1].text == plain
        segments = [event for event in events if event.type.endswith("segment")]
        assert bool(segments) == (response_format == "diarized_json")
        assert normal(" ".join(segment.text for segment in segments)) in ("", plain)


async def test_the_async_client(real, plain, clip):
    async with openai.AsyncOpenAI(base_url=f"{real.url}/api/v1", api_key="none", max_retries=0) as client:
        answer = await client.audio.transcriptions.create(file=clip, model="x")
        assert answer.text == plain
        stream = await client.audio.transcriptions.create(file=clip, model="x", stream=True)
        assert [event async for event in stream][-1].text == plain


def test_translations(client, clip):
    with pytest.warns(DeprecationWarning, match="deprecated"):
        answer = client.audio.translations.create(file=clip, model="whisper-1")
    assert "hello" in answer.text.lower()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        verbose = client.audio.translations.create(file=clip, model="whisper-1", response_format="verbose_json")
    assert (verbose.language, bool(verbose.segments)) == ("english", True)


def test_models(client):
    listed = [model.id for model in client.models.list()]
    assert listed[0] == "base"
    assert "whisper-1" in listed
    assert client.models.retrieve("base").owned_by == "diarist"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("a/b c")
    assert raised.value.code == "model_not_found"


# --- parameters, fake engine ------------------------------------------------------------------------------------------


def create(client, content="fake: say Hello there. Hi.", **options):
    return client.audio.transcriptions.create(file=content.encode(), model="whisper-1", **options)


def asked(fake):
    return fake.engine.submitted[-1].work


def test_every_parameter_reaches_the_engine(fake, fakes):
    create(
        fakes,
        prompt="Names: Zoë",
        language="German",
        temperature=0.4,
        chunking_strategy={"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300},
        extra_body={"keywords": ["Köln", "Rhein"], "min_speakers": 1, "max_speakers": 3, "beam_size": 2},
    )
    work = asked(fake)
    assert work.request.decoding.initial_prompt == "Names: Zoë"
    assert work.request.decoding.hotwords == "Köln, Rhein"
    assert work.request.decoding.language == "de"
    assert work.request.decoding.temperatures == (0.4,)
    assert work.request.decoding.beam_size == 2
    assert (work.request.hints.min_speakers, work.request.hints.max_speakers) == (1, 3)
    assert work.request.diarize
    assert not work.partials


def test_defaults_are_the_models_own(fake, fakes):
    create(fakes)
    work = asked(fake)
    assert work.request.decoding.language is None
    assert work.request.decoding.temperatures[:2] == (0.0, 0.2)
    assert not work.request.diarize


def test_known_speakers(fake, fakes):
    voice = f"data:audio/wav;base64,{base64.b64encode(b'RIFF' * 500_000).decode()}"
    answer = create(
        fakes,
        "fake: say I am Ann. I am new. So am I.",
        response_format="diarized_json",
        extra_body={"known_speaker_names": ["Ann"], "known_speaker_references": [voice]},
    )
    assert [segment.speaker for segment in answer.segments] == ["Ann", "A", "B"]
    known = asked(fake).known_speakers
    assert [speaker.name for speaker in known] == ["Ann"]
    assert not known[0].recording.exists()  # removed with the request
    assert fake.spooled() == []


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"language": "klingon"}, "language"),
        ({"language": "ja"}, "language"),
        ({"response_format": "doc"}, "response_format"),
        ({"include": ["everything"]}, "include"),
        ({"timestamp_granularities": ["sentence"]}, "timestamp_granularities"),
        ({"chunking_strategy": "never"}, "chunking_strategy"),
        ({"chunking_strategy": {"type": "server_vad", "threshold": 7}}, "chunking_strategy"),
        ({"stream": True, "response_format": "srt"}, "stream"),
        ({"extra_body": {"num_speakers": 0}}, "num_speakers"),
        ({"extra_body": {"num_speakers": 9, "max_speakers": 2}}, "num_speakers"),
        ({"extra_body": {"min_speakers": 3, "max_speakers": 2}}, "min_speakers"),
        ({"extra_body": {"known_speaker_names": ["Ann"]}}, "known_speaker_references"),
        ({"extra_body": {"known_speaker_names": ["Ann"], "known_speaker_references": ["/etc/passwd"]}},
         "known_speaker_references"),
        ({"extra_body": {"known_speaker_names": ["Ann"], "known_speaker_references": ["data:audio/wav;base64,%%%%"]}},
         "known_speaker_references"),
        ({"extra_body": {"known_speaker_names": list("abcde"), "known_speaker_references": list("abcde")}},
         "known_speaker_names"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fakes, options, param):
    with pytest.raises(openai.BadRequestError) as raised:
        create(fakes, **options)
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"
    assert raised.value.code in ("invalid_option", "invalid_base64")
    assert raised.value.request_id.startswith("req_")


def test_bare_names_of_lists_and_files_first(fake):
    """As with `curl -F`: the file first, lists without brackets."""
    import httpx2

    answer = httpx2.post(
        f"{fake.url}/v1/audio/transcriptions",
        files=[
            ("file", ("a.wav", b"fake: say Hello.", "audio/wav")),
            *[("timestamp_granularities", (None, part)) for part in ("word", "segment")],
            *[("model", (None, "m")), ("response_format", (None, "verbose_json"))],
        ],
    )
    assert answer.status_code == 200
    assert answer.json()["words"][0]["word"] == "Hello."
    assert answer.json()["segments"][0]["text"] == " Hello."


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "raised", "status", "code"),
    [
        ("AudioFormatError", openai.APIStatusError, 415, "audio_format"),
        ("AudioCorruptError", openai.UnprocessableEntityError, 422, "audio_corrupt"),
        ("AudioTooLargeError", openai.APIStatusError, 413, "audio_too_large"),
        ("OptionError", openai.BadRequestError, 400, "invalid_option"),
        ("OutOfMemoryError", openai.InternalServerError, 503, "out_of_memory"),
        ("WorkerLostError", openai.InternalServerError, 503, "worker_lost"),
        ("PoisonError", openai.UnprocessableEntityError, 422, "poison_input"),
        ("DeadlineError", openai.InternalServerError, 504, "deadline_exceeded"),
        ("TranscriptError", openai.InternalServerError, 500, "transcript_invalid"),
        ("ZeroDivisionError", openai.InternalServerError, 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_h17_errors_become_the_clients_classes(fakes, error, raised, status, code, stream):
    with pytest.raises(raised) as caught:
        create(fakes, f"fake: error {error}", stream=stream)
    assert caught.value.status_code == status
    assert caught.value.code == code
    assert caught.value.request_id.startswith("req_")
    assert "secret" not in str(caught.value.body)
    assert ("retry-after" in caught.value.response.headers) == (status == 503)


def test_h01_a_full_queue_is_told_at_once(start):
    running = start()
    running.engine.refuse = QueueFullError("full", retry_after_s=4000.0)
    with client_of(running) as client, pytest.raises(openai.RateLimitError) as caught:
        create(client)
    assert caught.value.response.headers["retry-after"] == "120"
    running.engine.refuse = NotReadyError("loading", retry_after_s=1.5)
    with client_of(running) as client, pytest.raises(openai.InternalServerError) as caught:
        create(client)
    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "2")


def test_h01_the_client_tries_again(start):
    """Its own retries, which read our headers, end with an answer."""
    running = start()
    running.engine.refuse = QueueFullError("full", retry_after_s=1.0)
    import threading

    threading.Timer(0.5, lambda: setattr(running.engine, "refuse", None)).start()
    with client_of(running, max_retries=2) as client:
        assert create(client).text == "Hello there. Hi."


def test_h19_a_deadline_is_not_retried(fakes, fake):
    before = len(fake.engine.submitted)
    with client_of(fake, max_retries=3) as client, pytest.raises(openai.InternalServerError):
        create(client, f"fake: error {DeadlineError.__name__}")
    assert len(fake.engine.submitted) == before + 1


def test_empty_and_missing_files(fakes, fake):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        create(fakes, "")
    assert caught.value.code == "audio_empty"
    import httpx2

    answer = httpx2.post(f"{fake.url}/v1/audio/transcriptions", files={"model": (None, "m")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    answer = httpx2.post(f"{fake.url}/v1/audio/transcriptions", files={"file": ("a", b"fake: say Hi.")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    answer = httpx2.post(f"{fake.url}/v1/audio/transcriptions", json={"model": "m"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_form")


# --- streaming --------------------------------------------------------------------------------------------------------


def test_deltas_come_while_the_engine_works(fakes):
    begun = time.monotonic()
    arrivals = []
    for event in create(fakes, "fake: stream 5", stream=True):
        arrivals.append((event.type, time.monotonic() - begun))
    deltas = [at for kind, at in arrivals if kind.endswith("delta")]
    assert len(deltas) == 5
    assert deltas[0] < deltas[-1] - 0.3  # not all at the end
    assert arrivals[-1][0] == "transcript.text.done"


def test_a_stream_that_fails_midway_ends_with_an_error(fakes):
    with pytest.raises(openai.APIError, match="lost with its worker") as caught:
        list(create(fakes, "fake: lost", stream=True))
    assert caught.value.code == "worker_lost"


def test_progress_only_on_demand(fakes):
    kinds = {event.type for event in create(fakes, "fake: stream 2", stream=True)}
    assert kinds == {"transcript.text.delta", "transcript.text.done"}


def test_a_file_like_object_works(fakes):
    file = io.BytesIO(b"fake: say Hello.")
    assert fakes.audio.transcriptions.create(file=file, model="m").text == "Hello."
