"""The peer's half of the conversation: one JSON object a line on stdin, one answer a line on stdout.

Runs in every peer's own environment, so it needs nothing but the standard library. The first line out says that the
models are loaded, and with which versions; each line in then names a recording and a kind of work:

    -> {"work": "recognition", "recording": "/cache/two00.wav"}
    <- {"seconds": 7.1, "peak_bytes": 812345678, "text": "...", "turns": [], "utterances": [], "parts": {}}

What goes wrong is answered as `{"error": "..."}`, and the peer lives on.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TextIO

Work = Literal["recognition", "diarization", "whole"]
WORKS: tuple[Work, ...] = ("recognition", "diarization", "whole")


@dataclass(frozen=True, slots=True)
class Task:
    """What a peer is to load."""

    models: Mapping[str, str]
    """What its `prepare` returned: paths by name."""
    options: Mapping[str, Any]
    """Of the variant that is measured."""
    works: tuple[Work, ...]
    """What it will be asked for; it need not load more."""
    threads: int

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """The task that its fields, written as an object, came from."""
        table = json.loads(text)
        return cls(**{**table, "works": tuple(table["works"])})


@dataclass(frozen=True, slots=True)
class Heard:
    """What a peer found in one recording. What its work does not yield is left out."""

    text: str = ""
    turns: tuple[tuple[float, float, str], ...] = ()
    """Start and end in seconds, and the speaker."""
    utterances: tuple[tuple[str, str], ...] = ()
    """Speaker and words, in order."""
    parts: Mapping[Work, float] = field(default_factory=dict)
    """Seconds of the kinds of work that followed one another in this one: measured with it, not run again."""


Hear = Callable[[str], Heard]
"""From the path of a 16 kHz mono WAV file."""


def serve(load: Callable[[Task], Mapping[Work, Hear]], packages: tuple[str, ...]) -> None:
    """Load once, then answer until stdin ends.

    Args:
        load: From the task, which is the process's argument, to a function for each kind of work.
        packages: Whose versions are reported.
    """
    answers = _only_answers_on_stdout()
    try:
        begun = time.perf_counter()
        hear = load(Task.from_json(sys.argv[1]))
        seconds = time.perf_counter() - begun
        ready = {"seconds": seconds, "versions": {package: version(package) for package in packages}}
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer
        _say(answers, {"error": _described(error)})
        return
    _say(answers, ready)
    for line in sys.stdin:
        request = json.loads(line)
        _say(answers, _answer(hear[request["work"]], request["recording"]))


def _answer(hear: Hear, recording: str) -> dict[str, Any]:
    _forget_peak()
    begun = time.perf_counter()
    try:
        heard = hear(recording)
    except Exception as error:  # noqa: BLE001 - as above
        return {"error": _described(error)}
    return {"seconds": time.perf_counter() - begun, "peak_bytes": peak_bytes(), **asdict(heard)}


def _only_answers_on_stdout() -> TextIO:
    """Keep stdout for the answers: libraries that print, from C too, are sent to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, message: Mapping[str, Any]) -> None:
    print(json.dumps(message), file=answers, flush=True)


def _described(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _forget_peak() -> None:
    """Let the peak count from now on; where the system does not allow it, it is that of the process's life."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes(process: int | Literal["self"] = "self") -> int:
    """Peak resident memory; 0 if the process has gone. `getrusage` would start from the parent's peak."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    kib = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), "0")
    return int(kib) * 1024
