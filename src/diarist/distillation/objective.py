"""What the student is asked to do, and how well it does it.

The loss is that of Distil-Whisper (Gandhi et al., 2023), after Hinton et al. (2015): cross-entropy with the token that
the main model wrote, and with its whole distribution (their KL divergence up to a constant). At temperature 1 the
two sum to one cross-entropy with a mixture of both targets, which is how it is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diarist.asr.rules import RuleState, greedy
from diarist.asr.text import Vocabulary

_CHUNK = 128  # positions whose logits, (128, n_vocab) in float32, are in memory at once: they stay in the cache
SOFT_TOKENS = 32
"""Tokens kept of each of the teacher's distributions: all but a thousandth of it, at most positions."""
_NEVER = -1e4  # of a logit: e to it is 0 even in float32, while 0 x it is not NaN, as 0 x -inf would be


@dataclass(frozen=True, slots=True)
class Output:
    """The product from hidden states to logits, which student and teacher share."""

    embedding: Tensor
    """Shape (n_vocab, s), in the precision of the product."""
    bias: Tensor
    """0, or `-inf` for tokens that are never written; float32, shape (n_vocab,)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """float32, shape (m, n_vocab), of hidden states (m, s)."""
        return (hidden.to(self.embedding.dtype) @ self.embedding.T).float() + self.bias


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """What the teacher held likely at m positions: its likeliest tokens, and nothing of the others.

    Kept so, as the whole distribution costs as much anew in each step as the student's own.
    """

    tokens: Tensor
    """int32, shape (m, SOFT_TOKENS)."""
    probabilities: Tensor
    """float16, alike; each row sums to one."""


def soft_targets(hidden: Tensor, output: Output) -> SoftTargets:
    """Of the teacher's hidden states (m, s); on the CPU."""
    parts = [output.logits(part).topk(SOFT_TOKENS, dim=1) for part in torch.split(hidden, _CHUNK)]
    tokens, logits = torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])
    return SoftTargets(tokens.to("cpu", torch.int32), logits.softmax(dim=1).to("cpu", torch.float16))


def distillation_loss(hidden: Tensor, labels: Tensor, soft: SoftTargets, output: Output, soft_share: float) -> Tensor:
    """Cross-entropy with (1 - soft_share) of the label and soft_share of the teacher's distribution, in nats.

    Args:
        hidden: The student's, shape (m, s), of the m positions that count.
        labels: Tokens that the teacher wrote, int64, shape (m,).
        soft: What else it held likely there.
        output: From hidden states to logits; not trained.
        soft_share: In [0, 1].

    Returns:
        The mean over the positions, float32, shape ().
    """
    tokens = torch.cat([labels[:, None], soft.tokens.to(labels)], dim=1)
    weights = torch.nn.functional.pad(soft.probabilities.to(hidden) * soft_share, (1, 0), value=1 - soft_share)
    loss: Tensor = _CrossEntropy.apply(hidden, tokens, weights, output)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    """With targets that are weights (m, k), summing to one, of few tokens (m, k), a token perhaps twice.

    The gradient is computed with the loss, a few positions at a time: logits of a batch would take gigabytes.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, tokens: Tensor, weights: Tensor, output: Output) -> Tensor:
        finite = Output(output.embedding, output.bias.clamp_min(_NEVER))
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), device=hidden.device)
        for first in range(0, len(hidden), _CHUNK):
            part = slice(first, first + _CHUNK)
            logits = finite.logits(hidden[part])
            wanted = (logits.gather(1, tokens[part]) * weights[part]).sum(dim=1)
            largest = logits.amax(dim=1, keepdim=True)
            exponentials = logits.sub_(largest).exp_()
            sums = exponentials.sum(dim=1, keepdim=True)
            total += (largest + sums.log()).sum() - wanted.sum()
            pull = exponentials.div_(sums).scatter_add_(1, tokens[part], -weights[part])
            gradient[part] = (pull.to(output.embedding.dtype) @ output.embedding).to(hidden.dtype)
        ctx.save_for_backward(gradient.div_(len(hidden)))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None


def choices(hidden: Tensor, written: Tensor, output: Output, vocabulary: Vocabulary, *, timestamps: bool) -> Tensor:
    """What a student would draft at each position of one window, if all before it is as the teacher wrote it.

    The rules on timestamps hold for it as for the teacher, for a draft that breaks them is never accepted.

    Args:
        hidden: The student's, shape (m, s).
        written: What the teacher wrote, int64, shape (m,).
        output: From hidden states to logits.
        vocabulary: Of both.
        timestamps: Whether timestamps are written.

    Returns:
        Tokens, int64, shape (m,).
    """
    states = [RuleState.start(torch.tensor([timestamps], device=written.device))]
    for token in written[:-1]:
        states.append(states[-1].after(token[None], vocabulary.timestamp_begin))
    return greedy(output.logits(hidden), RuleState.join(states), vocabulary)[0]


def passes(accepted: Sequence[Sequence[bool]]) -> int:
    """Passes of the main model that a window takes when it verifies drafts.

    A pass accepts the draft up to its first wrong token, which it replaces; it adds one token to a draft that is right.

    Args:
        accepted: accepted[k][i] is whether the student drafts token i of the window right as token k of a draft; as many
            tokens are drafted for a pass as there are k.

    >>> passes([[True] * 10] * 4), passes([[False] * 10] * 4)
    (2, 10)
    >>> passes([[True, True, False, True, True, True, True, True, True]] * 4)
    3
    """
    count, place, tokens = 0, 0, len(accepted[0])
    while place < tokens:
        right = next(
            (k for k, each in enumerate(accepted) if place + k >= tokens or not each[place + k]), len(accepted)
        )
        place += right + 1
        count += 1
    return count
