"""The worker process: owns the models and computes. Started by `process.WorkerProcess`, never by hand.

Threads: the main one computes, one piece of work after the other, as the scheduler says; one receives commands; one
says every heartbeat how the computing thread is; one keeps memory small; each request has one that reads its sound
ahead; one does what can be done beside the computing. When the engine's end of the pipe closes, the process is over at
once.
"""

import contextlib
import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from diarist import Pipeline
from diarist.audio import sandbox_layers
from diarist.engine.intake import Intake
from diarist.engine.memory import keep_small, resident_bytes, settle
from diarist.engine.messages import EngineInfo
from diarist.engine.pipe import Channel
from diarist.engine.scheduler import Loop, Scheduler
from diarist.engine.task import Transcription, worded
from diarist.engine.wire import (
    Begin,
    Blackboard,
    Cancel,
    Command,
    Failed,
    LaneName,
    Loaded,
    LoadFailed,
    Opened,
    Parked,
    Pulse,
    Setup,
)
from diarist.errors import CancelledError, DiaristError

_PR_SET_PDEATHSIG = 1
_URGENT_ROWS = 4
_OPENED_AT_ONCE = min(4, len(os.sched_getaffinity(0)))  # recordings whose beginning is decoded: each fills a core
_REST_AFTER_S = 5.0  # memory that was handed back takes some 10 ms to be had again
_SOON_S = 0.08  # the beginning of a recording is read in a third of it, if its decoder gets a processor
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Arrived:
    """The beginning of a request's sound is there, or the error instead of it."""

    begin: Begin
    error: DiaristError | None


_WAKE = None  # put into the inbox so that the computing thread looks around


class Worker:
    """The computing thread's side of it.

    Args:
        pipeline: The models, loaded.
        setup: As the engine wants it.
        tell: Sends a report.
        put_up: Told which requests the coming piece of work is about.
    """

    def __init__(
        self, pipeline: Any, setup: Setup, tell: Callable[[Any], None], put_up: Callable[[Iterable[str]], None]
    ) -> None:
        self._pipeline, self._setup, self._tell, self._put_up = pipeline, setup, tell, put_up
        self._inbox: queue.SimpleQueue[Command | _Arrived | None] = queue.SimpleQueue()
        self._intakes: dict[str, Intake] = {}
        self._scheduler = Scheduler(self._make_loop, self._at)
        self._aside = ThreadPoolExecutor(1, "aside")
        self._gates = {urgent: threading.Semaphore(_OPENED_AT_ONCE) for urgent in (False, True)}
        self._thread_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._units = 0
        self._since = 0.0  # when the present piece of work began; 0 between two
        self._expected_until = 0.0  # until when the sound of an urgent request is waited for
        self._audio_s = 0.0

    def put(self, command: Command) -> None:
        """Take a command, from any thread."""
        self._inbox.put(command)

    def pulse(self) -> Pulse:
        """How it is, for any thread to tell."""
        since = self._since
        return Pulse(
            units=self._units,
            busy_s=time.monotonic() - since if since else 0.0,
            compute_cpu_s=time.clock_gettime(self._thread_clock),
            counters=self._counters(),
        )

    def run(self) -> None:
        """Compute for ever."""
        while True:
            self._handle_waiting()
            self._await_urgent()
            if not self._scheduler.run_once():
                self._handle(self._next())

    def _next(self) -> Command | _Arrived | None:
        """What comes next, however long it takes."""
        try:
            return self._inbox.get(timeout=_REST_AFTER_S)
        except queue.Empty:
            self._scheduler.rest()
            return self._inbox.get()

    def _counters(self) -> dict[str, float]:
        lanes = list(self._scheduler.lanes.values())
        return {
            "audio_seconds": self._audio_s,
            "compute_seconds": self._scheduler.compute_s,
            "decode_steps": sum(lane.steps for lane in lanes),
            "decode_rows": sum(lane.rows_used for lane in lanes),
            "oom_halvings": sum(lane.halvings for lane in lanes),
            "rss_bytes": resident_bytes(),
        }

    def _make_loop(self, name: LaneName) -> Loop:
        main = self._pipeline.recognizer.loop
        rows = {"urgent": min(_URGENT_ROWS, main.rows), "solo": 1}.get(name, main.rows)
        # On a processor several windows are encoded hardly faster together, and what comes meanwhile waits for all of them.
        together = 1 if self._pipeline.compute.device.type == "cpu" else main.encode_batch
        return main.sibling(rows, min(rows, together))  # type: ignore[no-any-return]

    def _at(self, ids: Iterable[str]) -> None:
        ids = list(ids)
        self._put_up(ids)
        self._units += 1
        self._since = time.monotonic() if ids else 0.0

    def _handle_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._handle(self._inbox.get_nowait())

    def _await_urgent(self) -> None:
        """Begin no piece of work that an urgent request, whose sound will be there in a moment, would have to wait for."""
        urgent = self._scheduler.lanes.get("urgent")
        with contextlib.suppress(queue.Empty):
            while (left_s := self._expected_until - time.monotonic()) > 0 and not (urgent and urgent.has_work):
                self._handle(self._inbox.get(timeout=left_s))

    def _handle(self, message: Command | _Arrived | None) -> None:
        match message:
            case Begin():
                if message.urgent:
                    self._expected_until = time.monotonic() + _SOON_S
                self._intakes[message.id] = Intake(
                    message.work,
                    self._setup.limits,
                    self._gates[message.urgent],
                    opened=lambda error: self._inbox.put(_Arrived(message, error)),
                    more=lambda: self._inbox.put(_WAKE),
                )
            case Cancel():
                self._cancel(message.id)
            case _Arrived():
                self._admit(message.begin, message.error)

    def _admit(self, begin: Begin, error: DiaristError | None) -> None:
        if begin.urgent:
            self._expected_until = 0.0
        intake = self._intakes.pop(begin.id, None)
        if intake is None:  # cancelled meanwhile
            return
        if error is not None:
            self._tell(Failed(begin.id, error))
            return
        if intake.long and not begin.long:
            intake.close()
            self._tell(Parked(begin.id, intake.seconds))
            return
        lane: LaneName = "solo" if begin.solo else "bulk" if intake.long else "urgent" if begin.urgent else "express"
        try:
            loop = self._scheduler.lane(lane).loop
        except (MemoryError, RuntimeError) as no_room:  # a lane's cache is made when it is first needed
            intake.close()
            self._tell(Failed(begin.id, worded(no_room)))
            return
        self._tell(Opened(begin.id, intake.seconds))
        task = Transcription(
            begin.id,
            begin.work,
            intake,
            self._pipeline,
            loop,
            None if lane == "urgent" else self._aside,  # to hand it over means to wait for another's piece of work
            self._tell,
            wake=lambda: self._inbox.put(_WAKE),
            done=self._count,
        )
        self._scheduler.lane(lane).tasks.append(task)

    def _cancel(self, id_: str) -> None:
        intake = self._intakes.pop(id_, None)
        if intake is not None:
            intake.close()
            self._tell(Failed(id_, CancelledError("the request was cancelled")))
        self._scheduler.cancel(id_)

    def _count(self, seconds: float) -> None:
        self._audio_s += seconds


def main(make_pipeline: Callable[..., Any] = Pipeline) -> None:
    """Serve until the engine hangs up.

    Args:
        make_pipeline: Makes the models from `Setup.pipeline`; tests give another.
    """
    _die_with_parent()
    keep_small()
    channel = Channel.from_descriptor(int(sys.argv[1]))
    blackboard = Blackboard(int(sys.argv[2]))
    setup: Setup = channel.receive()
    beat = _Heart(channel, setup.heartbeat_s)
    try:
        pipeline = make_pipeline(**setup.pipeline)
        info = describe(pipeline)
    except DiaristError as error:
        channel.send(LoadFailed(str(error)))
        return
    settle()
    worker = Worker(pipeline, setup, channel.send, blackboard.write)
    threading.Thread(target=_receive, args=(channel, worker), name="commands", daemon=True).start()
    beat.pulse = worker.pulse
    channel.send(Loaded(info, pipeline.recognizer.loop.rows))
    try:
        worker.run()
    except Exception:  # noqa: BLE001 - whatever it was
        _log.exception("the worker cannot go on")
        os._exit(70)  # at once: what the accelerator still writes is not to be trusted


def describe(pipeline: Any) -> EngineInfo:
    """What a pipeline can do."""
    vocabulary = pipeline.recognizer.loop.vocabulary
    return EngineInfo(
        models=pipeline.models,
        languages=tuple(vocabulary.languages) if vocabulary.multilingual else ("en",),
        multilingual=vocabulary.multilingual,
        diarizes=pipeline.diarizes,
        assists=pipeline.models.get("assistant") is not None,
        device=pipeline.compute.name,
        sandbox=sandbox_layers(),
    )


class _Heart:
    """The thread that says how the worker is. `pulse` may be replaced at any time."""

    def __init__(self, channel: Channel, heartbeat_s: float) -> None:
        self.pulse: Callable[[], Pulse] = Pulse
        self._channel, self._heartbeat_s = channel, heartbeat_s
        threading.Thread(target=self._run, name="heart", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._channel.send(self.pulse())
            except OSError:
                os._exit(0)
            time.sleep(self._heartbeat_s)


def _receive(channel: Channel, worker: Worker) -> None:
    while True:
        try:
            worker.put(channel.receive())
        except EOFError:
            os._exit(0)  # whatever the computing thread is at; decoders die of their broken pipes


def _die_with_parent() -> None:
    """Have the kernel kill this process with the thread that started it, even if it is stopped."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
