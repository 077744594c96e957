"""Keeps one worker alive: starts it, watches it, buries it, starts the next."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from diarist.engine.messages import EngineInfo
from diarist.engine.process import WorkerProcess
from diarist.engine.watch import Watch
from diarist.engine.wire import Command, Loaded, LoadFailed, Pulse, Report, Setup

_LOOK_S = 0.5  # between two looks at the worker
_BACK_OFF_S, _MOST_BACK_OFF_S = 1.0, 30.0  # before a new start after one that came to nothing; doubled each time
_LOADING = "the models are being loaded"
_log = logging.getLogger(__name__)


class Supervisor:
    """All methods are called in one event loop.

    Args:
        command: Starts a worker.
        setup: Given to each worker.
        hang_s: Stillness after which it is replaced.
        unit_s: Longest piece of work.
        reported: Called with what the worker reports, pulses and loading aside.
        changed: Called when `ready` has changed.
        lost: Called when a worker is gone, with the requests that it was computing then.
    """

    def __init__(
        self,
        command: Sequence[str],
        setup: Setup,
        hang_s: float,
        unit_s: float,
        *,
        reported: Callable[[Report], None],
        changed: Callable[[], None],
        lost: Callable[[list[str]], None],
    ) -> None:
        self._command, self._setup, self._hang_s, self._unit_s = command, setup, hang_s, unit_s
        self._reported, self._changed, self._lost = reported, changed, lost
        self._worker: WorkerProcess | None = None
        self._watch = Watch(hang_s, unit_s, time.monotonic())
        self._stopping = False
        self._failed_starts = 0
        self._why = _LOADING
        self._task: asyncio.Task[None] | None = None
        self._past: dict[str, float] = {}  # counters of workers that are gone
        self._present: dict[str, float] = {}
        self.ready = False
        self.info = EngineInfo()
        self.rows = 1
        self.starts = 0
        """Workers started so far."""
        self._ever_ready = False

    @property
    def why_not_ready(self) -> str:
        """For people; empty when ready."""
        return "" if self.ready else self._why

    @property
    def recovering(self) -> bool:
        """Whether a worker is on its way that will most likely get ready: the last one did."""
        return self._failed_starts <= 1 and self._ever_ready

    @property
    def counters(self) -> dict[str, float]:
        """What all workers have counted so far; of gauges what the present one says."""
        names = self._past.keys() | self._present.keys()
        summed = {name: self._past.get(name, 0.0) + self._present.get(name, 0.0) for name in names}
        return {**summed, "rss_bytes": self._present.get("rss_bytes", 0.0)}

    @property
    def pid(self) -> int | None:
        """Of the present worker."""
        return self._worker.pid if self._worker else None

    def start(self) -> None:
        """Start a worker, and another whenever one is gone."""
        self._task = asyncio.create_task(self._supervise(), name="supervisor")

    def send(self, command: Command) -> None:
        """Give the worker a command."""
        if self._worker is not None:
            self._worker.send(command)

    async def stop(self) -> None:
        """End the worker, and start no other."""
        self._stopping = True
        self._not_ready("the engine is stopping")
        if self._worker is not None:
            self._worker.kill()
            await self._worker.over.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _supervise(self) -> None:
        while not self._stopping:
            self.starts += 1
            loaded_before = self._failed_starts
            self._failed_starts += 1  # until it has loaded
            self._watch = Watch(self._hang_s, self._unit_s, time.monotonic())
            self._worker = WorkerProcess(self._command, self._setup, self._heard, self._ended)
            await self._guard(self._worker)
            if self._failed_starts:
                delay_s = min(_MOST_BACK_OFF_S, _BACK_OFF_S * 2.0**loaded_before)
                _log.warning("no worker: %s; the next start is in %.0f s", self._why, delay_s)
                await asyncio.sleep(delay_s)

    async def _guard(self, worker: WorkerProcess) -> None:
        """Until the worker is gone, by itself or because it is hung."""
        while not worker.over.is_set():
            try:
                await asyncio.wait_for(worker.over.wait(), _LOOK_S)
            except TimeoutError:
                now = time.monotonic()
                self._watch.seen(now, worker.cpu_s())
                verdict = self._watch.verdict(now)
                if verdict:
                    _log.error("%s and is replaced", verdict)
                    self._not_ready(f"{verdict}; another one is being started")
                    worker.kill()

    def _heard(self, report: Report) -> None:
        match report:
            case Pulse():
                self._watch.heard(time.monotonic(), report)
                self._present = report.counters
            case Loaded():
                self._watch.loaded(time.monotonic())
                self._failed_starts = 0
                self.info, self.rows = report.info, report.rows
                self._ever_ready = True
                self.ready = not self._stopping
                self._changed()
            case LoadFailed():
                self._not_ready(f"the models cannot be loaded: {report.message}")
            case _:
                self._reported(report)

    def _ended(self, suspects: list[str]) -> None:
        self._past = {name: value for name, value in self.counters.items() if name != "rss_bytes"}
        self._present = {}
        if self.ready:
            self._not_ready("the worker has died; another one is being started")
        elif self._why == _LOADING:
            self._why = "the worker died while it was loading the models"
        self._lost(suspects)

    def _not_ready(self, why: str) -> None:
        self._why = why
        if self.ready:
            self.ready = False
            self._changed()
