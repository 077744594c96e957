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
_SEARCHED_S = 2 * LONG_S  # where the clips are looked for
_BLOCK_S = 30.0
_FRAME_S = 0.1
_LOUD = 0.1  # of the level of loud speech: what is quieter is a pause


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

    The short and the long clip are the fullest stretches near the beginning of the first one. The batch is the
    recordings themselves: so much of them as fills all rows once at least and twice at most.

    Args:
        recordings: Files, at least one.
        names: Of the cells that are wanted.
        rows: Windows that are decoded together.
        requests: How many short ones are made at once.

    Raises:
        AudioError: A recording cannot be read, or the first one is empty.
    """
    full_s = rows * _WINDOW_S
    first = beginning(recordings[0], max(2 * full_s, _SEARCHED_S))
    if not len(first):
        raise AudioEmptyError(f"{recordings[0].name} holds no sound")
    searched = first[: round(_SEARCHED_S * SAMPLE_RATE)]
    short, long = fullest(searched, SHORT_S), fullest(searched, LONG_S)
    cells = {
        "short": Cell("short", (short,), len(first) < len(short)),
        "long": Cell("long", (long,), len(first) < len(long)),
        "concurrent": Cell("concurrent", (short,) * requests, len(first) < len(short)),
    }
    if "batch" in names:
        cells["batch"] = _batch(first, recordings[1:], full_s)
    return [cells[name] for name in names]


def _batch(first: NDArray[np.float32], others: Sequence[Path], full_s: float) -> Cell:
    """Recordings that together last at least `full_s` seconds, and at most twice that."""
    sounds = [first[: round(2 * full_s * SAMPLE_RATE)]]
    for path in others:
        left_s = 2 * full_s - sum(map(len, sounds)) / SAMPLE_RATE
        if left_s > 0 and len(sound := beginning(path, left_s)):
            sounds.append(sound)
    missing = max(0, round(full_s * SAMPLE_RATE) - sum(map(len, sounds)))
    return Cell("batch", (np.resize(first, len(sounds[0]) + missing), *sounds[1:]), missing > 0)


def beginning(path: Path, most_s: float) -> NDArray[np.float32]:
    """The first seconds of a recording, all of it if it is shorter; shape (samples,)."""
    blocks = [np.zeros(0, np.float32)]
    with open_audio(path, block_s=_BLOCK_S) as audio:
        for block in audio:
            blocks.append(block)
            if audio.seconds_read >= most_s:
                break
    return np.concatenate(blocks)[: round(most_s * SAMPLE_RATE)]


def fullest(sound: NDArray[np.float32], seconds: float) -> NDArray[np.float32]:
    """The stretch with the fewest pauses; where there is less sound than wanted, all of it, begun again.

    Args:
        sound: Mono, 16 kHz; shape (samples,).
        seconds: Length of the stretch.
    """
    frame, wanted = round(_FRAME_S * SAMPLE_RATE), round(seconds / _FRAME_S)
    count = len(sound) // frame
    if count < wanted:
        return np.resize(sound, wanted * frame)
    levels = np.sqrt(np.mean(sound[: count * frame].reshape(count, frame) ** 2, axis=1))
    loud = np.concatenate([[0], np.cumsum(levels > _LOUD * np.percentile(levels, 90))])
    start = int(np.argmax(loud[wanted:] - loud[:-wanted]))
    return sound[start * frame : (start + wanted) * frame]
