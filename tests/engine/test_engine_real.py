"""The engine with the real base model on real recordings, in float32 so that company changes no text."""

import asyncio
import os
import signal
import time
import wave

import numpy as np
import pytest
import pytest_asyncio
import torch
from engine_helpers import running, until

from diarist.asr.decoding import Job, SpokenLanguage
from diarist.asr.options import DecodingOptions
from diarist.audio import decode
from diarist.engine.engine import EngineOptions
from diarist.engine.messages import KnownSpeaker, PartialText, Work
from diarist.engine.scheduler import Lane
from diarist.errors import CancelledError, OptionError, WorkerLostError
from diarist.pipeline import Pipeline, Request
from diarist.transcript import Transcript

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAKING = {"offline": True, "dtype": "float32", "device": "cpu"}
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
    return save(tmp_path_factory.mktemp("recordings") / "long.wav", conversation[: 75 * 16_000])


@pytest.fixture(scope="module")
def short_recording(sample_recording, tmp_path_factory):
    samples = decode(sample_recording.wav)[0]
    return save(tmp_path_factory.mktemp("recordings") / "short.wav", samples[5 * 16_000 : 17 * 16_000])


def content(transcript: Transcript):
    """All but the timings."""
    words = [(word.text, word.start, word.end, word.speaker) for word in transcript.words]
    return transcript.text, transcript.language, transcript.speakers, words, transcript.turns, transcript.warnings


async def test_transcripts_are_those_of_the_pipeline_alone_and_in_company(
    engine, pipeline, short_recording, long_recording
):
    expected = [content(pipeline(path, language="en")) for path in (short_recording, long_recording)]
    long, short = engine.submit(Work(long_recording, ENGLISH)), engine.submit(Work(short_recording, ENGLISH))
    found = [content(await short.result()), content(await long.result())]
    assert found == expected
    assert found[0][0]
    assert len(found[1][2]) == 2


async def test_partial_texts_are_the_transcript(engine, long_recording):
    ticket = engine.submit(Work(long_recording, ENGLISH, partials=True))
    events = [(time.monotonic(), event) async for event in ticket.events()]
    partials = [(when, event) for when, event in events if isinstance(event, PartialText)]
    assert "".join(partial.text for _, partial in partials) == events[-1][1].text
    assert len(partials) >= 2
    assert partials[0][0] < events[-1][0] - 0.1
    edges = [edge for _, partial in partials for edge in (partial.start, partial.end)]
    assert edges == sorted(edges)


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


async def test_known_speakers_are_named_and_strangers_are_not(
    engine, shared_data, conversation, long_recording, tmp_path
):
    turns = [line.split() for line in (shared_data / "conversations" / "two00.rttm").read_text().splitlines()]
    turns = [(float(fields[3]), float(fields[4]), fields[7]) for fields in turns]
    person = turns[0][2]
    start = next(start for start, length, who in turns if who == person and start > 75 and length > 4)
    reference = save(tmp_path / "reference.wav", conversation[round(start * 16_000) : round((start + 4) * 16_000)])
    stranger = save(tmp_path / "stranger.wav", decode(shared_data / "clips" / "jfk.flac")[0])
    known = (KnownSpeaker("Kennedy", stranger), KnownSpeaker("Ada", reference))
    plain, named = await asyncio.gather(
        engine.submit(Work(long_recording, ENGLISH)).result(),
        engine.submit(Work(long_recording, ENGLISH, known_speakers=known)).result(),
    )
    assert set(named.speakers) == {"Ada", "SPEAKER_01"}  # the first who speaks is that person
    assert [word.speaker for word in named.words] == [
        {"SPEAKER_00": "Ada"}.get(word.speaker, word.speaker) for word in plain.words
    ]


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
                DecodingOptions("en"),
                SpokenLanguage("en"),
                lambda one, i=index: results.setdefault(i, one.tokens),
                lambda error, i=index: results.setdefault(i, error),
            )
        )
    while lane.loop.pending:
        lane.work(lambda ids: None)
    return [results[index] for index in range(len(windows))]


async def test_h24_out_of_memory_changes_no_neighbour(pipeline, conversation, monkeypatch):
    windows = [conversation[first * 16_000 : (first + 6) * 16_000] for first in (5, 30, 55, 80, 105)]
    loop = pipeline.recognizer.loop.sibling(4, 4)
    expected = decoded(Lane("express", loop, 1.0), windows)
    encoder, hopeless = loop._encoder, pipeline.recognizer.loop._features

    def little_memory(features):
        if len(features) > 1:
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return encoder(features)

    def one_is_too_much(waveforms):
        if any(np.allclose(waveform[:16_000], windows[3][:16_000]) for waveform in waveforms.numpy()):
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return hopeless(waveforms)

    monkeypatch.setattr(loop, "_encoder", little_memory)
    lane = Lane("express", loop, 1.0)
    assert decoded(lane, windows) == expected
    assert lane.halvings == 2
    monkeypatch.setattr(loop, "_features", one_is_too_much)
    found = decoded(lane, windows)
    assert isinstance(found[3], torch.OutOfMemoryError)
    assert found[:3] + found[4:] == expected[:3] + expected[4:]
