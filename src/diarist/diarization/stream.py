"""A recording goes in block by block; its speech track comes out as it goes, its speakers' turns at the end.

What is kept of the past is small: local activity and embeddings of each window. Of the sound, only what windows to come
will hear; of the speaker network's trunk, only what they will pool.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diarist import native
from diarist.compute import Compute, unquantised
from diarist.contention import undisturbed
from diarist.diarization.activity import (
    LOCAL_SPEAKERS,
    FrameMean,
    local_activity,
    reconstruct,
    runs,
    without_overlap,
)
from diarist.diarization.clustering import Clusters, Method, SpeakerBounds, cluster
from diarist.diarization.embedding import DIMENSION, EmbeddingModel
from diarist.diarization.extraction import Extractor
from diarist.diarization.frames import (
    FRAME_S,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
    frame_time,
    window_count,
    window_frame,
    window_start,
)
from diarist.diarization.recent import Recent
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
_TIE = 0.02
"""Difference of the log-probabilities of two classes that float32 may see the other way round."""
_TIES = 0.002
"""Share of a window's frames that are ties, above which it is segmented again in float32: one window in seven."""
_SHORT_S = 70.0
"""Up to here a recording is short: few embeddings decide how many persons there are."""
_DOUBTFUL_MARGIN, _SHORT_DOUBTFUL_MARGIN = 0.3, 0.5
"""Difference of cosines to two persons below which an approximate embedding does not settle who it is."""


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
        on_cpu = compute.device.type == "cpu"
        in_steps = on_cpu and native.is_available() and (compute.int8 or compute.dtype != torch.float32)
        compute = unquantised(compute)
        exact = replace(compute, dtype=torch.float32, int8=in_steps)  # steps so fine that nobody is heard otherwise
        self.exact_segmentation = SegmentationModel(segmentation, exact)
        # On CUDA it is as fast as any: what takes time in a recurrence is that one step waits for another.
        approximate = on_cpu and compute.dtype != torch.float32 and not in_steps
        self.segmentation = SegmentationModel(segmentation, compute) if approximate else self.exact_segmentation
        # bfloat16 is as fast as steps where it is had.
        voices = replace(compute, int8=in_steps and compute.dtype == torch.float32)
        self.embedding = EmbeddingModel(embedding, voices) if embedding is not None else None
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
        self._kept = Recent()  # those that windows to come will hear, and silence after the last
        self._window = 0  # the next to be segmented
        self._speech = FrameMean()
        self._activity: list[NDArray[np.uint8]] = []
        self._voices = Extractor(diarizer.embedding) if speakers and diarizer.embedding else None
        self._finished = False
        self._clock = Stopwatch()

    @property
    def seconds(self) -> Mapping[str, float]:
        """Work time of each stage so far: segmentation, embedding, clustering."""
        return self._clock.seconds

    def push(self, block: NDArray[np.float32]) -> None:
        """Hear the next samples, and do what can be done with them: mono, 16 kHz, shape (samples,)."""
        self.hear(block)
        deque(self.pieces(), maxlen=0)

    def finish(self) -> None:
        """The recording has ended: do what is left."""
        self.end()
        deque(self.pieces(), maxlen=0)

    def hear(self, block: NDArray[np.float32]) -> None:
        """As `push`, and leave the work to `pieces`."""
        samples = torch.from_numpy(np.ascontiguousarray(block, np.float32))
        self._samples += len(samples)
        self._kept.append(samples)
        with self._clock.timed("embedding"):
            if self._voices:
                self._voices.push(samples)

    def end(self) -> None:
        """As `finish`, and leave the work to `pieces`."""
        if self._finished:
            return
        self._finished = True
        total = window_count(self._samples, self._hop_s)
        if total:
            end = window_start(total - 1, self._hop_s) + WINDOW_SAMPLES
            self._kept.append(torch.zeros(max(0, end - self._samples)))

    def pieces(self) -> Iterator[None]:
        """Do what can be done by now, a few tenths of a second at a time: others may want the processor in between."""
        work = self._work()
        while True:
            with undisturbed(self._diarizer.segmentation.device):
                if next(work, "over") == "over":
                    return
            yield

    def _work(self) -> Iterator[None]:
        """As `pieces`."""
        stop = window_count(self._samples, self._hop_s) if self._finished else self._complete()
        while self._window < stop:
            yield from self._segmented(range(self._window, min(stop, self._window + _BATCH)))
            yield
        if self._voices:
            yield from self._clock.each("embedding", self._voices.pieces(self._doubtful, ended=self._finished))

    def _complete(self) -> int:
        """Windows whose last sample has been received."""
        count = self._window
        while window_start(count, self._hop_s) + WINDOW_SAMPLES <= self._samples:
            count += 1
        return count

    def _segmented(self, batch: range) -> Iterator[None]:
        """Run the segmentation network over windows, in one piece, or in two where some must be looked at again."""
        begins = [window_start(window, self._hop_s) for window in batch]
        model, exact = self._diarizer.segmentation, self._diarizer.exact_segmentation
        starts = [begin - begins[0] for begin in begins]
        with self._clock.timed("segmentation"):
            bands = model.filtered(self._kept.cut(begins[0], begins[-1] + WINDOW_SAMPLES))
            found: NDArray[np.float32] = model.windows(bands, starts).numpy()
        if self._voices and exact is not model and len(again := np.flatnonzero(_ties(found) > _TIES)):
            yield
            with self._clock.timed("segmentation"):
                found[again] = exact.windows(bands, [starts[window] for window in again]).numpy()
        activity = local_activity(found)
        for window, heard in zip(batch, found, strict=True):
            self._speech.add(window_frame(window, self._hop_s), 1.0 - np.exp(heard[:, 0]))
        if self._voices:
            self._activity += list(activity)
            self._voices.expect(begins, activity)
        self._window = batch.stop
        self._kept.forget(window_start(self._window, self._hop_s))

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
            bounds = SpeakerBounds(
                num_speakers or min_speakers or 1, num_speakers or max_speakers or SpeakerBounds().most
            )
            clusters = self._clusters(self._voices, 0, len(self._activity), bounds)
            overlapping, exclusive = reconstruct(self._activity, clusters.labels, self._hop_s, bounds.most)
            return self._named(overlapping, exclusive, clusters.centroids.astype(np.float32))

    def _clusters(self, voices: Extractor, first: int, stop: int, bounds: SpeakerBounds) -> Clusters:
        """Cluster the local speakers of some windows."""
        heard = self._activity[first:stop]
        return cluster(
            voices.embeddings(first, stop),
            _frames(heard),
            _frames(without_overlap(local) for local in heard),
            method=self._diarizer.clustering,
            plda=self._diarizer.plda,
            bounds=bounds,
        )

    def _doubtful(self, voices: Extractor, first: int, stop: int) -> NDArray[np.bool_]:
        """Who is nearly as close to another person; shape (stop - first, LOCAL_SPEAKERS)."""
        margins = self._clusters(voices, first, stop, SpeakerBounds()).margins()
        doubtful = _SHORT_DOUBTFUL_MARGIN if self._samples <= _SHORT_S * SAMPLE_RATE else _DOUBTFUL_MARGIN
        return np.asarray(margins < doubtful)

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


def _frames(activity: Iterable[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """In how many each local speaker speaks; shape (windows, LOCAL_SPEAKERS). Window by window: hours are not copied."""
    return np.array([local.sum(axis=0) for local in activity], np.int64).reshape(-1, LOCAL_SPEAKERS)


def _ties(log_probabilities: NDArray[np.float32]) -> NDArray[np.floating]:
    """Share of each window's frames in which two classes are as good as equally likely. Shape (windows,)."""
    second, best = np.moveaxis(np.partition(log_probabilities, -2, axis=2)[..., -2:], 2, 0)
    return np.asarray((best - second < _TIE).mean(axis=1))
