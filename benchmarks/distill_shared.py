"""An assistant from the shared recordings, measured on speakers that it never heard.

    python benchmarks/distill_shared.py ../shared/data OUTPUT [--minutes 28] [--resume]

Held out are five of the 24 LibriSpeech speakers, with the conversation of two of them: about a fifth. None of them
speaks in what is left: the other 19, two conversations, the meetings and the clips.
"""

import argparse
from pathlib import Path

from diarist.distillation.distill import DistillOptions, Progress, distill
from diarist.distillation.training import Measurement, TrainingOptions
from recordings import speaker_of

HELD_OUT_SPEAKERS = frozenset({"6829", "8224", "1089", "121", "4088"})
HELD_OUT_CONVERSATIONS = frozenset({"two00"})
SUFFIXES = frozenset({".flac", ".wav", ".mp3"})


def split(data: Path) -> tuple[list[Path], list[Path]]:
    """The recordings to learn from, and those to measure by."""
    recordings = sorted(path for path in data.rglob("*") if path.suffix in SUFFIXES)
    measured = [path for path in recordings if is_held_out(path)]
    return [path for path in recordings if path not in measured], measured


def is_held_out(path: Path) -> bool:
    if path.parent.name in {"utterances", "words"}:
        return speaker_of(path) in HELD_OUT_SPEAKERS
    return path.stem in HELD_OUT_CONVERSATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="base")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--mixes", type=int, default=4)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    shown: list[str | Measurement] = []

    def report(progress: Progress) -> None:
        what = progress.latest or progress.stage
        if shown[-1:] != [what]:
            shown.append(what)
            print(f"{progress.fraction:4.0%}  {what}", flush=True)

    learned, measured = split(options.data)
    made = distill(
        options.model,
        learned,
        options.output,
        DistillOptions(
            layers=options.layers,
            held_out_files=tuple(measured),
            mixes=options.mixes,
            training=TrainingOptions(minutes=options.minutes),
        ),
        resume=options.resume,
        report=report,
    )
    print(*made.warnings, made.best, f"{made.examples} windows of {made.speech_s / 60:.1f} min of speech", sep="\n")


if __name__ == "__main__":
    main()
