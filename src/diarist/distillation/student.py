"""The assistant while it is trained: a few decoder layers over the main model's encoder states and embeddings.

All positions are computed at once, against known tokens ("teacher forcing"). The student reads each token together with
the main decoder's hidden state from which that token was chosen, and its own state should be the main decoder's next one:
so it can go on from itself, and what the main decoder knows of the sentence need not be learned again (EAGLE: Li et al.
2024, https://arxiv.org/abs/2401.15077).

Trained are the layers and what joins token and state. Embedding, positions and the last norm are the main model's and
stay as they are: the assistant reads and writes the same tokens in the same space, so it needs no copy of them, which
would be most of its size.

Shapes use n windows, q tokens of each, f encoder positions, h heads and the network's width s.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diarist.models import WhisperDims


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor, *, causal: bool) -> Tensor:
        """Attend from x (n, q, s) to source (n, f, s)."""

        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2).contiguous()

        queries, keys, values = split(self.query(x)), split(self.key(source)), split(self.value(source))
        if causal:
            attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        else:  # few queries and many keys: written out it takes half the time of the fused kernel and its backward
            weights = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
            attended = weights.softmax(dim=-1).to(values.dtype) @ values
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """One decoder layer; its parameters have openai-whisper's names."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attn_ln, self.attn = nn.LayerNorm(width), _Attention(width, heads)
        self.cross_attn_ln, self.cross_attn = nn.LayerNorm(width), _Attention(width, heads)
        self.mlp_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        normed = self.attn_ln(x)
        x = x + self._dropped(self.attn(normed, normed, causal=True))
        x = x + self._dropped(self.cross_attn(self.cross_attn_ln(x), states, causal=False))
        return x + self._dropped(self.mlp(self.mlp_ln(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Student(nn.Module):
    """Decoder layers that begin as copies of some of the main model's.

    Args:
        dims: Of the main model.
        tensors: Of the main model.
        layers: Which of its decoder layers to copy, in order.
        dropout: Share of what each part of a layer adds that is left out in training.
    """

    def __init__(
        self, dims: WhisperDims, tensors: Mapping[str, Tensor], layers: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fuse = _taking_the_first(dims.n_text_state)
        self.blocks = nn.ModuleList(_Block(dims.n_text_state, dims.n_text_head, dropout) for _ in layers)
        for block, layer in zip(self.blocks, layers, strict=True):
            prefix = f"decoder.blocks.{layer}."
            block.load_state_dict(
                {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            )

        def share(name: str, tensor: str) -> None:
            self.register_buffer(name, tensors[tensor].float(), persistent=False)

        share("embedding", "decoder.token_embedding.weight")
        share("positions", "decoder.positional_embedding")
        share("norm_weight", "decoder.ln.weight")
        share("norm_bias", "decoder.ln.bias")
        self.embedding: Tensor
        self.positions: Tensor
        self.norm_weight: Tensor
        self.norm_bias: Tensor

    def forward(self, tokens: Tensor, states: Tensor, before: Tensor) -> Tensor:
        """Hidden states after the last norm.

        Args:
            tokens: int64, shape (n, q); what follows a row's end does not touch what is before it.
            states: Of the encoder, shape (n, f, s).
            before: Hidden states from which the tokens were chosen, shape (n, q, s); zeros for the first.

        Returns:
            Shape (n, q, s).
        """
        x = self.fuse(torch.cat([F.embedding(tokens, self.embedding), before], dim=2))
        x = x + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, states)
        return F.layer_norm(x, x.shape[-1:], self.norm_weight, self.norm_bias)

    def trained(self) -> dict[str, Tensor]:
        """Its own tensors: `decoder.fuse.weight`, and under openai-whisper's names `decoder.blocks.0.attn.query.weight`, ..."""
        return {f"decoder.{name}": value.detach() for name, value in self.state_dict().items()}


def _taking_the_first(width: int) -> nn.Linear:
    """A product of (2 s) to (s) that begins by handing on the first half."""
    product = nn.Linear(2 * width, width)
    with torch.no_grad():
        product.weight.copy_(torch.eye(width, 2 * width))
        product.bias.zero_()
    return product
