"""Which token comes next: Whisper's rules on timestamps, applied to a batch of rows at once.

The rules are those of openai-whisper's `ApplyTimestampRules`: timestamps come in pairs, never go back, the first is
at most `FIRST_TIMESTAMP_S`, and a timestamp is written whenever all timestamps together are likelier than any text.
Nothing here touches the whole vocabulary more than twice: the rules only ever concern whether the text, the end or a
range of timestamps is allowed, so maxima and log-sums of those parts decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diarist import native
from diarist.asr.features import POSITION_S
from diarist.asr.text import Vocabulary

FIRST_TIMESTAMP_S = 1.0
_FIRST_TIMESTAMP_STEPS = round(FIRST_TIMESTAMP_S / POSITION_S)
_NEVER = float("-inf")


class Layout(Protocol):
    """Where the parts of a vocabulary lie: text is before the end, all from `timestamp_begin` on are timestamps."""

    @property
    def end(self) -> int: ...

    @property
    def timestamp_begin(self) -> int: ...


def suppression_bias(vocabulary: Vocabulary, suppressed: tuple[int, ...]) -> Tensor:
    """A bias for the output product that rules out what is never written: float32, shape (n_vocab,)."""
    bias = torch.zeros(vocabulary.size)
    bias[[number for number in suppressed if number != vocabulary.end]] = _NEVER
    bias[list(vocabulary.specials)] = _NEVER
    return bias


@dataclass(frozen=True, slots=True)
class RuleState:
    """What the rules need to know of each of n rows; every tensor has shape (n,)."""

    first: Tensor
    """bool: nothing has been written yet."""
    timestamps: Tensor
    """bool: the row writes timestamps."""
    opened: Tensor
    """bool: the last token closed a segment's text, so only a timestamp or the end may follow."""
    paired: Tensor
    """bool: the last token opened a segment, so no timestamp may follow."""
    last: Tensor
    """int64: the last timestamp written, in steps of `POSITION_S`; -1 before any."""

    @classmethod
    def unpacked(cls, packed: Tensor) -> "RuleState":
        """From what `packed_state` says of each row: int64, shape (n, 5)."""
        first, timestamps, opened, paired = (packed[:, :4] != 0).unbind(dim=1)
        return cls(first, timestamps, opened, paired, packed[:, 4])

    @classmethod
    def start(cls, timestamps: Tensor) -> "RuleState":
        """The state of rows that have written nothing."""
        no = torch.zeros_like(timestamps)
        return cls(torch.ones_like(timestamps), timestamps, no, no, torch.full_like(timestamps, -1, dtype=torch.int64))

    def after(self, tokens: Tensor, timestamp_begin: int) -> "RuleState":
        """The state once each row has written its token, (n,)."""
        is_timestamp = tokens >= timestamp_begin
        opens_pair = self.first | self.opened
        return RuleState(
            torch.zeros_like(self.first),
            self.timestamps,
            is_timestamp & ~opens_pair,
            is_timestamp & opens_pair,
            torch.where(is_timestamp, tokens - timestamp_begin, self.last),
        )

    def select(self, rows: Tensor) -> "RuleState":
        """The states of some rows, in the order given."""
        return RuleState(*(getattr(self, name)[rows] for name in self.__slots__))

    @classmethod
    def join(cls, states: "list[RuleState]") -> "RuleState":
        """Rows of several states, one after another."""
        return cls(*(torch.cat([getattr(state, name) for state in states]) for name in cls.__slots__))


def packed_state(written: Sequence[int], timestamp_begin: int, *, timestamps: bool) -> tuple[int, ...]:
    """The state of a row that has written these tokens by the rules: the fields of `RuleState` in order, as numbers.

    >>> packed_state([50364, 11, 12, 50400], 50364, timestamps=True)
    (0, 1, 1, 0, 36)
    """
    stamp = next((token - timestamp_begin for token in reversed(written) if token >= timestamp_begin), -1)
    closing = opening = False
    if written and written[-1] >= timestamp_begin:
        opening = len(written) == 1 or written[-2] >= timestamp_begin
        closing = not opening
    return int(not written), int(timestamps), int(closing), int(opening), stamp


@dataclass(frozen=True, slots=True)
class _Parts:
    """Allowed logits of n rows: all text (n, end) in its own type; float32: the end (n,), all timestamps (n, 1501)."""

    text: Tensor
    text_allowed: Tensor
    end: Tensor
    timestamps: Tensor


def _parts(logits: Tensor, state: RuleState, vocabulary: Layout, blank: tuple[int, ...]) -> _Parts:
    begin = vocabulary.timestamp_begin
    text = logits[:, : vocabulary.end]
    end = logits[:, vocabulary.end].float()
    timestamps = logits[:, begin:].float()
    steps = torch.arange(timestamps.shape[1], device=logits.device)
    earliest = torch.where(state.opened, state.last, state.last + 1)
    latest = torch.where(state.first, _FIRST_TIMESTAMP_STEPS, timestamps.shape[1])
    barred = (steps < earliest[:, None]) | (steps > latest[:, None]) | (~state.timestamps | state.paired)[:, None]
    timestamps = timestamps.masked_fill(barred, _NEVER)
    must_stamp = state.first & state.timestamps
    end = end.masked_fill(state.first, _NEVER)  # an empty transcript is the no-speech check's business
    text_allowed = ~(must_stamp | state.opened)
    if blank:
        opening = state.first & ~state.timestamps
        text = text.clone()
        for token in blank:
            text[:, token].masked_fill_(opening, _NEVER)
    return _Parts(text, text_allowed, end, timestamps)


@dataclass(frozen=True, slots=True)
class Choice:
    """The likeliest allowed token of each of n rows, and what its probability is computed from."""

    tokens: Tensor
    """int64, shape (n,)."""
    _best: Tensor
    """Its logit, float32, shape (n,); so are the next two."""
    _end: Tensor
    _stamp_sum: Tensor
    _text: Tensor
    _text_allowed: Tensor

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        """Log-probabilities among the allowed tokens, float32, of some rows or of all.

        They cost more than the choice, and of a draft that is rejected nobody wants them.
        """
        parts = self._text, self._text_allowed, self._best, self._end, self._stamp_sum
        text, text_allowed, best, end, stamp_sum = parts if rows is None else (part[rows] for part in parts)
        text_sum = (native.log_sums(text) if _is_native(text) else text.float().logsumexp(dim=1)).masked_fill(
            ~text_allowed, _NEVER
        )
        return best - torch.logaddexp(torch.logaddexp(text_sum, end), stamp_sum)


def choose(logits: Tensor, state: RuleState, vocabulary: Layout, blank: tuple[int, ...] = ()) -> Choice:
    """The likeliest allowed token of each row.

    Args:
        logits: With suppressed tokens already at -inf; shape (n, n_vocab), any float type.
        state: Of the n rows.
        vocabulary: Where text, end and timestamps lie.
        blank: Text tokens that may not come first where no timestamp does. Naming them costs a copy of the logits.
    """
    if not blank and _is_native(logits):
        states = (state.first, state.timestamps, state.opened, state.paired, state.last)
        layout = vocabulary.end, vocabulary.timestamp_begin, _FIRST_TIMESTAMP_STEPS
        tokens, best, end, stamp_sum, text_allowed = native.choose(logits, states, *layout)
        return Choice(tokens, best, end, stamp_sum, logits[:, : vocabulary.end], text_allowed)
    parts = _parts(logits, state, vocabulary, blank)
    text_best, text_token = parts.text.max(dim=1)
    text_best = text_best.float().masked_fill(~parts.text_allowed, _NEVER)
    stamp_best, stamp_token = parts.timestamps.max(dim=1)
    stamp_sum = parts.timestamps.logsumexp(dim=1)
    stamp_wins = stamp_sum > torch.maximum(text_best, parts.end)
    text_best = text_best.masked_fill(stamp_wins, _NEVER)
    end = parts.end.masked_fill(stamp_wins, _NEVER)
    best, part = torch.stack([text_best, end, stamp_best]).max(dim=0)
    ending = torch.full_like(text_token, vocabulary.end)
    tokens = torch.stack([text_token, ending, stamp_token + vocabulary.timestamp_begin]).gather(0, part[None])[0]
    return Choice(tokens, best, end, stamp_sum, parts.text, parts.text_allowed & ~stamp_wins)


def _is_native(logits: Tensor) -> bool:
    on_cpu = logits.device.type == "cpu" and logits.dtype == torch.float32
    return on_cpu and logits.stride(1) == 1 and native.is_available()


def greedy(logits: Tensor, state: RuleState, vocabulary: Layout, blank: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """As `choose`: tokens, int64 (n,), and their log-probabilities among the allowed tokens, float32 (n,)."""
    choice = choose(logits, state, vocabulary, blank)
    return choice.tokens, choice.logprobs()


def sample(
    logits: Tensor,
    state: RuleState,
    vocabulary: Vocabulary,
    temperatures: Tensor,
    generator: torch.Generator,
    blank: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """A random allowed token of each row, from the distribution at its temperature.

    Args:
        logits: As for `choose`.
        state: Of the n rows.
        vocabulary: Where text, end and timestamps lie.
        temperatures: Above 0, shape (n,).
        generator: On the logits' device.
        blank: Text tokens that may not come first.

    Returns:
        As `greedy`; log-probabilities are those at temperature 1.
    """
    log_probabilities = allowed_log_probabilities(logits, state, vocabulary, blank)
    heated = (log_probabilities / temperatures[:, None]).softmax(dim=1)
    tokens = torch.multinomial(heated, 1, generator=generator)
    return tokens[:, 0], log_probabilities.gather(1, tokens)[:, 0]


def allowed_log_probabilities(
    logits: Tensor, state: RuleState, vocabulary: Vocabulary, blank: tuple[int, ...] = ()
) -> Tensor:
    """Log-probabilities of every token, -inf for what the rules forbid: float32, (n, n_vocab)."""
    parts = _parts(logits, state, vocabulary, blank)
    text = parts.text.float().masked_fill(~parts.text_allowed[:, None], _NEVER)
    best_other = torch.maximum(text.amax(dim=1), parts.end)
    stamp_wins = parts.timestamps.logsumexp(dim=1) > best_other
    allowed = torch.full(logits.shape, _NEVER, device=logits.device)
    allowed[:, : vocabulary.end] = text.masked_fill(stamp_wins[:, None], _NEVER)
    allowed[:, vocabulary.end] = parts.end.masked_fill(stamp_wins, _NEVER)
    allowed[:, vocabulary.timestamp_begin :] = parts.timestamps
    return allowed.log_softmax(dim=1)
