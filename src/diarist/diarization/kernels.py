"""Convolutions with what follows them in one pass, and a recurrence that keeps its precision, where oneDNN has them.

A residual network on a CPU spends as much time reading and writing activations for bias, addition and ReLU as it
spends multiplying. oneDNN fuses them into the product and wants its weights in a blocked layout; torch has both as
operators (the ones its own compiler emits), which this module calls directly. Elsewhere the plain functions are used.
A processor without bfloat16 products takes our own, in 12 bits: float32 takes more than twice as long.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

from diarist import native
from diarist.compute import Compute, packs_bfloat16
from diarist.native import Room

_LSTM_MODE = 2  # torch's number for it among recurrences


class Convolution(Protocol):
    """A prepared convolution with bias."""

    def __call__(self, x: Tensor, room: Room | None = None, *, relu: bool = False) -> Tensor:
        """Convolve. `x` has shape (batch, in, height, width), channels last in memory; so has the result.

        It may be written into the room, over what was there before.
        """

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """relu(convolve(x) + residual). May write into `residual`, whose contents are lost."""


def convolution(
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    size: tuple[int, int] = (64, 64),
    in_steps: bool = False,
) -> Convolution:
    """Prepare a convolution for the device and type of its weight.

    Args:
        weight: Shape (out, in, height, width).
        bias: Shape (out,).
        stride: Along height and width.
        padding: Zeros around height and width.
        size: About the height and width that the input will have; the packing is tuned to it and right for any.
        in_steps: Take `native.Convolution`, which pads by half its size.
    """
    if in_steps:
        return native.Convolution(weight, bias, stride)
    packs = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and packs_bfloat16())
    if weight.device.type == "cpu" and packs and hasattr(torch.ops.mkldnn, "_convolution_pointwise_"):
        return _Packed(weight, bias, stride, padding, size)
    return _Plain(weight, bias, stride, padding)


class _Plain:
    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, int]) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = bias
        self.stride = stride
        self.padding = padding

    def __call__(self, x: Tensor, room: Room | None = None, *, relu: bool = False) -> Tensor:  # noqa: ARG002
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return y.relu_() if relu else y

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return self(x).add_(residual).relu_()


class _Packed:
    """oneDNN with the weight reordered once, ReLU and residual fused: twice as fast as the plain functions in bf16."""

    def __init__(
        self, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self.bias = bias
        self.stride = [stride, stride]
        self.padding = list(padding)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(  # noqa: SLF001
            weight, self.padding, self.stride, [1, 1], 1, [1, weight.shape[1], *size]
        )

    def __call__(self, x: Tensor, room: Room | None = None, *, relu: bool = False) -> Tensor:  # noqa: ARG002
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001
            x, self.weight, self.bias, self.padding, self.stride, [1, 1], 1, "relu" if relu else "none", [], ""
        )
        return y

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, self.weight, self.bias, self.padding, self.stride, [1, 1], 1, "add", 1.0, "relu", [], ""
        )
        return y


Recurrence = Callable[[Tensor], Tensor]
"""Bidirectional LSTM layers: (frames, batch, inputs) to (frames, batch, 2 * hidden), in the dtype of the input."""


def recurrence(weights: Mapping[str, Tensor], layers: int, compute: Compute) -> Recurrence:
    """Prepare bidirectional LSTM layers.

    Args:
        weights: By torch's names: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, the same with _reverse, ...; float32.
        layers: How many.
        compute: Where they run. With `int8` that is `native.Recurrence`.
    """
    if compute.int8:
        return native.Recurrence(weights, layers)
    dtype = compute.dtype
    if compute.device.type == "cpu" and dtype == torch.bfloat16:
        if packs_bfloat16():
            return _MixedLstm({name: weight.to(dtype) for name, weight in weights.items()}, layers)
        dtype = torch.float32  # for the reasons that `_MixedLstm` gives
    inputs, hidden = weights["weight_ih_l0"].shape[1], weights["weight_hh_l0"].shape[1]
    lstm = nn.LSTM(inputs, hidden, layers, bidirectional=True, device=compute.device, dtype=dtype).eval()
    lstm.load_state_dict(weights)
    lstm.requires_grad_(requires_grad=False)
    lstm.flatten_parameters()
    return lambda x: lstm(x.to(dtype))[0].to(x.dtype)


class _MixedLstm:
    """bfloat16 products, float32 cells.

    A cell adds up small steps over hundreds of frames, and bfloat16 drops most of them: with bfloat16 cells, as torch's
    LSTM has them, 0.59 % of the frames of a conversation change their class against float32; with float32 cells 0.05 %,
    for a sixth more time. float32 throughout takes three times as long.
    """

    def __init__(self, weights: Mapping[str, Tensor], layers: int) -> None:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self._hidden = weights["weight_hh_l0"].shape[1]
        self._layers = [
            [[weights[f"{name}_l{layer}{direction}"] for name in names] for direction in ("", "_reverse")]
            for layer in range(layers)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[1], self._hidden)
        cells = state.float()
        for forwards, backwards in self._layers:
            x = torch.cat(
                [
                    self._pass(x, forwards, state, cells, backwards=False),
                    self._pass(x, backwards, state, cells, backwards=True),
                ],
                dim=2,
            )
        return x

    def _pass(self, x: Tensor, weights: list[Tensor], state: Tensor, cells: Tensor, *, backwards: bool) -> Tensor:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        result: Tensor = torch.mkldnn_rnn_layer(
            x,
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
            state,
            cells,
            reverse=backwards,
            batch_sizes=[],
            mode=_LSTM_MODE,
            hidden_size=self._hidden,
            num_layers=1,
            has_biases=True,
            bidirectional=False,
            batch_first=False,
            train=False,
        )[0]
        return result
