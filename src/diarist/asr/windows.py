"""Gather the speech of a recording into the windows that the model reads, and find what it left out.

Windows are cut at pauses and packed to at most `WINDOW_S` seconds; they come in time order and never overlap, so their
texts are joined end to end and no word is decided twice. Long silences are taken out: a window is a row of pieces of
the recording, and times in it map back piece by piece.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diarist.asr.features import SAMPLE_RATE_HZ, WINDOW_S
from diarist.timeline import Segment, subtract, union


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """Where a recording may be cut, and what counts as left out."""

    min_pause_s: float = 0.2
    """Shortest silence that may hold a cut, in seconds. Shorter gaps occur inside words, before plosives."""
    margin_s: float = 0.2
    """Sound kept around speech, in seconds. Onsets are fainter than the speech threshold and would be clipped."""
    max_silence_s: float = 2.0
    """Silence kept inside a window, in seconds; longer ones are shortened to this. Silence invites invented text."""
    min_hole_s: float = 1.0
    """Shortest stretch of speech without text that is decoded again, in seconds."""
    search_s: float = 8.0
    """Speech without a pause is cut at its quietest instant within this many seconds before the window is full."""


@dataclass(frozen=True, slots=True)
class Window:
    """Pieces of a recording, in order, read as if they followed each other."""

    pieces: tuple[Segment, ...]

    @property
    def duration(self) -> float:
        return sum(piece.duration for piece in self.pieces)

    @property
    def span(self) -> Segment:
        """From the first piece's start to the last one's end, on the recording."""
        return Segment(self.pieces[0].start, self.pieces[-1].end)

    def locate(self, instant: float, *, ending: bool = False) -> float:
        """The instant of the recording that is at `instant` seconds of the window, clamped to the window.

        Where two pieces meet, the end of the earlier if `ending`, else the start of the later.

        >>> window = Window((Segment(10, 12), Segment(20, 25)))
        >>> window.locate(1.5), window.locate(2), window.locate(2, ending=True), window.locate(99)
        (11.5, 20.0, 12.0, 25)
        """
        passed = 0.0
        for piece in self.pieces:
            end = passed + piece.duration
            if instant < end or (ending and instant <= end):
                return piece.start + max(0.0, instant - passed)
            passed = end
        return self.pieces[-1].end

    def cut(self, start: float, end: float) -> "Window":
        """The part from `start` to `end` seconds of the window."""
        pieces, passed = [], 0.0
        for piece in self.pieces:
            kept = piece & Segment(piece.start + start - passed, piece.start + end - passed)
            pieces += [kept] if kept else []
            passed += piece.duration
        return Window(tuple(pieces))

    def speech_inside(self, speech: Iterable[Segment]) -> list[Segment]:
        """Stretches of speech on the recording as stretches of the window."""
        inside, passed = [], 0.0
        for piece in self.pieces:
            inside += [part.shifted(passed - piece.start) for segment in speech if (part := segment & piece)]
            passed += piece.duration
        return union(inside, max_gap=1e-6)


class _Atom(NamedTuple):
    """Speech that is not cut any further."""

    segment: Segment
    """With its margins."""
    pause_s: float
    """Silence before it, margins not counted."""


def pack(
    speech: Sequence[Segment], waveform: NDArray[np.float32], offset: float, options: WindowOptions
) -> list[Window]:
    """Cut a stretch of a recording into windows.

    Args:
        speech: The speech track, disjoint and in order, in seconds on the recording.
        waveform: The stretch that holds it; mono, 16 kHz, shape (samples,).
        offset: When the stretch begins on the recording, in seconds.
        options: Where it may be cut.

    Returns:
        Windows of at most `WINDOW_S` seconds that hold all of the speech, in order.
    """
    stretch = Segment(offset, offset + len(waveform) / SAMPLE_RATE_HZ)
    windows: list[Window] = []
    waiting: list[_Atom] = []  # what the next window may take
    for atom in _atoms(speech, waveform, stretch, options):
        waiting.append(atom)
        while _filled(waiting, options) > WINDOW_S:
            cut = _best_cut(waiting, options)
            windows.append(_window(waiting[:cut], options))
            waiting = waiting[cut:]
    return [*windows, _window(waiting, options)] if waiting else windows


def _window(atoms: Sequence[_Atom], options: WindowOptions) -> Window:
    pieces: list[Segment] = []
    for atom in atoms:
        pieces = _joined(pieces, atom.segment, options.max_silence_s)
    return Window(tuple(pieces))


def _filled(atoms: Sequence[_Atom], options: WindowOptions) -> float:
    """Length of the window that the atoms make, in seconds."""
    silences = sum(min(options.max_silence_s, b.segment.start - a.segment.end) for a, b in pairwise(atoms))
    return sum(atom.segment.duration for atom in atoms) + silences


def _best_cut(atoms: Sequence[_Atom], options: WindowOptions) -> int:
    """How many atoms to take: cut at the longest of the late pauses, for a sentence rarely ends at a short one.

    Of pauses about as long, the last. The last atom is known not to fit.
    """
    cuts = [cut for cut in range(1, len(atoms)) if _filled(atoms[:cut], options) >= WINDOW_S - options.search_s]
    if not cuts:
        return len(atoms) - 1
    return max(cuts, key=lambda cut: (round(atoms[cut].pause_s, 1), cut))


def _joined(pieces: Sequence[Segment], atom: Segment, max_silence_s: float) -> list[Segment]:
    """Pieces and what follows them, with the silence between kept, or shortened to its two edges."""
    if not pieces:
        return [atom]
    *before, last = pieces
    silence = Segment(last.end, atom.start)
    if silence.duration <= max_silence_s:
        return [*before, last | atom]
    half = max_silence_s / 2
    return [*before, Segment(last.start, last.end + half), Segment(atom.start - half, atom.end)]


def _atoms(
    speech: Sequence[Segment], waveform: NDArray[np.float32], stretch: Segment, options: WindowOptions
) -> list[_Atom]:
    """Speech between pauses, with its margins, none longer than a window."""
    atoms: list[_Atom] = []
    spoken_until = stretch.start
    for segment in union(speech, max_gap=options.min_pause_s):
        start = max(stretch.start, segment.start - options.margin_s)
        pause_s = segment.start - spoken_until
        if atoms and start < atoms[-1].segment.end:  # a pause shorter than two margins is shared
            start = (spoken_until + segment.start) / 2
            atoms[-1] = _Atom(Segment(atoms[-1].segment.start, start), atoms[-1].pause_s)
        spoken_until = segment.end
        end = min(stretch.end, segment.end + options.margin_s)
        while end - start > WINDOW_S:
            search = Segment(start + WINDOW_S - options.search_s, start + WINDOW_S)
            middle = quietest(waveform, search.shifted(-stretch.start)) + stretch.start
            atoms.append(_Atom(Segment(start, middle), pause_s))
            start, pause_s = middle, 0.0
        atoms.append(_Atom(Segment(start, end), pause_s))
    return atoms


def quietest(waveform: NDArray[np.float32], search: Segment, width_s: float = 0.1) -> float:
    """The middle of the `width_s` seconds with the least energy within `search`, in seconds."""
    width = round(width_s * SAMPLE_RATE_HZ)
    first = round(search.start * SAMPLE_RATE_HZ)
    part = waveform[first : round(search.end * SAMPLE_RATE_HZ)].astype(np.float64)
    energy = np.concatenate([[0.0], np.cumsum(part * part)])
    least = int(np.argmin(energy[width:] - energy[:-width]))
    return (first + least + width / 2) / SAMPLE_RATE_HZ


def gather(window: Window, waveform: NDArray[np.float32], offset: float) -> NDArray[np.float32]:
    """The samples of a window.

    Args:
        window: Pieces inside the stretch.
        waveform: A stretch of the recording; shape (samples,).
        offset: When the stretch begins on the recording, in seconds.

    Returns:
        A copy, shape (samples,), at most `WINDOW_S` seconds.
    """
    parts = [
        waveform[round((piece.start - offset) * SAMPLE_RATE_HZ) : round((piece.end - offset) * SAMPLE_RATE_HZ)]
        for piece in window.pieces
    ]
    return np.concatenate(parts)[: WINDOW_S * SAMPLE_RATE_HZ]


def holes(speech: Iterable[Segment], covered: Iterable[Segment], options: WindowOptions) -> list[Segment]:
    """Stretches of speech long enough to hold words and without text; all in seconds of one window."""
    return [hole for hole in subtract(speech, covered) if hole.duration >= options.min_hole_s]
