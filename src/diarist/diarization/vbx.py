"""VBx: variational Bayes clustering of embeddings, without the hidden Markov model.

A mixture in which every speaker is a point in the space of a probabilistic linear discriminant analysis (PLDA); the
prior prunes speakers that explain too little (Landini, Profant, Diez and Burget, "Bayesian HMM clustering of x-vector
sequences (VBx) in speaker diarization", Computer Speech & Language 2022; numbers of equations below are theirs).
pyannote's community-1 pipeline uses it with the parameters of `VbxOptions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VbxOptions:
    """The scales of VBx, as tuned for community-1."""

    fa: float = 0.07
    """Weight of the evidence. Embeddings of overlapping windows are far from independent: each counts for little."""
    fb: float = 0.8
    """Weight of the prior on speakers; the larger, the fewer speakers."""
    iterations: int = 20
    """At most; fewer once the bound rises by less than `tolerance`."""
    tolerance: float = 1e-4
    smoothing: float = 7.0
    """Log-odds that an embedding begins in the cluster it was given."""


class Plda:
    """The space in which embeddings of one speaker are normal with unit variance.

    Args:
        arrays: `mean1`, `mean2`, `lda` (centring, dimension reduction) and `mu`, `tr`, `psi` (PLDA), as
            `models.load_plda` gives them.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._mean1, self._mean2, self._lda = (arrays[name].astype(np.float64) for name in ("mean1", "mean2", "lda"))
        self._mu = arrays["mu"].astype(np.float64)
        tr, psi = arrays["tr"].astype(np.float64), arrays["psi"].astype(np.float64)
        within = np.linalg.inv(tr.T @ tr)
        between = np.linalg.inv((tr.T / psi) @ tr)
        from scipy.linalg import eigh  # noqa: PLC0415 - takes long, and few want it

        variances, directions = eigh(between, within)
        self.between: Floats = variances[::-1].copy()
        """Variance between speakers along each direction, largest first. Shape (128,)."""
        self._directions = directions[:, ::-1]

    def __call__(self, embeddings: NDArray[Any]) -> Floats:
        """Map embeddings of shape (n, 256) to shape (n, 128)."""
        given, kept = self._lda.shape
        centred = np.sqrt(given) * _unit(embeddings.astype(np.float64) - self._mean1)
        reduced = np.sqrt(kept) * _unit(centred @ self._lda - self._mean2)
        return (reduced - self._mu) @ self._directions  # type: ignore[no-any-return]


def vbx(features: Floats, between: Floats, labels: NDArray[np.int64], options: VbxOptions) -> tuple[Floats, Floats]:
    """Cluster.

    Args:
        features: From `Plda`. Shape (n, dimension).
        between: `Plda.between`.
        labels: Initial clusters, 0 to k - 1. Shape (n,).
        options: Scales.

    Returns:
        Responsibilities of shape (n, k), and weights of the clusters of shape (k,); a cluster that was not needed has
        a weight near zero.
    """
    clusters = int(labels.max()) + 1
    start = np.zeros((len(labels), clusters))
    start[np.arange(len(labels)), labels] = options.smoothing
    from scipy.special import logsumexp, softmax  # noqa: PLC0415 - as above

    gamma: Floats = softmax(start, axis=1)
    weights = np.full(clusters, 1.0 / clusters)
    constant = -0.5 * (np.square(features).sum(axis=1, keepdims=True) + features.shape[1] * np.log(2 * np.pi))
    rho = features * np.sqrt(between)  # (18)
    ratio = options.fa / options.fb
    bound = -np.inf
    for _ in range(options.iterations):
        precision_inverse = 1.0 / (1.0 + ratio * gamma.sum(axis=0)[:, None] * between)  # (17)
        alpha = ratio * precision_inverse * (gamma.T @ rho)  # (16)
        evidence = rho @ alpha.T - 0.5 * (precision_inverse + alpha**2) @ between + constant  # (23)
        joint = options.fa * evidence + np.log(weights + 1e-8)
        marginal = logsumexp(joint, axis=1, keepdims=True)
        gamma = np.exp(joint - marginal)
        weights = gamma.sum(axis=0) / gamma.sum()
        prior = np.sum(np.log(precision_inverse) - precision_inverse - alpha**2 + 1.0)
        previous, bound = bound, float(marginal.sum() + options.fb * 0.5 * prior)  # (25)
        if bound - previous < options.tolerance:
            break
    return gamma, weights


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]
