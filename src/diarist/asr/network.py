"""Whisper's network for inference: an encoder over windows, a decoder over rows of a shared cache.

Tensor names are those of openai-whisper's checkpoints. Shapes use n rows, q new tokens per row, h heads, d = 64
features per head, f encoder positions (1500 per window) and t decoder positions (at most 448).
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diarist.asr.attention import choose_attention, choose_past_attention
from diarist.compute import Compute, Linear, for_few_rows, linear
from diarist.models import WhisperDims

Tensors = Mapping[str, Tensor]

_ENCODER_ROWS = 1500  # rows of a typical product, for packing
_DECODER_ROWS = 16


class Encoder:
    """Mel features to encoder states."""

    def __init__(self, dims: WhisperDims, tensors: Tensors, compute: Compute) -> None:
        def on_device(name: str) -> Tensor:
            return tensors[f"encoder.{name}"].to(compute.device, compute.dtype)

        self.dtype = compute.dtype
        self.conv1 = on_device("conv1.weight"), on_device("conv1.bias")
        self.conv2 = on_device("conv2.weight"), on_device("conv2.bias")
        self.positions = on_device("positional_embedding")
        self.blocks = [
            _EncoderBlock(f"encoder.blocks.{index}", dims.n_audio_head, tensors, compute)
            for index in range(dims.n_audio_layer)
        ]
        self.norm = _LayerNorm("encoder.ln_post", tensors, compute)

    def __call__(self, mel: Tensor) -> Tensor:
        """Encode windows: (n, n_mels, 2 f) to (n, f, n_audio_state); f is n_audio_ctx at most."""
        x = F.gelu(F.conv1d(mel.to(self.dtype), *self.conv1, padding=1))
        x = F.gelu(F.conv1d(x, *self.conv2, stride=2, padding=1))
        x = x.transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class DecoderCache:
    """Keys and values of `rows` rows, allocated once.

    Args:
        dims: Of the decoder.
        rows: As many rows there are.
        alignment_heads: How many heads' queries are kept.
        compute: Device and type.
        borrowed: Layers whose cross-attention is that of a layer of another cache: its keys and values themselves,
            which are filled and moved there.

    Rows in use are the first ones. `self_keys[layer]` has shape (rows, t, h, d); values alike. `cross_keys[layer]` and
    `cross_values[layer]` hold (h, f, d) of each row one after the other, where f is as many positions as its window
    has: `heard[row]`. `cross` looks at them in that shape. `alignment_queries`, (rows, t, number of alignment heads,
    d), keeps what the alignment heads asked at each position, from which word times are computed.
    """

    def __init__(
        self,
        dims: WhisperDims,
        rows: int,
        alignment_heads: int,
        compute: Compute,
        borrowed: Mapping[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        layers, heads = range(dims.n_text_layer), dims.n_text_head
        width = dims.n_text_state // heads
        borrowed = borrowed or {}

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=compute.dtype, device=compute.device)

        def cross(part: int) -> list[Tensor]:
            """Most of the memory: each row is touched when it is first filled."""
            shape = rows, heads * dims.n_audio_ctx * width
            return [
                borrowed[layer][part]
                if layer in borrowed
                else torch.empty(shape, dtype=compute.dtype, device=compute.device)
                for layer in layers
            ]

        self.rows = rows
        self.positions = dims.n_text_ctx
        self.device = compute.device
        self.self_keys = [zeros(rows, dims.n_text_ctx, heads, width) for _ in layers]
        self.self_values = [zeros(rows, dims.n_text_ctx, heads, width) for _ in layers]
        self.own_cross = [layer for layer in layers if layer not in borrowed]
        self._head_shape = heads, width
        self._most_heard = dims.n_audio_ctx
        self.heard = [dims.n_audio_ctx] * rows
        self.cross_keys, self.cross_values = cross(0), cross(1)
        self.alignment_queries = zeros(rows, dims.n_text_ctx, alignment_heads, width)

    @staticmethod
    def row_bytes(dims: WhisperDims, compute: Compute) -> int:
        """Memory that one row takes, but for what alignment keeps."""
        return 2 * dims.n_text_layer * (dims.n_audio_ctx + dims.n_text_ctx) * dims.n_text_state * compute.dtype.itemsize

    def cross(self, layer: int, rows: slice) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention keys and values of rows in use, (n, h, f, d): all at once if each fills its place."""
        heads, width = self._head_shape
        parts = [rows]
        if min(self.heard[rows]) < self._most_heard:
            parts = [slice(row, row + 1) for row in range(rows.start, rows.stop)]

        def shaped(flat: Tensor, part: slice) -> Tensor:
            positions = self.heard[part.start]
            return flat[part, : heads * positions * width].view(-1, heads, positions, width)

        return [(shaped(self.cross_keys[layer], part), shaped(self.cross_values[layer], part)) for part in parts]

    def move_row(self, source: int, target: int, positions: int) -> None:
        """Copy one row over another: all of its cross-attention, the first `positions` of its self-attention."""
        self.heard[target] = self.heard[source]
        used = math.prod(self._head_shape) * self.heard[source]
        for tensors in (self.cross_keys, self.cross_values):
            for layer in self.own_cross:
                tensors[layer][target, :used].copy_(tensors[layer][source, :used])
        for tensors in (self.self_keys, self.self_values, [self.alignment_queries]):
            for tensor in tensors:
                tensor[target, :positions].copy_(tensor[source, :positions])


class Decoder:
    """Tokens to hidden states, against a `DecoderCache`."""

    def __init__(
        self,
        dims: WhisperDims,
        tensors: Tensors,
        compute: Compute,
        alignment_heads: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.embedding = tensors["decoder.token_embedding.weight"].to(compute.device, compute.dtype)
        self.positions = tensors["decoder.positional_embedding"].to(compute.device, compute.dtype)
        self.blocks = [
            _DecoderBlock(f"decoder.blocks.{index}", dims.n_text_head, tensors, compute)
            for index in range(dims.n_text_layer)
        ]
        self.norm = _LayerNorm("decoder.ln", tensors, compute)
        self.alignment_heads = alignment_heads
        self._heads_by_layer = {
            layer: [(place, head) for place, (at, head) in enumerate(alignment_heads) if at == layer]
            for layer in sorted({layer for layer, _ in alignment_heads})
        }
        self._compute = compute

    def fill_cross_attention(self, states: Tensor, cache: DecoderCache, first_row: int) -> None:
        """Store keys and values of encoder states (n, f, state) in rows `first_row` and after."""
        n, f, _ = states.shape
        rows = range(first_row, first_row + n)
        cache.heard[rows.start : rows.stop] = [f] * n
        for layer in cache.own_cross:
            for row, keys, values in zip(rows, *self.blocks[layer].cross_keys_values(states), strict=True):
                ((row_keys, row_values),) = cache.cross(layer, slice(row, row + 1))
                row_keys[0].copy_(keys)
                row_values[0].copy_(values)

    def __call__(
        self,
        tokens: Tensor,
        starts: Tensor,
        cache: DecoderCache,
        rows: slice,
        reach: int | None = None,
        *,
        rounded: bool = False,
    ) -> Tensor:
        """Run q tokens of each row and store their keys and values.

        Args:
            tokens: int64, shape (n, q).
            starts: int64, shape (n,): the position of each row's first token; rows need not agree.
            cache: Holds everything before `starts`; what it holds after is overwritten or ignored.
            rows: The n cache rows.
            reach: Position after the last that is read or written; None asks `starts`, which waits for the device.
            rounded: `reach` is larger than that.

        Returns:
            Hidden states after the last norm, shape (n, q, n_text_state).
        """
        n, q = tokens.shape
        positions = starts[:, None] + torch.arange(q, device=tokens.device)
        reach = int(starts.max()) + q if reach is None else reach
        mask = None if n == q == 1 and not rounded else _causal_mask(positions, reach, self._compute.dtype)
        places = torch.arange(n, device=tokens.device)[:, None], positions
        x = F.embedding(tokens, self.embedding) + F.embedding(positions, self.positions)
        for layer, block in enumerate(self.blocks):
            x = block.attend_self(x, cache.self_keys[layer][rows], cache.self_values[layer][rows], places, reach, mask)
            x, queries = block.attend_cross(x, cache.cross(layer, rows))
            for place, head in self._heads_by_layer.get(layer, ()):
                cache.alignment_queries[rows][*places, place] = queries[:, :, head]
            x = block.feed_forward(x)
        return self.norm(x)


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
        def product(weight: Tensor, bias: Tensor) -> Linear:
            return linear(weight, bias, for_few_rows(compute), rows=_DECODER_ROWS)

        def named(part: str) -> Linear:
            return product(tensors[f"{name}.{part}.weight"], tensors[f"{name}.{part}.bias"])

        self.heads = heads
        self._attend, self._attend_past = choose_attention(compute), choose_past_attention(compute)
        self.self_norm = _LayerNorm(f"{name}.attn_ln", tensors, compute)
        self.query_key_value = product(*_fused_self_projection(f"{name}.attn", tensors))
        self.self_out = named("attn.out")
        self.cross_norm = _LayerNorm(f"{name}.cross_attn_ln", tensors, compute)
        self.cross_query, self.cross_out = named("cross_attn.query"), named("cross_attn.out")
        key_weight, value_weight = (tensors[f"{name}.cross_attn.{part}.weight"] for part in ("key", "value"))
        self.cross_key = linear(key_weight, None, compute, rows=_ENCODER_ROWS)
        value_bias = tensors[f"{name}.cross_attn.value.bias"]
        self.cross_value = linear(value_weight, value_bias, compute, rows=_ENCODER_ROWS)
        self.mlp_norm = _LayerNorm(f"{name}.mlp_ln", tensors, compute)
        self.mlp_in, self.mlp_out = named("mlp.0"), named("mlp.2")

    def cross_keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Views of shape (n, h, f, d)."""
        keys = self.cross_key(states).view(*states.shape[:2], self.heads, -1).transpose(1, 2)
        values = self.cross_value(states).view(*states.shape[:2], self.heads, -1).transpose(1, 2)
        return keys, values

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
        """New x, and the queries (n, q, h, d). `heard` is as of `DecoderCache.cross`."""
        n, q, state = x.shape
        queries = self.cross_query(self.cross_norm(x)).view(n, q, self.heads, state // self.heads)
        asked = torch.split(queries.transpose(1, 2), [len(keys) for keys, _ in heard])
        attended = [self._attend(each, *keys_values) for each, keys_values in zip(asked, heard, strict=True)]
        return self.cross_out(torch.cat(attended), residual=x), queries

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.mlp_out(self.mlp_in(self.mlp_norm(x), gelu=True), residual=x)
