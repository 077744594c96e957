"""Every way of attending against the definition, in the precision that it is used in."""

import pytest
import torch

from diarist.asr import attention
from diarist.asr.attention import by_products, choose_attention, choose_past_attention, fused, in_float32
from diarist.compute import choose


def plainly(queries, keys, values, mask=None):
    """The definition, in float64."""
    queries, keys, values = queries.double(), keys.double(), values.double()
    scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
    weights = (scores if mask is None else scores + mask.double()).softmax(dim=3)
    return (weights @ values).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("attend", "masked"), [(fused, False), (fused, True), (by_products, False), (in_float32, False), (in_float32, True)]
)
@pytest.mark.parametrize(("n", "q", "f"), [(1, 1, 7), (3, 1, 40), (2, 5, 1500), (2, 16, 9), (2, 150, 130)])
def test_equal_to_the_definition(attend, n, q, f, masked, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK_BYTES", 40_000)  # several blocks, the last one smaller
    generator = torch.Generator().manual_seed(n * q * f)
    projected = torch.randn(n, max(q, f), 3, 4, 8, generator=generator).bfloat16()
    queries, keys, values = projected.permute(2, 0, 3, 1, 4)  # strided, as the encoder has them
    queries, keys, values = queries[:, :, :q], keys[:, :, :f], values[:, :, :f]
    mask = None
    if masked:
        mask = torch.zeros(n, 1, q, f).masked_fill(torch.rand(n, 1, q, f, generator=generator) < 0.5, -torch.inf)
        mask[..., 0] = 0.0  # something is always seen
        mask = mask.bfloat16()
    expected = plainly(queries, keys, values, mask)
    masks = () if mask is None else (mask,)
    torch.testing.assert_close(attend(queries, keys, values, *masks).double(), expected, atol=0.03, rtol=0)


def test_only_bfloat16_on_a_processor_is_done_by_products():
    assert choose_attention(choose("cpu", "float32")) is fused
    assert choose_attention(choose("cpu", "bfloat16")) is not fused
    assert choose_past_attention(choose("cpu", "float32")) is fused
    assert choose_past_attention(choose("cpu", "bfloat16")) is in_float32


@pytest.mark.parametrize("amx", [False, True])
def test_what_suits_the_processor_is_chosen(amx, monkeypatch):
    taken = []
    monkeypatch.setattr(attention, "fused", lambda *_: taken.append("fused"))
    monkeypatch.setattr(attention, "by_products", lambda *_: taken.append("products"))
    few, many = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 40, 8)
    for queries in (few[:, :, :1], few, many):
        attention._by_number(queries, many, many, amx=amx)
    assert taken == (["fused", "products", "fused"] if amx else ["products"] * 3)
