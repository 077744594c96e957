"""The engine with the real base model on real recordings."""

import os
import signal
import time
import wave

import jiwer
import numpy as np
import pytest
import pytest_asyncio
import torch
from engine_helpers import running, until

from diarist.asr.decoding import DecodingLoop, Job, SpokenLanguage
from diarist.asr.options import DecodingOptions
from diarist.audio import decode
from diarist.compute import choose
from diarist.engine.engine import EngineOptions
from diarist.engine.messages import KnownSpeaker, PartialText, Work
from diarist.engine.scheduler import Lane
from diarist.errors import CancelledError, OptionError, WorkerLostError
from diarist.models import load_whisper
from diarist.pipeline import Pipeline
from diarist.request import Request
from diarist.transcript import Transcript

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAKING = {"offline": True, "device": "cpu"}
ENGLISH = Request(DecodingOptions("en"))


@pytest.fixture(scope="module")
def pipeline(base_model, segmentation_model, embedding_model, plda_model):
    return Pipeline(**MAKING)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_engine(pipeline):
    async with running(EngineOptions(pipeline={**MAKING, "threads": 1}, hang_s=2.5, heartbeat_s=0.2)) as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def engine(shared_engine):
    await until(lambda: shared_engine.ready and not shared_engine._with_worker)
    return shared_engine


def save(path, samples: np.ndarray):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype(np.int16).tobytes())
    return path


@pytest.fixture(scope="module")
def conversation(shared_data):
    """The samples of a conversation of two."""
    return decode(shared_data / "conversations" / "two00.flac")[0]


@pytest.fixture(scope="module")
def long_recording(conversation, tmp_path_factory):
    """Longer than what is short."""
    return save(tmp_path_factory.mktemp("recordings") / "long.wav", conversation[: 64 * 16_000])


@pytest.fixture(scope="module")
def short_recording(sample_recording, tmp_path_factory):
    samples = decode(sample_recording.wav)[0]
    return save(tmp_path_factory.mktemp("recordings") / "short.wav", samples[5 * 16_000 : 17 * 16_000])


def content(transcript: Transcript):
    """All but the timings."""
    words = [(word.text, word.start, word.end, word.speaker) for word in transcript.words]
    return transcript.text, transcript.language, transcript.speakers, words, transcript.turns, transcript.warnings


async def test_the_transcript_is_that_of_the_pipeline(engine, pipeline, short_recording):
    """With as many threads as the worker has: how they share a sum changes its last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = content(pipeline(short_recording, language="en"))
    finally:
        torch.set_num_threads(threads)
    assert content(await engine.submit(Work(short_recording, ENGLISH)).result()) == expected


async def test_two_at_once_are_transcribed_as_well_as_one(engine, pipeline, short_recording, long_recording):
    """Company may change the last bit of a sum, and with it once in a while a word."""
    expected = pipeline(long_recording, language="en")
    long = engine.submit(Work(long_recording, ENGLISH, partials=True))
    short = engine.submit(Work(short_recording, ENGLISH))
    events = [event async for event in long.events()]
    found = events[-1]
    assert jiwer.wer(expected.text, found.text) < 0.03
    assert (found.speakers, found.language, found.duration) == (expected.speakers, "en", expected.duration)
    assert "".join(event.text for event in events if isinstance(event, PartialText)) == found.text
    edges = [edge for event in events if isinstance(event, PartialText) for edge in (event.start, event.end)]
    assert edges == sorted(edges)
    assert (await short.result()).text


async def test_h18_a_running_request_is_cancelled_soon(engine, long_recording, short_recording):
    ticket = engine.submit(Work(long_recording, ENGLISH))
    await until(lambda: ticket.status.fraction is not None)
    ticket.cancel()
    with pytest.raises(CancelledError):
        await ticket.result()
    assert await until(lambda: not engine._with_worker) < 2.0
    assert (await engine.submit(Work(short_recording, ENGLISH)).result()).text


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_h22_the_worker_is_killed_or_stopped(engine, long_recording, short_recording, how):
    worker = engine.worker_pid
    ticket = engine.submit(Work(long_recording, ENGLISH))
    await until(lambda: ticket.status.fraction is not None)
    os.kill(worker, how)
    begun = time.monotonic()
    with pytest.raises(WorkerLostError):
        await ticket.result()
    assert time.monotonic() - begun < (1.0 if how == signal.SIGKILL else 4.0)
    assert (await engine.submit(Work(short_recording, ENGLISH)).result()).text
    assert engine.worker_pid != worker


async def test_a_request_that_the_model_cannot_do_fails_alone(engine, short_recording):
    unknown = Request(DecodingOptions("yue"))  # base knows no Cantonese
    with pytest.raises(OptionError, match="language"):
        await engine.submit(Work(short_recording, unknown)).result()


async def test_known_speakers_are_named_and_strangers_are_not(engine, shared_data, conversation, tmp_path):
    turns = [line.split() for line in (shared_data / "conversations" / "two00.rttm").read_text().splitlines()]
    turns = [(float(fields[3]), float(fields[4]), fields[7]) for fields in turns]
    person = turns[0][2]
    start = next(start for start, length, who in turns if who == person and start > 75 and length > 4)
    reference = save(tmp_path / "reference.wav", conversation[round(start * 16_000) : round((start + 4) * 16_000)])
    stranger = save(tmp_path / "stranger.wav", decode(shared_data / "clips" / "jfk.flac")[0])
    known = (KnownSpeaker("Kennedy", stranger), KnownSpeaker("Ada", reference))
    recording = save(tmp_path / "recording.wav", conversation[: 40 * 16_000])
    named = await engine.submit(Work(recording, ENGLISH, known_speakers=known)).result()
    assert set(named.speakers) == {"Ada", "SPEAKER_01"}
    assert named.words[0].speaker == "Ada"  # the first who speaks is that person


async def test_a_reference_without_a_voice_is_refused(engine, short_recording, tmp_path):
    silent = save(tmp_path / "silent.wav", np.zeros(32_000))
    with pytest.raises(OptionError, match="known_speakers"):
        await engine.submit(Work(short_recording, ENGLISH, known_speakers=(KnownSpeaker("A", silent),))).result()


def decoded(lane: Lane, windows: list[np.ndarray]) -> list[tuple[int, ...] | Exception]:
    """What a lane's loop makes of windows."""
    results: dict[int, tuple[int, ...] | Exception] = {}
    for index, window in enumerate(windows):
        lane.loop.submit(
            Job(
                torch.from_numpy(window.copy()),
                DecodingOptions("en", temperatures=(0.0,)),
                SpokenLanguage("en"),
                lambda one, i=index: results.setdefault(i, one.tokens),
                lambda error, i=index: results.setdefault(i, error),
            )
        )
    while lane.loop.pending:
        lane.work(lambda ids: None)
    return [results[index] for index in range(len(windows))]


async def test_h24_out_of_memory_changes_no_neighbour(tiny_en_model, conversation, monkeypatch):
    windows = [conversation[first * 16_000 : (first + 6) * 16_000] for first in (5, 55, 105)]
    loop = DecodingLoop(load_whisper(tiny_en_model), choose("cpu", "float32"), rows=4, encode_batch=4)
    expected = decoded(Lane("express", loop, 1.0, time.perf_counter), windows)
    encoder, features_of = loop._encoder, loop._features

    def little_memory(features):
        if len(features) > 1:
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return encoder(features)

    def one_is_too_much(waveforms):
        if any(np.allclose(waveform[:16_000], windows[1][:16_000]) for waveform in waveforms.numpy()):
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return features_of(waveforms)

    monkeypatch.setattr(loop, "_encoder", little_memory)
    lane = Lane("express", loop, 1.0, time.perf_counter)
    assert decoded(lane, windows) == expected
    assert lane.halvings == 2
    monkeypatch.setattr(loop, "_features", one_is_too_much)
    found = decoded(lane, windows)
    assert isinstance(found[1], torch.OutOfMemoryError)
    assert (found[0], found[2]) == (expected[0], expected[2])
