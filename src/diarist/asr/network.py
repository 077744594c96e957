"""Whisper's network for inference: an encoder over windows, a decoder over rows of a shared cache.

Tensor names are those of openai-whisper's checkpoints. Shapes use n rows, q new tokens per row, h heads, d = 64
features per head, f encoder positions (1500 per window) and t decoder positions (at most 448).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diarist import native
from diarist.asr.attention import choose_attention, choose_past_attention
from diarist.compute import Compute, Linear, for_few_rows, hand_back, linear, unquantised
from diarist.models import WhisperDims

Tensors = Mapping[str, Tensor]

_ENCODER_ROWS = 1500  # rows of a typical product, for packing
_DECODER_ROWS = 16


class Encoder:
    """Mel features to encoder states."""

    def __init__(self, dims: WhisperDims, tensors: Tensors, compute: Compute) -> None:
        self.dtype = unquantised(compute).dtype

        def on_device(name: str) -> Tensor:
            return tensors[f"encoder.{name}"].to(compute.device, self.dtype)

        self.conv1 = on_device("conv1.weight"), on_device("conv1.bias")
        self.conv2 = on_device("conv2.weight"), on_device("conv2.bias")
        self.positions = on_device("positional_embedding")
        self.blocks = [
            _EncoderBlock(f"encoder.blocks.{index}", dims.n_audio_head, tensors, compute)
            for index in range(dims.n_audio_layer)
        ]
        self.norm = _LayerNorm("encoder.ln_post", tensors, compute)
        self._native: native.Encoder | None = None
        if _is_native(dims.n_audio_state, dims.n_audio_head, compute):
            self._native = native.Encoder(cast("list[native.EncoderBlock]", self.blocks), self.norm)

    def __call__(self, mel: Tensor) -> Tensor:
        """Encode windows: (n, n_mels, 2 f) to (n, f, n_audio_state); f is n_audio_ctx at most."""
        mel = mel.to(self.dtype)
        if self._native is not None:  # one by one, since the sums of PyTorch's convolutions depend on the company
            return self._native(torch.cat([self._convolve(mel[i : i + 1]) for i in range(len(mel))]))
        x = self._convolve(mel)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _convolve(self, mel: Tensor) -> Tensor:
        """The same to what the layers take: (n, f, n_audio_state)."""
        x = F.gelu(F.conv1d(mel, *self.conv1, padding=1))
        x = F.gelu(F.conv1d(x, *self.conv2, stride=2, padding=1)).transpose(1, 2)
        return (x + self.positions[: x.shape[1]]).to(self.norm.weight.dtype)


def is_native(dims: WhisperDims, compute: Compute) -> bool:
    """Whether a decoder of these dimensions is computed by `native`."""
    return _is_native(dims.n_text_state, dims.n_text_head, for_few_rows(compute))


def _is_native(state: int, heads: int, compute: Compute) -> bool:
    in_bytes = compute.int8 and compute.dtype == torch.float32
    return in_bytes and state == heads * native.HEAD and native.is_available()


@dataclass(frozen=True, slots=True)
class CrossStates:
    """Keys or values of one layer's cross-attention; `native.CompressedStates` are the same in 8 bits."""

    numbers: Tensor
    """Shape (rows, h * most f * d); of each row those of its f positions come first, as (h, f, d)."""
    head_shape: tuple[int, int]
    """h and d."""

    @classmethod
    def empty(cls, rows: int, heads: int, positions: int, width: int, compute: Compute) -> "CrossStates":
        """Most of a cache's memory: each row is touched when it is first filled."""
        shape = rows, heads * positions * width
        return cls(torch.empty(shape, dtype=compute.dtype, device=compute.device), (heads, width))

    def of(self, rows: slice, positions: int) -> Tensor:
        """Rows that all have so many positions, as (n, h, f, d)."""
        heads, width = self.head_shape
        return self.numbers[rows, : heads * positions * width].view(-1, heads, positions, width)

    def fill(self, row: int, projected: Tensor) -> None:
        """Take what was heard, shape (f, h * d)."""
        self.of(slice(row, row + 1), len(projected))[0].copy_(projected.view(-1, *self.head_shape).transpose(0, 1))

    def read(self, row: int, head: int, positions: int, count: int) -> Tensor:
        """The first `count` of the `positions` of a row's head, as (count, d)."""
        return self.of(slice(row, row + 1), positions)[0, head, :count]

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy one row over another."""
        rows = (slice(row, row + 1) for row in (target, source))
        mine, theirs = (self.of(each, positions) for each in rows)
        mine.copy_(theirs)


AnyCrossStates = CrossStates | native.CompressedStates


class DecoderCache:
    """Keys and values of `rows` rows, allocated once.

    Args:
        dims: Of the decoder.
        rows: As many rows there are.
        alignment_heads: How many heads' queries are kept.
        compute: Device and type.
        borrowed: Layers whose cross-attention is that of a layer of another cache: its keys and values themselves,
            which are filled and moved there.
        keep_hidden: Whether the decoder's hidden states are kept, for an assistant that follows them.

    Rows in use are the first ones. `self_keys[layer]` has shape (rows, t, h, d); values alike. `cross_keys[layer]` and
    `cross_values[layer]` hold of each row as many positions as its window has: `heard[row]`. `alignment_queries`, (rows, t, number of alignment heads,
    d), keeps what the alignment heads asked at each position, from which word times are computed. `hidden_before`,
    (rows, t + 1, n_text_state), keeps at each position the hidden state of the one before it; zeros at the first.
    """

    def __init__(
        self,
        dims: WhisperDims,
        rows: int,
        alignment_heads: int,
        compute: Compute,
        borrowed: Mapping[int, tuple[AnyCrossStates, AnyCrossStates]] | None = None,
        *,
        keep_hidden: bool = False,
    ) -> None:
        layers, heads = range(dims.n_text_layer), dims.n_text_head
        width = dims.n_text_state // heads
        borrowed = borrowed or {}
        few = for_few_rows(compute).dtype

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=few, device=compute.device)

        def past() -> Tensor:
            shape = rows, dims.n_text_ctx, heads, width
            if self.is_native:
                return torch.empty(shape)  # most of which is never touched
            return zeros(*shape)  # PyTorch's attention reads what it masks

        def cross(*, are_values: bool) -> AnyCrossStates:
            if self.is_native:
                return native.CompressedStates.empty(rows, heads, dims.n_audio_ctx, are_values=are_values)
            return CrossStates.empty(rows, heads, dims.n_audio_ctx, width, compute)

        self.is_native = is_native(dims, compute)
        self.rows = rows
        self.positions = dims.n_text_ctx
        self.device = compute.device
        self.self_keys = [past() for _ in layers]
        self.self_values = [past() for _ in layers]
        self.own_cross = [layer for layer in layers if layer not in borrowed]
        self._most_heard = dims.n_audio_ctx
        self.heard = [dims.n_audio_ctx] * rows
        self.cross_keys = [borrowed[layer][0] if layer in borrowed else cross(are_values=False) for layer in layers]
        self.cross_values = [borrowed[layer][1] if layer in borrowed else cross(are_values=True) for layer in layers]
        self.alignment_queries = zeros(rows, dims.n_text_ctx, alignment_heads, width)
        self.hidden_before = zeros(rows, dims.n_text_ctx + 1, dims.n_text_state) if keep_hidden else None

    def hand_back(self) -> None:
        """All rows are over: the memory of what they heard and wrote is the system's until rows are filled anew."""
        for layer in self.own_cross:
            for states in (self.cross_keys[layer], self.cross_values[layer]):
                hand_back(states.numbers)
        if self.is_native:
            for tensor in (*self.self_keys, *self.self_values):
                hand_back(tensor)

    @functools.cached_property
    def native(self) -> native.Cache:
        """Addresses of the same tensors."""
        keys, values = (
            [states for states in cross if isinstance(states, native.CompressedStates)]
            for cross in (self.cross_keys, self.cross_values)
        )
        past = self.self_keys, self.self_values
        return native.Cache(*past, keys, values, self.alignment_queries, self.hidden_before, self._most_heard)

    @staticmethod
    def row_bytes(dims: WhisperDims, compute: Compute) -> int:
        """Memory that one row takes, but for what alignment keeps."""
        audio = dims.n_audio_ctx * (1 if is_native(dims, compute) else compute.dtype.itemsize)
        text = dims.n_text_ctx * for_few_rows(compute).dtype.itemsize
        return 2 * dims.n_text_layer * dims.n_text_state * (audio + text)

    def parts(self, rows: slice) -> list[slice]:
        """Rows that `cross` gives at once: all of them if each fills its place, else each by itself."""
        if min(self.heard[rows]) == self._most_heard:
            return [rows]
        return [slice(row, row + 1) for row in range(rows.start, rows.stop)]

    def cross(self, layer: int, part: slice) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values of one of `parts`, each of shape (n, h, f, d); not of compressed ones."""
        states = self.cross_keys[layer], self.cross_values[layer]
        keys, values = (each.of(part, self.heard[part.start]) for each in states if isinstance(each, CrossStates))
        return keys, values

    def move_row(self, source: int, target: int, positions: int) -> None:
        """Copy one row over another: all of its cross-attention, the first `positions` of its self-attention."""
        self.heard[target] = self.heard[source]
        for layer in self.own_cross:
            for states in (self.cross_keys[layer], self.cross_values[layer]):
                states.move(source, target, self.heard[source])
        for tensors in (self.self_keys, self.self_values, [self.alignment_queries]):
            for tensor in tensors:
                tensor[target, :positions].copy_(tensor[source, :positions])
        if self.hidden_before is not None:
            self.hidden_before[target, : positions + 1].copy_(self.hidden_before[source, : positions + 1])


class Decoder:
    """Tokens to hidden states, against a `DecoderCache`.

    An assistant's may have `decoder.fuse`, which joins each token's embedding with the hidden state from which the main
    decoder chose that token (EAGLE: Li et al. 2024): what the main decoder knew, it need not find out again.
    """

    def __init__(
        self,
        dims: WhisperDims,
        tensors: Tensors,
        compute: Compute,
        alignment_heads: tuple[tuple[int, int], ...] = (),
    ) -> None:
        few = for_few_rows(compute)
        self._dtype = few.dtype
        embedding = tensors["decoder.token_embedding.weight"]
        self.embedding = embedding.to(compute.device, unquantised(compute).dtype)
        self.positions = tensors["decoder.positional_embedding"].to(compute.device, few.dtype)
        self.blocks = [
            _DecoderBlock(f"decoder.blocks.{index}", dims.n_text_head, tensors, compute)
            for index in range(dims.n_text_layer)
        ]
        self.norm = _LayerNorm("decoder.ln", tensors, few)
        self.fuse: Linear | None = None
        if "decoder.fuse.weight" in tensors:
            weight, bias = tensors["decoder.fuse.weight"], tensors["decoder.fuse.bias"]
            self.fuse = linear(weight, bias, few, rows=_DECODER_ROWS)
        self.alignment_heads = alignment_heads
        self._native = self._all_native() if is_native(dims, compute) else None
        self._heads_by_layer = {
            layer: [(place, head) for place, (at, head) in enumerate(alignment_heads) if at == layer]
            for layer in sorted({layer for layer, _ in alignment_heads})
        }

    @property
    def is_native(self) -> bool:
        """Whether a pass of any shape costs what its tokens cost, and nothing is made for it."""
        return self._native is not None

    def _all_native(self) -> native.Network:
        """Of the same weights: where this is asked for, all of them are `native.Product`."""
        blocks, fuse = cast("list[native.Block]", self.blocks), cast("native.Product | None", self.fuse)
        return native.Network(blocks, self.norm, self.embedding, self.positions, fuse, self.alignment_heads)

    def fill_cross_attention(self, states: Tensor, cache: DecoderCache, first_row: int) -> None:
        """Store keys and values of encoder states (n, f, state) in rows `first_row` and after."""
        n, f, _ = states.shape
        rows = range(first_row, first_row + n)
        cache.heard[rows.start : rows.stop] = [f] * n
        for layer in cache.own_cross:
            block = self.blocks[layer]
            for row, keys, values in zip(rows, block.cross_key(states), block.cross_value(states), strict=True):
                cache.cross_keys[layer].fill(row, keys)
                cache.cross_values[layer].fill(row, values)

    def __call__(
        self,
        tokens: Tensor,
        starts: Tensor,
        cache: DecoderCache,
        rows: slice,
        reach: int | None = None,
        *,
        rounded: bool = False,
        before: Tensor | None = None,
    ) -> Tensor:
        """Run q tokens of each row and store their keys and values.

        Args:
            tokens: int64, shape (n, q).
            starts: int64, shape (n,): the position of each row's first token; rows need not agree.
            cache: Holds everything before `starts`; what it holds after is overwritten or ignored.
            rows: The n cache rows.
            reach: Position after the last that is read or written; None asks `starts`, which waits for the device.
            rounded: `reach` is larger than that.
            before: For `fuse`: hidden states from which the tokens were chosen, shape (n, q, n_text_state).

        Returns:
            Hidden states after the last norm, shape (n, q, n_text_state).
        """
        n, q = tokens.shape
        if self._native is not None:
            heard = cache.heard[rows]
            return self._native(tokens, starts, heard, cache.native, rows.start, before if self.fuse else None)
        positions = starts[:, None] + torch.arange(q, device=tokens.device)
        reach = int(starts.max()) + q if reach is None else reach
        mask = None if n == q == 1 and not rounded else _causal_mask(positions, reach, self._dtype)
        places = torch.arange(n, device=tokens.device)[:, None], positions
        parts = cache.parts(rows)
        x = F.embedding(tokens, self.embedding).to(self._dtype)
        if self.fuse is not None and before is not None:
            x = self.fuse(torch.cat([x, before], dim=2))
        x = x + F.embedding(positions, self.positions)
        for layer, block in enumerate(self.blocks):
            x = block.attend_self(x, cache.self_keys[layer][rows], cache.self_values[layer][rows], places, reach, mask)
            x, queries = block.attend_cross(x, [cache.cross(layer, part) for part in parts])
            for place, head in self._heads_by_layer.get(layer, ()):
                cache.alignment_queries[rows][*places, place] = queries[:, :, head]
            x = block.feed_forward(x)
        hidden = self.norm(x)
        if cache.hidden_before is not None:
            cache.hidden_before[rows][places[0], positions + 1] = hidden
        return hidden


def _causal_mask(positions: Tensor, reach: int, dtype: torch.dtype) -> Tensor:
    """0 where a key may be seen, -inf where it may not: (n, 1, q, reach)."""
    hidden = torch.arange(reach, device=positions.device) > positions[:, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(hidden, float("-inf"))[:, None]


class _LayerNorm:
    def __init__(self, name: str, tensors: Tensors, compute: Compute) -> None:
        self.weight = tensors[f"{name}.weight"].to(compute.device, compute.dtype)
        self.bias = tensors[f"{name}.bias"].to(compute.device, compute.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)


def _fused_self_projection(name: str, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Query, key and value projections as one weight and bias (Whisper's keys have no bias)."""
    weight = torch.cat([tensors[f"{name}.{part}.weight"] for part in ("query", "key", "value")])
    query_bias, value_bias = tensors[f"{name}.query.bias"], tensors[f"{name}.value.bias"]
    return weight, torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])


class _EncoderBlock:
    def __init__(self, name: str, heads: int, tensors: Tensors, compute: Compute) -> None:
        def product(weight: Tensor, bias: Tensor) -> Linear:
            return linear(weight, bias, compute, rows=_ENCODER_ROWS)

        def named(part: str) -> Linear:
            return product(tensors[f"{name}.{part}.weight"], tensors[f"{name}.{part}.bias"])

        self.heads = heads
        self._attend = choose_attention(compute)
        self.attention_norm = _LayerNorm(f"{name}.attn_ln", tensors, compute)
        self.query_key_value = product(*_fused_self_projection(f"{name}.attn", tensors))
        self.attention_out = named("attn.out")
        self.mlp_norm = _LayerNorm(f"{name}.mlp_ln", tensors, compute)
        self.mlp_in, self.mlp_out = named("mlp.0"), named("mlp.2")

    def __call__(self, x: Tensor) -> Tensor:
        n, f, state = x.shape
        projected = self.query_key_value(self.attention_norm(x)).view(n, f, 3, self.heads, state // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        x = self.attention_out(self._attend(query, key, value), residual=x)
        return self.mlp_out(self.mlp_in(self.mlp_norm(x), gelu=True), residual=x)


class _DecoderBlock:
    def __init__(self, name: str, heads: int, tensors: Tensors, compute: Compute) -> None:
        few = for_few_rows(compute)

        def product(weight: Tensor, bias: Tensor) -> Linear:
            return linear(weight, bias, few, rows=_DECODER_ROWS)

        def named(part: str) -> Linear:
            return product(tensors[f"{name}.{part}.weight"], tensors[f"{name}.{part}.bias"])

        self.heads = heads
        self._attend, self._attend_past = choose_attention(compute), choose_past_attention(compute)
        self.self_norm = _LayerNorm(f"{name}.attn_ln", tensors, few)
        self.query_key_value = product(*_fused_self_projection(f"{name}.attn", tensors))
        self.self_out = named("attn.out")
        self.cross_norm = _LayerNorm(f"{name}.cross_attn_ln", tensors, few)
        self.cross_query, self.cross_out = named("cross_attn.query"), named("cross_attn.out")
        key_weight, value_weight = (tensors[f"{name}.cross_attn.{part}.weight"] for part in ("key", "value"))
        self.cross_key = linear(key_weight, None, compute, rows=_ENCODER_ROWS)
        value_bias = tensors[f"{name}.cross_attn.value.bias"]
        self.cross_value = linear(value_weight, value_bias, compute, rows=_ENCODER_ROWS)
        self.mlp_norm = _LayerNorm(f"{name}.mlp_ln", tensors, few)
        self.mlp_in, self.mlp_out = named("mlp.0"), named("mlp.2")

    def attend_self(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        places: tuple[Tensor, Tensor],
        reach: int,
        mask: Tensor | None,
    ) -> Tensor:
        n, q, state = x.shape
        projected = self.query_key_value(self.self_norm(x)).view(n, q, 3, self.heads, state // self.heads)
        query, key, value = projected.unbind(2)
        keys[places] = key
        values[places] = value
        past_keys, past_values = keys[:, :reach].transpose(1, 2), values[:, :reach].transpose(1, 2)
        return self.self_out(self._attend_past(query.transpose(1, 2), past_keys, past_values, mask), residual=x)

    def attend_cross(self, x: Tensor, heard: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """New x, and the queries (n, q, h, d). `heard` is what `DecoderCache.cross` gives of each part."""
        n, q, state = x.shape
        queries = self.cross_query(self.cross_norm(x)).view(n, q, self.heads, state // self.heads)
        in_their_type = queries.transpose(1, 2).to(heard[0][0].dtype)
        asked = torch.split(in_their_type, [len(keys) for keys, _ in heard])
        attended = [self._attend(each, *keys_values) for each, keys_values in zip(asked, heard, strict=True)]
        return self.cross_out(attended[0] if len(attended) == 1 else torch.cat(attended), residual=x), queries

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.mlp_out(self.mlp_in(self.mlp_norm(x), gelu=True), residual=x)
