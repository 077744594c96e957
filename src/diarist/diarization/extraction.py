"""Embeddings of the local speakers of every window, from one run of the speaker network's trunk over the recording.

The reference runs the trunk for each window, ten times over the same sound, on filter banks less their mean over that
window. Shared, the mean must belong to a frame: a moving average over half a window to either side, taken twice, comes
closest to the average of the means of all windows that hear it, and gives the reference's embedding to a cosine of
about 0.99. That settles who it is, except for those who are nearly as close to another person. What they say in a
window is run again, less the mean of that window.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diarist.diarization import features
from diarist.diarization.activity import LOCAL_SPEAKERS, pooling_masks
from diarist.diarization.embedding import (
    DIMENSION,
    TRUNK_CONTEXT,
    TRUNK_SIZE,
    TRUNK_STRIDE,
    EmbeddingModel,
    new_rooms,
)
from diarist.diarization.frames import FRAME_SAMPLES, FRAMES, SPAN_SAMPLES, WINDOW_SAMPLES
from diarist.diarization.recent import Recent
from diarist.timeline import Segment

_TRUNK_SAMPLES = TRUNK_STRIDE * features.SHIFT_SAMPLES
_BLOCK = 3200 - 2 * TRUNK_CONTEXT  # feature frames that go through the shared trunk at once, with context 32 s
_TILES = 2 * TRUNK_STRIDE  # feature frames that the trunk's convolutions may compute together
_MEAN_REACH = 500  # 5 s: half a window
_SHORT = 1000  # feature frames, 10 s: all windows of so short a recording are run alone, which costs no more
_CHUNK = 1200  # windows after which the doubtful are run again and their features let go: 20 min, 38 MB

Doubt = Callable[["Extractor", int, int], NDArray[np.bool_]]
"""Who in the windows from one to before another is close to two persons; shape (windows, LOCAL_SPEAKERS)."""


class Extractor:
    """Takes in sound and local activity as they come. Not thread-safe.

    Args:
        model: The speaker network.
    """

    def __init__(self, model: EmbeddingModel) -> None:
        self._model = model
        self._rooms = new_rooms()
        self._sound = torch.zeros(0)  # not yet made into features
        self._features = Recent(features.BINS)
        self._done = 0  # frames that have been through the shared trunk
        self._trunk = Recent(TRUNK_SIZE, device=model.device)
        self._begins: list[int] = []  # first sample of each window
        self._masks: list[NDArray[np.uint8]] = []  # of the windows from `_chunk` on
        self._chunk = 0  # the first window that can be run again
        self._pooled = 0  # windows embedded so far
        self._known = Recent(LOCAL_SPEAKERS, DIMENSION)  # of all windows: the embeddings found so far

    def push(self, samples: Tensor) -> None:
        """Hear the next samples: mono, 16 kHz, shape (samples,)."""
        self._sound = torch.cat([self._sound, samples])
        frames = features.frame_count(len(self._sound))
        if frames:
            used = (frames - 1) * features.SHIFT_SAMPLES + features.FRAME_SAMPLES
            self._features.append(features.log_mel(self._sound[:used]))
            self._sound = self._sound[frames * features.SHIFT_SAMPLES :].clone()

    def expect(self, begins: Iterable[int], activity: NDArray[np.uint8]) -> None:
        """Windows that begin at these samples have been segmented; activity has shape (windows, FRAMES, 3)."""
        for begin, mask in zip(begins, pooling_masks(activity), strict=True):
            self._begins.append(begin)
            self._masks.append(mask)
        self._known.append(torch.zeros(len(activity), LOCAL_SPEAKERS, DIMENSION))

    def pieces(self, doubt: Doubt, *, ended: bool) -> Iterator[None]:
        """Embed what can be embedded by now, a few tenths of a second at a time.

        Args:
            doubt: Asked every 20 minutes and at the end whom to run again.
            ended: There is no more sound: embed all windows that are left.
        """
        lookahead = TRUNK_CONTEXT + 2 * _MEAN_REACH
        while (
            max(_SHORT, self._done + _BLOCK + lookahead) < self._features.stop and self._heard() >= self._done + _BLOCK
        ):
            self._run_block(self._done + _BLOCK)
            yield
            if self._pooled - self._chunk >= _CHUNK:
                yield from self._settle_chunk(doubt)
        if ended:
            yield from self._rest(doubt)

    def _rest(self, doubt: Doubt) -> Iterator[None]:
        """Embed all windows that are left."""
        if self._features.stop <= _SHORT:
            yield from self._run_alone(0, np.ones((len(self._begins), LOCAL_SPEAKERS), np.bool_))
            self._pooled = len(self._begins)
            return
        while self._done < self._features.stop:
            self._run_block(min(self._features.stop, self._done + _BLOCK))
            yield
        self._pool(everything=True)
        yield from self._settle_chunk(doubt)

    def embeddings(self, first: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Of the local speakers of windows; shape (windows, LOCAL_SPEAKERS, 256). Zero for those who say nothing.

        A view, good until more windows come.
        """
        known: NDArray[np.float32] = self._known.cut(first, self._known.stop if stop is None else stop).numpy()
        return known

    def _heard(self) -> int:
        """Feature frames up to which it is known who speaks."""
        return self._begins[-1] // features.SHIFT_SAMPLES if self._begins else 0

    def _settle_chunk(self, doubt: Doubt) -> Iterator[None]:
        """Run the doubtful of the last minutes again, then let go of their sound."""
        first, stop = self._chunk, self._pooled
        yield from self._run_alone(first, doubt(self, first, stop))
        self._chunk = stop
        del self._masks[: stop - first]
        needed = min(
            self._done, self._begins[stop] // features.SHIFT_SAMPLES if stop < len(self._begins) else self._done
        )
        self._features.forget(needed - TRUNK_CONTEXT - 2 * _MEAN_REACH)

    def _run_alone(self, first: int, speakers: NDArray[np.bool_]) -> Iterator[None]:
        """Embed each window's speakers as the reference does, on features less the mean of that window.

        Args:
            first: The first window.
            speakers: Whom to embed, in it and those that follow; shape (windows, LOCAL_SPEAKERS).
        """
        parts = []
        for window, chosen in enumerate(speakers, start=first):
            mask = self._masks[window - self._chunk] * chosen
            needed = _needed(mask, len(self._features_of(window)))
            if needed:
                parts.append((window, mask, needed))
        parts.sort(key=lambda part: len(part[2]))
        for _, same in groupby(parts, key=lambda part: len(part[2])):
            alike = list(same)
            for place in range(0, len(alike), self._model.together):
                batch = alike[place : place + self._model.together]
                heard = torch.stack([self._less_mean(window, needed) for window, _, needed in batch])
                trunks = self._model.trunk(heard, self._rooms)
                self._embed(
                    (window, mask, trunk, needed.start * features.SHIFT_SAMPLES)
                    for (window, mask, needed), trunk in zip(batch, trunks, strict=True)
                )
                yield

    def _less_mean(self, window: int, frames: range) -> Tensor:
        """Some of a window's features, less the mean of all."""
        whole = self._features_of(window)
        return whole[frames.start : frames.stop] - whole.mean(dim=0)

    def _features_of(self, window: int) -> Tensor:
        first = self._begins[window] // features.SHIFT_SAMPLES
        return self._features.cut(first, first + features.frame_count(WINDOW_SAMPLES))

    def _run_block(self, stop: int) -> None:
        """Put the feature frames up to `stop` through the shared trunk, if anybody speaks in them."""
        start = self._done
        size = -(-(stop - start) // TRUNK_STRIDE)
        if self._anybody(start, stop):
            first = max(self._features.start, start - TRUNK_CONTEXT)
            last = min(self._features.stop, stop + TRUNK_CONTEXT)
            heard = self._model.trunk(self._centred(first, last)[None], self._rooms)
            trunk = heard[0, (start - first) // TRUNK_STRIDE :][:size]
        else:
            trunk = torch.zeros(size, TRUNK_SIZE, device=self._model.device)
        self._trunk.append(trunk)
        self._done = stop
        self._pool()

    def _anybody(self, start: int, stop: int) -> bool:
        """Whether a window that is not embedded yet selects anything of these feature frames."""
        block = Segment(start * features.SHIFT_SAMPLES, stop * features.SHIFT_SAMPLES + features.FRAME_SAMPLES)
        for window in range(self._pooled, len(self._begins)):
            spoken = np.flatnonzero(self._masks[window - self._chunk].any(axis=1))
            if len(spoken):
                begin = self._begins[window]
                span = Segment(
                    begin + int(spoken[0]) * FRAME_SAMPLES, begin + int(spoken[-1]) * FRAME_SAMPLES + SPAN_SAMPLES
                )
                if span & block:
                    return True
        return False

    def _centred(self, first: int, last: int) -> Tensor:
        """Features of frames `first` to `last` less their local mean."""
        low = max(self._features.start, first - 2 * _MEAN_REACH)
        part = self._features.cut(low, last + 2 * _MEAN_REACH)
        mean = _moving_mean(_moving_mean(part.double(), _MEAN_REACH), _MEAN_REACH)[first - low : last - low]
        return part[first - low : last - low] - mean.float()

    def _pool(self, *, everything: bool = False) -> None:
        """Embed the windows whose trunk frames are all there."""
        ready = []
        for window in range(self._pooled, len(self._begins)):
            sample = self._begins[window]
            begin, end = -(-sample // _TRUNK_SAMPLES), -(-(sample + WINDOW_SAMPLES) // _TRUNK_SAMPLES)
            if end > self._trunk.stop and not everything:
                break
            trunk = self._trunk.cut(begin, end)
            ready.append((window, self._masks[window - self._chunk], trunk, begin * _TRUNK_SAMPLES - sample))
        self._embed(ready)
        self._pooled += len(ready)
        none_left = self._pooled == len(self._begins)
        self._trunk.forget(self._trunk.stop if none_left else self._begins[self._pooled] // _TRUNK_SAMPLES)

    def _embed(self, windows: Iterable[tuple[int, NDArray[np.uint8], Tensor, int]]) -> None:
        """Embed whom a mask selects of each window, from trunk frames which begin so many samples into it."""
        found: list[tuple[int, NDArray[np.int64], Tensor]] = []
        for window, mask, trunk, offset in windows:
            speaking = np.flatnonzero(mask.any(axis=0))
            if len(speaking) and len(trunk):
                place = (np.arange(len(trunk)) * _TRUNK_SAMPLES + offset) * FRAMES // WINDOW_SAMPLES
                chosen = torch.from_numpy(mask[np.minimum(place, FRAMES - 1)][:, speaking].T.astype(np.float32))
                found.append((window, speaking, self._model.pool(trunk, chosen.to(self._model.device))))
        if found:  # fetched together: each time the device must be waited for
            embeddings = torch.cat([pooled for _, _, pooled in found]).cpu().numpy()
            ends = np.cumsum([len(speaking) for _, speaking, _ in found])
            for (window, speaking, _), own in zip(found, np.split(embeddings, ends[:-1]), strict=True):
                self._known.cut(window, window + 1).numpy()[0, speaking] = own


def _needed(mask: NDArray[np.uint8], frames: int) -> range:
    """Which of a window's feature frames the trunk must hear for what a mask selects; shape (FRAMES, speakers).

    One more trunk frame on either side for what is rounded, from where the convolutions' tiles begin. Empty where nothing is
    selected, or nothing of the frames that there are.
    """
    spoken = np.flatnonzero(mask.any(axis=1))
    if not len(spoken):
        return range(0)
    first, last = (int(frame) * WINDOW_SAMPLES // FRAMES // _TRUNK_SAMPLES for frame in (spoken[0], spoken[-1] + 1))
    start = (first - 1) * TRUNK_STRIDE - TRUNK_CONTEXT
    return range(max(0, start // _TILES * _TILES), min(frames, (last + 2) * TRUNK_STRIDE + TRUNK_CONTEXT))


def _moving_mean(x: Tensor, reach: int) -> Tensor:
    """The mean of up to `reach` rows to either side of each row; x has shape (rows, columns), float64."""
    sums = torch.cat([torch.zeros_like(x[:1]), x.cumsum(dim=0)])
    rows = torch.arange(len(x))
    low, high = (rows - reach).clamp(min=0), (rows + reach + 1).clamp(max=len(x))
    return (sums[high] - sums[low]) / (high - low)[:, None]
