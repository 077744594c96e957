"""Passes of the main decoder: each row's last token and its draft are read, and a token is chosen after each.

On CUDA a pass is several hundred small kernels, which take longer to launch than to run. So there a pass is recorded
once for each shape and replayed: rows, tokens and positions are rounded up to a few sizes, and what a pass is about
comes in one transfer and goes in one.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diarist.asr.network import Decoder, DecoderCache
from diarist.asr.rules import Choice, RuleState, choose, packed_state
from diarist.asr.text import Vocabulary
from diarist.compute import Linear, Recorder

_NO_TOKEN = -1
_HEAD = 6  # numbers before a packed row's tokens: where it starts, and the state of the rules
_REACH = 64  # cache positions that a recorded pass looks at are a multiple of it
_ROWS = 8  # rows of a recorded pass are a power of two, or a multiple of this
_DRAFTS = (0, 4, 8)  # drafted tokens that a recorded pass reads
_EAGER_DRAFTS = (0, 1, 2, 4, 8)  # and any other: each shape is a program that a library makes and keeps
_EAGER = 2  # passes of a shape before it is recorded: recording takes as long as some ten of them


@dataclass(frozen=True, slots=True)
class PassRow:
    """One row of a pass."""

    written: Sequence[int]
    """Tokens so far, without the prompt."""
    last: int
    """The token to be read: the last one written, or of the prompt."""
    start: int
    """Its position."""
    draft: Sequence[int]
    """Tokens that may follow it; rows need not have as many."""
    timestamps: bool
    """Whether the row writes timestamps."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What a pass brought."""

    accepted: list[list[tuple[int, float]]]
    """Of each row the drafted tokens that were right and the one after them, with their log-probabilities."""
    logits: Tensor
    """Of the token after each that was read: shape ((1 + longest draft) n, n_vocab) or more rows; the first tokens of
    all rows come first, then the second ones."""
    state: RuleState
    """In which the first token of each row was chosen."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Shapes: q tokens are read in each of n rows."""

    logits: Tensor
    """(q n, n_vocab)."""
    state: RuleState
    """Of n rows, before their first token."""
    choice: Choice
    """Of q n tokens."""
    chosen: Tensor
    """int64, (q, n)."""
    agreed: Tensor
    """int64, (n,): drafted tokens that were right."""

    def told(self) -> Tensor:
        """All that is wanted of it in one tensor: chosen, their log-probabilities, agreed; float32, (2 q + 1, n)."""
        logprobs = self.choice.logprobs().view(self.chosen.shape)
        return torch.cat([self.chosen.float(), logprobs, self.agreed[None].float()])  # tokens are below 2^24


class Passes:
    """Passes over the first rows of a cache.

    Args:
        decoder: The model's.
        logits: Hidden states to logits, with suppressed tokens at -inf.
        vocabulary: Of the model.
        blank: Text tokens that may not come first where no timestamp does.
        cache: Everything before each row's start is in it.
        recorder: Records passes; None runs each of them anew.
    """

    def __init__(
        self,
        decoder: Decoder,
        logits: Linear,
        vocabulary: Vocabulary,
        blank: tuple[int, ...],
        cache: DecoderCache,
        recorder: Recorder | None = None,
    ) -> None:
        self._decoder, self._logits, self._vocabulary, self._blank = decoder, logits, vocabulary, blank
        self._cache = cache
        self._recorder = recorder
        self._seen: Counter[_Shape] = Counter()
        self._recorded: dict[_Shape, _Recorded] = {}

    def __call__(self, rows: Sequence[PassRow]) -> Passed:
        """Read each row's last token and its draft, and choose what follows."""
        longest, furthest = max(len(row.draft) for row in rows), max(row.start for row in rows)
        if not self._decoder.is_native:
            lengths = _EAGER_DRAFTS if self._recorder is None else _DRAFTS
            longest = next(length for length in lengths if longest <= length)
        width = min(1 + longest, self._cache.positions - furthest)
        reach = furthest + width
        blank = self._blank if any(not row.written and not row.timestamps for row in rows) else ()
        shape = _Shape(len(rows), width, reach, blank)
        if self._recorder is not None:
            return self._replayed(rows, shape.rounded(self._cache.rows, self._cache.positions), self._recorder)
        outcome = self._run(torch.tensor(self._packed(rows, shape), device=self._cache.device), shape)
        counts = (outcome.agreed + 1).tolist()
        kept = [place * len(rows) + row for row, count in enumerate(counts) for place in range(count)]
        where = torch.tensor(kept, device=self._cache.device)
        # Log-probabilities cost a look at all logits, and of a draft that was rejected nobody wants them.
        found = zip(outcome.chosen.flatten()[where].tolist(), outcome.choice.logprobs(where).tolist(), strict=True)
        accepted = [[next(found) for _ in range(count)] for count in counts]
        return Passed(accepted, outcome.logits, outcome.state)

    def _packed(self, rows: Sequence[PassRow], shape: "_Shape") -> list[list[int]]:
        """The rows as numbers, all of one length; rows that are missing from the shape say nothing."""
        begin = self._vocabulary.timestamp_begin
        packed = [
            [row.start, *packed_state(row.written, begin, timestamps=row.timestamps), row.last, *row.draft]
            for row in rows
        ]
        packed += [[0, *packed_state((), begin, timestamps=True), 0]] * (shape.rows - len(rows))
        return [[*row, *[_NO_TOKEN] * (_HEAD + shape.width - len(row))] for row in packed]

    def _run(self, packed: Tensor, shape: "_Shape") -> _Outcome:
        n, width = shape.rows, shape.width
        drafts = packed[:, _HEAD + 1 :]
        tokens = packed[:, _HEAD:].clamp_min(0)
        rounded = self._recorder is not None
        hidden = self._decoder(tokens, packed[:, 0], self._cache, slice(0, n), shape.reach, rounded=rounded)
        states = [RuleState.unpacked(packed[:, 1:_HEAD])]
        for place in range(width - 1):
            states.append(states[-1].after(drafts[:, place], self._vocabulary.timestamp_begin))
        logits = self._logits(hidden.transpose(0, 1).reshape(width * n, -1))
        choice = choose(logits, RuleState.join(states) if width > 1 else states[0], self._vocabulary, shape.blank)
        chosen = choice.tokens.view(width, n)
        agreed = (chosen[:-1] == drafts.T).cumprod(dim=0).sum(dim=0)
        return _Outcome(logits, states[0], choice, chosen, agreed)

    def _replayed(self, rows: Sequence[PassRow], shape: "_Shape", recorder: Recorder) -> Passed:
        recorded = self._recorded.get(shape) or self._record(shape, recorder)
        recorded.packed.copy_(torch.tensor(self._packed(rows, shape)))
        outcome, told = recorded.run()
        numbers = told.tolist()
        accepted = [
            [
                (int(numbers[place][row]), numbers[shape.width + place][row])
                for place in range(min(int(numbers[-1][row]), len(each.draft)) + 1)
            ]
            for row, each in enumerate(rows)
        ]
        return Passed(accepted, outcome.logits, outcome.state)

    def _record(self, shape: "_Shape", recorder: Recorder) -> "_Recorded":
        """A pass of this shape, recorded if it was wanted often enough."""
        packed = torch.zeros(shape.rows, _HEAD + shape.width, dtype=torch.int64, device=self._cache.device)

        def run() -> tuple[_Outcome, Tensor]:
            outcome = self._run(packed, shape)
            return outcome, outcome.told()

        self._seen[shape] += 1
        if self._seen[shape] <= _EAGER:
            return _Recorded(packed, run)
        self._recorded[shape] = _Recorded(packed, recorder(run))
        return self._recorded[shape]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What decides which kernels a pass needs."""

    rows: int
    width: int
    """Tokens read in each row."""
    reach: int
    """Cache position after the last that is looked at."""
    blank: tuple[int, ...]
    """As of `Passes`, where it matters to any row."""

    def rounded(self, rows: int, positions: int) -> "_Shape":
        """The next larger of a few shapes, for a cache of so many rows and positions."""
        several = 1 << (self.rows - 1).bit_length() if self.rows <= _ROWS else -(-self.rows // _ROWS) * _ROWS
        reach = min(positions, -(-self.reach // _REACH) * _REACH)
        return _Shape(min(rows, several), self.width, reach, self.blank)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A pass that can be run again: `run` reads what is in `packed` then, and overwrites what it returned before."""

    packed: Tensor
    run: Callable[[], tuple[_Outcome, Tensor]]
