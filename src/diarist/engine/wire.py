"""What crosses the worker's pipe, and the page of memory that outlives a worker."""

import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from diarist.audio import DecodeLimits
from diarist.engine.messages import EngineInfo, PartialText, Work
from diarist.transcript import Transcript

LaneName = Literal["express", "bulk", "solo"]
EXPRESS_S = 60.0
"""Recordings up to this length are short: they go before the others."""
ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker."""

    pipeline: dict[str, Any]
    """Arguments of `Pipeline`."""
    limits: DecodeLimits
    heartbeat_s: float


# --- commands to the worker -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Take a request up."""

    id: str
    work: Work
    long: bool = False
    """Whether its recording may be longer than `EXPRESS_S`; otherwise a long one is answered by `Parked`."""
    solo: bool = False
    """Share no batch with other requests: the worker has died over this recording before."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants it any more. Answered by `Failed`, if nothing else has been answered."""

    id: str


Command = Begin | Cancel

# --- reports from the worker ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """The models are there."""

    info: EngineInfo
    rows: int
    """Windows that the worker decodes at once."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The models cannot be loaded; the worker ends."""

    message: str


@dataclass(frozen=True, slots=True)
class Pulse:
    """Sent every heartbeat, whatever the computing thread does. Counters only grow."""

    units: int = 0
    """Pieces of work begun."""
    busy_s: float = 0.0
    """How long the present piece has lasted; 0 between two."""
    compute_cpu_s: float = 0.0
    """Processor time of the computing thread."""
    counters: dict[str, float] = field(default_factory=dict)
    """For `Engine.metrics`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The recording has a header that makes sense, and is now in work."""

    id: str
    seconds: float | None
    """Its length: exact if it is short, else as the header claims."""


@dataclass(frozen=True, slots=True)
class Parked:
    """The recording is long, and was not begun as one: give it again with `Begin.long`."""

    id: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Advanced:
    """A request has come further."""

    id: str
    step: str
    fraction: float | None
    partials: tuple[PartialText, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A request is done."""

    id: str
    transcript: Transcript


@dataclass(frozen=True, slots=True)
class Failed:
    """A request is over without a transcript."""

    id: str
    error: Exception
    """A `DiaristError`."""


Report = Loaded | LoadFailed | Pulse | Opened | Parked | Advanced | Finished | Failed


class Blackboard:
    """A page of memory that the worker writes and the supervisor reads, also after the worker's death.

    It holds the ids of the requests in the piece of work that the computing thread is at: whoever is on it when a
    worker dies is under suspicion, and nobody else.
    """

    BYTES = 16_384
    _COUNT = struct.Struct("=I")

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: of at least `BYTES` bytes of shared memory; it stays the caller's."""
        self._page = mmap.mmap(descriptor, self.BYTES)

    @staticmethod
    def descriptor() -> int:
        """A new page, nothing on it."""
        made = os.memfd_create("blackboard")
        os.ftruncate(made, Blackboard.BYTES)
        return made

    def write(self, ids: Iterable[str]) -> None:
        """Put up these requests, and wipe out the others."""
        data = b"".join(bytes.fromhex(id_) for id_ in ids)
        count = min(len(data) // ID_BYTES, (self.BYTES - self._COUNT.size) // ID_BYTES)
        self._COUNT.pack_into(self._page, 0, 0)  # a death between these lines blames nobody
        self._page[self._COUNT.size : self._COUNT.size + count * ID_BYTES] = data[: count * ID_BYTES]
        self._COUNT.pack_into(self._page, 0, count)

    def read(self) -> list[str]:
        """The requests that stand on it."""
        (count,) = self._COUNT.unpack_from(self._page, 0)
        count = min(count, (self.BYTES - self._COUNT.size) // ID_BYTES)
        data = self._page[self._COUNT.size : self._COUNT.size + count * ID_BYTES]
        return [data[start : start + ID_BYTES].hex() for start in range(0, len(data), ID_BYTES)]

    def close(self) -> None:
        self._page.close()
