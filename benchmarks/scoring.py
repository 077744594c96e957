"""Error rates: words (WER), words given to the right speaker (cpWER), time given to the right speaker (DER)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jiwer
import numpy as np
from pyannote.core import Annotation
from pyannote.core import Segment as Span
from pyannote.metrics.diarization import DiarizationErrorRate
from scipy.optimize import linear_sum_assignment
from whisper_normalizer.english import EnglishTextNormalizer

from diarist.timeline import Turn

_normalized = EnglishTextNormalizer()


@dataclass(frozen=True, slots=True)
class Errors:
    """Wrong words or seconds, of how many. Those of several recordings add up."""

    wrong: float
    total: float

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(self.wrong + other.wrong, self.total + other.total)

    @property
    def percent(self) -> float:
        return 100 * self.wrong / self.total


def together(errors: Iterable[Errors]) -> Errors:
    return sum(errors, Errors(0, 0))


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Substitutions, deletions and insertions, after Whisper's English normalizer."""
    said, heard = _normalized(reference), _normalized(hypothesis)
    count = len(said.split())
    if not said:
        return Errors(len(heard.split()), 0)
    found = jiwer.process_words(said, heard)
    return Errors(found.substitutions + found.deletions + found.insertions, count)


def speaker_word_errors(reference: Mapping[str, str], hypothesis: Mapping[str, str]) -> Errors:
    """The fewest word errors that any pairing of speakers leaves; who has no partner is all error."""
    size = max(len(reference), len(hypothesis))
    said = [*reference.values(), *[""] * (size - len(reference))]
    heard = [*hypothesis.values(), *[""] * (size - len(hypothesis))]
    errors = [[word_errors(a, b) for b in heard] for a in said]
    rows, columns = linear_sum_assignment(np.array([[cell.wrong for cell in row] for row in errors]))
    return together(errors[row][column] for row, column in zip(rows, columns, strict=True))


def diarization_errors(reference: Iterable[Turn], hypothesis: Iterable[Turn], duration: float) -> Errors:
    """Missed, false and confused seconds of the whole recording: no collar, overlap scored."""
    metric = DiarizationErrorRate(collar=0, skip_overlap=False)
    found = metric(_annotation(reference), _annotation(hypothesis), uem=Span(0, duration), detailed=True)
    return Errors(found["missed detection"] + found["false alarm"] + found["confusion"], found["total"])


def _annotation(turns: Iterable[Turn]) -> Annotation:
    annotation = Annotation()
    for track, turn in enumerate(turns):
        annotation[Span(turn.segment.start, turn.segment.end), track] = turn.speaker
    return annotation
