"""Which local speakers of all windows are the same person.

Both ways of pyannote.audio: centroid linkage (pipeline 3.1) and VBx (community-1). Each finds speakers among the
embeddings of local speakers who are heard alone long enough, then gives every local speaker to the nearest of them.

SciPy takes a quarter of a second to import, and is wanted when a recording ends: so it is imported then.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diarist.diarization.activity import INACTIVE
from diarist.diarization.frames import FRAMES
from diarist.diarization.vbx import Plda, VbxOptions, vbx

Method = Literal["centroid", "vbx"]
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

CENTROID_THRESHOLD = 0.7045654963945799
"""Distance of centroids of unit embeddings at which 3.1 stops merging."""
MIN_CLUSTER_SIZE = 12
"""Local speakers that make a person for 3.1; fewer go to the nearest person."""
VBX_THRESHOLD = 0.6
"""Distance at which the first guess of VBx stops merging."""
_MIN_ALONE = 0.2  # share of a window's frames in which a local speaker must be alone to help find the persons
_LEAST_PRIOR = 1e-7  # a speaker whom VBx gives less has been given up
_BLOCK = 1024  # windows at once in float64
_MAX_LINKED = 4000  # linkage takes the square of this in memory; longer recordings are sampled evenly


@dataclass(frozen=True, slots=True)
class SpeakerBounds:
    """How many speakers there may be."""

    least: int = 1
    most: int = 10**6

    def clamp(self, count: int) -> int:
        return max(self.least, min(self.most, count))


@dataclass(frozen=True, slots=True)
class Clusters:
    """Who the local speakers are."""

    labels: Labels
    """The person of each local speaker, shape (windows, local speakers); `INACTIVE` for those who say nothing."""
    centroids: Floats
    """Of the persons, shape (persons, 256)."""
    similarity: Floats
    """Cosine of each local speaker and each person, shape (windows, local speakers, persons)."""

    def margins(self) -> Floats:
        """By how much the likeliest person is closer than the next, shape (windows, local speakers).

        Infinite for local speakers who say nothing and where there is one person only.
        """
        if self.similarity.shape[2] < 2:
            return np.full(self.labels.shape, np.inf)
        second, best = np.moveaxis(np.partition(self.similarity, -2, axis=2)[..., -2:], 2, 0)
        return np.where(self.labels == INACTIVE, np.inf, best - second)


def cluster(
    embeddings: NDArray[np.float32],
    frames_active: NDArray[np.int64],
    frames_alone: NDArray[np.int64],
    *,
    method: Method,
    plda: Plda | None,
    bounds: SpeakerBounds,
) -> Clusters:
    """Cluster the local speakers of all windows.

    Args:
        embeddings: Shape (windows, local speakers, 256).
        frames_active: In which each speaks, shape (windows, local speakers).
        frames_alone: In which nobody else does.
        method: Centroid linkage or VBx.
        plda: For VBx.
        bounds: On the number of speakers.
    """
    active = frames_active > 0
    if not active.any():
        nobody = np.zeros((*active.shape, 0))
        return Clusters(np.full(active.shape, INACTIVE, np.int64), np.zeros((0, embeddings.shape[-1])), nobody)
    trainable = active & (frames_alone >= _MIN_ALONE * FRAMES)
    chosen = np.flatnonzero(trainable if trainable.any() else active)
    training = embeddings.reshape(-1, embeddings.shape[-1])[_sampled(chosen)].astype(np.float64)
    bounds = SpeakerBounds(min(bounds.least, len(training)), min(bounds.most, len(training)))
    exclusive = False
    if len(training) == 1 or bounds.most == 1:
        centroids = training.mean(axis=0, keepdims=True)
    elif method == "vbx" and plda is not None:
        centroids, exclusive = _vbx_centroids(training, plda, bounds)
    else:
        centroids = _centroid_linkage(training, len(training) / len(chosen), bounds)
    similarity = _cosines(embeddings, centroids)
    labels = _assign_exclusively(similarity, active) if exclusive else similarity.argmax(axis=2)
    return Clusters(np.where(active, labels, INACTIVE), centroids, similarity)


def _cosines(embeddings: NDArray[np.float32], centroids: Floats) -> Floats:
    """Of each local speaker and each person: (windows, local speakers, persons)."""
    directions = _unit(centroids).T
    blocks = range(0, len(embeddings), _BLOCK)
    return np.concatenate([_unit(embeddings[b : b + _BLOCK].astype(np.float64)) @ directions for b in blocks])


def _unit(x: Floats) -> Floats:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))


def _means(embeddings: Floats, labels: Labels) -> Floats:
    return np.asarray(np.vstack([embeddings[labels == label].mean(axis=0) for label in range(labels.max() + 1)]))


def _compact(labels: Labels) -> Labels:
    """The same clusters, numbered 0 ... k - 1."""
    return np.asarray(np.unique(labels, return_inverse=True)[1], np.int64)


def _sampled(places: Labels) -> Labels:
    """At most `_MAX_LINKED` of them, evenly over the recording."""
    if len(places) <= _MAX_LINKED:
        return places
    return np.asarray(places[np.linspace(0, len(places) - 1, _MAX_LINKED).astype(int)])


def _centroid_linkage(training: Floats, share: float, bounds: SpeakerBounds) -> Floats:
    """Centroids by agglomerative clustering of a share of all that could be had."""
    from scipy.cluster.hierarchy import fcluster, linkage  # noqa: PLC0415 - see above
    from scipy.spatial.distance import cdist  # noqa: PLC0415

    unit = _unit(training)
    # Few or sampled embeddings cannot make clusters as large.
    wanted = max(1, round(MIN_CLUSTER_SIZE * share))
    least_size = min(wanted, max(1, round(0.1 * len(training))))
    tree = linkage(unit, "centroid", "euclidean")
    labels = fcluster(tree, CENTROID_THRESHOLD, "distance") - 1
    large = _large(labels, least_size)
    count = bounds.clamp(max(1, len(large)))
    if len(large) != count:
        labels = _cut_for_count(tree, count, least_size)
        large = _large(labels, least_size)
    if len(large) == 0:
        return np.asarray(training.mean(axis=0, keepdims=True))
    centroids = np.vstack([unit[labels == label].mean(axis=0) for label in large])
    if len(centroids) < bounds.least:
        return _k_means(training, bounds.least)
    small = np.setdiff1d(np.unique(labels), large)
    owner = {label: place for place, label in enumerate(large)}
    if len(small):
        strays = np.vstack([unit[labels == label].mean(axis=0) for label in small])
        nearest = cdist(centroids, strays, "cosine").argmin(axis=0)
        owner |= dict(zip(small, nearest, strict=True))
    return _means(training, np.array([owner[label] for label in labels]))


def _large(labels: NDArray[np.integer], least_size: int) -> NDArray[np.integer]:
    found, sizes = np.unique(labels, return_counts=True)
    return np.asarray(found[sizes >= least_size])


def _cut_for_count(tree: Floats, count: int, least_size: int) -> NDArray[np.integer]:
    """Labels at the cut nearest to the threshold that leaves `count` large clusters, or as close as there is."""
    from scipy.cluster.hierarchy import fcluster  # noqa: PLC0415

    by_step = tree.copy()
    by_step[:, 2] = np.arange(len(tree))  # cut by number of merges: centroid distances may go back
    best, best_miss = len(tree) - 1, abs(count - 1)
    for step in np.argsort(np.abs(tree[:, 2] - CENTROID_THRESHOLD)):
        if tree[step, 3] < least_size:
            continue  # this merge cannot change the number of large clusters
        miss = abs(len(_large(fcluster(by_step, step, "distance"), least_size)) - count)
        if miss < best_miss:
            best, best_miss = int(step), miss
        if miss == 0:
            break
    return np.asarray(fcluster(by_step, best, "distance") - 1)


def _vbx_centroids(training: Floats, plda: Plda, bounds: SpeakerBounds) -> tuple[Floats, bool]:
    """Centroids by VBx, and whether two local speakers of one window must then be two persons."""
    from scipy.cluster.hierarchy import fcluster, linkage  # noqa: PLC0415

    tree = linkage(_unit(training), "centroid", "euclidean")
    initial = _compact(fcluster(tree, VBX_THRESHOLD, "distance"))
    responsibilities, prior = vbx(plda(training), plda.between, initial, VbxOptions())
    weights = responsibilities[:, prior > _LEAST_PRIOR]
    count = bounds.clamp(weights.shape[1])
    if count != weights.shape[1]:
        return _k_means(training, count), False
    return weights.T @ training / weights.sum(axis=0)[:, None], True


def _k_means(embeddings: Floats, count: int) -> Floats:
    """Centroids of exactly `count` clusters of the unit embeddings; the tightest of several beginnings."""
    from scipy.cluster.vq import ClusterError, kmeans2  # noqa: PLC0415

    unit = _unit(embeddings)
    best: Labels | None = None
    best_spread = np.inf
    for seed in range(3):
        try:
            centres, labels = kmeans2(
                unit, count, iter=50, minit="++", missing="raise", rng=np.random.default_rng(seed)
            )
        except ClusterError:  # a cluster lost its last embedding
            continue
        spread = float(((unit - centres[labels]) ** 2).sum())
        if len(np.unique(labels)) == count and spread < best_spread:
            best, best_spread = labels.astype(np.int64), spread
    if best is None:  # fewer distinct embeddings than speakers asked for: every one its own, the rest arbitrary
        best = np.arange(len(unit), dtype=np.int64) % count
    return _means(embeddings, best)


def _assign_exclusively(similarity: Floats, active: NDArray[np.bool_]) -> Labels:
    """The best assignment in which local speakers of one window are different persons, as far as there are enough."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

    similarity = np.where(active[:, :, None], similarity, similarity.min() - 1.0)
    labels = np.full(active.shape, INACTIVE, np.int64)
    for window, scores in enumerate(similarity):
        local, person = linear_sum_assignment(scores, maximize=True)
        labels[window, local] = person
    return labels
