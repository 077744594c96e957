"""Whether assisting changes a token: all shared recordings decoded greedily without and with every kind of assistant.

    python benchmarks/exact.py [--dtype bfloat16] [--every] [--only clips meetings ...]

Each recording is decoded without assistant and with one kind after the other in turn, those in `clips` with all of
them; `--every` does all of them everywhere. Every assistant drafts as much as it can, whether or not that pays. In
float32 nothing may differ. In bfloat16, where texts part, the two tokens that they write there must be as likely as
bfloat16 can tell; what that gap is in float32 is shown beside it. Whisper base, English given, no second rounds over
holes: a window whose text differs would have others.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diarist import models
from diarist.asr.decoding import Decoded, DecodingLoop
from diarist.asr.drafting import Assistant, DecoderAssistant, DraftRow, NgramAssistant
from diarist.asr.network import DecoderCache
from diarist.asr.options import DecodingOptions
from diarist.asr.planning import Assistance
from diarist.asr.rules import RuleState
from diarist.asr.windows import WindowOptions, gather, pack
from diarist.audio import SAMPLE_RATE, decode
from diarist.compute import choose
from diarist.diarization.stream import Diarizer
from diarist.distillation.output import write_assistant
from diarist.distillation.training import Measurement
from recordings import CONVERSATIONS, SHARED

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "asr"))
from drafting_toys import CHEAP, RememberingEncoder, margin, run, some_layers  # type: ignore[import-not-found]

MODEL = "base"
GREEDY = DecodingOptions("en", temperatures=(0.0,), assisted=True)
TIE = 0.5
"""Largest gap of two logits that bfloat16 may confuse: four of its steps where logits are between 16 and 32."""
CUT_LAYERS = (0, 5)
"""Of base's decoder, untrained: an assistant that shares the encoder and errs often."""
EVERYWHERE = "clips"
_JOINED = 40  # utterances in one recording
_PAUSE = np.zeros(SAMPLE_RATE // 2, np.float32)


@dataclass(frozen=True, slots=True)
class Recording:
    """Its windows, as the recognizer would cut them, and what is written in them without an assistant."""

    folder: str
    name: str
    windows: list[NDArray[np.float32]]


class Told:
    """An assistant that was told what every window says, and says it, or always something else.

    Args:
        texts: What follows the prompt in each window.
        right: Whether it tells the truth.
    """

    encodes, expected, follows = False, 0.9, False

    def __init__(self, texts: dict[int, list[int]], *, right: bool) -> None:
        self.texts, self.right = texts, right
        self.kind = "always right" if right else "always wrong"
        self._rows: dict[int, list[int]] = {}

    def serves(self, language: str, task: str) -> bool:  # noqa: ARG002
        return True

    def drafter(self, cache: DecoderCache) -> "Told":  # noqa: ARG002
        return self

    def admit(self, first: int, windows: Tensor, states: Tensor) -> None:  # noqa: ARG002
        for row, window in enumerate(windows, first):
            self._rows[row] = self.texts[key_of(window)]

    def move(self, source: int, target: int) -> None:
        self._rows[target] = self._rows[source]

    def rest(self) -> None:
        """Nothing is kept."""

    def draft(self, rows: Sequence[DraftRow], rules: RuleState, worth: float) -> list[list[int]]:  # noqa: ARG002
        drafts = []
        for index, row in enumerate(rows):
            written = len(row.text) - row.text.index(self._rows[index][0]) - 1 if row.length else 0
            draft = self._rows[index][1 + written :][: row.length]
            drafts.append(draft if self.right else [(token + 1) % 256 for token in draft])
        return drafts


def key_of(window: Tensor) -> int:
    """What tells a window, padded or not, from others."""
    samples = window.numpy()
    return hash(np.trim_zeros(samples, "b").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="[float32]")
    parser.add_argument("--threads", type=int, default=1, help="processor threads [1]")
    parser.add_argument("--rows", type=int, default=8, help="windows decoded together [8]")
    parser.add_argument("--every", action="store_true", help="every assistant on every recording")
    parser.add_argument("--only", nargs="+", metavar="FOLDER", help="folders of the shared recordings [all]")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="shared recordings [../shared/data]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begun = time.perf_counter()
    recordings = [each for each in read(options.data) if not options.only or each.folder in options.only]
    check = Check(options.dtype, options.rows)
    kinds = cycle(check.kinds)
    print("| recording | windows | tokens | assistant | acceptance | tokens a pass | windows that differ | gaps |")
    print("|---|--:|--:|---|--:|--:|--:|---|", flush=True)
    for recording in recordings:
        everywhere = options.every or recording.folder == EVERYWHERE
        check(recording, list(check.kinds) if everywhere else [next(kinds)])
    spent = time.perf_counter() - begun
    print(f"\n{options.dtype}, {options.threads} threads, {options.rows} rows, {spent / 60:.1f} min: {check.verdict}")
    if not check.passed:
        sys.exit(1)


class Check:
    """Compares, and prints a row for each comparison."""

    def __init__(self, dtype: str, rows: int) -> None:
        local = models.resolve(MODEL, "asr")
        self._main, self._rows, self._dtype = models.load_whisper(local), rows, dtype
        self._compute = choose("cpu", dtype)
        self._plain = DecodingLoop(self._main, self._compute, rows)
        self._plain._encoder = self._encoder = RememberingEncoder(self._plain._encoder)  # noqa: SLF001
        self._exact: DecodingLoop | None = None
        tiny = models.load_whisper(models.resolve("tiny.en", "asr"))
        with tempfile.TemporaryDirectory() as folder:
            cut = cut_assistant(local, self._main, Path(folder))
        self._made: dict[str, Assistant] = {
            "ngram": NgramAssistant(),
            "tiny.en": DecoderAssistant(tiny, self._main, self._compute),
            "cut": DecoderAssistant(cut, self._main, self._compute),
        }
        if self._made["cut"].encodes or not self._made["tiny.en"].encodes:
            raise SystemExit("the cut does not share the encoder, or tiny.en does")
        self.kinds = (*self._made, "always wrong", "always right")
        self._windows, self._differ, self._gaps = 0, 0, list[float]()

    @property
    def passed(self) -> bool:
        return not self._gaps or (self._dtype == "bfloat16" and max(self._gaps) <= TIE)

    @property
    def verdict(self) -> str:
        largest = f", the largest gap is {max(self._gaps):.3f}" if self._gaps else ""
        return f"{self._differ} of {self._windows} windows differ{largest}"

    @torch.inference_mode()
    def __call__(self, recording: Recording, kinds: Sequence[str]) -> None:
        plain = run(self._plain, recording.windows, replace(GREEDY, assisted=False))
        tokens = sum(len(one.tokens) for one in plain)
        for kind in kinds:
            loop = self._loop(self._assistant(kind, recording, plain))
            assistance = Assistance()
            drafted = run(loop, recording.windows, GREEDY, assistance)
            gaps = list(self._gaps_between(recording, plain, drafted))
            self._windows += len(plain)
            self._differ += len(gaps)
            self._gaps += [gap for gap, _ in gaps]
            summary = assistance.summary
            shown = "; ".join(f"{gap:.3f} ({exact:.3f})" for gap, exact in gaps)
            print(
                f"| {recording.name} | {len(plain)} | {tokens} | {kind} | {summary['acceptance_rate']:.0%} |"
                f" {summary['tokens_per_pass']:.2f} | {len(gaps)} | {shown} |",
                flush=True,
            )

    def _loop(self, assistant: Assistant | None) -> DecodingLoop:
        loop = DecodingLoop(self._main, self._compute, self._rows, assistant=assistant, costs=CHEAP)
        loop._encoder = self._encoder  # noqa: SLF001 - windows are encoded once for all
        return loop

    def _assistant(self, kind: str, recording: Recording, plain: Sequence[Decoded]) -> Assistant:
        if kind in self._made:
            return self._made[kind]
        vocabulary = self._plain.vocabulary
        last = vocabulary.prompt("en", "transcribe", timestamps=True)[-1]
        texts = {
            key_of(torch.from_numpy(window)): [last, *one.tokens, *([vocabulary.end] if one.complete else [])]
            for window, one in zip(recording.windows, plain, strict=True)
        }
        return Told(texts, right=kind == "always right")

    def _gaps_between(
        self, recording: Recording, plain: Sequence[Decoded], drafted: Sequence[Decoded]
    ) -> Iterator[tuple[float, float]]:
        """Of windows that differ, the gap at the first difference: in this precision and in float32."""
        for window, one, other in zip(recording.windows, plain, drafted, strict=True):
            ends = [[*each.tokens, self._plain.vocabulary.end] for each in (one, other)]
            part = next((i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), None)
            if part is not None:
                if self._exact is None:
                    self._exact = DecodingLoop(self._main, choose("cpu", "float32"), 1)
                candidates = [each[part] for each in ends]
                yield (
                    margin(self._plain, window, one.tokens[:part], candidates),
                    margin(self._exact, window, one.tokens[:part], candidates),
                )


def cut_assistant(local: models.LocalModel, main: models.WhisperCheckpoint, folder: Path) -> models.WhisperCheckpoint:
    """Some of the main decoder's layers, written and read again as what `diarist distill` makes."""
    layers = {
        name: tensor.float()
        for name, tensor in some_layers(main, list(CUT_LAYERS)).tensors.items()
        if name.startswith("decoder.blocks.")
    }
    write_assistant(folder, local, main, layers, CUT_LAYERS, Measurement(0, 0.0, None, 0.0, 1.0), 0.0)
    return models.load_assistant(models.resolve(str(folder), "asr"), main)


def read(data: Path) -> Iterator[Recording]:
    """All shared recordings; utterances and words joined with pauses."""
    diarizer = Diarizer(
        models.load_segmentation(models.resolve("segmentation-3.0", "segmentation")), None, None, choose("cpu")
    )
    options = WindowOptions()
    for folder, name, waveform in waveforms(data):
        stream = diarizer.stream(speakers=False)
        stream.push(waveform)
        stream.finish()
        windows = pack(stream.speech(), waveform, 0.0, options)
        yield Recording(folder, name, [gather(window, waveform, 0.0) for window in windows])


def waveforms(data: Path) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Folder, name and samples of each."""
    heard: Callable[[Path], NDArray[np.float32]] = lambda path: decode(path)[0]  # noqa: E731
    for folder in ("clips", "meetings"):
        for path in sorted((data / folder).iterdir()):
            if path.suffix in (".flac", ".wav", ".mp3"):
                yield folder, path.stem, heard(path)
    for name in CONVERSATIONS:
        yield "conversations", name, heard(data / "conversations" / f"{name}.flac")
    for folder in ("words", "utterances"):
        paths = sorted((data / folder).glob("*.flac"))
        for first in range(0, len(paths), _JOINED):
            parts = [part for path in paths[first : first + _JOINED] for part in (heard(path), _PAUSE)]
            yield folder, f"{folder} {first + 1}-{min(first + _JOINED, len(paths))}", np.concatenate(parts)


if __name__ == "__main__":
    main()
