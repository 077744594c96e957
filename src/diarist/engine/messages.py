"""What a server and the engine say to each other. All of it is frozen and crosses the worker's pipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diarist.request import Request
from diarist.transcript import Transcript

Stage = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class KnownSpeaker:
    """A voice that the caller can name."""

    name: str
    recording: Path
    """Some seconds of that person alone; owned by the caller, read before the recording is transcribed."""


@dataclass(frozen=True, slots=True)
class Work:
    """One recording to transcribe."""

    recording: Path
    """A seekable file, owned by the caller, who removes it once the ticket is over."""
    request: Request
    known_speakers: tuple[KnownSpeaker, ...] = ()
    partials: bool = False
    """Whether text is wanted as it is found."""
    name: str = ""
    """What messages call the recording; empty: "the input"."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where a request is now."""

    stage: Stage
    step: str = ""
    """What is being done, for people: "transcribing"."""
    fraction: float | None = None
    """Share that is done, in [0, 1]."""
    seconds_left: float | None = None
    """Estimate of the time until the answer."""
    ahead: int = 0
    """Requests that will be begun before this one."""


@dataclass(frozen=True, slots=True)
class PartialText:
    """Text that is settled: it comes in order of time, and all partials joined are the transcript's text."""

    text: str
    """With its leading space, except at the very beginning."""
    start: float
    end: float


Event = Status | PartialText | Transcript
"""What a ticket tells: statuses and partial texts, and last the transcript."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is loaded."""

    models: dict[str, Any] = field(default_factory=dict)
    """As in `Transcript.models`."""
    languages: tuple[str, ...] = ()
    """ISO codes that the model knows."""
    multilingual: bool = True
    diarizes: bool = False
    assists: bool = False
    device: str = ""
    sandbox: tuple[str, ...] = ()
    """Layers of the decoder's sandbox that are in force."""
