import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diarist.diarization import clustering
from diarist.diarization.clustering import SpeakerBounds, cluster
from diarist.diarization.vbx import Plda, VbxOptions, vbx
from diarist.models import load_plda


def voices(people: int, windows: int, seed: int = 0, noise: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (windows, 3, 256) of up to two of some people a window, and who they are (-1: nobody)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 256))
    truth = np.full((windows, 3), -1)
    for window in range(windows):
        chosen = rng.choice(people, size=min(2, people), replace=False)
        truth[window, : len(chosen)] = chosen
    embeddings = np.where(truth[..., None] >= 0, centres[truth] + rng.normal(scale=noise, size=(windows, 3, 256)), 0)
    return embeddings.astype(np.float32), truth


def clustered(embeddings, truth, bounds=SpeakerBounds(), method="centroid", plda=None):  # noqa: B008
    frames = np.where(truth >= 0, 300, 0)
    found = cluster(embeddings, frames, frames, method=method, plda=plda, bounds=bounds)
    return found.labels, found.centroids


def same_partition(labels: np.ndarray, truth: np.ndarray) -> bool:
    pairs = {(a, b) for a, b in zip(labels.ravel(), truth.ravel(), strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@pytest.mark.parametrize("people", [1, 2, 5, 9])
def test_people_who_differ_are_told_apart(people):
    embeddings, truth = voices(people, 120)
    labels, centroids = clustered(embeddings, truth)
    assert len(centroids) == people
    assert same_partition(labels, truth)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(2, 40), st.integers(1, 8), st.integers(0, 2**31))
def test_a_wanted_number_of_speakers_is_kept(people, windows, wanted, seed):
    embeddings, truth = voices(people, windows, seed)
    labels, centroids = clustered(embeddings, truth, SpeakerBounds(wanted, wanted))
    available = int((truth >= 0).sum())
    assert len(centroids) == min(wanted, available)
    assert labels.max() < len(centroids)
    assert ((labels == -1) == (truth == -1)).all()


def test_bounds_hold_on_both_sides():
    embeddings, truth = voices(4, 100)
    assert len(clustered(embeddings, truth, SpeakerBounds(least=6))[1]) >= 6
    assert len(clustered(embeddings, truth, SpeakerBounds(most=2))[1]) == 2


def test_nobody_speaks():
    labels, centroids = clustered(np.zeros((4, 3, 256), np.float32), np.full((4, 3), -1))
    assert (labels == -1).all()
    assert len(centroids) == 0


def test_long_recordings_are_sampled_and_still_right():
    embeddings, truth = voices(4, 3000)
    labels, centroids = clustered(embeddings, truth)
    assert len(centroids) == 4
    assert same_partition(labels, truth)


def test_vbx_gives_two_people_of_one_window_two_names(plda_model):
    plda = Plda(load_plda(plda_model))
    embeddings, truth = voices(3, 60, noise=0.05)
    labels, _ = clustered(embeddings, truth, method="vbx", plda=plda)
    for window in labels:
        named = window[window >= 0]
        assert len(set(named)) == len(named)


def test_vbx_equals_the_equations_in_loops():
    rng = np.random.default_rng(3)
    features = np.concatenate([rng.normal(m, 1, (20, 6)) for m in (-2, 2)])
    between = np.sort(rng.uniform(0.5, 4, 6))[::-1]
    initial = rng.integers(0, 3, 40)
    options = VbxOptions(iterations=4, tolerance=-np.inf)
    gamma = np.exp(7.0 * (initial[:, None] == np.arange(3)))
    gamma /= gamma.sum(axis=1, keepdims=True)
    pi = np.full(3, 1 / 3)
    for _ in range(4):
        log_p = np.zeros((40, 3))
        for s in range(3):
            inverse = 1 / (1 + options.fa / options.fb * gamma[:, s].sum() * between)
            alpha = (
                options.fa / options.fb * inverse * sum(gamma[t, s] * np.sqrt(between) * features[t] for t in range(40))
            )
            for t in range(40):
                likelihood = alpha @ (np.sqrt(between) * features[t]) - 0.5 * (inverse + alpha**2) @ between
                likelihood -= 0.5 * (features[t] @ features[t] + 6 * np.log(2 * np.pi))
                log_p[t, s] = options.fa * likelihood + np.log(pi[s] + 1e-8)
        gamma = np.exp(log_p - np.logaddexp.reduce(log_p, axis=1)[:, None])
        pi = gamma.sum(axis=0) / gamma.sum()
    ours, weights = vbx(features, between, initial, options)
    np.testing.assert_allclose(ours, gamma, atol=1e-9)
    np.testing.assert_allclose(weights, pi, atol=1e-9)


def test_the_embeddings_of_hours_are_not_copied(monkeypatch):
    monkeypatch.setattr(clustering, "_MAX_LINKED", 500)  # linkage takes the square of it
    embeddings, truth = voices(12, 10_000)
    clustered(embeddings[:100], truth[:100])  # imports what it needs
    tracemalloc.start()
    try:
        labels, _ = clustered(embeddings, truth)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert same_partition(labels, truth)
    assert peak < 0.7 * embeddings.nbytes  # in float64 they would be twice as much
