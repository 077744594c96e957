"""Models that are loaded here answer."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diarist.audio import SAMPLE_RATE, waveform_stream
from diarist.benchmark.cells import Cell
from diarist.benchmark.rounds import PLAIN, Answered, Way, added
from diarist.pipeline import Pipeline
from diarist.request import Request
from diarist.transcript import Transcript

_BLOCK_S = 30.0


class LocalModels:
    """One pipeline for each assistant; speakers are not told apart.

    Args:
        assistants: Names or paths.
        language: Spoken in the recordings; None detects it for each.
        options: Of `Pipeline`.

    Raises:
        DiaristError: A model cannot be had, or an option is wrong.
    """

    def __init__(self, assistants: Sequence[str], language: str | None, **options: Any) -> None:
        options |= {"diarization_model": None, "language": language}
        self._pipelines = {
            name: Pipeline(**{**options, "assistant_model": name or None}) for name in assistants or [PLAIN.assistant]
        }
        self._first = next(iter(self._pipelines.values()))
        self.ways = [PLAIN, *(Way(name, asked) for name in assistants for asked in (True, "auto"))]

    @property
    def rows(self) -> int:
        """Windows that are decoded together."""
        return self._first.recognizer.loop.rows

    @property
    def title(self) -> str:
        return f"{self._first.models['asr']['name']}, {self._first.compute.name}, {torch.get_num_threads()} threads"

    @property
    def description(self) -> dict[str, Any]:
        """What answers, as plain values."""
        return {
            "model": self._first.models["asr"],
            "compute": self._first.compute.name,
            "threads": torch.get_num_threads(),
            "rows": self.rows,
            "assistants": {name: _described(pipeline) for name, pipeline in self._pipelines.items() if name},
        }

    def answer(self, cell: Cell, way: Way) -> Answered:
        pipeline = self._pipelines[way.assistant] if way.assistant else self._first
        decoding = pipeline.decoding_options(language=None, temperature=0.0, assisted=way.asked)
        clock = pipeline.recognizer.loop.clock.seconds
        clock.clear()
        begun = time.perf_counter()
        transcripts = transcribe_at_once(pipeline, cell.sounds, Request(decoding, diarize=False))
        return Answered(
            seconds=time.perf_counter() - begun,
            texts=tuple(transcript.text for transcript in transcripts),
            decoding_s=clock["draft"] + clock["write"],
            assistance=added([transcript.assistance for transcript in transcripts]),
        )


def _described(pipeline: Pipeline) -> dict[str, Any]:
    """An assistant, with the costs that were measured for it."""
    costs = pipeline.recognizer.loop.costs
    measured = {name: getattr(costs, name) for name in costs.__slots__} if costs else {}
    return {**(pipeline.models["assistant"] or {}), "costs": measured}


def transcribe_at_once(pipeline: Pipeline, sounds: Sequence[NDArray[np.float32]], request: Request) -> list[Transcript]:
    """Several recordings in one loop, whose batches they share; mono samples at 16 kHz."""
    found: dict[int, Transcript] = {}
    with pipeline.recognizer.lock:
        sessions = {
            number: pipeline.session(waveform_stream(sound, SAMPLE_RATE, _BLOCK_S), request)
            for number, sound in enumerate(sounds)
        }
        while sessions:
            all_wait = True
            for number, session in list(sessions.items()):
                try:
                    all_wait &= next(session)
                except StopIteration as stop:
                    found[number] = stop.value
                    del sessions[number]
            if sessions and all_wait:
                pipeline.recognizer.loop.step()
    return [found[number] for number in range(len(sounds))]
