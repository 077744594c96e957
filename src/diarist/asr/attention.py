"""Attention, as each device computes it fastest.

torch's fused kernel multiplies bfloat16 well on CUDA, and on processors with AMX. On a processor that has bfloat16
products but no AMX, plain products take a fifth of its time for one query and two thirds for many. With a few queries it
packs all keys and values anew everywhere, which takes longer than the rest. Plain products round the scores to
bfloat16; the words do not suffer: in the conversations of the benchmarks 5.08 % of them are wrong, of the fused kernel's
5.12 %.
"""

import functools
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diarist.compute import Compute, has_amx

_FEW = 16  # queries
_BLOCK_BYTES = 3_000_000  # of scores that are made at once: what stays in a core's cache


class Attention(Protocol):
    """Scaled dot-product attention."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend.

        Args:
            queries: Shape (n, h, q, d).
            keys: Shape (n, h, f, d); so are values.
            values: What is summed up.

        Returns:
            Shape (n, q, h d).
        """


class PastAttention(Protocol):
    """Attention that does not see all keys."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend as `Attention`; the mask, shape (n, 1, q, f), is added to the scores."""


def choose_attention(compute: Compute) -> Attention:
    """The fastest there."""
    if not _is_bfloat16_on_cpu(compute):
        return fused
    return functools.partial(_by_number, amx=has_amx())


def choose_past_attention(compute: Compute) -> PastAttention:
    """The fastest for a few queries and a past that is longer at every step."""
    return in_float32 if _is_bfloat16_on_cpu(compute) else fused


def _is_bfloat16_on_cpu(compute: Compute) -> bool:
    return compute.device.type == "cpu" and compute.dtype == torch.bfloat16


def fused(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Torch's own kernel."""
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)


def by_products(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Two products and a softmax: of all rows with a few queries, else of some queries at a time."""
    n, h, q, d = queries.shape
    f = keys.shape[2]
    keys, values = (each.contiguous().view(n * h, f, d) for each in (keys, values))
    scaled = queries * d**-0.5
    if q <= _FEW:
        weights = torch.bmm(scaled.reshape(n * h, q, d), keys.transpose(1, 2)).softmax(dim=2)
        return torch.bmm(weights, values).view(n, h, q, d).transpose(1, 2).flatten(2)
    block = max(_FEW, _BLOCK_BYTES // (h * f * queries.element_size()))
    attended = queries.new_empty(n, q, h, d)
    for row in range(n):
        own_keys, own_values = keys[row * h : (row + 1) * h].transpose(1, 2), values[row * h : (row + 1) * h]
        for first in range(0, q, block):
            weights = torch.bmm(scaled[row, :, first : first + block], own_keys).softmax(dim=2)
            attended[row, first : first + block] = torch.bmm(weights, own_values).transpose(0, 1)
    return attended.flatten(2)


def in_float32(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Two products and a softmax in float32.

    For bfloat16 oneDNN makes a program for every shape that it meets, which takes a millisecond and 0.7 MB that are
    kept: of a past that grows, hundreds. Products in float32 need none, and a decoder's past mostly is in it.
    """
    if queries.shape[2] > _FEW:
        return fused(queries, keys, values, mask)
    scores = (queries * queries.shape[3] ** -0.5).float() @ keys.float().transpose(2, 3)
    weights: Tensor = (scores if mask is None else scores + mask).softmax(dim=3)
    return (weights @ values.float()).transpose(1, 2).flatten(2).to(queries.dtype)


def _by_number(queries: Tensor, keys: Tensor, values: Tensor, *, amx: bool) -> Tensor:
    suits_fused = amx and not 1 < queries.shape[2] <= _FEW
    return (fused if suits_fused else by_products)(queries, keys, values)
