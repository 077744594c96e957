"""Beam search for one window, after openai-whisper's `BeamSearchDecoder` with patience 1.

Every step extends each live hypothesis by its likeliest allowed tokens and keeps the best `beam_size` of all; those
that end are set aside, and when as many have ended as the beam is wide the likeliest per token wins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diarist.asr.network import Decoder, DecoderCache
from diarist.asr.rules import RuleState, allowed_log_probabilities
from diarist.asr.text import Vocabulary


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Tokens written so far, the end included once it is reached, and the log-probability of each."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean log-probability, so that short texts are not preferred."""
        return sum(self.logprobs) / len(self.logprobs)


def beam_search(
    decoder: Decoder,
    logits_of: Callable[[Tensor], Tensor],
    vocabulary: Vocabulary,
    cache: DecoderCache,
    prompt: Sequence[int],
    rules: RuleState,
    *,
    beam_size: int,
    max_tokens: int,
    blank: tuple[int, ...],
) -> Hypothesis:
    """Decode the window whose cross-attention is in the cache's first row.

    Args:
        decoder: The model's.
        logits_of: Hidden states (n, state) to logits (n, n_vocab) with suppressed tokens at -inf.
        vocabulary: Of the model.
        cache: At least `beam_size` rows; every row after the first is overwritten. On return its first row has read the
            prompt and all of the winner's tokens but the last.
        prompt: What the decoder is given.
        rules: State of one row that has written nothing.
        beam_size: Hypotheses kept.
        max_tokens: Written at most.
        blank: Text tokens that may not come first.
    """
    device = rules.last.device
    _spread(cache, beam_size)
    every = slice(0, beam_size)
    prompts = torch.tensor([list(prompt)] * beam_size, device=device)
    hidden = decoder(prompts, torch.zeros(beam_size, dtype=torch.int64, device=device), cache, every)[:, -1]
    rules = RuleState.join([rules] * beam_size)
    live = [Hypothesis((), ())]  # all rows are alike at first, so only one of them is extended
    ended: list[Hypothesis] = []
    for written in range(max_tokens):
        options = allowed_log_probabilities(logits_of(hidden), rules, vocabulary, () if written else blank)
        extended = _extend(live, options, beam_size + 1)
        going: list[tuple[Hypothesis, int]] = []
        for hypothesis, row in extended:  # an end that is less likely than a whole beam of others does not count
            if hypothesis.tokens[-1] == vocabulary.end:
                ended.append(hypothesis)
            elif len(going) < beam_size:
                going.append((hypothesis, row))
            if len(going) == beam_size:
                break
        if len(ended) >= beam_size or not going:
            break
        live = [hypothesis for hypothesis, _ in going]
        rows = torch.tensor([row for _, row in going], device=device)
        position = len(prompt) + written
        _reorder(cache, rows, position)
        tokens = torch.tensor([hypothesis.tokens[-1] for hypothesis in live], device=device)
        rules = rules.select(rows).after(tokens, vocabulary.timestamp_begin)
        starts = torch.full((len(live),), position, device=device)
        hidden = decoder(tokens[:, None], starts, cache, slice(0, len(live)))[:, 0]
    best = max(ended or live, key=lambda hypothesis: hypothesis.score)
    read = torch.tensor([[*prompt, *best.tokens[:-1]]], device=device)
    decoder(read, torch.zeros(1, dtype=torch.int64, device=device), cache, slice(0, 1))
    return best


def _extend(live: Sequence[Hypothesis], options: Tensor, width: int) -> list[tuple[Hypothesis, int]]:
    """Each hypothesis by each of its `width` likeliest tokens, with the row that it came from; likeliest first."""
    logprobs, tokens = options[: len(live)].topk(width, dim=1)
    extended = [
        (Hypothesis((*hypothesis.tokens, token), (*hypothesis.logprobs, logprob)), row)
        for row, hypothesis in enumerate(live)
        for token, logprob in zip(tokens[row].tolist(), logprobs[row].tolist(), strict=True)
        if logprob > float("-inf")
    ]
    return sorted(extended, key=lambda pair: sum(pair[0].logprobs), reverse=True)


def _spread(cache: DecoderCache, rows: int) -> None:
    for row in range(1, rows):
        cache.move_row(0, row, 0)


def _reorder(cache: DecoderCache, rows: Tensor, positions: int) -> None:
    """Row i takes over what row rows[i] has read."""
    for tensors in (cache.self_keys, cache.self_values):
        for tensor in tensors:
            tensor[: len(rows), :positions] = tensor[rows, :positions]
