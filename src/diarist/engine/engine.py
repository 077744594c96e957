"""The engine as a server sees it: admits requests, supervises the worker that owns the models."""

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diarist.audio import DecodeLimits
from diarist.engine.fairness import FairQueue, has_room
from diarist.engine.messages import EngineInfo, Event, PartialText, Status, Work
from diarist.engine.process import COMMAND
from diarist.engine.supervisor import Supervisor
from diarist.engine.wire import ID_BYTES, Advanced, Begin, Cancel, Failed, Finished, Opened, Parked, Report, Setup
from diarist.errors import (
    CancelledError,
    DeadlineError,
    DiaristError,
    EngineError,
    NotReadyError,
    PoisonError,
    QueueFullError,
    WorkerLostError,
)
from diarist.transcript import Transcript

_BYTES_PER_SECOND = 16_000
"""Of a recording that has not been opened: between speech codecs (4 000) and 16-bit samples (32 000 at 16 kHz)."""
_LONG_AT_ONCE = 2  # long recordings in work: two fill a batch, more would only need more memory
_FLOOD = 4  # requests of one key in work from which those of a key that has fewer there do not wait for them
_BEYOND_ROWS = 4  # short ones in work beyond the rows of a batch: their sound is being read meanwhile
_FIRST_SPEED = 10.0  # seconds of audio per second, until it has been measured
_MEASURED_AFTER_S = 5.0
_MAX_RETRY_S = 120.0
_STRIKES = 2  # deaths of a worker over the same recording until it is refused
_TELLING = 0.3  # share of a recording from which its own pace tells when it will be done
_TICK_S = 1.0
_REMEMBERED = 4096  # recordings with strikes

_Line = Literal["first", "long", "solo"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits of the engine, and what the worker's `Pipeline` is made of."""

    pipeline: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `Pipeline`; the worker makes it."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    """Caps on every recording."""
    max_running: int = 64
    """Requests under way at once; fewer if the batches are full with fewer."""
    max_waiting: int = 256
    """Requests that may wait."""
    max_waiting_s: float = 4 * 3600.0
    """Seconds of audio that may wait, guessed from the files' sizes until they are opened. One request always may."""
    heartbeat_s: float = 1.0
    """How often the worker says that it lives."""
    hang_s: float = 8.0
    """Stillness after which the worker is taken for hung and replaced: no word from it, and no processor time used."""
    unit_s: float = 120.0
    """Longest piece of work, in seconds; beyond it the worker is taken for hung whatever it does."""
    command: Sequence[str] = COMMAND
    """Starts a worker."""


@dataclass(eq=False, slots=True)
class _Entry:
    """What the engine knows of a request."""

    work: Work
    key: str
    seconds: float
    """Of the recording: guessed, then as its header claims."""
    id: str = field(default_factory=lambda: secrets.token_hex(ID_BYTES))
    fingerprint: str = ""
    line: _Line | None = None
    """In which it waits, or was given to the worker; None before it has a fingerprint."""
    begun: float | None = None
    """When it was given to the worker, on the monotonic clock."""
    step: str = ""
    fraction: float | None = None
    partials: list[PartialText] = field(default_factory=list)
    outcome: Transcript | DiaristError | None = None
    deadline: asyncio.TimerHandle | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wake whoever waits for news."""
        self.changed.set()
        self.changed = asyncio.Event()


class _Taken(NamedTuple):
    """What the worker has."""

    line: _Line
    key: str
    seconds: float


class Ticket:
    """One admitted request."""

    def __init__(
        self, entry: _Entry, status: Callable[[_Entry], Status], give_up: Callable[[_Entry, DiaristError], None]
    ) -> None:
        self._entry, self._status, self._give_up = entry, status, give_up

    @property
    def id(self) -> str:
        """Random, 128 bits, hexadecimal."""
        return self._entry.id

    @property
    def status(self) -> Status:
        """Where it is now."""
        return self._status(self._entry)

    async def events(self) -> AsyncIterator[Event]:
        """Statuses and partial texts as they come; ends with the transcript.

        Raises:
            DiaristError: The request failed, as `result` says it.
        """
        entry, told, last = self._entry, 0, None
        while True:
            changed, over = entry.changed, entry.outcome is not None
            for partial in entry.partials[told:]:
                told += 1
                yield partial
            status = self.status
            if status != last:
                last = status
                yield status
            if over:
                yield await self.result()
                return
            await changed.wait()

    async def result(self) -> Transcript:
        """The transcript, once it is there.

        Raises:
            AudioError: The recording cannot be decoded.
            OptionError: The loaded model cannot do what was asked.
            OutOfMemoryError: It does not fit even alone.
            PoisonError: This recording has killed the worker twice.
            EngineError: The worker was lost, the deadline passed, ...
            CancelledError: `cancel` was called.
        """
        while self._entry.outcome is None:
            await self._entry.changed.wait()
        if isinstance(self._entry.outcome, Transcript):
            return self._entry.outcome
        raise self._entry.outcome

    def cancel(self) -> None:
        """Give it up: never begun if it waits, stopped within one window if it runs. Twice is harmless."""
        self._give_up(self._entry, CancelledError("the request was cancelled"))


class Engine:
    """Requests in, transcripts out. All methods are called from one event loop and none of them computes."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._entries: dict[str, _Entry] = {}  # all that are not over
        self._lines: dict[_Line, FairQueue[_Entry]] = {"solo": FairQueue(), "long": FairQueue(), "first": FairQueue()}
        self._with_worker: dict[str, _Taken] = {}  # by id; also requests that are over for the caller
        self._strikes: OrderedDict[str, int] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._stages_s: Counter[str] = Counter()
        self._emptied = asyncio.Event()
        self._stopping = False
        self._files = ThreadPoolExecutor(8, "fingerprint")  # a large file must not keep small ones waiting
        self._ticker: asyncio.Task[None] | None = None
        self._supervisor = Supervisor(
            options.command,
            Setup(dict(options.pipeline), options.limits, options.heartbeat_s),
            options.hang_s,
            options.unit_s,
            reported=self._reported,
            changed=self._dispatch,
            lost=self._lost,
        )

    async def start(self) -> None:
        """Start the worker and return at once; `ready` turns true when its models are loaded."""
        self._supervisor.start()
        self._ticker = asyncio.create_task(self._tick(), name="engine statuses")

    async def stop(self, drain_s: float = 30.0) -> None:
        """Admit nothing more, give what is admitted `drain_s` seconds to end, then end the worker."""
        self._stopping = True
        if self._entries:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), drain_s)
        for entry in list(self._entries.values()):
            self._end(entry, NotReadyError("the engine has been stopped", retry_after_s=5.0))
        await self._supervisor.stop()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
        self._files.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether the worker has its models and answers."""
        return self._supervisor.ready and not self._stopping

    @property
    def why_not_ready(self) -> str:
        """For people; empty when ready."""
        return "the engine is stopping" if self._stopping else self._supervisor.why_not_ready

    @property
    def info(self) -> EngineInfo:
        """What is loaded; of the last worker while a new one loads."""
        return self._supervisor.info

    @property
    def worker_pid(self) -> int | None:
        """Of the present worker process."""
        return self._supervisor.pid

    def submit(self, work: Work, *, key: str = "", deadline_s: float | None = None) -> Ticket:
        """Admit a request, or refuse it at once.

        While a lost worker is replaced, requests are admitted and wait. A recording that has killed the worker twice is
        known only when its file has been read: then `Ticket.result` raises `PoisonError`.

        Args:
            work: What to do.
            key: Who asks: waiting requests are served fairly among keys.
            deadline_s: Seconds from now after which nobody wants the answer.

        Raises:
            QueueFullError: Try again after its `retry_after_s`.
            NotReadyError: No models yet, or stopping.
        """
        entry = _Entry(work, key, _size_bytes(work.recording) / _BYTES_PER_SECOND)
        self.check(key, entry.seconds)
        self._counts["admitted"] += 1
        self._entries[entry.id] = entry
        self._emptied.clear()
        loop = asyncio.get_running_loop()
        if deadline_s is not None:
            late = DeadlineError(f"the deadline of {deadline_s:g} s has passed")
            entry.deadline = loop.call_later(max(0.0, deadline_s), self._give_up, entry, late)
        reading = loop.run_in_executor(self._files, _fingerprint, work.recording)
        reading.add_done_callback(lambda read: None if read.cancelled() else self._line_up(entry, read.result()))
        return Ticket(entry, self._status, self._give_up)

    def check(self, key: str, seconds: float = 0.0) -> None:
        """Refuse what `submit` would refuse, before there is a recording.

        Args:
            key: Who asks. Without keys nobody can be told apart, and all together may take every place.
            seconds: Of the recording, as far as is known.

        Raises:
            QueueFullError: Try again after its `retry_after_s`.
            NotReadyError: No models yet, or stopping.
        """
        if self._stopping or not (self.ready or self._supervisor.recovering):
            self._counts["not_ready"] += 1
            raise NotReadyError(self.why_not_ready, retry_after_s=5.0)
        waiting = self._waiting()
        own = [entry for entry in waiting if key and entry.key == key]
        waiting_s, own_s = (sum(entry.seconds for entry in entries) for entries in (waiting, own))
        if not has_room(self.options.max_waiting, len(waiting), len(own)):
            full = "as many requests are waiting as may wait"
        elif waiting and not has_room(self.options.max_waiting_s, waiting_s, own_s, seconds):
            full = "as much audio is waiting as may wait"
        else:
            return
        self._counts["rejected"] += 1
        wait_s = min(_MAX_RETRY_S, max(1.0, waiting_s / self._speed() / 2))  # half of the queue is gone by then
        raise QueueFullError(f"{full}; try again later", retry_after_s=round(wait_s, 1))

    def metrics(self) -> dict[str, float]:
        """Counters and gauges for monitoring, by name; seconds and bytes."""
        counters = self._supervisor.counters
        compute_s, steps = counters.get("compute_seconds", 0.0), counters.get("decode_steps", 0.0)
        outcomes = {f"requests_{name}": float(self._counts[name]) for name in _OUTCOMES}
        stages = {f"stage_seconds_{stage}": seconds for stage, seconds in self._stages_s.items()}
        waiting = self._waiting()
        return {
            **outcomes,
            **stages,
            "ready": float(self.ready),
            "queue_depth": float(len(waiting)),
            "queue_seconds": sum(entry.seconds for entry in waiting),
            "running": float(len(self._entries) - len(waiting)),
            "worker_starts": float(self._supervisor.starts),
            "worker_restarts": float(max(0, self._supervisor.starts - 1)),
            "worker_rss_bytes": counters.get("rss_bytes", 0.0),
            "audio_seconds": counters.get("audio_seconds", 0.0),
            "compute_seconds": compute_s,
            "rtfx": counters.get("audio_seconds", 0.0) / compute_s if compute_s else 0.0,
            "decode_steps": steps,
            "decode_rows": counters.get("decode_rows", 0.0),
            "batch_occupancy": counters.get("decode_rows", 0.0) / steps / self._supervisor.rows if steps else 0.0,
            "oom_halvings": counters.get("oom_halvings", 0.0),
        }

    # --- admission ----------------------------------------------------------------------------------------------------

    def _waiting(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.begun is None]

    def _line_up(self, entry: _Entry, fingerprint: str) -> None:
        """The recording has been read: let the request wait for the worker, or refuse it."""
        if entry.outcome is not None:
            return
        entry.fingerprint = fingerprint
        strikes = self._strikes.get(fingerprint, 0)
        if strikes >= _STRIKES:
            message = "this recording has brought the engine down twice and is refused; convert it to wav or flac"
            self._end(entry, PoisonError(message))
            return
        self._wait(entry, "solo" if strikes else "first")
        self._dispatch()

    def _wait(self, entry: _Entry, line: _Line) -> None:
        entry.line, entry.begun = line, None
        self._lines[line].push(entry, entry.key, entry.seconds)
        entry.tell()

    def _dispatch(self) -> None:
        """Give the worker what it has room for."""
        if not self._supervisor.ready:
            return
        for line, queue in self._lines.items():
            while (entry := self._next(line)) is not None:
                urgent = line == "first" and self._is_urgent(entry, self._crowds())
                queue.pop(entry)
                self._with_worker[entry.id] = _Taken(line, entry.key, entry.seconds)
                entry.begun = time.monotonic()
                self._supervisor.send(Begin(entry.id, entry.work, line != "first", urgent, line == "solo"))
                entry.tell()

    def _next(self, line: _Line) -> _Entry | None:
        """Whom of a line to begin now; None if nobody waits, or the worker has enough."""
        # There is always a place for those that are not known to be long.
        places = self.options.max_running if line == "first" else max(1, self.options.max_running - 1)
        most = {"solo": 1, "long": _LONG_AT_ONCE, "first": self._supervisor.rows + _BEYOND_ROWS}[line]
        in_line = sum(taken.line == line for taken in self._with_worker.values())
        if len(self._with_worker) >= places:
            return None
        if line == "first" and in_line < most + _BEYOND_ROWS and (crowds := self._crowds()):
            urgent = next((entry for entry in self._lines[line] if self._is_urgent(entry, crowds)), None)
            if urgent is not None:
                return urgent
        return next(iter(self._lines[line]), None) if in_line < most else None

    def _crowds(self) -> dict[str, float]:
        """The keys that have many requests in work, and how many seconds of audio."""
        numbers, seconds = Counter[str](), defaultdict[str, float](float)
        for taken in self._with_worker.values():
            numbers[taken.key] += 1
            seconds[taken.key] += taken.seconds
        return {key: seconds[key] for key, number in numbers.items() if number >= _FLOOD}

    def _is_urgent(self, entry: _Entry, crowds: Mapping[str, float]) -> bool:
        """Whether it need not wait for a crowd's: its key is none, and has not had more than its share.

        A crowd's requests are begun many at once, and then none for seconds: so as much as one has in work is no more
        than a share.
        """
        if not crowds or entry.key in crowds:
            return False
        return self._lines["first"].lead(entry) <= max(crowds.values())

    # --- what comes back ----------------------------------------------------------------------------------------------

    def _reported(self, report: Report) -> None:
        match report:
            case Opened() | Advanced() | Parked() | Finished() | Failed():
                entry = self._entries.get(report.id)
            case _:
                return
        if isinstance(report, (Parked, Finished, Failed)):
            self._with_worker.pop(report.id, None)
        match report, entry:
            case _, None:
                pass  # nobody waits for it any more
            case Opened(), _Entry():
                entry.seconds = entry.seconds if report.seconds is None else report.seconds
            case Parked(), _Entry():
                entry.seconds = entry.seconds if report.seconds is None else report.seconds
                self._wait(entry, "long")
            case Advanced(), _Entry():
                entry.step, entry.fraction = report.step, report.fraction
                entry.partials += report.partials
                entry.tell()
            case Finished(), _Entry():
                self._strikes.pop(entry.fingerprint, None)
                self._stages_s.update(report.transcript.timings)
                self._end(entry, report.transcript)
            case Failed(), _Entry():
                self._end(entry, _diarist_error(report.error))
        self._dispatch()

    def _lost(self, suspects: list[str]) -> None:
        """The worker is gone: what it had fails, what waits goes on waiting."""
        for id_ in suspects:
            entry = self._entries.get(id_)
            if entry is not None and entry.fingerprint:
                self._strikes[entry.fingerprint] = self._strikes.pop(entry.fingerprint, 0) + 1
        while len(self._strikes) > _REMEMBERED:
            self._strikes.popitem(last=False)
        gone, self._with_worker = self._with_worker, {}
        for id_ in gone:
            if id_ in self._entries:
                message = "the worker that had this request was lost; another one is being started"
                self._end(self._entries[id_], WorkerLostError(message, retry_after_s=5.0))

    def _give_up(self, entry: _Entry, why: DiaristError) -> None:
        """The caller, or the clock, does not want it any more."""
        if entry.outcome is not None:
            return
        if entry.id in self._with_worker:
            self._supervisor.send(Cancel(entry.id))  # its place is free when the worker has said so
        elif entry.line is not None:
            self._lines[entry.line].remove(entry)
        self._end(entry, why)

    def _end(self, entry: _Entry, outcome: Transcript | DiaristError) -> None:
        if entry.outcome is not None:
            return
        entry.outcome = outcome
        self._counts[_outcome_name(outcome)] += 1
        del self._entries[entry.id]
        if entry.deadline is not None:
            entry.deadline.cancel()
        entry.tell()
        if not self._entries:
            self._emptied.set()

    # --- how it stands ------------------------------------------------------------------------------------------------

    def _status(self, entry: _Entry) -> Status:
        match entry.outcome:
            case Transcript():
                return Status("done", fraction=1.0, seconds_left=0.0)
            case CancelledError():
                return Status("cancelled")
            case DiaristError():
                return Status("failed")
        if entry.begun is not None:
            return Status("running", entry.step or "reading", entry.fraction, self._seconds_left(entry))
        ahead = self._lines[entry.line].ahead(entry) if entry.line else len(self._lines["first"])
        waiting = self._waiting()
        mean_s = sum(other.seconds for other in waiting) / max(1, len(waiting))
        seconds_left = ((ahead or 0) * mean_s + entry.seconds) / self._speed()
        return Status("queued", "waiting", None, round(seconds_left, 1), ahead or 0)

    def _seconds_left(self, entry: _Entry) -> float:
        spent_s = time.monotonic() - (entry.begun or 0.0)
        if entry.fraction and entry.fraction > _TELLING:
            return round(spent_s * (1.0 - entry.fraction) / entry.fraction, 1)
        return round(max(0.0, entry.seconds / self._speed() - spent_s), 1)

    def _speed(self) -> float:
        """Seconds of audio per second of computing, as measured."""
        counters = self._supervisor.counters
        audio_s, compute_s = counters.get("audio_seconds", 0.0), counters.get("compute_seconds", 0.0)
        return max(0.1, audio_s / compute_s) if compute_s > _MEASURED_AFTER_S else _FIRST_SPEED

    async def _tick(self) -> None:
        """Places in the queue and times left change without anybody's doing: have them looked at again."""
        while True:
            await asyncio.sleep(_TICK_S)
            for entry in self._entries.values():
                entry.tell()


_OUTCOMES = ("admitted", "done", "failed", "cancelled", "lost", "late", "poisonous", "rejected", "not_ready")


def _outcome_name(outcome: Transcript | DiaristError) -> str:
    match outcome:
        case Transcript():
            return "done"
        case CancelledError():
            return "cancelled"
        case WorkerLostError():
            return "lost"
        case DeadlineError():
            return "late"
        case PoisonError():
            return "poisonous"
    return "failed"


def _diarist_error(error: Exception) -> DiaristError:
    return error if isinstance(error, DiaristError) else EngineError("the request failed: an internal error")


def _size_bytes(path: Path) -> int:
    """0 where there is no such file: the worker will say so."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _fingerprint(path: Path) -> str:
    """SHA-256 of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
