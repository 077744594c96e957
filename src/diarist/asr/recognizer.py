"""Speech of one recording in, words with times out."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from diarist.asr.decoding import Decoded, DecodingLoop, Job, SpokenLanguage
from diarist.asr.drafting import Assistant
from diarist.asr.features import SAMPLE_RATE_HZ
from diarist.asr.options import DecodingOptions
from diarist.asr.planning import Assistance
from diarist.asr.results import Passage, passages, segment_on_recording, words_on_recording
from diarist.asr.windows import Window, WindowOptions, gather, holes, pack
from diarist.compute import Compute
from diarist.errors import OptionError
from diarist.models import WhisperCheckpoint
from diarist.timeline import DecodedSegment, Segment, Word

_ROUNDS = 2  # times that a hole is decoded again; a third changes nothing


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was said in a recording."""

    language: str
    segments: tuple[DecodedSegment, ...]
    words: tuple[Word, ...]
    unheard: tuple[Segment, ...]
    """Stretches of speech that stayed without text."""
    assistance: Assistance = field(default_factory=Assistance)
    """What the assistant, if there is one, came to."""


class Recognizer:
    """A model, loaded once; give each recording a stream of its own.

    Args:
        checkpoint: The model.
        compute: Device and precision.
        rows: Windows decoded at once.
        assistant: Drafts for the model, if given.
    """

    def __init__(
        self, checkpoint: WhisperCheckpoint, compute: Compute, rows: int = 16, assistant: Assistant | None = None
    ) -> None:
        self.loop = DecodingLoop(checkpoint, compute, rows, assistant=assistant)
        self.lock = threading.Lock()

    def stream(self, options: DecodingOptions, loop: DecodingLoop | None = None) -> "RecognitionStream":
        """Begin a recording.

        Args:
            options: How its windows are decoded.
            loop: Which loop does; None is `self.loop`, others are its siblings.

        Raises:
            OptionError: The model cannot do what is asked.
        """
        vocabulary = self.loop.vocabulary
        if not vocabulary.multilingual:
            if options.task == "translate":
                raise OptionError("task", "this model knows English only and cannot translate; use a multilingual one")
            if options.language not in (None, "en"):
                raise OptionError("language", f"this model knows English only, not {options.language!r}")
        elif options.language is not None and options.language not in vocabulary.languages:
            raise OptionError("language", f"this model does not know {options.language!r}")
        if options.assisted is True and self.loop.assistant is None:
            raise OptionError("assisted", "no assistant model is loaded")
        return RecognitionStream(loop or self.loop, options)


@dataclass(slots=True, eq=False)
class _Part:
    """One window as it was cut, with the holes of it that are decoded again."""

    jobs: int = 0
    """That have not come back."""
    found: list[tuple[Window, Decoded, Passage, list[Segment]]] = field(default_factory=list)


class RecognitionStream:
    """The windows of one recording. Fed in order by `push`; the loop delivers into it."""

    def __init__(self, loop: DecodingLoop, options: DecodingOptions, windows: WindowOptions | None = None) -> None:
        self._loop = loop
        self._options = options
        self._windows = windows or WindowOptions()
        self._spoken = SpokenLanguage(options.language or ("" if loop.vocabulary.multilingual else "en"))
        self._assistance = Assistance()
        self._submitted = 0  # jobs so far
        self._jobs: dict[int, tuple[Job, float]] = {}  # with the seconds that each has yet to bring to the text
        self._parts: deque[_Part] = deque()  # those whose text is not settled, in order of time
        self._segments: list[DecodedSegment] = []
        self._words: list[Word] = []
        self._unheard: list[Segment] = []
        self._failure: Exception | None = None

    @property
    def waiting(self) -> int:
        """Windows that have not come back."""
        return len(self._jobs)

    @property
    def waiting_s(self) -> float:
        """Seconds of the recording that they hold."""
        return sum(seconds for _, seconds in self._jobs.values())

    def push(self, speech: Sequence[Segment], waveform: NDArray[np.float32], offset: float, *, final: bool) -> float:
        """Queue the windows of a stretch of the recording.

        Args:
            speech: Its speech track, in seconds on the recording.
            waveform: Its samples, mono, 16 kHz, shape (samples,).
            offset: When it begins on the recording, in seconds.
            final: The recording ends with it. Otherwise its last window waits for more.

        Returns:
            The instant from which the next stretch must begin, in seconds on the recording.
        """
        packed = pack(speech, waveform, offset, self._windows)
        settled = packed if final else packed[:-1]
        for window in settled:
            part = _Part()
            self._parts.append(part)
            self._submit(part, window, gather(window, waveform, offset), speech, 0)
        end = offset + len(waveform) / SAMPLE_RATE_HZ
        if final:
            return end
        return packed[-1].span.start if packed else max(offset, end - self._windows.margin_s)

    def cancel(self) -> None:
        """Give up all windows that are still under way."""
        for job, _ in self._jobs.values():
            job.cancelled = True

    def settled(self) -> list[Word]:
        """The words, in order, of all that will not change any more: everything before has come back, too.

        Raises:
            DiaristError: A window could not be decoded.
        """
        if self._failure is not None:
            raise self._failure
        vocabulary, language = self._loop.vocabulary, self._spoken.code
        while self._parts and not self._parts[0].jobs:
            found = sorted(self._parts.popleft().found, key=lambda found: found[0].locate(found[2].start))
            for window, decoded, passage, speech in found:
                segment = segment_on_recording(passage, decoded, window, vocabulary)
                if segment.text.strip():
                    self._segments.append(segment)
                    self._words += words_on_recording(passage, decoded, window, speech, vocabulary, language)
        return self._words

    def result(self) -> Recognition:
        """Everything, once nothing is waiting; in order of time. Raises as `settled`."""
        words = self.settled()
        unheard = tuple(sorted(self._unheard))
        return Recognition(self._spoken.code, tuple(self._segments), tuple(words), unheard, self._assistance)

    def _submit(
        self, part: _Part, window: Window, waveform: NDArray[np.float32], speech: Sequence[Segment], round_: int
    ) -> None:
        inside = [heard for segment in speech if (heard := segment & window.span)]
        number = self._submitted  # not the job itself, which would keep itself and its sound alive

        def deliver(decoded: Decoded) -> None:
            del self._jobs[number]
            try:
                self._accept(part, window, waveform, inside, round_, decoded)
            except Exception as error:  # noqa: BLE001 - it concerns this recording, not the loop that delivers
                self._failure = error
            part.jobs -= 1

        def fail(error: Exception) -> None:
            del self._jobs[number]
            self._failure = error

        job = Job(torch.from_numpy(waveform), self._options, self._spoken, deliver, fail, assistance=self._assistance)
        self._jobs[number] = job, window.duration
        self._submitted += 1
        part.jobs += 1
        self._loop.submit(job)

    def _accept(
        self,
        part: _Part,
        window: Window,
        waveform: NDArray[np.float32],
        speech: list[Segment],
        round_: int,
        decoded: Decoded,
    ) -> None:
        """Keep a window's text, and queue again what it left out."""
        written = passages(decoded, self._loop.vocabulary.timestamp_begin, window.duration)
        part.found += [(window, decoded, passage, speech) for passage in written]
        covered = [Segment(passage.start, passage.end) for passage in written]
        for hole in holes(window.speech_inside(speech), covered, self._windows):
            rest = window.cut(hole.start, hole.end)
            # A window that came back empty would come back empty again.
            if round_ < _ROUNDS and rest.duration < window.duration - self._windows.min_hole_s:
                samples = waveform[round(hole.start * SAMPLE_RATE_HZ) : round(hole.end * SAMPLE_RATE_HZ)]
                self._submit(part, rest, samples, speech, round_ + 1)
            else:
                self._unheard += rest.pieces
