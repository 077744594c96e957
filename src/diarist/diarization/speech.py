"""The speech track: when anybody speaks, settled piece by piece as windows come in.

It is the product's voice activity detector, so it errs on the side of calling it speech: text can be missing from
what is called speech, but not be found in what is not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diarist.diarization.frames import FRAMES, frame_time
from diarist.timeline import Segment


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """When a probability counts as speech."""

    onset: float = 0.4
    """Speech begins where the probability rises above this. At 0.5, faint beginnings are lost in meetings."""
    offset: float = 0.3
    """Speech ends where the probability falls below this."""
    min_pause_s: float = 0.1
    """Shorter pauses are filled: they occur inside words, before plosives."""


# The ends of a window have seen sound on one side only: what overlapping windows say counts by the distance from them.
_TRUST = np.minimum(np.arange(FRAMES), np.arange(FRAMES)[::-1]) + 10.0


class SpeechTrack:
    """Averages the windows' probabilities of speech and cuts the settled part into segments."""

    def __init__(self, options: SpeechOptions | None = None) -> None:
        self.options = options or SpeechOptions()
        self.settled = 0.0
        """Seconds up to which the track is final."""
        self._segments: list[Segment] = []
        self._begun: float | None = None  # speech that has not ended yet
        self._ended: float | None = None  # when it stopped, if the pause may still be too short
        self._frame = 0  # the first one that windows may still change
        self._sums = np.zeros(0)
        self._weights = np.zeros(0)

    def add(self, first_frame: int, speech: NDArray[np.float32]) -> None:
        """Take in a window, in order. `speech` has shape (589,): the probability that anybody speaks."""
        start = first_frame - self._frame
        missing = start + FRAMES - len(self._sums)
        if missing > 0:
            self._sums = np.append(self._sums, np.zeros(missing))
            self._weights = np.append(self._weights, np.zeros(missing))
        self._sums[start : start + FRAMES] += _TRUST * speech
        self._weights[start : start + FRAMES] += _TRUST

    def settle(self, frame: int) -> None:
        """No more windows will cover the frames before this one."""
        count = min(frame - self._frame, len(self._sums))
        if count <= 0:
            return
        self._cut(self._sums[:count] / np.maximum(self._weights[:count], 1e-12))
        self._frame += count
        self._sums, self._weights = self._sums[count:], self._weights[count:]
        now = frame_time(self._frame - 1)
        self.settled = self._ended if self._ended is not None else now

    def finish(self, duration: float) -> None:
        """No more windows at all; what lies past the end of the recording is dropped."""
        self.settle(self._frame + len(self._sums))
        if self._begun is not None:
            self._segments.append(Segment(self._begun, duration if self._ended is None else self._ended))
        self._begun = self._ended = None
        everything = Segment(0.0, duration)
        self._segments = [part for segment in self._segments if (part := segment & everything)]
        self.settled = duration

    def segments(self, since: float) -> list[Segment]:
        """The final track from `since` to `settled`, in seconds."""
        segments = self._segments
        if self._begun is not None:
            segments = [*segments, Segment(self._begun, self.settled)]
        first = len(segments)
        while first and segments[first - 1].end > since:
            first -= 1
        span = Segment(since, self.settled)
        return [part for segment in segments[first:] if (part := segment & span)]

    def _cut(self, speech: NDArray[np.float64]) -> None:
        """Carry the state machine over newly settled frames."""
        speaking = self._begun is not None and self._ended is None
        decided = np.where(speech > self.options.onset, 1, np.where(speech < self.options.offset, 0, -1))
        # A frame between the thresholds is as the last one outside them was.
        last = np.maximum.accumulate(np.where(decided >= 0, np.arange(len(decided)), -1))
        states = np.where(last >= 0, decided[last], int(speaking))
        for change in np.flatnonzero(np.diff(states, prepend=int(speaking))):
            frame = self._frame + int(change)
            self._drop_pause(frame_time(frame))
            if states[change]:
                if self._ended is None:
                    self._begun = frame_time(frame) if frame else 0.0
                self._ended = None
            else:
                self._ended = frame_time(frame)
        self._drop_pause(frame_time(self._frame + len(speech) - 1))

    def _drop_pause(self, now: float) -> None:
        """End the segment once its pause has lasted long enough."""
        if self._begun is not None and self._ended is not None and now - self._ended >= self.options.min_pause_s:
            self._segments.append(Segment(self._begun, self._ended))
            self._begun = self._ended = None
