"""Time on a recording: segments, words and turns, all in seconds from its start.

The types are frozen and ordered, after `pyannote.core.Segment`; there is no process-wide precision.

>>> Segment(1.0, 3.0) & Segment(2.0, 5.0)
Segment(start=2.0, end=3.0)
>>> bool(Segment(1.0, 2.0) & Segment(4.0, 5.0))
False
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！", "؟", "।")
_CLOSING_MARKS = "\"'”’»)]』」"


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """The interval from `start` to `end`, in seconds. Empty (and false) when it has no length."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        """Length in seconds, never negative."""
        return max(0.0, self.end - self.start)

    @property
    def middle(self) -> float:
        """The instant half way, in seconds."""
        return (self.start + self.end) / 2

    def __bool__(self) -> bool:
        return self.end > self.start

    def __and__(self, other: "Segment") -> "Segment":
        """What both cover; empty where they do not meet."""
        start = max(self.start, other.start)
        return Segment(start, max(start, min(self.end, other.end)))

    def __or__(self, other: "Segment") -> "Segment":
        """The shortest segment that covers both, the gap between them included."""
        return Segment(min(self.start, other.start), max(self.end, other.end))

    def __contains__(self, instant: float) -> bool:
        return self.start <= instant < self.end

    def shifted(self, offset: float) -> "Segment":
        """The same length, `offset` seconds later."""
        return Segment(self.start + offset, self.end + offset)


@dataclass(frozen=True, slots=True)
class Word:
    """The smallest timed unit of text.

    `text` has no surrounding white space. `joined` says that it is written without a space before it, as in
    Chinese, or after a hyphen: `join_words` restores the spacing exactly.
    """

    text: str
    start: float
    end: float
    probability: float
    """Mean probability of the word's tokens, in [0, 1]."""
    speaker: str | None = None
    joined: bool = False

    @property
    def segment(self) -> Segment:
        return Segment(self.start, self.end)


@dataclass(frozen=True, slots=True, order=True)
class Turn:
    """One speaker speaking without a break."""

    segment: Segment
    speaker: str

    @property
    def start(self) -> float:
        return self.segment.start

    @property
    def end(self) -> float:
        return self.segment.end


@dataclass(frozen=True, slots=True)
class DecodedSegment:
    """What the recognizer wrote between two of its timestamps, with its evidence (names as in openai-whisper)."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    """Mean log-probability of the tokens of the window that the segment comes from."""
    compression_ratio: float
    """Length of the window's text over its zlib-compressed length; above 2.4 it repeats itself."""
    no_speech_prob: float


def join_words(words: Iterable[Word]) -> str:
    """The words as running text, spaced as they were decoded.

    >>> join_words([Word("well", 0, 1, 1.0), Word("-known", 1, 2, 1.0, joined=True)])
    'well-known'
    """
    return "".join(word.text if word.joined else f" {word.text}" for word in words).strip()


def ends_sentence(text: str) -> bool:
    """Whether a word's text closes a sentence; abbreviations ("Mr.") pass for ends.

    >>> ends_sentence("go."), ends_sentence("Why?”"), ends_sentence("3.5")
    (True, True, False)
    """
    return text.rstrip(_CLOSING_MARKS).endswith(_SENTENCE_ENDS)


def union(segments: Iterable[Segment], max_gap: float = 0.0) -> list[Segment]:
    """Sorted disjoint segments that cover the same time; gaps of up to `max_gap` seconds are filled.

    >>> union([Segment(0, 1), Segment(1.2, 2), Segment(0.5, 0.7)], max_gap=0.3)
    [Segment(start=0, end=2)]
    """
    merged: list[Segment] = []
    for segment in sorted(s for s in segments if s):
        if merged and segment.start <= merged[-1].end + max_gap:
            merged[-1] |= segment
        else:
            merged.append(segment)
    return merged


def subtract(segments: Iterable[Segment], removed: Iterable[Segment]) -> Iterator[Segment]:
    """The parts of `segments` outside `removed`, in order. Both are made disjoint first; O(n log n).

    >>> list(subtract([Segment(0, 10)], [Segment(2, 3), Segment(5, 11)]))
    [Segment(start=0, end=2), Segment(start=3, end=5)]
    """
    cuts = union(removed)
    first = 0
    for segment in union(segments):
        start = segment.start
        while first < len(cuts) and cuts[first].end <= start:
            first += 1
        index = first
        while index < len(cuts) and cuts[index].start < segment.end:
            if cuts[index].start > start:
                yield Segment(start, cuts[index].start)
            start = max(start, cuts[index].end)
            index += 1
        if start < segment.end:
            yield Segment(start, segment.end)
