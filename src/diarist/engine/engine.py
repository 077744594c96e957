"""The engine as a server sees it: admits requests, supervises the worker that owns the models."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diarist.engine.messages import EngineInfo, Event, Status, Work
from diarist.transcript import Transcript


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits of the engine, and what the worker's `Pipeline` is made of."""

    pipeline: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `Pipeline`; the worker makes it."""
    max_running: int = 64
    """Requests under way at once."""
    max_waiting: int = 256
    """Requests that may wait."""
    max_waiting_s: float = 4 * 3600.0
    """Seconds of audio that may wait (by the recordings' headers)."""
    heartbeat_s: float = 1.0
    """How often the worker says that it lives."""
    hang_s: float = 8.0
    """Silence after which the worker is taken for hung and replaced."""


class Ticket:
    """One admitted request."""

    id: str
    """Random, 128 bits, hexadecimal."""

    @property
    def status(self) -> Status:
        """Where it is now."""
        raise NotImplementedError

    def events(self) -> AsyncIterator[Event]:
        """Statuses and partial texts as they come; ends with the transcript.

        Raises:
            DiaristError: The request failed, as `result` says it.
        """
        raise NotImplementedError

    async def result(self) -> Transcript:
        """The transcript, once it is there.

        Raises:
            AudioError: The recording cannot be decoded.
            OptionError: The loaded model cannot do what was asked.
            OutOfMemoryError: It does not fit even alone.
            EngineError: The worker was lost, the deadline passed, ...
            CancelledError: `cancel` was called.
        """
        raise NotImplementedError

    def cancel(self) -> None:
        """Give it up: never begun if it waits, stopped within one window if it runs. Twice is harmless."""
        raise NotImplementedError


class Engine:
    """Requests in, transcripts out. All methods are called from one event loop and none of them computes."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    async def start(self) -> None:
        """Start the worker and return at once; `ready` turns true when its models are loaded."""
        raise NotImplementedError

    async def stop(self, drain_s: float = 30.0) -> None:
        """Admit nothing more, give what is admitted `drain_s` seconds to end, then end the worker."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether the worker has its models and answers."""
        raise NotImplementedError

    @property
    def why_not_ready(self) -> str:
        """For people; empty when ready."""
        raise NotImplementedError

    @property
    def info(self) -> EngineInfo:
        """What is loaded; of the last worker while a new one loads."""
        raise NotImplementedError

    def submit(self, work: Work, *, key: str = "", deadline_s: float | None = None) -> Ticket:
        """Admit a request, or refuse it at once.

        Args:
            work: What to do.
            key: Who asks: waiting requests are served fairly among keys.
            deadline_s: Seconds from now after which nobody wants the answer.

        Raises:
            QueueFullError: Try again after its `retry_after_s`.
            NotReadyError: No models yet, or stopping.
            PoisonError: This recording has killed the worker twice.
        """
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Counters and gauges for monitoring, by name; seconds and bytes."""
        raise NotImplementedError
