"""From clustered local speakers to turns: overlapping windows vote, frame by frame.

As pyannote.audio does it: the number of speakers in a frame is the mean over the windows that cover it, rounded, and
those global speakers are taken that most windows vote for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diarist.diarization.frames import FRAMES, frame_time, window_frame
from diarist.diarization.powerset import LOCAL_SPEAKERS, activity
from diarist.timeline import Segment, Turn

UNASSIGNED = -1
_BLOCK_FRAMES = 1 << 16  # ranked at once, so that memory stays flat over hours


@dataclass(frozen=True, slots=True)
class Votes:
    """What the windows of a recording say about each frame."""

    counts: NDArray[np.uint8]
    """Speakers at once. Shape (frames,)."""
    votes: NDArray[np.uint8]
    """Windows in which a global speaker is active. Shape (frames, speakers)."""


def count_votes(classes: NDArray[np.uint8], speakers: NDArray[np.int64], hop_s: float) -> Votes:
    """Sum up the windows.

    Args:
        classes: The network's decisions. Shape (windows, 589).
        speakers: Global speaker of each local one, or `UNASSIGNED`. Shape (windows, 3).
        hop_s: Seconds from one window to the next.
    """
    frames = window_frame(len(classes) - 1, hop_s) + FRAMES if len(classes) else 0
    globals_ = int(speakers.max(initial=UNASSIGNED)) + 1
    active_sum = np.zeros(frames, np.uint16)
    covered = np.zeros(frames, np.uint16)
    votes = np.zeros((frames, globals_), np.uint8)
    for window, window_classes in enumerate(classes):
        first = window_frame(window, hop_s)
        covered[first : first + FRAMES] += 1
        if not window_classes.any():
            continue
        active = activity(window_classes)
        active_sum[first : first + FRAMES] += active.sum(axis=1, dtype=np.uint16)
        for speaker in set(speakers[window].tolist()) - {UNASSIGNED}:
            mine = [local for local in range(LOCAL_SPEAKERS) if speakers[window, local] == speaker]
            votes[first : first + FRAMES, speaker] += active[:, mine].max(axis=1)
    return Votes(np.rint(active_sum / np.maximum(covered, 1)).astype(np.uint8), votes)


def choose(votes: Votes, at_once: int) -> NDArray[np.bool_]:
    """The speakers of each frame: as many as counted, at most `at_once`, those with most votes.

    Nobody without a vote is chosen: where windows agree on two speakers but clustering gave both the same name, one
    is left.

    Returns:
        Shape (frames, speakers).
    """
    chosen = np.zeros(votes.votes.shape, np.bool_)
    if not chosen.shape[1]:
        return chosen
    for start in range(0, len(chosen), _BLOCK_FRAMES):
        block = slice(start, start + _BLOCK_FRAMES)
        left = votes.votes[block].astype(np.int16)
        counts = np.minimum(votes.counts[block], at_once)
        for taken in range(int(counts.max(initial=0))):
            rows = np.flatnonzero(counts > taken)
            best = left[rows].argmax(axis=1)
            voted = left[rows, best] > 0
            chosen[start + rows[voted], best[voted]] = True
            left[rows, best] = 0
    return chosen


def turns(chosen: NDArray[np.bool_], names: Sequence[str], duration: float) -> tuple[Turn, ...]:
    """Runs of frames as turns, in order of time, inside the recording.

    Args:
        chosen: From `choose`. Shape (frames, speakers).
        names: Of the speakers.
        duration: Of the recording in seconds.
    """
    found = []
    everything = Segment(0.0, duration)
    for speaker, name in enumerate(names):
        edges = np.flatnonzero(np.diff(chosen[:, speaker].astype(np.int8), prepend=0, append=0))
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if segment := Segment(frame_time(first), frame_time(last)) & everything:
                found.append(Turn(segment, name))
    return tuple(sorted(found))
