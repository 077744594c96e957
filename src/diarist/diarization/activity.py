"""From what the network says of each window to who speaks in each frame of the recording.

Arrays of local activity have shape (windows, FRAMES, LOCAL_SPEAKERS) and are 0 or 1. The steps and their rounding are
those of pyannote.audio's speaker diarization pipeline.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diarist.diarization.frames import FRAMES, frame_time, window_frame
from diarist.timeline import Segment

LOCAL_SPEAKERS = 3
INACTIVE = -1
"""Cluster of a local speaker who says nothing."""

_CLASS_SPEAKERS = np.array(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], np.uint8
)  # the powerset of three speakers with at most two at once, in the network's order
_RANKED = 1 << 16  # frames at once: sorting takes sixteen times the memory of its result
_MIN_CLEAN_FRAMES = 2  # with fewer frames of a speaker alone, the embedding hears the overlap as well


def local_activity(log_probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Who speaks, by the likeliest class of each frame: (..., 7) to (..., 3)."""
    active: NDArray[np.uint8] = _CLASS_SPEAKERS[log_probabilities.argmax(axis=-1)]
    return active


def without_overlap(activity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Who speaks while nobody else does."""
    clean: NDArray[np.uint8] = activity * (activity.sum(axis=-1, keepdims=True) == 1)
    return clean


def pooling_masks(activity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames from which each local speaker is embedded: those without overlap, if there are enough of them."""
    clean = without_overlap(activity)
    enough = clean.sum(axis=-2, keepdims=True) > _MIN_CLEAN_FRAMES
    return np.where(enough, clean, activity)


class FrameMean:
    """The mean over all windows that hear a frame, grown as windows come."""

    def __init__(self) -> None:
        self._sum = np.zeros(0, np.float32)
        self._count = np.zeros(0, np.uint16)

    def add(self, first: int, values: NDArray[np.float32]) -> None:
        """Add one window's values, shape (FRAMES,), from frame `first` on."""
        missing = first + len(values) - len(self._sum)
        if missing > 0:
            grown = max(missing, len(self._sum))  # doubling keeps the cost of growing linear
            self._sum = np.concatenate([self._sum, np.zeros(grown, np.float32)])
            self._count = np.concatenate([self._count, np.zeros(grown, np.uint16)])
        self._sum[first : first + len(values)] += values
        self._count[first : first + len(values)] += 1

    def mean(self, start: int, stop: int) -> NDArray[np.float32]:
        """Of frames `start` to `stop`; 0 where no window has been heard."""
        part = slice(start, min(stop, len(self._sum)))
        return np.divide(self._sum[part], np.maximum(self._count[part], 1), dtype=np.float32)


def runs(active: NDArray[np.bool_], first_frame: int = 0) -> list[Segment]:
    """Stretches of active frames, in seconds: from the middle of the first to the middle of the frame after the last.

    >>> runs(np.array([False, True, True, False]))
    [Segment(start=0.04784375, end=0.08159375)]
    """
    changes = np.diff(np.concatenate([[0], active.astype(np.int8), [0]]))
    starts, stops = np.flatnonzero(changes == 1), np.flatnonzero(changes == -1)
    return [
        Segment(frame_time(first_frame + start), frame_time(first_frame + stop))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]


def speaker_count(activity: Sequence[NDArray[np.uint8]], hop_s: float) -> NDArray[np.int64]:
    """How many speak at once in each frame of the recording: the rounded mean over the windows that hear it."""
    mean = FrameMean()
    last = 0
    for window, local in enumerate(activity):
        last = window_frame(window, hop_s)
        mean.add(last, local.sum(axis=1).astype(np.float32))
    return np.rint(mean.mean(0, last + FRAMES)).astype(np.int64)


def reconstruct(
    activity: Sequence[NDArray[np.uint8]], clusters: NDArray[np.int64], hop_s: float, most: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who of the global speakers speaks in each frame.

    In every frame as many speak as `speaker_count` says, and they are those whom most windows hear.

    Args:
        activity: Of each window.
        clusters: The global speaker of each local one, or `INACTIVE`; shape (windows, LOCAL_SPEAKERS).
        hop_s: Between windows.
        most: Speakers at once, at the most. Where more speak than were told apart, the others become one more.

    Returns:
        Two arrays of shape (frames, speakers): with overlap, and with at most one speaker a frame.
    """
    count = np.minimum(speaker_count(activity, hop_s), most)
    speakers = max(int(clusters.max(initial=INACTIVE)) + 1, int(count.max(initial=0)))
    heard = np.zeros((len(count), speakers), np.uint8)  # no frame is heard by more than ten windows
    for window, local in enumerate(activity):
        first = window_frame(window, hop_s)
        mine = clusters[window]
        for speaker in np.unique(mine[mine != INACTIVE]):
            heard[first : first + FRAMES, speaker] += local[:, mine == speaker].max(axis=1)
    overlapping, exclusive = np.zeros((2, *heard.shape), np.bool_)
    for start in range(0, len(heard), _RANKED):
        part = slice(start, start + _RANKED)
        place = _places(heard[part])
        overlapping[part] = place < count[part, None]
        exclusive[part] = place < np.minimum(count[part, None], 1)
    return overlapping, exclusive


def _places(heard: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Of each speaker among those who are heard in a frame, most by most windows first."""
    ranked = np.argsort(-heard.astype(np.int16), axis=1, kind="stable")
    places = np.empty_like(ranked)
    np.put_along_axis(places, ranked, np.arange(heard.shape[1])[None], axis=1)
    return places
