"""Tokens and their times become segments and words on the recording."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from diarist.asr.decoding import Decoded
from diarist.asr.features import POSITION_S
from diarist.asr.languages import WRITTEN_WITHOUT_SPACES
from diarist.asr.text import Vocabulary
from diarist.asr.windows import Window
from diarist.timeline import DecodedSegment, Segment, Word


@dataclass(frozen=True, slots=True)
class Passage:
    """Text between two timestamps of one window."""

    start: float
    """In seconds of the window."""
    end: float
    first: int
    """Index of its first token in `Decoded.tokens`."""
    stop: int
    """Index after its last token."""


def passages(decoded: Decoded, timestamp_begin: int, duration: float) -> list[Passage]:
    """Split tokens at timestamps.

    A text whose opening or closing timestamp is missing reaches to its neighbour or to the window's edge.

    Args:
        decoded: What the model wrote.
        timestamp_begin: The token of 0 seconds.
        duration: Of the window, in seconds.
    """
    found: list[Passage] = []
    start, first = 0.0, None
    for index, token in enumerate(decoded.tokens):
        if token < timestamp_begin:
            first = index if first is None else first
            continue
        instant = min((token - timestamp_begin) * POSITION_S, duration)
        if first is not None:
            found.append(Passage(start, max(start, instant), first, index))
            first = None
        start = instant
    if first is not None:
        found.append(Passage(start, duration, first, len(decoded.tokens)))
    return found


def segment_on_recording(passage: Passage, decoded: Decoded, window: Window, vocabulary: Vocabulary) -> DecodedSegment:
    tokens = decoded.tokens[passage.first : passage.stop]
    start = window.locate(passage.start)
    return DecodedSegment(
        start=start,
        end=max(start, window.locate(passage.end, ending=True)),
        text=vocabulary.decode(tokens),
        tokens=tuple(tokens),
        temperature=decoded.temperature,
        avg_logprob=decoded.avg_logprob,
        compression_ratio=decoded.compression_ratio,
        no_speech_prob=decoded.no_speech_prob,
    )


def words_on_recording(
    passage: Passage,
    decoded: Decoded,
    window: Window,
    speech: Sequence[Segment],
    vocabulary: Vocabulary,
    language: str,
) -> list[Word]:
    """The words of a passage with their times.

    Args:
        passage: Where in the tokens.
        decoded: What the model wrote; without token starts, words share the passage by their length.
        window: Maps times to the recording.
        speech: The window's speech track on the recording: no word lasts into a pause.
        vocabulary: Of the model.
        language: ISO code.
    """
    token_words = vocabulary.words(decoded.tokens[passage.first : passage.stop], language)
    if decoded.starts:
        edges = [
            (decoded.starts[passage.first + word.start], decoded.starts[passage.first + word.end])
            for word in token_words
        ]
    else:
        sizes = np.cumsum([0, *(len(word.text) for word in token_words)]) / max(
            1, sum(len(w.text) for w in token_words)
        )
        edges = list(pairwise((passage.start + sizes * (passage.end - passage.start)).tolist()))
    spaced = language not in WRITTEN_WITHOUT_SPACES
    words = []
    for index, (word, (start, end)) in enumerate(zip(token_words, edges, strict=True)):
        place = Segment(window.locate(start), window.locate(max(start, end), ending=True))
        spoken = without_pauses(place, speech)
        logprobs = decoded.logprobs[passage.first + word.start : passage.first + word.end]
        words.append(
            Word(
                text=word.text.strip(),
                start=spoken.start,
                end=max(spoken.start, spoken.end),
                probability=float(np.exp(logprobs).mean()),
                joined=not word.text.startswith(" ") and (index > 0 or not spaced),
            )
        )
    return words


def without_pauses(place: Segment, speech: Sequence[Segment]) -> Segment:
    """The part of a word's place that is most of its speech; all of it where nothing is speech."""
    parts = [part for segment in speech if (part := place & segment)]
    return max(parts, key=lambda part: part.duration, default=place)
