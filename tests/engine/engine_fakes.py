"""A decode loop, tasks and a pipeline without models, for faults: slow, hanging, crashing, out of memory.

What goes wrong with a recording is said by its request's `initial_prompt`.
"""

import contextlib
import math
import os
import signal
import time
import types
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diarist.asr.options import DecodingOptions
from diarist.engine.messages import Work
from diarist.errors import ModelNotFoundError
from diarist.pipeline import Progress, SessionOptions
from diarist.request import Request
from diarist.timeline import Word
from diarist.transcript import build


class AcceleratorError(RuntimeError):
    """Named as torch's error of a device that can no longer be trusted."""


@dataclass(eq=False)
class FakeJob:
    """A window: so many tokens to write."""

    deliver: Callable[[], None] = lambda: None
    fail: Callable[[Exception], None] = lambda error: None
    tokens: int = 5
    fault: str = ""
    """"" or: "oom:N" cannot be decoded with more than N others, "bug" not at all, "broken" breaks the device, "crash_step" the process."""
    written: int = 0
    cancelled: bool = False


@dataclass(eq=False)
class FakeLoop:
    """A `scheduler.Loop`."""

    rows: int = 8
    encode_batch: int = 2
    pause: Callable[[], None] = lambda: None
    """Called in every step: the time that it takes."""
    waiting: list[FakeJob] = field(default_factory=list)
    running: list[FakeJob] = field(default_factory=list)
    vocabulary = types.SimpleNamespace(languages={"en": 0, "de": 1}, multilingual=True)

    def __post_init__(self) -> None:
        self.limit = self.rows

    def sibling(self, rows: int, encode_batch: int) -> "FakeLoop":
        return FakeLoop(rows, encode_batch, self.pause)

    @property
    def pending(self) -> int:
        return len(self.waiting) + len(self.running)

    @property
    def active(self) -> int:
        return len(self.running)

    @property
    def wanted(self) -> int:
        return max(0, self.limit + self.encode_batch - self.pending)

    def submit(self, job: FakeJob) -> None:
        self.waiting.append(job)

    def step(self) -> None:
        self.pause()
        self.waiting = [job for job in self.waiting if not job.cancelled]
        self.running = [job for job in self.running if not job.cancelled]
        while self.waiting and len(self.running) < self.limit:
            self.running.append(self.waiting.pop(0))
        for job in self.running:
            self._go_wrong(job)
            job.written += 1
        for job in [job for job in self.running if job.written >= job.tokens]:
            self.running.remove(job)
            job.deliver()

    def _go_wrong(self, job: FakeJob) -> None:
        kind, _, number = job.fault.partition(":")
        if kind == "oom" and len(self.running) > int(number):
            raise MemoryError
        if kind == "bug":
            raise KeyError("deep inside")
        if kind == "broken":
            raise AcceleratorError("an illegal memory access was encountered")
        if kind == "crash_step":
            os.kill(os.getpid(), signal.SIGSEGV)

    def restart(self, limit: int) -> None:
        for job in self.running:
            job.written = 0
        self.waiting = self.running + self.waiting
        self.running = []
        self.limit = min(max(1, limit), self.rows)

    def give_up(self, error: Exception) -> None:
        self.waiting.pop(0).fail(error)

    def rest(self) -> None:
        pass

    def relax(self) -> None:
        self.limit = min(2 * self.limit, self.rows)


@dataclass
class Machine:
    """A clock that work moves, with what was done when."""

    now: float = 0.0
    log: list[tuple[float, list[str]]] = field(default_factory=list)

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def at(self, ids) -> None:
        self.log.append((self.now, list(ids)))


class FakeTask:
    """Pieces of work of so many seconds each; every one but the first brings a window."""

    def __init__(self, id_: str, machine: Machine, loop: FakeLoop, pieces: list[float], fault: str = "") -> None:
        self.id, self.ready, self.over = id_, True, False
        self.machine, self.loop, self.pieces, self.fault = machine, loop, list(pieces), fault
        self.jobs: list[FakeJob] = []
        self.texts = 0
        self.error: Exception | None = None
        self.ended = math.nan

    @property
    def seconds_left(self) -> float:
        return sum(self.pieces)

    def advance(self) -> bool:
        assert self.ready
        if self.pieces:
            self.machine.spend(self.pieces.pop(0))
            self.jobs.append(FakeJob(self._deliver, self._fail, fault=self.fault))
            self.loop.submit(self.jobs[-1])
            return False
        if self.error is None and self.texts < len(self.jobs):
            return True
        self.over, self.ended = True, self.machine.now
        return False

    def cancel(self) -> None:
        self.over = True
        for job in self.jobs:
            job.cancelled = True

    def _deliver(self) -> None:
        self.texts += 1

    def _fail(self, error: Exception) -> None:
        self.error = error


class FakePipeline:
    """Every ten seconds of sound are one window, and one word."""

    def __init__(self, *, load_s: float = 0.0, step_s: float = 0.002, missing: bool = False, flag: str = "") -> None:
        if missing or (flag and not Path(flag).exists()):
            raise ModelNotFoundError("no source has the model 'fake'")
        time.sleep(load_s)
        loop = FakeLoop(pause=lambda: time.sleep(step_s))
        self.recognizer = types.SimpleNamespace(loop=loop)
        self.models = {"asr": {"name": "fake"}, "assistant": None, "diarization": None}
        self.diarizes = False
        self.compute = types.SimpleNamespace(name="cpu fake", device=types.SimpleNamespace(type="cpu"))

    def check(self, request: Request) -> None:
        """Everything can be done."""

    def voice(self, waveform):
        return waveform[:256]

    def session(self, audio, request: Request, options: SessionOptions) -> Iterator[bool]:
        fault = request.decoding.initial_prompt or ""
        words: dict[int, Word] = {}
        errors: list[Exception] = []
        jobs: list[FakeJob] = []
        told = 0

        def report() -> None:
            nonlocal told
            if errors:
                raise errors[0]
            while options.heard is not None and told in words:
                options.heard([words[told]])
                told += 1
            options.progress(Progress("transcribing", len(words) * 10.0, audio.info.duration))

        try:
            for number, block in enumerate(audio):
                self._go_wrong(fault)
                place = Word(f"w{number}", number * 10.0, number * 10.0 + len(block) / 16_000, 1.0)
                jobs.append(FakeJob(lambda n=number, w=place: words.setdefault(n, w), errors.append, fault=fault))
                options.loop.submit(jobs[-1])
                report()
                yield False
                while len(words) < len(jobs) and not options.loop.wanted:
                    yield True
                    report()
            while len(words) < len(jobs):
                yield True
                report()
            report()
            ordered = [words[number] for number in sorted(words)]
            return build(ordered, duration=audio.seconds_read, language="en", timings={"recognition": 0.1})
        finally:
            for job in jobs:
                job.cancelled = True

    @staticmethod
    def _go_wrong(fault: str) -> None:
        match fault:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                time.sleep(3600)
            case "spin":
                while True:
                    pass
            case "bug_here":
                raise KeyError("deep inside")
            case "memory":
                raise MemoryError


def silence(path: Path, seconds: float, mark: int = 0) -> Path:
    """A recording of that length; `mark` makes its bytes its own."""
    samples = np.zeros(round(seconds * 16_000), np.int16)
    samples[:1] = mark
    with contextlib.closing(wave.open(str(path), "wb")) as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def work(recording: Path, fault: str = "", **options) -> Work:
    return Work(recording, Request(DecodingOptions("en", initial_prompt=fault or None), diarize=False), **options)


if __name__ == "__main__":
    from diarist.engine.worker import main

    main(FakePipeline)
