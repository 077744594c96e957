import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diarist.asr.alignment import MEDIAN_WIDTH, attention_similarity, median_filter, token_starts


def plain_starts(similarity: np.ndarray) -> tuple[np.ndarray, float]:
    """Dynamic time warping cell by cell: row starts of a best path, and its cost."""
    tokens, positions = similarity.shape
    cost = np.full((tokens + 1, positions + 1), np.inf)
    cost[0, 0] = 0
    for i in range(1, tokens + 1):
        for j in range(1, positions + 1):
            cost[i, j] = -similarity[i - 1, j - 1] + min(cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1])
    return cost, float(cost[tokens, positions])


def cost_with_starts(similarity: np.ndarray, starts: np.ndarray) -> float:
    """The cheapest path whose rows begin where `starts` says."""
    tokens, positions = similarity.shape
    total = 0.0
    for row in range(tokens):
        if row + 1 == tokens:
            stop = positions
        else:  # leave diagonally (the next row starts one later) or straight down
            stop = max(starts[row + 1], starts[row] + 1)
            if starts[row + 1] > starts[row]:
                down = float(-similarity[row, starts[row + 1]])
                total += min(down, 0.0)
        total += float(-similarity[row, starts[row] : stop].sum())
    return total


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 2**31))
def test_the_path_costs_as_little_as_cell_by_cell(tokens, positions, seed):
    similarity = np.random.default_rng(seed).normal(size=(tokens, positions)).astype(np.float32)
    starts = token_starts(similarity)
    assert starts[0] == 0
    assert (np.diff(starts) >= 0).all()
    assert cost_with_starts(similarity.astype(np.float64), starts) == pytest.approx(
        plain_starts(similarity)[1], abs=1e-4
    )


def test_a_planted_path_is_found():
    truth = np.array([0, 40, 41, 90, 200, 333])
    similarity = np.full((6, 400), -1.0, np.float32)
    for row, (start, stop) in enumerate(zip(truth, [*truth[1:], 400], strict=True)):
        similarity[row, start:stop] = 1.0
    assert token_starts(similarity).tolist() == truth.tolist()


@pytest.mark.parametrize("length", [1, 3, 4, 7, 100])
def test_the_median_equals_sorting(length):
    x = torch.randn(3, 5, length)
    half = MEDIAN_WIDTH // 2
    if length <= half:
        assert median_filter(x) is x
        return
    padded = torch.nn.functional.pad(x, (half, half), mode="reflect")
    torch.testing.assert_close(median_filter(x), padded.unfold(-1, MEDIAN_WIDTH, 1).sort()[0][..., half])


def test_similarity_peaks_where_queries_meet_keys():
    keys = torch.randn(2, 60, 64)
    queries = torch.stack([keys[:, 10], keys[:, 30], keys[:, 50]]) * 4
    similarity = attention_similarity(queries, keys.contiguous())
    assert similarity.shape == (3, 60)
