"""The transcript: one immutable value that says who said what and when, and checks its own rules.

Its JSON form is stable: keys are added, never renamed. `build` makes a transcript from what recognition and diarization
found; times are settled there (whole milliseconds, in order, inside the recording), so that a `Transcript` is exactly
what its JSON says.

>>> transcript = build([Word("Hello.", 0.5, 0.9, 0.98, "SPEAKER_00")], duration=2.0, language="en")
>>> transcript.text, transcript.speakers
('Hello.', ('SPEAKER_00',))
>>> Transcript.from_json(transcript.to_json()) == transcript
True
"""

import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from diarist.errors import TranscriptError
from diarist.timeline import DecodedSegment, Segment, Turn, Word, ends_sentence, join_words

_ASSISTANCE = (
    *("kind", "assisted", "chosen", "assisted_passes", "acceptance_rate", "tokens_per_pass"),
    *("passes", "tokens", "drafted", "accepted"),
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """Consecutive words of one speaker."""

    speaker: str | None
    """None where no diarization was asked for."""
    start: float
    """Start of the first word, in seconds."""
    end: float
    """End of the last word, in seconds."""
    text: str
    words: tuple[Word, ...]

    @property
    def segment(self) -> Segment:
        return Segment(self.start, self.end)


@dataclass(frozen=True, slots=True)
class UtteranceOptions:
    """Where the words of one speaker are parted into utterances."""

    pause_s: float = 1.0
    """A pause of this many seconds always parts, so that an utterance can be played without much silence."""
    sentence_pause_s: float = 0.4
    """After the end of a sentence this pause is enough: about a breath."""
    long_s: float = 30.0
    """An utterance that is this long, in seconds, ends with its sentence, so that a monologue has paragraphs."""


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording, by whom and when. Times are seconds from its start.

    Raises:
        TranscriptError: A rule is broken: every word stands in one utterance, in order; times are finite, do not go
            back, and lie inside the recording; `text` is the words; a speaker named anywhere is in `speakers`.
    """

    text: str
    language: str | None
    """ISO 639-1 code; None when nothing was said by which to tell."""
    duration: float
    """Length of the recording, in seconds."""
    speakers: tuple[str, ...] = ()
    """In order of first appearance; empty without diarization."""
    utterances: tuple[Utterance, ...] = ()
    turns: tuple[Turn, ...] = ()
    """Who spoke when, in time order. Turns of different speakers overlap where people spoke at once."""
    segments: tuple[DecodedSegment, ...] = ()
    """What the recognizer wrote, with its evidence, in time order."""
    models: Mapping[str, Any] = field(default_factory=dict)
    """Which models were used: `asr`, `assistant` and `diarization`, each null or an object."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds of work by stage."""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fault = next(_faults(self), None)
        if fault is not None:
            raise TranscriptError(fault)

    @property
    def words(self) -> tuple[Word, ...]:
        """Every word, in order."""
        return tuple(word for utterance in self.utterances for word in utterance.words)

    @property
    def assistance(self) -> dict[str, Any] | None:
        """What came of the assistant; None where none was loaded.

        `assisted` is what was asked for and `chosen` what was done; `assisted_passes` is the share of the main model's
        passes that verified a draft, `acceptance_rate` that of drafted tokens that were right; the others are counts.
        """
        about = self.models.get("assistant") or {}
        return {name: about[name] for name in _ASSISTANCE if name in about} if "chosen" in about else None

    def to_dict(self) -> dict[str, Any]:
        """The transcript as plain values, ready for JSON."""
        return {
            "text": self.text,
            "language": self.language,
            "duration": self.duration,
            "speakers": list(self.speakers),
            "utterances": [_utterance_to_dict(utterance) for utterance in self.utterances],
            "turns": [{"speaker": turn.speaker, "start": turn.start, "end": turn.end} for turn in self.turns],
            "segments": [_segment_to_dict(segment) for segment in self.segments],
            "models": dict(self.models),
            "timings": dict(self.timings),
            "warnings": list(self.warnings),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """The transcript as JSON text, without NaN or infinity.

        Raises:
            TranscriptError: `models` or `timings` hold something that JSON has no form for.
        """
        try:
            return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=indent)
        except (TypeError, ValueError) as error:
            raise TranscriptError(f"the transcript cannot be written as JSON: {error}") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Transcript":
        """The transcript that `to_dict` came from; unknown keys are ignored, so newer files can be read.

        Raises:
            TranscriptError: A key is missing or of the wrong type, or a rule is broken.
        """
        try:
            return cls(
                text=_text(data["text"]),
                language=_text_or_none(data["language"]),
                duration=float(data["duration"]),
                speakers=tuple(_text(speaker) for speaker in data["speakers"]),
                utterances=tuple(_utterance_from_dict(utterance) for utterance in data["utterances"]),
                turns=tuple(
                    Turn(Segment(float(turn["start"]), float(turn["end"])), _text(turn["speaker"]))
                    for turn in data["turns"]
                ),
                segments=tuple(_segment_from_dict(segment) for segment in data.get("segments", ())),
                models=dict(data.get("models", {})),
                timings={stage: float(seconds) for stage, seconds in data.get("timings", {}).items()},
                warnings=tuple(_text(warning) for warning in data.get("warnings", ())),
            )
        except TranscriptError:
            raise
        except KeyError as error:
            raise TranscriptError(f"not a transcript: the key {error} is missing") from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise TranscriptError(f"not a transcript: {error}") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> "Transcript":
        """The transcript that `to_json` wrote.

        Raises:
            TranscriptError: The text is not JSON, or not that of a transcript.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TranscriptError(f"not a transcript: {error}") from error
        if not isinstance(data, dict):
            raise TranscriptError("not a transcript: the JSON is not an object")
        return cls.from_dict(data)

    def write(self, path: str | os.PathLike[str], format: str | None = None) -> None:  # noqa: A002 (the name users expect)
        """Write the transcript to a file, which appears whole or not at all.

        Args:
            path: Where to. A file that stands there is replaced.
            format: `txt`, `srt`, `vtt`, `json`, `tsv`, `rttm` or `stm`; by default the file's suffix.

        Raises:
            OptionError: The format is unknown.
            OSError: The file cannot be written.
        """
        from diarist import formats  # noqa: PLC0415 (the written forms are made of transcripts, not the reverse)

        formats.write(self, path, format)


def _faults(transcript: Transcript) -> Iterator[str]:
    """What is wrong with a transcript, in words. Comparisons are written so that NaN fails them."""
    duration = transcript.duration
    if not 0 <= duration < math.inf:
        yield f"the duration is {duration}"
    known = set(transcript.speakers)
    if len(known) != len(transcript.speakers):
        yield "a speaker is listed twice"
    reached = 0.0
    for utterance in transcript.utterances:
        words = utterance.words
        if not words:
            yield "an utterance has no words"
        if utterance.text != join_words(words):
            yield f"the text {utterance.text!r} is not that of its words"
        if (utterance.start, utterance.end) != (words[0].start, words[-1].end):
            yield f"the times of the utterance {utterance.text!r} are not those of its words"
        if utterance.speaker is not None and utterance.speaker not in known:
            yield f"{utterance.speaker!r} is not in speakers"
        for word in words:
            if not reached <= word.start <= word.end <= duration:
                yield f"times out of order or outside the recording at {word}"
            if not 0 <= word.probability <= 1:
                yield f"the probability is not in [0, 1] at {word}"
            if word.speaker != utterance.speaker:
                yield f"{word} stands in an utterance of {utterance.speaker!r}"
            if not word.text.strip():
                yield "a word is blank"
            reached = word.end
    if transcript.text != join_words(transcript.words):
        yield "the text is not that of the words"
    for turn in transcript.turns:
        if not 0 <= turn.start < turn.end <= duration:
            yield f"{turn} is empty or outside the recording"
        if turn.speaker not in known:
            yield f"{turn.speaker!r} is not in speakers"
    if any(later < earlier for earlier, later in pairwise(transcript.turns)):
        yield "the turns are not in time order"
    for segment in transcript.segments:
        evidence = (segment.temperature, segment.avg_logprob, segment.compression_ratio, segment.no_speech_prob)
        if not (0 <= segment.start <= segment.end <= duration and all(map(math.isfinite, evidence))):
            yield f"{segment} lies outside the recording or has evidence that is no number"
    if not all(map(math.isfinite, transcript.timings.values())):
        yield "a timing is no number"
    if not all(map(_encodable, (transcript.text, *transcript.speakers, *transcript.warnings))):
        yield "a text is not valid Unicode"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TranscriptError(f"not a transcript: {value!r} stands where a text belongs")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _word_to_dict(word: Word) -> dict[str, Any]:
    plain = {
        "text": word.text,
        "start": word.start,
        "end": word.end,
        "probability": word.probability,
        "speaker": word.speaker,
    }
    return {**plain, "joined": True} if word.joined else plain


def _utterance_to_dict(utterance: Utterance) -> dict[str, Any]:
    return {
        "speaker": utterance.speaker,
        "start": utterance.start,
        "end": utterance.end,
        "text": utterance.text,
        "words": [_word_to_dict(word) for word in utterance.words],
    }


def _utterance_from_dict(data: Mapping[str, Any]) -> Utterance:
    words = tuple(
        Word(
            text=_text(word["text"]),
            start=float(word["start"]),
            end=float(word["end"]),
            probability=float(word["probability"]),
            speaker=_text_or_none(word["speaker"]),
            joined=bool(word.get("joined", False)),
        )
        for word in data["words"]
    )
    return Utterance(
        speaker=_text_or_none(data["speaker"]),
        start=float(data["start"]),
        end=float(data["end"]),
        text=_text(data["text"]),
        words=words,
    )


def _segment_to_dict(segment: DecodedSegment) -> dict[str, Any]:
    return {
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _segment_from_dict(data: Mapping[str, Any]) -> DecodedSegment:
    return DecodedSegment(
        start=float(data["start"]),
        end=float(data["end"]),
        text=_text(data["text"]),
        tokens=tuple(int(token) for token in data["tokens"]),
        temperature=float(data["temperature"]),
        avg_logprob=float(data["avg_logprob"]),
        compression_ratio=float(data["compression_ratio"]),
        no_speech_prob=float(data["no_speech_prob"]),
    )


def _milliseconds(seconds: float, low: float, high: float) -> float:
    """A time rounded to whole milliseconds and kept between two that are; `low` where it is not a number."""
    if not math.isfinite(seconds):
        return low
    return min(max(round(float(seconds), 3) + 0.0, low), high)  # + 0.0: no negative zero


def _finite(value: float, digits: int = 4) -> float:
    """Evidence rounded to what it is worth; 0 where there is none."""
    return round(float(value), digits) if math.isfinite(value) else 0.0


def _unicode(text: str) -> str:
    """The text with half surrogates, which no encoding can write, replaced."""
    return text if _encodable(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def settle(words: Iterable[Word], duration: float) -> list[Word]:
    """Words with times that are in order, inside the recording and in whole milliseconds.

    A recognizer's times may be off. As many words as can be keep their start, in order; the others, and those whose
    start is not a number, share the time between their neighbours. A word that lasts into the next ends where that
    starts; one past the end of the recording is moved to its end. No word is lost; blank ones, which hold no text, are
    left out. Settled words stay as they are.

    Args:
        words: In the order of the text.
        duration: Length of the recording, in seconds.
    """
    duration = _milliseconds(duration, 0.0, math.inf)
    spoken = [replace(word, text=text) for word in words if (text := _unicode(word.text).strip())]
    starts = [min(max(word.start, 0.0), duration) for word in spoken]
    kept = _longest_in_order(starts)
    settled: list[Word] = []
    reached = 0.0
    for before, here in pairwise([-1, *kept, len(spoken)]):
        start = _milliseconds(starts[here], 0.0, duration) if here < len(spoken) else duration
        if before >= 0:
            reached = _milliseconds(spoken[before].end, settled[-1].start, start)
            settled[-1] = replace(settled[-1], end=reached)
        share = (start - reached) / max(1, here - before - 1)
        for place, word in enumerate(spoken[before + 1 : here]):
            times = (_milliseconds(reached + share * step, reached, start) for step in (place, place + 1))
            settled.append(_timed(word, *times))
        if here < len(spoken):
            settled.append(_timed(spoken[here], start, start))
    return settled


def _timed(word: Word, start: float, end: float) -> Word:
    probability = min(max(_finite(word.probability), 0.0), 1.0)
    return replace(word, start=start, end=end, probability=probability)


def _longest_in_order(values: Sequence[float]) -> list[int]:
    """Positions of the longest run of values, not necessarily next to each other, that never goes down; O(n log n).

    The usual patience algorithm: of all runs of a length the one with the lowest last value is kept. NaN is in none.

    >>> _longest_in_order([0.0, 1.0, 9.0, 9.5, 2.0, 3.0, 4.0])
    [0, 1, 4, 5, 6]
    """
    lowest: list[float] = []  # last value of the best run of each length
    holder: list[int] = []  # its position
    previous: list[int] = []  # for each value, the position before it in its run
    for position, value in enumerate(values):
        length = bisect_right(lowest, value)
        previous.append(holder[length - 1] if length else -1)
        if not math.isnan(value):
            lowest[length : length + 1] = [value]
            holder[length : length + 1] = [position]
    run = []
    position = holder[-1] if holder else -1
    while position >= 0:
        run.append(position)
        position = previous[position]
    return run[::-1]


def _settled_turns(turns: Iterable[Turn], duration: float) -> list[Turn]:
    inside = (
        Turn(Segment(_milliseconds(turn.start, 0.0, duration), _milliseconds(turn.end, 0.0, duration)), turn.speaker)
        for turn in turns
    )
    return sorted(turn for turn in inside if turn.segment)


def _settled_segments(segments: Iterable[DecodedSegment], duration: float) -> Iterator[DecodedSegment]:
    for segment in segments:
        start = _milliseconds(segment.start, 0.0, duration)
        yield DecodedSegment(
            start=start,
            end=_milliseconds(segment.end, start, duration),
            text=_unicode(segment.text),
            tokens=tuple(int(token) for token in segment.tokens),
            temperature=_finite(segment.temperature),
            avg_logprob=_finite(segment.avg_logprob),
            compression_ratio=_finite(segment.compression_ratio),
            no_speech_prob=_finite(segment.no_speech_prob),
        )


def _parts(utterance: Sequence[Word], following: Word, options: UtteranceOptions) -> bool:
    """Whether a new utterance begins with `following`."""
    last = utterance[-1]
    pause = following.start - last.end
    if following.speaker != last.speaker or pause >= options.pause_s:
        return True
    if not ends_sentence(last.text):
        return False
    return pause >= options.sentence_pause_s or last.end - utterance[0].start >= options.long_s


def group(words: Iterable[Word], options: UtteranceOptions | None = None) -> tuple[Utterance, ...]:
    """Consecutive words of one speaker as utterances, parted at pauses.

    Args:
        words: In order, with settled times.
        options: Where to part.
    """
    options = options or UtteranceOptions()
    groups: list[list[Word]] = []
    for word in words:
        if groups and not _parts(groups[-1], word, options):
            groups[-1].append(word)
        else:
            groups.append([word])
    return tuple(Utterance(run[0].speaker, run[0].start, run[-1].end, join_words(run), tuple(run)) for run in groups)


def sentences(transcript: Transcript) -> Iterator[tuple[Word, ...]]:
    """The words, parted at utterances and at ends of sentences, but never at a full stop inside a word ("U.S.-led")."""
    for utterance in transcript.utterances:
        words = utterance.words
        begun = 0
        for place, (word, following) in enumerate(zip(words, [*words[1:], None], strict=True), 1):
            inside = following is not None and following.joined and word.text.endswith(".")
            if following is None or (ends_sentence(word.text) and not inside):
                yield words[begun:place]
                begun = place


def build(
    words: Iterable[Word],
    *,
    duration: float,
    language: str | None,
    turns: Iterable[Turn] = (),
    segments: Iterable[DecodedSegment] = (),
    models: Mapping[str, Any] | None = None,
    timings: Mapping[str, float] | None = None,
    warnings: Iterable[str] = (),
    options: UtteranceOptions | None = None,
) -> Transcript:
    """The transcript of what recognition and diarization found.

    Args:
        words: In the order of the text, with speakers if there are any; their times are settled here.
        duration: Length of the recording, in seconds.
        language: ISO 639-1 code of what is spoken, or None.
        turns: Who spoke when, overlap kept; cut to the recording.
        segments: What the recognizer wrote, in time order.
        models: Models used, as JSON objects.
        timings: Seconds of work by stage.
        warnings: For the person who asked.
        options: Where utterances are parted.

    Raises:
        TranscriptError: The duration is not a number, or `models` holds a text that is not Unicode.
    """
    if not 0 <= duration < math.inf:
        raise TranscriptError(f"the duration is {duration}")
    length = _milliseconds(duration, 0.0, math.inf)
    settled = settle(words, length)
    settled_turns = _settled_turns(turns, length)
    appearances = [(turn.start, turn.speaker) for turn in settled_turns]
    appearances += [(word.start, word.speaker) for word in settled if word.speaker is not None]
    return Transcript(
        text=join_words(settled),
        language=language,
        duration=length,
        speakers=tuple(dict.fromkeys(speaker for _, speaker in sorted(appearances))),
        utterances=group(settled, options),
        turns=tuple(settled_turns),
        segments=tuple(_settled_segments(segments, length)),
        models=dict(models or {}),
        timings={stage: _finite(seconds, 3) for stage, seconds in (timings or {}).items()},
        warnings=tuple(_unicode(warning) for warning in warnings),
    )
