"""Attribution: deciding which speaker said each word, from the words' times and the speakers' turns.

The rules, in order:

1. A word belongs to the speaker whose turns cover most of it.
2. Edges of turns and of words are only known to about `edge_s`. Where moving an edge that falls inside a word by that
   much would change its majority, the word is *contested*, and the rest of its sentence decides: a word inside or at
   one end of a sentence goes with its neighbours if they contest it. So an edge that misses the end of a sentence by
   80 ms does not hand its last word to the next speaker. A word that is a sentence of its own ("Yes.") is never moved,
   nor one at a change of speakers within a sentence.
3. Where people speak almost at once the edge between their turns misses the end of a sentence by more than that. The
   first or last words of a sentence, shorter than `spill_s`, whose speaker also has the neighbouring sentence, go with
   the rest of their sentence, unless a pause of `change_pause_s` speaks for a change there. Words between two of another
   speaker (a turn of their own) are left alone.
4. A word that nobody's turn covers is *guessed*: it goes to the nearest turn within `max_distance_s` (between two that
   are about equally near its sentence decides, as above), else to the speaker of the word before it. A first word goes
   to the nearest turn at any distance.
5. With no turns at all every word is guessed to be `UNKNOWN_SPEAKER`'s.

>>> from diarist.timeline import Segment
>>> turns = [Turn(Segment(0.0, 5.0), "A"), Turn(Segment(5.0, 9.0), "B")]
>>> [word.speaker for word in attribute([Word("Hello.", 4.4, 4.9, 1.0), Word("Hi.", 5.1, 5.4, 1.0)], turns).words]
['A', 'B']
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from diarist.timeline import Turn, Word, ends_sentence, union

UNKNOWN_SPEAKER = "UNKNOWN"
"""Speaker of words in a recording in which the diarization heard nobody."""

MIN_WORD_S = 0.02
"""Length given to a word without one, in seconds, so that a turn can cover it: one time step of Whisper's decoder."""

_LISTED_GUESSES = 5


@dataclass(frozen=True, slots=True)
class AttributionOptions:
    """How far the times are trusted."""

    edge_s: float = 0.1
    """Uncertainty of an edge, in seconds. Segmentation frames are 17 ms and attention 20 ms apart, but both edges lag
    soft onsets and breaths; a tenth of a second is also less than half of the shortest interjection."""
    max_distance_s: float = 1.0
    """Farthest turn that may claim a word which no turn covers, in seconds: beyond it the nearness of a turn says less
    than the fact that most words have the speaker of the word before."""
    spill_s: float = 1.0
    """Longest stretch at an end of a sentence that is taken for a spill from the next, in seconds; 0 for none. On three
    conversations of two to five people, Whisper base with the turns of pyannote 3.1, the words with a wrong speaker or
    text (cpWER) fell from 7.0, 11.2 and 11.1 % to 4.8, 9.0 and 11.0 %; half a second gained a quarter of that, and two
    seconds lost some again."""
    change_pause_s: float = 0.2
    """Pause between words, in seconds, at which a change of speakers in mid-sentence is believed."""
    sentence_pause_s: float = 0.8
    """A pause of this many seconds ends a sentence even without punctuation, which some languages and models lack."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Words with their speakers."""

    words: tuple[Word, ...]
    """The given words, in the given order, each with a speaker."""
    guessed: frozenset[int]
    """Positions of the words that no turn covers."""

    def warnings(self) -> list[str]:
        """One line on the guessed words, if there are any."""
        if not self.guessed:
            return []
        stretches = union((self.words[i].segment for i in sorted(self.guessed)), max_gap=MIN_WORD_S)
        listed = ", ".join(f"{stretch.start:.2f}-{stretch.end:.2f} s" for stretch in stretches[:_LISTED_GUESSES])
        more = f" and {len(stretches) - _LISTED_GUESSES} more" if len(stretches) > _LISTED_GUESSES else ""
        count = len(self.guessed)
        words = "1 word lies" if count == 1 else f"{count} words lie"
        return [f"{words} outside every speaker's turn; the speaker is a guess (nearest turn): {listed}{more}"]


_Claim = tuple[float, str]
"""What a speaker has of a word: the seconds that the turns cover, or minus the distance where they cover none; who."""


class _Span(NamedTuple):
    """A turn as the sweep wants it: a plain tuple, because there may be 10^5 of them."""

    start: float
    end: float
    speaker: str


def _spans(turns: Iterable[Turn]) -> list[_Span]:
    """The turns in time order, those of one speaker disjoint, so that no second counts twice."""
    spans: list[_Span] = []
    last: dict[str, int] = {}  # speaker -> position of the latest span
    for start, end, speaker in sorted((turn.segment.start, turn.segment.end, turn.speaker) for turn in turns):
        position = last.get(speaker)
        if position is not None and start <= spans[position].end:
            spans[position] = _Span(spans[position].start, max(end, spans[position].end), speaker)
        elif end > start:
            last[speaker] = len(spans)
            spans.append(_Span(start, end, speaker))
    return spans


def _claims(words: Sequence[Word], spans: Sequence[_Span]) -> Iterator[tuple[int, list[_Claim]]]:
    """For every word the speakers that cover it, best first; where nobody does, the turns before and after it.

    One sweep: O(words + turns + pairs that overlap). Of equal claims the one of the turn that began first stands first.

    Yields:
        Position of the word, its claims (at least one); in order of the words' starts.
    """
    active: list[_Span] = []  # began before the end of some word so far, and did not end before this one
    ended: _Span | None = None  # of the others, the one that ends last
    upcoming = 0
    for index in sorted(range(len(words)), key=lambda i: words[i].start):
        start = words[index].start
        end = max(words[index].end, start + MIN_WORD_S)
        while upcoming < len(spans) and spans[upcoming].start < end:
            active.append(spans[upcoming])
            upcoming += 1
        covered: dict[str, float] = {}
        still: list[_Span] = []
        for span in active:
            if span.end <= start:
                ended = span if ended is None or span.end > ended.end else ended
                continue
            still.append(span)
            if span.start < end:
                seconds = min(end, span.end) - max(start, span.start)
                covered[span.speaker] = covered.get(span.speaker, 0.0) + seconds
        active = still
        found = [(seconds, speaker) for speaker, seconds in covered.items()]
        if not found:
            following = active or spans[upcoming : upcoming + 1]
            found = [(end - span.start, span.speaker) for span in following[:1]]
            if ended is not None:
                found.insert(0, (ended.end - start, ended.speaker))
        if len(found) > 1:
            found.sort(key=itemgetter(0), reverse=True)  # stable: of equals the first stays first
        yield index, found


def _sentences(words: Sequence[Word], pause_s: float) -> Iterator[range]:
    """Positions of the words of each sentence, as far as punctuation and pauses tell."""
    first = 0
    for last in range(len(words) - 1):
        if ends_sentence(words[last].text) or words[last + 1].start - words[last].end >= pause_s:
            yield range(first, last + 1)
            first = last + 1
    yield range(first, len(words))


def _settle(sentence: range, contested: Mapping[int, Collection[str]], speakers: list[str]) -> None:
    """Give the contested words of one sentence to the speaker of the settled words around them, in place."""
    before: str | None = None
    position = sentence.start
    while position < sentence.stop:
        stop = position  # of the run of contested words that begins here
        while stop < sentence.stop and stop in contested:
            stop += 1
        if stop == position:
            before = speakers[position]
            position += 1
            continue
        after = speakers[stop] if stop < sentence.stop else before
        anchor = after if before is None or before == after else None
        for index in range(position, stop):
            if anchor is not None and anchor in contested[index]:
                speakers[index] = anchor
        position = stop


def _mend_spill(
    words: Sequence[Word], outer: int, inner: range, speakers: list[str], options: AttributionOptions
) -> None:
    """Give the words at one end of a sentence back to its speaker if they are a spill, in place.

    Args:
        words: All of them.
        outer: Position of the neighbouring sentence's nearest word.
        inner: Positions of the sentence's words, beginning at the end that is looked at.
        speakers: Of all words.
        options: What counts as a spill.
    """
    spilled = 1
    while spilled < len(inner) and speakers[inner[spilled]] == speakers[inner[0]]:
        spilled += 1
    if spilled == len(inner) or speakers[outer] != speakers[inner[0]]:
        return
    near, edge, rest = inner[0], inner[spilled - 1], inner[spilled]
    first, last, far = words[min(near, edge)], words[max(near, edge)], words[inner[-1]]
    seconds = last.end - first.start
    sentence_s = max(far.end, last.end) - min(far.start, first.start)
    pause = words[max(edge, rest)].start - words[min(edge, rest)].end
    punctuated = ends_sentence(words[min(outer, near)].text)  # a pause alone is no proof of a new sentence
    if punctuated and pause < options.change_pause_s and seconds < min(options.spill_s, sentence_s / 2):
        for position in inner[:spilled]:
            speakers[position] = speakers[rest]


def _with_speaker(word: Word, speaker: str) -> Word:
    # dataclasses.replace would take half of the time of a large attribution
    return Word(word.text, word.start, word.end, word.probability, speaker, word.joined)


def attribute(words: Sequence[Word], turns: Iterable[Turn], options: AttributionOptions | None = None) -> Attribution:
    """Give every word a speaker.

    Args:
        words: In the order of the text, times finite and in seconds. A speaker that a word already has is replaced.
        turns: Who spoke when, in any order. Exclusive turns (at most one speaker at a time) are the best input; where
            turns overlap, a word covered alike by several stays with its sentence, else with whoever began first.
        options: How far the times are trusted.

    Returns:
        The same words in the same order, with speakers.
    """
    options = options or AttributionOptions()
    spans = _spans(turns)
    if not spans:
        unknown = tuple(_with_speaker(word, UNKNOWN_SPEAKER) for word in words)
        return Attribution(unknown, frozenset(range(len(words))))
    margin = 2 * options.edge_s  # moving an edge inside a word takes from one speaker what it gives to the other
    speakers = [""] * len(words)
    contested: dict[int, Collection[str]] = {}  # positions of the words that are open, and between whom
    guessed: set[int] = set()
    far: set[int] = set()
    for index, claims in _claims(words, spans):
        best, speakers[index] = claims[0]
        if best <= 0:
            guessed.add(index)
        if len(claims) > 1:
            floor = max(best - margin, -options.max_distance_s)
            rivals = {speaker for score, speaker in claims if score >= floor}
            if len(rivals) > 1:
                contested[index] = rivals
        if best < -options.max_distance_s:
            far.add(index)
    sentences = list(_sentences(words, options.sentence_pause_s))
    for sentence in sentences:
        _settle(sentence, contested, speakers)
    for before, after in pairwise(sentences):
        _mend_spill(words, after[0], before[::-1], speakers, options)
        _mend_spill(words, before[-1], after, speakers, options)
    for index in sorted(far - {0}):
        speakers[index] = speakers[index - 1]
    attributed = tuple(_with_speaker(word, speaker) for word, speaker in zip(words, speakers, strict=True))
    return Attribution(attributed, frozenset(guessed))
