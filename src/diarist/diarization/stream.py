"""A recording goes in block by block; its speech track comes out as it goes, its speakers' turns at the end.

What is kept of the past is small: local activity and embeddings of each window. Of the sound, only what windows to come
will hear; of the speaker network's trunk, only what they will pool.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diarist.compute import Compute
from diarist.diarization import features
from diarist.diarization.activity import (
    LOCAL_SPEAKERS,
    FrameMean,
    local_activity,
    pooling_masks,
    reconstruct,
    runs,
)
from diarist.diarization.clustering import Method, SpeakerBounds, cluster
from diarist.diarization.embedding import DIMENSION, TRUNK_SIZE, TRUNK_STRIDE, EmbeddingModel
from diarist.diarization.frames import (
    FRAME_S,
    FRAME_SAMPLES,
    FRAMES,
    SAMPLE_RATE,
    SPAN_SAMPLES,
    WINDOW_SAMPLES,
    frame_time,
    window_count,
    window_frame,
    window_start,
)
from diarist.diarization.segmentation import SegmentationModel
from diarist.diarization.vbx import Plda
from diarist.stopwatch import Stopwatch
from diarist.timeline import Segment, Turn

SPEAKER_HOP_S = 1.0
"""Between windows when speakers are told apart: that of the reference."""
SPEECH_HOP_S = 5.0
"""Between windows when only the speech track is wanted: every frame is heard twice."""
SPEECH_PROBABILITY = 0.4
"""From which a frame is speech. A little below one half: a lost word costs more than a moment of silence."""
_BATCH = 32  # windows segmented at once


@dataclass(frozen=True, slots=True)
class Diarization:
    """Who spoke when."""

    turns: tuple[Turn, ...]
    """Turns may overlap."""
    exclusive_turns: tuple[Turn, ...]
    """At most one speaker at a time: for giving words to speakers."""
    speakers: tuple[str, ...]
    """In order of first appearance."""
    embeddings: NDArray[np.float32]
    """Of each speaker, shape (speakers, 256)."""


class Diarizer:
    """Networks made ready once; give each recording a stream of its own. Safe to use from several threads.

    Args:
        segmentation: Tensors of the segmentation network.
        embedding: Tensors of the speaker network; None if speakers are never told apart.
        plda: Arrays of the PLDA, for VBx.
        compute: Device and precision.
        clustering: "centroid" (as pyannote 3.1) or "vbx" (as community-1).
    """

    def __init__(
        self,
        segmentation: Mapping[str, Tensor],
        embedding: Mapping[str, Tensor] | None,
        plda: Mapping[str, NDArray[np.floating]] | None,
        compute: Compute,
        clustering: Method = "centroid",
    ) -> None:
        self.segmentation = SegmentationModel(segmentation, compute)
        self.embedding = EmbeddingModel(embedding, compute) if embedding is not None else None
        self.plda = Plda(plda) if plda is not None else None
        self.clustering = clustering

    def stream(self, *, speakers: bool) -> "DiarizationStream":
        """Begin a recording; without `speakers`, only its speech track is found."""
        return DiarizationStream(self, speakers=speakers)


class DiarizationStream:
    """One recording. Not thread-safe."""

    def __init__(self, diarizer: Diarizer, *, speakers: bool) -> None:
        self._diarizer = diarizer
        self._hop_s = SPEAKER_HOP_S if speakers else SPEECH_HOP_S
        self._samples = 0  # received
        self._kept = torch.zeros(0)  # the last of them
        self._kept_from = 0  # sample at which they begin
        self._window = 0  # the next to be segmented
        self._speech = FrameMean()
        self._activity: list[NDArray[np.uint8]] = []
        self._voices = _Voices(diarizer.embedding) if speakers and diarizer.embedding is not None else None
        self._finished = False
        self._clock = Stopwatch()

    @property
    def seconds(self) -> Mapping[str, float]:
        """Work time of each stage so far: segmentation, embedding, clustering."""
        return self._clock.seconds

    def push(self, block: NDArray[np.float32]) -> None:
        """Hear the next samples: mono, 16 kHz, shape (samples,)."""
        samples = torch.from_numpy(np.ascontiguousarray(block, np.float32))
        self._samples += len(samples)
        self._kept = torch.cat([self._kept, samples])
        with self._clock.timed("embedding"):
            if self._voices:
                self._voices.push(samples)
        self._segment(self._complete())

    def finish(self) -> None:
        """The recording has ended."""
        if self._finished:
            return
        self._finished = True
        total = window_count(self._samples, self._hop_s)
        if total:
            end = window_start(total - 1, self._hop_s) + WINDOW_SAMPLES
            silence = max(0, end - self._samples)
            self._kept = torch.cat([self._kept, torch.zeros(silence)])
            self._segment(total)
        with self._clock.timed("embedding"):
            if self._voices:
                self._voices.finish()

    def _complete(self) -> int:
        """Windows whose last sample has been received."""
        count = self._window
        while window_start(count, self._hop_s) + WINDOW_SAMPLES <= self._samples:
            count += 1
        return count

    def _segment(self, stop: int) -> None:
        """Run the segmentation network over the windows before `stop`."""
        while self._window < stop:
            batch = range(self._window, min(stop, self._window + _BATCH))
            begins = [window_start(window, self._hop_s) for window in batch]
            with self._clock.timed("segmentation"):
                stretch = self._kept[begins[0] - self._kept_from : begins[-1] - self._kept_from + WINDOW_SAMPLES]
                bands = self._diarizer.segmentation.filtered(stretch)
                starts = [begin - begins[0] for begin in begins]
                log_probabilities = self._diarizer.segmentation.windows(bands, starts).numpy()
                activity = local_activity(log_probabilities)
                for window, heard in zip(batch, log_probabilities, strict=True):
                    self._speech.add(window_frame(window, self._hop_s), 1.0 - np.exp(heard[:, 0]))
                self._activity += list(activity)
            with self._clock.timed("embedding"):
                if self._voices:
                    self._voices.expect(begins, activity)
            self._window = batch.stop
            self._forget()

    def _forget(self) -> None:
        needed = window_start(self._window, self._hop_s)
        if needed > self._kept_from:
            self._kept = self._kept[needed - self._kept_from :].clone()
            self._kept_from = needed

    @property
    def settled(self) -> float:
        """Seconds up to which the speech track will not change any more."""
        if self._finished:
            return self._samples / SAMPLE_RATE
        return frame_time(window_frame(self._window, self._hop_s)) if self._window else 0.0

    def speech(self, since: float = 0.0) -> list[Segment]:
        """The speech track from `since` to `settled`, in seconds."""
        first = max(0, int(since / FRAME_S) - 2)
        stop = int(self.settled / FRAME_S) + 2
        heard = Segment(since, self.settled)
        found = runs(self._speech.mean(first, stop) >= SPEECH_PROBABILITY, first)
        return [part for segment in found if (part := segment & heard)]

    def turns(
        self, num_speakers: int | None = None, min_speakers: int | None = None, max_speakers: int | None = None
    ) -> Diarization:
        """Name the speakers, once the recording has ended.

        Args:
            num_speakers: Exactly so many, if that is known.
            min_speakers: At least so many.
            max_speakers: At most so many.
        """
        if self._voices is None:
            raise ValueError("this stream was begun without speakers")
        with self._clock.timed("clustering"):
            activity = np.array(self._activity, np.uint8).reshape(-1, FRAMES, LOCAL_SPEAKERS)
            bounds = SpeakerBounds(
                num_speakers or min_speakers or 1, num_speakers or max_speakers or SpeakerBounds().most
            )
            alone = activity * (activity.sum(axis=2, keepdims=True) == 1)
            labels, centroids = cluster(
                self._voices.embeddings(),
                activity.sum(axis=1, dtype=np.int64),
                alone.sum(axis=1, dtype=np.int64),
                method=self._diarizer.clustering,
                plda=self._diarizer.plda,
                bounds=bounds,
            )
            overlapping, exclusive = reconstruct(self._activity, labels, self._hop_s, bounds.most)
            return self._named(overlapping, exclusive, centroids.astype(np.float32))

    def _named(
        self, overlapping: NDArray[np.bool_], exclusive: NDArray[np.bool_], centroids: NDArray[np.float32]
    ) -> Diarization:
        heard = Segment(0.0, self._samples / SAMPLE_RATE)
        by_column = [
            [part for run in runs(overlapping[:, column]) if (part := run & heard)]
            for column in range(overlapping.shape[1])
        ]
        columns = sorted((column for column, parts in enumerate(by_column) if parts), key=lambda c: by_column[c][0])
        names = {column: f"SPEAKER_{place:02d}" for place, column in enumerate(columns)}
        turns = sorted(Turn(part, names[column]) for column in columns for part in by_column[column])
        alone = sorted(
            Turn(part, names[column])
            for column in columns
            for run in runs(exclusive[:, column])
            if (part := run & heard)
        )
        known = np.zeros((len(columns), DIMENSION), np.float32)
        for place, column in enumerate(columns):
            if column < len(centroids):
                known[place] = centroids[column]
        return Diarization(tuple(turns), tuple(alone), tuple(names.values()), known)


class _Voices:
    """Embeds the local speakers of a recording's windows, from one run of the trunk over the recording.

    The trunk reads blocks of `_BLOCK` feature frames with `_CONTEXT` more on either side (its receptive field, so that
    seams do not show). The reference subtracts from each window its own mean over time; shared, the mean must be local
    too: a moving average over `_MEAN_REACH` frames to either side, taken twice, comes closest to it.
    """

    _BLOCK = 3000  # 30 s
    _CONTEXT = 320
    _MEAN_REACH = 500  # 5 s: half a window
    _EXACT = 7000  # recordings of up to 70 s: few embeddings decide, and ten runs of the trunk cost little
    _WINDOW_TRUNK = 125  # trunk frames of a window

    def __init__(self, model: EmbeddingModel) -> None:
        self._model = model
        self._sound = torch.zeros(0)  # not yet made into features
        self._features = torch.zeros(0, features.BINS)
        self._features_from = 0  # frame at which they begin
        self._done = 0  # frames that have been through the trunk
        self._trunk = torch.zeros(0, TRUNK_SIZE)
        self._trunk_from = 0  # trunk frame at which it begins
        self._waiting: list[tuple[int, int, NDArray[np.float32]]] = []  # window, first sample, masks
        self._known: list[NDArray[np.float32]] = []

    def push(self, samples: Tensor) -> None:
        self._sound = torch.cat([self._sound, samples])
        frames = features.frame_count(len(self._sound))
        if frames:
            used = (frames - 1) * features.SHIFT_SAMPLES + features.FRAME_SAMPLES
            self._features = torch.cat([self._features, features.log_mel(self._sound[:used])])
            self._sound = self._sound[frames * features.SHIFT_SAMPLES :].clone()

    def expect(self, begins: list[int], activity: NDArray[np.uint8]) -> None:
        """Windows that begin at samples `begins` have been segmented."""
        masks = pooling_masks(activity)
        for begin, mask in zip(begins, masks, strict=True):
            self._waiting.append((len(self._known), begin, mask))
            self._known.append(np.zeros((LOCAL_SPEAKERS, DIMENSION), np.float32))
        lookahead = self._CONTEXT + 2 * self._MEAN_REACH
        available = self._features_from + len(self._features)
        while (
            max(self._EXACT, self._done + self._BLOCK + lookahead) < available
            and self._heard() >= self._done + self._BLOCK
        ):
            self._run_block(self._done + self._BLOCK)

    def finish(self) -> None:
        """No more sound: run what is left."""
        end = self._features_from + len(self._features)
        if self._done == 0 and end <= self._EXACT:
            self._embed_exactly()
            return
        while self._done < end:
            self._run_block(min(end, self._done + self._BLOCK))
        self._pool(everything=True)

    def _embed_exactly(self) -> None:
        """Give each window a run of the trunk and a mean of its own, as the reference does."""
        for window, sample, mask in self._waiting:
            first = sample // features.SHIFT_SAMPLES
            part = self._features[first : first + features.frame_count(WINDOW_SAMPLES)]
            speaking = np.flatnonzero(mask.any(axis=0))
            if not len(speaking) or not len(part):
                continue
            trunk = self._model.trunk(part - part.mean(dim=0))
            place = np.arange(len(trunk)) * FRAMES // self._WINDOW_TRUNK
            chosen = torch.from_numpy(mask[np.clip(place, 0, FRAMES - 1)][:, speaking].T.copy())
            self._known[window][speaking] = self._model.pool(trunk, chosen.to(self._model.device)).numpy()
        self._waiting = []

    def embeddings(self) -> NDArray[np.float32]:
        """Of every window's local speakers; shape (windows, LOCAL_SPEAKERS, 256). Zero for those who say nothing."""
        return np.array(self._known, np.float32).reshape(-1, LOCAL_SPEAKERS, DIMENSION)

    def _heard(self) -> int:
        """Feature frames up to which it is known who speaks."""
        return self._waiting[-1][1] // features.SHIFT_SAMPLES if self._waiting else 0

    def _run_block(self, stop: int) -> None:
        """Put the feature frames up to `stop` through the trunk, if anybody speaks in them."""
        start = self._done
        if self._anybody(start, stop):
            first = max(self._features_from, start - self._CONTEXT)
            last = min(self._features_from + len(self._features), stop + self._CONTEXT)
            centred = self._centred(first, last)
            trunk = self._model.trunk(centred)[(start - first) // TRUNK_STRIDE :][: -(-(stop - start) // TRUNK_STRIDE)]
        else:
            trunk = torch.zeros(-(-(stop - start) // TRUNK_STRIDE), TRUNK_SIZE, device=self._model.device)
        self._trunk = torch.cat([self._trunk.to(trunk.device), trunk])
        self._done = stop
        self._pool()
        keep = max(0, stop - self._CONTEXT - 2 * self._MEAN_REACH)
        if keep > self._features_from:
            self._features = self._features[keep - self._features_from :].clone()
            self._features_from = keep

    def _anybody(self, start: int, stop: int) -> bool:
        """Whether a waiting window selects anything of these feature frames."""
        block = Segment(start * features.SHIFT_SAMPLES, stop * features.SHIFT_SAMPLES + features.FRAME_SAMPLES)
        for _, sample, mask in self._waiting:
            spoken = np.flatnonzero(mask.any(axis=1))
            if len(spoken):
                span = Segment(
                    sample + int(spoken[0]) * FRAME_SAMPLES, sample + int(spoken[-1]) * FRAME_SAMPLES + SPAN_SAMPLES
                )
                if span & block:
                    return True
        return False

    def _centred(self, first: int, last: int) -> Tensor:
        """Features of frames `first` to `last` less their local mean."""
        reach = self._MEAN_REACH
        low = max(self._features_from, first - 2 * reach)
        high = min(self._features_from + len(self._features), last + 2 * reach)
        part = self._features[low - self._features_from : high - self._features_from]
        mean = _moving_mean(_moving_mean(part.double(), reach), reach)[first - low : last - low]
        return part[first - low : last - low] - mean.float()

    def _pool(self, *, everything: bool = False) -> None:
        """Embed the windows whose trunk frames are all there."""
        trunk_end = self._trunk_from + len(self._trunk)
        trunk_samples = TRUNK_STRIDE * features.SHIFT_SAMPLES
        still: list[tuple[int, int, NDArray[np.float32]]] = []
        for window, sample, mask in self._waiting:
            begin, end = -(-sample // trunk_samples), -(-(sample + WINDOW_SAMPLES) // trunk_samples)
            if end > trunk_end and not everything:
                still.append((window, sample, mask))
                continue
            speaking = np.flatnonzero(mask.any(axis=0))
            frames = np.arange(begin, min(end, trunk_end))
            if not len(speaking) or not len(frames):
                continue
            place = (frames * trunk_samples - sample) * FRAMES // WINDOW_SAMPLES
            chosen = torch.from_numpy(mask[np.clip(place, 0, FRAMES - 1)][:, speaking].T.copy())
            pooled = self._model.pool(
                self._trunk[begin - self._trunk_from : begin - self._trunk_from + len(frames)],
                chosen.to(self._model.device),
            )
            self._known[window][speaking] = pooled.numpy()
        self._waiting = still
        keep = min([trunk_end, *(sample // trunk_samples for _, sample, _ in still[:1])])
        if keep > self._trunk_from:
            self._trunk = self._trunk[keep - self._trunk_from :].clone()
            self._trunk_from = keep


def _moving_mean(x: Tensor, reach: int) -> Tensor:
    """The mean of up to `reach` rows to either side of each row; x has shape (rows, columns), float64."""
    sums = torch.cat([torch.zeros_like(x[:1]), x.cumsum(dim=0)])
    rows = torch.arange(len(x))
    low, high = (rows - reach).clamp(min=0), (rows + reach + 1).clamp(max=len(x))
    return (sums[high] - sums[low]) / (high - low)[:, None]
