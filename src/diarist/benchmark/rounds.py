"""Every cell answered in every way, round by round, so that a disturbance hits all alike; then medians."""

import difflib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from diarist.asr.planning import Assistance
from diarist.benchmark.cells import Cell
from diarist.errors import DiaristError

Asked = Literal["auto"] | bool
NOT_ASSISTED = "not assisted"
_NOISE = 0.97  # what a ratio that is 1 comes to at times


@dataclass(frozen=True, slots=True)
class Way:
    """Who drafts, and when."""

    assistant: str = ""
    """Name; empty: nobody."""
    asked: Asked = False


PLAIN = Way()


@dataclass(frozen=True, slots=True)
class Answered:
    """One cell, answered once."""

    seconds: float
    """From the first request to the last answer."""
    texts: tuple[str, ...]
    """One for each request."""
    decoding_s: float | None = None
    """Of these seconds, spent drafting and writing: without the encoder, and what is done once for every window."""
    assistance: Assistance | None = None
    """Counts of all requests together; None where they are not told."""


class Subject(Protocol):
    """What answers."""

    @property
    def ways(self) -> Sequence[Way]:
        """In which it can, `PLAIN` first."""

    @property
    def rows(self) -> int:
        """Windows that it decodes together."""

    @property
    def title(self) -> str:
        """What it is, in a line."""

    @property
    def description(self) -> dict[str, Any]:
        """What it is, as plain values."""

    def answer(self, cell: Cell, way: Way) -> Answered:
        """All requests of a cell, made at once."""


@dataclass(frozen=True, slots=True)
class Row:
    """One cell in one way: medians over the rounds, and ratios to `PLAIN` that are medians of the rounds' ratios."""

    cell: Cell
    way: Way
    seconds: float
    faster: float
    decoding_faster: float | None
    decoder_share: float | None
    """Of the seconds, spent drafting and writing."""
    assistance: Mapping[str, Any] | None
    """`Assistance.summary` of the last round."""
    words_differ: int
    """From the text of `PLAIN`."""

    @property
    def chosen(self) -> str:
        """What was done: in words, "" where that is not told."""
        return str(self.assistance["chosen"]) if self.assistance else ""

    @property
    def pays(self) -> bool:
        """Whether it is as fast as `PLAIN` or faster, but for noise."""
        return self.faster >= _NOISE


@dataclass(slots=True)
class _Track:
    answers: list[Answered] = field(default_factory=list)

    def ratios(self, plain: "_Track", of: Callable[[Answered], float | None]) -> float | None:
        pairs = [(of(p), of(t)) for p, t in zip(plain.answers, self.answers, strict=True)]
        known = [p / t for p, t in pairs if p is not None and t]
        return statistics.median(known) if known else None


def measure(
    subject: Subject,
    cells: Sequence[Cell],
    rounds: int,
    report: Callable[[int, int, str], None] = lambda *_: None,
) -> list[Row]:
    """Measure.

    Args:
        subject: What answers.
        cells: What it is asked.
        rounds: How often; once more before, to warm up, which does not count.
        report: Told what has been answered, of how much, and what comes next.

    Raises:
        DiaristError: A request failed, or was answered with no text.
    """
    tracks = {(cell.name, way): _Track() for cell in cells for way in subject.ways}
    total, done = (rounds + 1) * len(tracks), 0
    for round_ in range(rounds + 1):
        for cell in cells:
            for way in subject.ways:
                report(done, total, f"{cell.title}, {way.assistant or NOT_ASSISTED}")
                answered = subject.answer(cell, way)
                if not all(text.strip() for text in answered.texts):
                    raise DiaristError(f"no text for {cell.title}: name a recording that begins with speech")
                if round_:
                    tracks[cell.name, way].answers.append(answered)
                done += 1
    report(done, total, "")
    return [_row(cell, way, tracks[cell.name, way], tracks[cell.name, PLAIN]) for cell in cells for way in subject.ways]


def _row(cell: Cell, way: Way, track: _Track, plain: _Track) -> Row:
    last = track.answers[-1]
    shares = [each.decoding_s / each.seconds for each in track.answers if each.decoding_s is not None]
    return Row(
        cell,
        way,
        seconds=statistics.median(each.seconds for each in track.answers),
        faster=track.ratios(plain, lambda each: each.seconds) or 0.0,
        decoding_faster=track.ratios(plain, lambda each: each.decoding_s),
        decoder_share=statistics.median(shares) if shares else None,
        assistance=last.assistance.summary if last.assistance else None,
        words_differ=sum(map(differing_words, last.texts, plain.answers[-1].texts)),
    )


def differing_words(one: str, other: str) -> int:
    """Words that two texts do not have in common, the more of either where one stands for another.

    >>> differing_words("Oh, hello there.", "Oh hello there. You")
    2
    """
    changes = difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for name, a, b, c, d in changes if name != "equal")


def added(counts: Sequence[Mapping[str, Any] | None]) -> Assistance | None:
    """What several transcripts say of the assistant (`Transcript.assistance`), together; None if none says anything."""
    told = [each for each in counts if each is not None]
    whole = Assistance()
    for each in told:
        whole.passes += int(each["passes"])
        whole.tokens += int(each["tokens"])
        whole.drafted += int(each["drafted"])
        whole.accepted += int(each["accepted"])
        whole.assisted += round(each["assisted_passes"] * each["passes"])
    return whole if told else None


def verdict(rows: Sequence[Row]) -> list[str]:
    """Whether `auto` does what it is for: where assisting does not pay it does not assist.

    One sentence for each cell in which it fails, else one in all; nothing if `auto` was not measured.
    """
    forced = {(row.cell.name, row.way.assistant): row for row in rows if row.way.asked is True}
    automatic = [row for row in rows if row.way.asked == "auto"]
    faults = []
    for row in automatic:
        always = forced.get((row.cell.name, row.way.assistant))
        loses = not row.pays and row.chosen != NOT_ASSISTED
        insists = always is not None and not always.pays and row.chosen == "assisted"
        if loses or insists:
            faults.append(
                f"{row.cell.name}: auto assists with {row.way.assistant} ({row.faster:.2f}x"
                f"{f'; always: {always.faster:.2f}x' if always else ''}), which does not pay"
            )
    if not automatic or faults:
        return faults
    return ["auto does not assist where that does not pay"]
