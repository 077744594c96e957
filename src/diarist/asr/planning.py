"""How many tokens are worth drafting, and what came of it.

Speculative decoding (Leviathan et al. 2023; Chen et al. 2023) pays while what a draft and a longer pass of the main
decoder cost is less than the steps that it is expected to save. Both sides are measured: the costs on this hardware
when a model is loaded, the expectation on the row that is being decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MAX_DRAFT = 8
"""Tokens drafted at a time at most. Beyond, even a draft that is right nine times in ten is seldom right throughout."""
_MARGIN = 1.03
"""How much faster drafting must promise to be: calibration is not exact."""
_PHRASE = 3  # tokens that must agree before what followed them last time is proposed


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that the parts of decoding take here. Between what was measured they are interpolated."""

    rows: tuple[int, ...]
    """Batch sizes that were measured, increasing."""
    tokens: tuple[int, ...]
    """Tokens per row that were measured, increasing."""
    passes: tuple[tuple[float, ...], ...]
    """passes[i][j]: a pass of the main decoder over rows[i] rows of tokens[j] tokens, output and choice included."""
    begins: tuple[float, ...]
    """begins[i]: what a draft of rows[i] rows takes however short it is."""
    drafts: tuple[float, ...]
    """drafts[i]: one drafted token more in each of rows[i] rows."""
    admit: float
    """What the assistant does once for a window of full length."""

    def verify(self, rows: int, tokens: int) -> float:
        """A pass over `tokens` tokens of each of `rows` rows."""
        return float(np.interp(rows, self.rows, [np.interp(tokens, self.tokens, each) for each in self.passes]))

    def draft(self, rows: int, tokens: int) -> float:
        """Drafting `tokens` tokens in each of `rows` rows."""
        begin, each = (float(np.interp(rows, self.rows, seconds)) for seconds in (self.begins, self.drafts))
        return begin + tokens * each if tokens else 0.0


@dataclass(slots=True)
class Agreement:
    """How often the next drafted token was the main model's, with older outcomes counting less and less."""

    _memory: float
    """Outcomes that are remembered, about."""
    _hits: float = 0.0
    _trials: float = 0.0

    def update(self, accepted: int, *, rejected: bool) -> None:
        """Count a draft: so many tokens were right, and then one was wrong or the draft was over."""
        trials = accepted + rejected
        kept = (1 - 1 / self._memory) ** trials
        self._hits = self._hits * kept + accepted
        self._trials = self._trials * kept + trials

    def estimate(self, expected: float, weight: float) -> float:
        """Probability that the next one is right, in (0, 1): what was seen, and what was expected before.

        Args:
            expected: Before anything was seen.
            weight: How many outcomes that is worth.
        """
        return (self._hits + expected * weight) / (self._trials + weight)


class Phrases:
    """Tokens written so far, and where each short run of them was last seen."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self._tokens.append(token)
            if len(self._tokens) >= _PHRASE:
                self._after[tuple(self._tokens[-_PHRASE:])] = len(self._tokens)

    def follow(self, tokens: Sequence[int], most: int) -> list[int]:
        """What followed the last of `tokens` when they were last added, at most so many tokens; maybe nothing.

        >>> phrases = Phrases()
        >>> phrases.add([5, 6, 7, 8, 9])
        >>> phrases.follow([1, 5, 6, 7], 8)
        [8, 9]
        """
        place = self._after.get(tuple(tokens[-_PHRASE:])) if len(tokens) >= _PHRASE else None
        return [] if place is None else self._tokens[place : place + most]


@dataclass(slots=True)
class Assistance:
    """What assisting one recording came to; shared by its windows."""

    passes: int = 0
    """Passes of the main decoder over one of its rows, each of which writes at least one token."""
    tokens: int = 0
    """Tokens that those wrote."""
    assisted: int = 0
    """Passes that had a draft to verify."""
    drafted: int = 0
    """Tokens drafted."""
    accepted: int = 0
    """Tokens drafted that were the main model's."""
    agreement: Agreement = field(default_factory=lambda: Agreement(100))
    phrases: Phrases = field(default_factory=Phrases)
    """The text so far: windows that were delivered, in the order in which they were."""

    def count(self, written: int, drafted: int, accepted: int) -> None:
        """One pass over one row."""
        self.passes += 1
        self.tokens += written
        if drafted:
            self.assisted += 1
            self.drafted += drafted
            self.accepted += accepted
            self.agreement.update(accepted, rejected=accepted < drafted)

    @property
    def summary(self) -> dict[str, float | str]:
        """What was chosen, what it brought, and the counts."""
        share = self.assisted / self.passes if self.passes else 0.0
        return {
            "chosen": "assisted" if share > 0.5 else "partly assisted" if self.assisted else "not assisted",
            "assisted_passes": round(share, 4),
            "acceptance_rate": round(self.accepted / self.drafted, 4) if self.drafted else 0.0,
            "tokens_per_pass": round(self.tokens / self.passes, 3) if self.passes else 0.0,
            "passes": self.passes,
            "tokens": self.tokens,
            "drafted": self.drafted,
            "accepted": self.accepted,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """How many tokens to draft for the rows of a batch before the next pass of the main decoder."""

    length: int
    """Tokens a row at most; 0: none."""
    worth: float = 0.0
    """Draft one more only while so many of the batch's next drafted tokens are expected to be right: below, the seconds
    that it takes to draft and to read them are better spent on tokens at the rate that is planned."""


def plan(agreement: Sequence[float], most: Sequence[int], costs: Costs, *, sunk: bool = False, least: int = 0) -> Plan:
    """The number of tokens that promises the most tokens per second.

    All rows are run at once and padded to the longest, so one number serves all of them. A row whose next token is
    right with probability p writes 1 + p + p^2 + ... + p^k of them.

    Args:
        agreement: Of each row, the probability that its next drafted token is right.
        most: Of each row, how many tokens it can use; 0 if it is not drafted for.
        costs: Of the hardware.
        sunk: The drafts exist already and only verifying them costs anything.
        least: Draft at least this, even if it does not pay.
    """
    n = len(most)

    def seconds(tokens: int) -> float:
        return (0.0 if sunk else costs.draft(n, tokens)) + costs.verify(n, 1 + tokens)

    length, best_rate = 0, n / costs.verify(n, 1) * _MARGIN
    reached, expected = [1.0] * n, float(n)
    for tokens in range(1, max(most, default=0) + 1):
        for row in range(n):
            reached[row] = reached[row] * agreement[row] if tokens <= most[row] else 0.0
        expected += sum(reached)
        rate = expected / seconds(tokens)
        if rate > best_rate or (tokens <= least and tokens > length):
            length, best_rate = tokens, rate
    if not length:
        return Plan(0)
    each = 0.0 if sunk else costs.draft(n, 2) - costs.draft(n, 1)
    return Plan(length, best_rate * (each + costs.verify(n, 1 + length) - costs.verify(n, length)))


def pays(agreement: float, tokens: float, rows: int, costs: Costs, length: float = 1.0) -> bool:
    """Whether drafting for a window repays what its admission to the assistant costs.

    Args:
        agreement: Expected probability that a drafted token is right.
        tokens: How many the window is expected to hold.
        rows: Rows that will be decoded together with it, itself included.
        costs: Of the hardware.
        length: Of the window; 1 is a full one.
    """
    draft = plan([agreement] * rows, [MAX_DRAFT] * rows, costs).length
    if not draft:
        return False
    expected = sum(agreement**k for k in range(draft + 1))
    seconds = (costs.draft(rows, draft) + costs.verify(rows, 1 + draft)) / expected / rows
    return tokens * (costs.verify(rows, 1) / rows - seconds) > costs.admit * length
