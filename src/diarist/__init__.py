"""diarist turns recordings into who-said-what transcripts.

from diarist import Pipeline

    pipeline = Pipeline()                       # loads the default models once
    transcript = pipeline("meeting.mp3")        # as often as you like, from any thread
    transcript.write("meeting.srt")

Importing this package loads neither torch nor anything else that is large; the first use of a name does.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diarist.errors import (
        AudioError,
        CancelledError,
        ComputeError,
        DiaristError,
        ModelError,
        OptionError,
        TranscriptError,
    )
    from diarist.pipeline import Pipeline, Progress, transcribe
    from diarist.timeline import DecodedSegment, Segment, Turn, Word
    from diarist.transcript import Transcript, Utterance

__version__ = "0.1.0"

# Threads of GNU OpenMP, which torch computes with, spin for milliseconds before they sleep. Where another process wants
# the processor they spin in each other's way: beside four busy processes on two cores a clip was not done after 200 s
# that takes 9 so.
# The library reads this when torch loads it, so it must be said before.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "10000"

_HOME = {
    "AudioError": "errors",
    "CancelledError": "errors",
    "ComputeError": "errors",
    "DecodedSegment": "timeline",
    "DiaristError": "errors",
    "ModelError": "errors",
    "OptionError": "errors",
    "Pipeline": "pipeline",
    "Progress": "pipeline",
    "Segment": "timeline",
    "Transcript": "transcript",
    "TranscriptError": "errors",
    "Turn": "timeline",
    "Utterance": "transcript",
    "Word": "timeline",
    "transcribe": "pipeline",
}
"""Exported name -> module that it lives in, which is imported at first use (PEP 562)."""

__all__ = [
    "AudioError",
    "CancelledError",
    "ComputeError",
    "DecodedSegment",
    "DiaristError",
    "ModelError",
    "OptionError",
    "Pipeline",
    "Progress",
    "Segment",
    "Transcript",
    "TranscriptError",
    "Turn",
    "Utterance",
    "Word",
    "__version__",
    "transcribe",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importing = import_module(f"{__name__}.importing")
    value = getattr(importing.import_undisturbed(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
