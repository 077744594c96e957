"""What is measured: a short clip, a long one, a full batch, and several requests at once, cut from recordings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diarist.audio import SAMPLE_RATE, open_audio
from diarist.errors import AudioEmptyError

CellName = Literal["short", "long", "batch", "concurrent"]
CELLS: tuple[CellName, ...] = ("short", "long", "batch", "concurrent")
SHORT_S = 8.0
LONG_S = 60.0
PUBLISHED: Mapping[str, tuple[float, float]] = MappingProxyType({"short": (0.784, 0.327), "long": (3.48, 4.15)})
"""Seconds not assisted and assisted that the original published, for the cells that it has."""
PUBLISHED_WITH = "an A10 with large-v3, assisted by distil-large-v3"
_WINDOW_S = 30.0  # what one row of a batch decodes at a time
_BLOCK_S = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One cell of the table."""

    name: CellName
    sounds: tuple[NDArray[np.float32], ...]
    """Mono samples at 16 kHz; each is a request, and all are made at once."""
    repeats: bool = False
    """The recordings are shorter than the cell, and begin again: then much is said twice."""

    @property
    def seconds(self) -> float:
        """Of sound, in all requests."""
        return sum(len(sound) for sound in self.sounds) / SAMPLE_RATE

    @property
    def title(self) -> str:
        each = f"{self.seconds / len(self.sounds):.0f} s"
        return f"{self.name}: {each}" if len(self.sounds) == 1 else f"{self.name}: {len(self.sounds)} x {each}"


def make_cells(recordings: Sequence[Path], names: Sequence[CellName], rows: int, requests: int) -> list[Cell]:
    """Cut the cells from recordings.

    The short and the long clip are the beginning of the first one. The batch is the recordings themselves: so much of
    them as fills all rows once at least and twice at most.

    Args:
        recordings: Files, at least one.
        names: Of the cells that are wanted.
        rows: Windows that are decoded together.
        requests: How many short ones are made at once.

    Raises:
        AudioError: A recording cannot be read, or the first one is empty.
    """
    full_s = rows * _WINDOW_S
    most_s = 2 * full_s if "batch" in names else LONG_S
    sounds: list[NDArray[np.float32]] = []
    for path in recordings if "batch" in names else recordings[:1]:
        left_s = most_s - sum(map(len, sounds)) / SAMPLE_RATE
        if left_s > 0:
            sounds.append(beginning(path, left_s))
    if not len(sounds[0]):
        raise AudioEmptyError(f"{recordings[0].name} holds no sound")
    first, others = sounds[0], [sound for sound in sounds[1:] if len(sound)]
    short = fitted(first, SHORT_S)
    missing = max(0, round(full_s * SAMPLE_RATE) - sum(map(len, sounds)))
    cells = {
        "short": Cell("short", (short,), len(first) < len(short)),
        "long": Cell("long", (fitted(first, LONG_S),), len(first) < LONG_S * SAMPLE_RATE),
        "batch": Cell("batch", (np.resize(first, len(first) + missing), *others), missing > 0),
        "concurrent": Cell("concurrent", (short,) * requests, len(first) < len(short)),
    }
    return [cells[name] for name in names]


def beginning(path: Path, most_s: float) -> NDArray[np.float32]:
    """The first seconds of a recording, all of it if it is shorter; shape (samples,)."""
    blocks = [np.zeros(0, np.float32)]
    with open_audio(path, block_s=_BLOCK_S) as audio:
        for block in audio:
            blocks.append(block)
            if audio.seconds_read >= most_s:
                break
    return np.concatenate(blocks)[: round(most_s * SAMPLE_RATE)]


def fitted(sound: NDArray[np.float32], seconds: float) -> NDArray[np.float32]:
    """So much sound, from the beginning again where there is less; shape (samples,)."""
    return np.resize(sound, round(seconds * SAMPLE_RATE))
