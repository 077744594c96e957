"""Word times from cross-attention: dynamic time warping of tokens to encoder positions.

The method is openai-whisper's `timing.py`: attention of the alignment heads, normalised over tokens, median-filtered
over time and averaged over heads, is a (tokens, positions) similarity; the cheapest monotone path through it says
where each token begins. Here the attention is recomputed from the queries that decoding left behind, so no second
decoder pass is needed, and the path is found row by row with prefix minima instead of cell by cell.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEDIAN_WIDTH = 7
_OUTSIDE = np.float32(10.0)  # similarity lost outside a passage; inside it is seldom above 5


def attention_similarity(queries: Tensor, keys: Tensor) -> NDArray[np.float32]:
    """Similarity of tokens and encoder positions.

    Args:
        queries: What each alignment head asked when it predicted each token; shape (tokens, heads, d).
        keys: The same heads' cross-attention keys, cut to the positions that hold sound; shape (heads, positions, d).

    Returns:
        Shape (tokens, positions).
    """
    scores = torch.einsum("thd,hpd->htp", queries.float(), keys.float()) * keys.shape[-1] ** -0.5
    weights = scores.softmax(dim=-1)
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, unbiased=False)
    normalised = (weights - mean) / deviation.clamp_min(1e-12)
    similarity: NDArray[np.float32] = median_filter(normalised).mean(dim=0).cpu().numpy()
    return similarity


def within_passages(
    similarity: NDArray[np.float32], timestamps: Sequence[int | None], slack: int
) -> NDArray[np.float32]:
    """Keep each token between the timestamps around it, give or take `slack` positions.

    Without this a path now and then leaps over a passage, and all its words end up where another speaker speaks.

    Args:
        similarity: Shape (tokens, positions).
        timestamps: Of each token, the position that it writes if it is a timestamp, else None.
        slack: How far the timestamps are trusted, in positions.
    """
    tokens, positions = similarity.shape
    known = [(index, position) for index, position in enumerate(timestamps) if position is not None]
    earliest = np.zeros(tokens, np.int64)
    latest = np.full(tokens, positions, np.int64)
    for index, position in known:
        earliest[index:] = position
    for index, position in reversed(known):
        latest[: index + 1] = position
    columns = np.arange(positions)
    outside = (columns < (earliest - slack)[:, None]) | (columns > (latest + slack)[:, None])
    return np.where(outside, similarity - _OUTSIDE, similarity)


def median_filter(x: Tensor) -> Tensor:
    """Running median of `MEDIAN_WIDTH` values over the last axis, edges mirrored; x itself where it is too short.

    A median of seven by pairwise minima and maxima: sorting windows, as `unfold().sort()` does, takes ten times longer.
    """
    half = MEDIAN_WIDTH // 2
    if x.shape[-1] <= half:
        return x
    padded = torch.nn.functional.pad(x, (half, half), mode="reflect")
    v = [padded[..., shift : shift + x.shape[-1]] for shift in range(MEDIAN_WIDTH)]
    for a, b in _MEDIAN_OF_SEVEN:
        v[a], v[b] = torch.minimum(v[a], v[b]), torch.maximum(v[a], v[b])
    return v[half]


# A network of exchanges that leaves the median of seven values in the middle (Devillard, "Fast median search", 1998).
_MEDIAN_OF_SEVEN = (
    (0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4),
)  # fmt: skip


def token_starts(similarity: NDArray[np.float32]) -> NDArray[np.int64]:
    """Where each token begins on the best monotone path.

    The path runs from the first to the last cell and steps right, down, or both; its cost is the sum of -similarity.
    Within one row the cost of arriving is D[j] = S[j] + min over k <= j of (a[k] - S[k-1]), with S the row's prefix
    sums and a the best cost of entering the row from above: one `minimum.accumulate` a row.

    Args:
        similarity: Shape (tokens, positions), both at least 1.

    Returns:
        The first position of each token, shape (tokens,), never decreasing.
    """
    tokens, positions = similarity.shape
    cost = -similarity.astype(np.float64)
    sums = np.cumsum(cost, axis=1)
    before = np.concatenate([np.zeros((tokens, 1)), sums[:, :-1]], axis=1)
    entered_at = np.zeros((tokens, positions), np.int64)  # where the best path that is at j in this row came in
    diagonal = np.zeros((tokens, positions), bool)  # whether it came in diagonally
    columns = np.arange(positions)
    reached = sums[0]
    for row in range(1, tokens):
        from_left = np.concatenate([[np.inf], reached[:-1]])
        diagonal[row] = from_left <= reached
        arrival = np.minimum(from_left, reached) - before[row]
        best = np.minimum.accumulate(arrival)
        fresh = np.concatenate([[True], arrival[1:] < best[:-1]])
        entered_at[row] = np.maximum.accumulate(np.where(fresh, columns, 0))
        reached = best + sums[row]
    starts = np.zeros(tokens, np.int64)
    at = positions - 1
    for row in range(tokens - 1, 0, -1):
        starts[row] = entered_at[row, at]
        at = starts[row] - diagonal[row, starts[row]]
    return starts
