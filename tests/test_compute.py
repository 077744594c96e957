"""Prepared products against the definition, in every precision that this machine has."""

import pytest
import torch
import torch.nn.functional as F

from diarist.compute import Compute, choose, for_few_rows, linear, rough

OUT, IN = 96, 64
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.03}


@pytest.fixture
def product():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(OUT, IN, generator=generator) / IN**0.5, torch.randn(OUT, generator=generator)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("tuned_to", [16, 1500])
@pytest.mark.parametrize("rows", [1, 16, 17, 1500])
def test_products_and_what_is_fused_into_them(product, dtype, tuned_to, rows):
    weight, bias = product
    compute = choose("cpu", dtype)
    x = torch.randn(2, rows, IN, generator=torch.Generator().manual_seed(rows)).to(compute.dtype)
    residual = torch.randn(2, rows, OUT).to(compute.dtype)
    expected = F.linear(x.double(), weight.double(), bias.double())
    prepared = linear(weight, bias, compute, rows=tuned_to)
    found = {
        "plain": (prepared(x), expected),
        "gelu": (prepared(x, gelu=True), F.gelu(expected)),
        "residual": (prepared(x, residual=residual.clone()), expected + residual.double()),
        "no bias": (linear(weight, None, compute, rows=tuned_to)(x), expected - bias.double()),
    }
    for what, (ours, theirs) in found.items():
        assert ours.dtype == compute.dtype, what
        error = (ours.double() - theirs).abs().max() / expected.abs().max()
        assert error < TOLERANCES[dtype], what


def test_a_row_of_few_does_not_depend_on_its_company(product):
    prepared = linear(*product, choose("cpu", "int8"), rows=16)
    row, loud = torch.randn(1, IN), 1000 * torch.randn(3, IN)
    assert torch.equal(prepared(row), prepared(torch.cat([row, loud]))[:1])


def test_a_silent_row_gives_the_bias(product):
    weight, bias = product
    assert torch.equal(linear(weight, bias, choose("cpu", "int8"))(torch.zeros(1, IN))[0], bias)


def test_8_bits_only_where_they_cost_nothing_that_matters():
    exact, rounded = choose("cpu", "float32"), choose("cpu", "bfloat16")
    few = for_few_rows(rounded)
    assert for_few_rows(exact) == exact
    assert few.int8 == rough(rounded).int8
    assert few.dtype == (torch.float32 if few.int8 else torch.bfloat16)
    accelerator = Compute(torch.device("cuda"), torch.bfloat16)
    assert for_few_rows(accelerator) == accelerator
