"""A pipeline without models, for what the command does around one: faults, names, options.

As a program (`python fake_pipeline.py ARGUMENTS`) it is the command with this pipeline in it.
"""

import signal
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from diarist.errors import AudioFormatError, OptionError
from diarist.timeline import Segment, Turn, Word
from diarist.transcript import build


@dataclass(frozen=True)
class Progress:
    stage: str
    fraction: float | None
    seconds_done: float
    seconds_total: float | None


class Pipeline:
    """Says what it read; what the recording is called decides what goes wrong."""

    made: ClassVar[list[dict]] = []
    called: ClassVar[list[dict]] = []

    def __init__(self, **options):
        self.made.append(options)
        if options["asr_model"] == "hostile":
            raise KeyError("deep inside")
        if options["progress"] is not None:
            for done in (0, 500_000, 1_000_000):
                options["progress"]("model.bin", done, 1_000_000)

    def __call__(self, source, *, progress: Callable[[Progress], None] | None, **options):
        self.called.append({"source": source, **options})
        name = source.name if isinstance(source, Path) else "stdin"
        if "broken" in name:
            raise AudioFormatError(f"{name} is not audio")
        if "crash" in name:
            raise ZeroDivisionError("division by zero")
        if "option" in name:
            raise OptionError("num_speakers", "0 is not between 1 and 64")
        if "interrupt" in name:
            signal.raise_signal(signal.SIGINT)
        if "sleep" in name:
            print("sleeping", file=sys.stderr, flush=True)
            time.sleep(60)
        for step in range(5):
            if progress is not None:
                progress(Progress("transcribing", step / 4, step, 4.0))
                time.sleep(0.15)
        if "silence" in name:
            return build([], duration=4.0, language=None, warnings=["nothing was heard"])
        said = source.read().decode() if name == "stdin" else source.read_text()
        speakers = ["SPEAKER_00", "SPEAKER_01"] if options["diarize"] else [None, None]
        words = [
            Word(text, i * 1.0, i + 0.9, 0.9, speakers[i % 2 if options["diarize"] else 0])
            for i, text in enumerate(said.split())
        ]
        turns = [Turn(Segment(w.start, w.end), w.speaker) for w in words if w.speaker]
        return build(words, duration=60.0, language="en", turns=turns)


def module() -> types.ModuleType:
    """Stands where `diarist.pipeline` is imported from."""
    fake = types.ModuleType("diarist.pipeline")
    fake.Pipeline = Pipeline
    fake.Progress = Progress
    return fake


if __name__ == "__main__":
    sys.modules["diarist.pipeline"] = module()
    from diarist.cli import main

    main()
