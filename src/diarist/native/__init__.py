"""Layers in C, for processors with AVX-512 VNNI and those with AVX2; compiled when diarist is installed.

PyTorch makes a decoder's pass of several hundred operations on a few rows, each of which takes longer to begin than to do,
and multiplies in bfloat16 half as fast as this does in 8 bits. Where there was no compiler, or the processor is another,
`is_available` says so and nothing is lost but time.

`decoder.c` is what is called; this module prepares weights for it and hands addresses over.
"""

import ctypes
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

LIBRARIES = {name: Path(__file__).with_name(f"decoder-{name}.so") for name in ("avx512", "avx2")}
"""One for each kind of processor, the fastest first."""
HEAD = 64
"""Features that a head must have."""
INPUTS = 16
"""Of a product there must be a multiple of this."""
_FOUR = 4  # inputs of a product, or positions, that lie side by side
_WIDE = 16  # numbers that are computed at once
_GATES = 4  # of an LSTM's unit
# How winograd.h mixes three weights to four, and with that nine to sixteen.
_LINE = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1.0]], dtype=torch.float64)
_MIXED = torch.kron(_LINE, _LINE).T
_MOST_WEIGHT, _MOST_HIDDEN = 2047, 4095  # 256 products of such have 31 bits
_RECURRENCE = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
_STEPS = 127  # of 8 bits, on either side of zero
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "bias", "offset")),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


_NORMS = "self_norm", "cross_norm", "mlp_norm"
_PRODUCTS = "query_key_value", "self_out", "cross_query", "cross_out", "mlp_in", "mlp_out"


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in _NORMS),
        *((name, _Product) for name in _PRODUCTS),
    ]


class _Convolution(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "size", "stride")),
    ]


class _Direction(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("input", "state", "input_scale", "state_scale", "bias")]


_ENCODER_NORMS = "attention_norm", "mlp_norm"
_ENCODER_PRODUCTS = "query_key_value", "attention_out", "mlp_in", "mlp_out"


class _EncoderBlock(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in _ENCODER_NORMS),
        *((name, _Product) for name in _ENCODER_PRODUCTS),
    ]


class _Network(ctypes.Structure):
    _fields_ = [
        ("blocks", ctypes.POINTER(_Block)),
        ("norm", _Norm),
        ("embedding", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("fuse", ctypes.POINTER(_Product)),
        ("embedding_type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("layers", "state", "aligned")),
        ("alignment_heads", ctypes.c_void_p),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("self_keys", "self_values", "cross_keys", "cross_values")),
        *((name, ctypes.c_void_p) for name in ("key_scales", "value_scales", "alignment_queries", "hidden_before")),
        *((name, ctypes.c_int64) for name in ("positions", "most_heard")),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("tokens", "starts", "heard", "before", "hidden")),
        *((name, ctypes.c_int64) for name in ("first", "n", "q")),
    ]


class _Choosing(ctypes.Structure):
    _fields_ = [
        ("logits", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("stride", "end", "begin", "stamps", "first_stamps")),
        *((name, ctypes.c_void_p) for name in ("first", "timestamps", "opened", "paired", "last")),
        *((name, ctypes.c_void_p) for name in ("tokens", "best", "end_logit", "stamp_sum", "text_allowed")),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The fastest that this processor can run; None where there is none."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()  # what PyTorch's own products are told
    for name, path in LIBRARIES.items():
        library = _load(path) if name != "avx512" or limit == "DEFAULT" or limit.startswith("AVX512_CORE_") else None
        if library is not None and library.diarist_supported():
            return library
    return None


def _load(path: Path) -> ctypes.CDLL | None:
    """None where there is no library, and where it is of other sources."""
    address, number, kind = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    try:
        library = ctypes.CDLL(str(path))
        library.diarist_decode.argtypes = [address, address, address, number]
        library.diarist_multiply.argtypes = [address, address, number, number, address, address, number]
        library.diarist_compress.argtypes = [address, kind, number, number, number, address, address, number]
        library.diarist_pack.argtypes = [address, kind, number, number, address, address, address, number]
        library.diarist_encode.argtypes = [address, number, *[address] * 4, *[number] * 4]
        library.diarist_recur.argtypes = [address, number, address, address, address, address, *[number] * 5]
        library.diarist_convolve.argtypes = [address, address, number, number, number, address, address, number]
        library.diarist_choose.argtypes = [address, number, number]
        library.diarist_log_sums.argtypes = [address, number, number, number, address, number]
    except (OSError, AttributeError):
        return None
    return library


def _loaded() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("native code is not available: ask is_available first")
    return library


def is_available() -> bool:
    """Whether it was compiled, and this processor can run it."""
    return _library() is not None


def _group() -> int:
    """Outputs of a product that are computed side by side."""
    return int(_loaded().diarist_group())


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for a pass")


def choose(
    logits: Tensor, states: Sequence[Tensor], end: int, timestamp_begin: int, first_stamps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The likeliest allowed token of each row: what `rules.choose` makes a `Choice` of, but for the text.

    Args:
        logits: float32, shape (n, n_vocab), rows contiguous.
        states: The fields of a `rules.RuleState`.
        end: All before it is text.
        timestamp_begin: From here on there are timestamps.
        first_stamps: The last of them that a text may begin with.

    Returns:
        Tokens, their logits, those of the end, log-sums of the timestamps, and whether text is allowed.
    """
    n, size = logits.shape
    kept = [state.contiguous() for state in states]
    tokens, text_allowed = torch.empty(n, dtype=torch.int64), torch.empty(n, dtype=torch.bool)
    best, end_logit, stamp_sum = torch.empty(3, n)
    found = tokens, best, end_logit, stamp_sum, text_allowed
    choosing = _Choosing(
        logits.data_ptr(),
        *(logits.stride(0), end, timestamp_begin, size - timestamp_begin, first_stamps),
        *(each.data_ptr() for each in (*kept, *found)),
    )
    _loaded().diarist_choose(ctypes.addressof(choosing), n, torch.get_num_threads())
    return found


def log_sums(x: Tensor) -> Tensor:
    """The logarithm of the sum of each row's exponentials: float32, shape (n,).

    Args:
        x: float32, shape (n, count), rows contiguous.
    """
    n, count = x.shape
    found = torch.empty(n)
    threads = torch.get_num_threads()
    _loaded().diarist_log_sums(x.data_ptr(), n, x.stride(0), count, found.data_ptr(), threads)
    return found


class Product:
    """Rows times an 8-bit matrix, as `compute.Linear`: each row with a scale of its own, sums exact.

    Args:
        weight: Shape (out, in), float32, bfloat16 or float16; `in` is a multiple of `INPUTS`.
        bias: Shape (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        filled = -(-self.outputs // _group()) * _group()
        weight = weight.detach().cpu().contiguous()
        packed = torch.empty(filled * self.inputs, dtype=torch.int8)
        packed[self.outputs // _group() * _group() * self.inputs :] = 0  # of the last group not all may be there
        scale, biases, offset = torch.zeros(filled), torch.zeros(filled), torch.zeros(filled, dtype=torch.int32)
        if bias is not None:
            biases[: self.outputs] = bias.detach()
        addresses = (each.data_ptr() for each in (packed, scale, offset))
        threads = torch.get_num_threads()
        _loaded().diarist_pack(weight.data_ptr(), _TYPES[weight.dtype], *weight.shape, *addresses, threads)
        self._kept = packed, scale, biases, offset
        self.fields = self._with(self._kept[2])

    def _with(self, bias: Tensor) -> _Product:
        weight, scale, _, offset = self._kept
        return _Product(*(each.data_ptr() for each in (weight, scale, bias, offset)), self.inputs, self.outputs)

    def __call__(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        return self._multiply(self.fields, x, gelu, residual)

    def unbiased(self, x: Tensor) -> Tensor:
        """The product alone."""
        zeros = torch.zeros_like(self._kept[2])
        return self._multiply(self._with(zeros), x)

    def _multiply(self, fields: _Product, x: Tensor, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        rows = x.float().reshape(-1, self.inputs).contiguous()
        y = torch.empty(len(rows), self.outputs)
        added = None if residual is None else residual.float().reshape(y.shape).contiguous()
        failed = _loaded().diarist_multiply(
            ctypes.addressof(fields),
            rows.data_ptr(),
            len(rows),
            gelu,
            None if added is None else added.data_ptr(),
            y.data_ptr(),
            torch.get_num_threads(),
        )
        _check(failed)
        return y.view(*x.shape[:-1], self.outputs)


class Norm(Protocol):
    """A layer norm's weights, float32."""

    weight: Tensor
    bias: Tensor


class EncoderBlock(Protocol):
    """A layer of an encoder."""

    attention_norm: Norm
    mlp_norm: Norm
    query_key_value: Product
    attention_out: Product
    mlp_in: Product
    mlp_out: Product


class Encoder:
    """The layers of an encoder and the norm after them."""

    def __init__(self, blocks: Sequence[EncoderBlock], norm: Norm) -> None:
        self._blocks = (_EncoderBlock * len(blocks))(
            *(
                _EncoderBlock(*(_fields(getattr(block, name)) for name in _ENCODER_NORMS + _ENCODER_PRODUCTS))
                for block in blocks
            )
        )
        self._norm = _fields(norm)
        self._kept = blocks, norm

    def __call__(self, x: Tensor) -> Tensor:
        """Encode windows: float32, shape (n, f, state); `x` itself is overwritten."""
        n, positions, state = x.shape
        x = x.contiguous()
        projected, attended = torch.empty(n, positions, 3 * state), torch.empty_like(x)
        tensors = (each.data_ptr() for each in (x, projected, attended))
        blocks, norm = ctypes.addressof(self._blocks), ctypes.addressof(self._norm)
        sizes = n, positions, state, torch.get_num_threads()
        _check(_loaded().diarist_encode(blocks, len(self._blocks), norm, *tensors, *sizes))
        return x


def _in_12_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of shape (out, in) as steps, int16, and the size of each output's steps."""
    scale = (weight.abs().amax(dim=1) / _MOST_WEIGHT).clamp_min_(1e-12)
    return (weight / scale[:, None]).round_().to(torch.int16), scale


class Recurrence:
    """Layers of a bidirectional LSTM: weights of 12 bits, inputs and hidden states of 13, sums exact, cells in float32.

    What comes of a window does not depend on its company.

    Args:
        weights: By torch's names: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, the same with _reverse, ...; the
            number of hidden units is a multiple of `INPUTS`, that of inputs even and at most 256, as is all that a layer
            gives the next.
        layers: How many.
    """

    def __init__(self, weights: Mapping[str, Tensor], layers: int) -> None:
        self._units = weights["weight_hh_l0"].shape[1]
        self._kept = [
            self._packed(*(weights[f"{name}_l{layer}{direction}"] for name in _RECURRENCE))
            for layer in range(layers)
            for direction in ("", "_reverse")
        ]
        fields = (_Direction(*(part.data_ptr() for part in kept)) for kept in self._kept)
        self._directions, self._layers = (_Direction * (2 * layers))(*fields), layers

    def _packed(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> tuple[Tensor, ...]:
        """The fields of a `_Direction`."""

        def by_unit(rows: Tensor) -> Tensor:
            """Outputs gate by gate become those of 16 units, gate by gate, and so on."""
            return rows.float().view(_GATES, -1, _WIDE, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)

        packed, scales = [], []
        for weight in map(by_unit, (weight_ih, weight_hh)):
            steps, scale = _in_12_bits(weight)
            packed.append(steps.view(-1, _group(), weight.shape[1] // 2, 2).transpose(1, 2).contiguous())
            scales.append(scale)
        return (*packed, scales[0], scales[1] / _MOST_HIDDEN, by_unit(bias_ih + bias_hh))

    def __call__(self, x: Tensor) -> Tensor:
        """Float, shape (frames, windows, inputs), to float32, (frames, windows, 2 * units)."""
        frames, windows, inputs = x.shape
        scales = (x.float().abs().amax(dim=(0, 2)) / _MOST_HIDDEN).clamp_min_(1e-12)
        steps = (x / scales[:, None]).round_().to(torch.int16)
        room = torch.empty(2, frames, windows, 2 * self._units, dtype=torch.int16)
        result = torch.empty(frames, windows, 2 * self._units)
        tensors = (each.data_ptr() for each in (steps, scales, room, result))
        sizes = frames, windows, inputs, self._units, torch.get_num_threads()
        _check(_loaded().diarist_recur(ctypes.addressof(self._directions), self._layers, *tensors, *sizes))
        return result


class Room:
    """Memory for one image after another: to touch new pages takes a tenth of the time that a network needs."""

    def __init__(self) -> None:
        self._numbers = torch.empty(0)

    def image(self, *shape: int) -> Tensor:
        """Of float32 numbers that may be any, channels last in memory, in the place of the image before."""
        n, channels, height, width = shape
        if self._numbers.numel() < math.prod(shape):
            self._numbers = torch.empty(math.prod(shape))
        return self._numbers[: math.prod(shape)].view(n, height, width, channels).permute(0, 3, 1, 2)


class Convolution:
    """A convolution of 12 bits; each pixel, or place of a tile (`winograd.h`), has a scale of its own, its sums are exact.

    What comes of it is the same on either kind of processor and in any number of threads.

    Args:
        weight: Shape (out, in, size, size); the numbers of channels are multiples of `INPUTS`, and `in` is at most 256.
        bias: Shape (out,).
        stride: Along height and width; size // 2 zeros are added around them.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1) -> None:
        outputs, inputs, size, _ = weight.shape
        weight = weight.detach().float()
        if size == 3 and stride == 1:  # as winograd.h takes it, whose every place has a scale
            mixed = (weight.reshape(-1, size * size).double() @ _MIXED).float()
            steps, scale = _in_12_bits(mixed.T.reshape(-1, inputs))
            places = steps.view(-1, outputs, inputs).permute(1, 2, 0)
        else:
            steps, scale = _in_12_bits(weight.flatten(1))
            places = steps.view(outputs, inputs, -1)
        filled = F.pad(places, (0, 0, 0, 0, 0, -outputs % _group()))
        packed = filled.view(-1, _group(), inputs // 2, 2, places.shape[2]).permute(0, 4, 2, 1, 3).contiguous()
        self._kept = packed, scale, bias.detach().float().contiguous()
        self._fields = _Convolution(*(each.data_ptr() for each in self._kept), inputs, outputs, size, stride)

    def __call__(self, x: Tensor, room: Room | None = None, *, relu: bool = False) -> Tensor:
        """Convolve float32 of shape (n, in, height, width), channels last in memory; so has the result, written in `room`."""
        n, _, height, width = x.shape
        high, wide = (-(-length // self._fields.stride) for length in (height, width))
        y = (room or Room()).image(n, self._fields.outputs, high, wide)
        return self._convolve(x, y, relu=relu)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """relu(convolve(x) + residual). May write into `residual`, whose contents are lost."""
        return self._convolve(x, residual.contiguous(memory_format=torch.channels_last), relu=True, adding=True)

    def _convolve(self, x: Tensor, y: Tensor, *, relu: bool, adding: bool = False) -> Tensor:
        threads = torch.get_num_threads()
        for image, target in zip(x.contiguous(memory_format=torch.channels_last), y, strict=True):
            added = target.data_ptr() if adding else None
            sizes = *image.shape[1:], int(relu)
            tensors = added, target.data_ptr()
            _check(
                _loaded().diarist_convolve(ctypes.addressof(self._fields), image.data_ptr(), *sizes, *tensors, threads)
            )
        return y


class Block(Protocol):
    """A layer of the decoder: what is multiplied by is 8-bit."""

    self_norm: Norm
    cross_norm: Norm
    mlp_norm: Norm
    query_key_value: Product
    self_out: Product
    cross_query: Product
    cross_out: Product
    mlp_in: Product
    mlp_out: Product


@dataclass(frozen=True, slots=True)
class CompressedStates:
    """Keys or values of one layer's cross-attention in 8 bits, with a scale for each head and position."""

    numbers: Tensor
    """8 bits, shape (rows, h * most f * d); of each row those of its f positions come first, head by head."""
    scales: Tensor
    """float32, shape (rows, h * most f), used alike."""
    heads: int
    """h."""
    are_values: bool
    """Which are a matrix for each head, laid out as a product's; keys are positions, 128 added."""

    @classmethod
    def empty(cls, rows: int, heads: int, positions: int, *, are_values: bool) -> "CompressedStates":
        size = heads * _filled(positions)
        numbers = torch.empty(rows, size * HEAD, dtype=torch.int8 if are_values else torch.uint8)
        return cls(numbers, torch.empty(rows, size), heads, are_values)

    def fill(self, row: int, projected: Tensor) -> None:
        """Take what was heard: bfloat16 or float32, shape (f, h * d)."""
        projected = projected.contiguous()
        _loaded().diarist_compress(
            projected.data_ptr(),
            _TYPES[projected.dtype],
            *projected.shape,
            self.are_values,
            self.numbers[row].data_ptr(),
            self.scales[row].data_ptr(),
            torch.get_num_threads(),
        )

    def read(self, row: int, head: int, positions: int, count: int) -> Tensor:
        """The first `count` of the `positions` of a row's head: float32, shape (count, d)."""
        first, size = head * _filled(positions), _filled(positions)
        steps = self.numbers[row, first * HEAD : (first + size) * HEAD].float()
        if self.are_values:
            steps = steps.view(-1, size // _FOUR, _group(), _FOUR).permute(1, 3, 0, 2)
        else:
            steps = steps - (_STEPS + 1)
        return steps.reshape(size, HEAD)[:count] * self.scales[row, first : first + count, None]

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy one row, which has so many positions, over another."""
        for tensor, width in ((self.numbers, HEAD), (self.scales, 1)):
            used = self.heads * _filled(positions) * width
            tensor[target, :used].copy_(tensor[source, :used])


def _filled(positions: int) -> int:
    return -(-positions // _FOUR) * _FOUR


class Cache:
    """Where a `network.DecoderCache` keeps its tensors."""

    def __init__(
        self,
        self_keys: Sequence[Tensor],
        self_values: Sequence[Tensor],
        cross_keys: Sequence[CompressedStates],
        cross_values: Sequence[CompressedStates],
        alignment_queries: Tensor,
        hidden_before: Tensor | None,
        most_heard: int,
    ) -> None:
        of_layers = (
            self_keys,
            self_values,
            *([each.numbers for each in cross] for cross in (cross_keys, cross_values)),
            *([each.scales for each in cross] for cross in (cross_keys, cross_values)),
        )
        layers = [(ctypes.c_void_p * len(each))(*(tensor.data_ptr() for tensor in each)) for each in of_layers]
        self._kept = layers, of_layers, alignment_queries, hidden_before
        self.fields = _Cache(
            *(ctypes.addressof(each) for each in layers),
            alignment_queries.data_ptr(),
            None if hidden_before is None else hidden_before.data_ptr(),
            self_keys[0].shape[1],
            most_heard,
        )


class Network:
    """A decoder, all of it but the logits.

    Args:
        blocks: Its layers.
        norm: After them.
        embedding: Of tokens, bfloat16 or float32; shape (tokens, state).
        positions: float32, shape (positions, state).
        fuse: None, or the product of an embedding and a hidden state that joins them.
        alignment_heads: Layer and head of each whose queries are kept.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        norm: Norm,
        embedding: Tensor,
        positions: Tensor,
        fuse: Product | None,
        alignment_heads: Sequence[tuple[int, int]],
    ) -> None:
        self._state = embedding.shape[1]
        layers = (_Block * len(blocks))(
            *(_Block(*(_fields(getattr(block, name)) for name in _NORMS + _PRODUCTS)) for block in blocks)
        )
        heads = torch.tensor(alignment_heads, dtype=torch.int64)
        self._kept = blocks, norm, embedding, positions, fuse, heads
        self._fields = _Network(
            layers,
            _fields(norm),
            embedding.data_ptr(),
            positions.data_ptr(),
            None if fuse is None else ctypes.pointer(fuse.fields),
            _TYPES[embedding.dtype],
            len(blocks),
            self._state,
            len(alignment_heads),
            heads.data_ptr(),
        )

    def __call__(
        self, tokens: Tensor, starts: Tensor, heard: Sequence[int], cache: Cache, first: int, before: Tensor | None
    ) -> Tensor:
        """Read tokens, as `network.Decoder`; rows are shared out to torch's number of threads.

        Args:
            tokens: int64, shape (n, q).
            starts: int64, shape (n,): position of each row's first token.
            heard: How many positions each row's cross-attention has.
            cache: Read and written.
            first: The first of n rows of it.
            before: Hidden states for `fuse`; shape (n, q, state).

        Returns:
            float32, shape (n, q, state).
        """
        n, q = tokens.shape
        tokens, starts, lengths = tokens.contiguous(), starts.contiguous(), torch.tensor(heard)
        before = None if before is None else before.float().contiguous()
        hidden = torch.empty(n, q, self._state)
        rows = _Rows(
            *(each.data_ptr() for each in (tokens, starts, lengths)),
            None if before is None else before.data_ptr(),
            hidden.data_ptr(),
            first,
            n,
            q,
        )
        network, fields = ctypes.addressof(self._fields), ctypes.addressof(cache.fields)
        _check(_loaded().diarist_decode(network, fields, ctypes.addressof(rows), torch.get_num_threads()))
        return hidden


def _fields(part: Norm | Product) -> ctypes.Structure:
    return part.fields if isinstance(part, Product) else _Norm(part.weight.data_ptr(), part.bias.data_ptr())
