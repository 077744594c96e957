"""One request in the worker: its session, driven piece by piece, and what it reports."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol

import torch

from diarist.engine.intake import Sound
from diarist.engine.messages import PartialText, Work
from diarist.engine.scheduler import Loop, is_device_broken, is_out_of_memory
from diarist.engine.wire import Advanced, Failed, Finished, Report
from diarist.errors import CancelledError, DiaristError, EngineError, OptionError, OutOfMemoryError
from diarist.pipeline import Progress, Session, SessionOptions
from diarist.request import Request
from diarist.timeline import Word

_REPORT_S = 0.25  # between two reports of the same request's progress
_log = logging.getLogger(__name__)


class Models(Protocol):
    """What the worker needs of `pipeline.Pipeline`."""

    def check(self, request: Request) -> None: ...
    def voice(self, waveform: Any) -> Any: ...
    def session(self, audio: Any, request: Request, options: SessionOptions | None = None) -> Session: ...


class Transcription:
    """A `scheduler.Task`: one recording through the pipeline.

    Args:
        id_: Of the request.
        work: The request.
        sound: Its recording.
        models: The pipeline.
        loop: Decodes its windows.
        executor: For what need not be done in the computing thread; None does it there.
        tell: Sends a report.
        wake: Makes the computing thread look again whether there is something to do; called from any thread.
        done: Told how many more seconds of sound need no more work.
    """

    def __init__(
        self,
        id_: str,
        work: Work,
        sound: Sound,
        models: Models,
        loop: Loop,
        executor: Executor | None,
        tell: Callable[[Report], None],
        wake: Callable[[], None],
        done: Callable[[float], None],
    ) -> None:
        self.id = id_
        self.over = False
        self._work, self._sound, self._models, self._loop = work, sound, models, loop
        self._tell, self._done = tell, done
        self._aside = None if executor is None else _Aside(executor, wake)
        self._session = self._run()
        self._seconds_done = 0.0
        self._reported = 0.0  # when, on the monotonic clock
        self._partials: list[PartialText] = []
        self._heard = 0.0  # end of the last partial

    @property
    def seconds_left(self) -> float:
        return max(0.0, (self._sound.seconds or 0.0) - self._seconds_done)

    @property
    def ready(self) -> bool:
        return self._sound.ready and not (self._aside is not None and self._aside.busy)

    def advance(self) -> bool:
        try:
            return next(self._session)
        except StopIteration as stop:
            self._flush("done", 1.0)
            self._done(stop.value.duration - self._seconds_done)
            self._end(Finished(self.id, stop.value))
        except Exception as error:
            if is_device_broken(error):
                raise
            self._end(Failed(self.id, worded(error)))
        return False

    def cancel(self) -> None:
        """Give it up. Twice is harmless."""
        if not self.over:
            self._end(Failed(self.id, CancelledError("the request was cancelled")))

    def _end(self, report: Report) -> None:
        self.over = True
        self._session.close()
        self._sound.close()
        self._tell(report)

    def _run(self) -> Session:
        self._models.check(self._work.request)
        if self._sound.voices and not self._work.request.diarize:
            raise OptionError("known_speakers", "they are told apart by diarization, which is switched off")
        voices = {}
        for name, waveform in self._sound.voices.items():
            voices[name] = self._models.voice(waveform)
            yield False
        options = SessionOptions(
            loop=self._loop,  # type: ignore[arg-type]  # the protocol stands for the real one
            progress=self._progressed,
            heard=self._hear if self._work.partials else None,
            voices=voices,
            executor=self._aside,
        )
        return (yield from self._models.session(self._sound.stream(), self._work.request, options))

    def _progressed(self, progress: Progress) -> None:
        gained = progress.seconds_done - self._seconds_done
        if gained > 0:
            self._seconds_done = progress.seconds_done
            self._done(gained)
        if self._partials or time.monotonic() - self._reported >= _REPORT_S:
            self._flush(progress.stage, progress.fraction)

    def _flush(self, step: str, fraction: float | None) -> None:
        self._reported = time.monotonic()
        self._tell(Advanced(self.id, step, fraction, tuple(self._partials)))
        self._partials = []

    def _hear(self, words: list[Word]) -> None:
        spoken = [word for word in words if word.text.strip()]
        if not spoken:
            return
        start = max(self._heard, spoken[0].start)
        end = max([start, *(word.end for word in spoken)])
        text = running_text(spoken, first=not self._heard)
        self._heard = max(end, 1e-9)
        self._partials.append(PartialText(text, start, end))


def running_text(words: Sequence[Word], *, first: bool) -> str:
    """Words as they stand in the running text, with the space before them unless they are the very first.

    >>> running_text([Word("well", 0, 1, 1.0), Word("-known", 1, 2, 1.0, joined=True)], first=False)
    ' well-known'
    """
    text = "".join(word.text if word.joined else f" {word.text}" for word in words)
    return text.lstrip() if first else text


def worded(error: Exception) -> DiaristError:
    """The error that a request ends with."""
    if isinstance(error, DiaristError):
        return error
    if is_out_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return OutOfMemoryError("the recording does not fit into this machine's memory; cut it into parts")
    _log.error("a recording could not be transcribed", exc_info=error)
    return EngineError("the recording could not be transcribed: an internal error")


class _Aside(Executor):
    """Hands one call at a time to another executor, and knows whether it is still at it."""

    def __init__(self, executor: Executor, wake: Callable[[], None]) -> None:
        self._executor, self._wake = executor, wake
        self._call: Future[Any] | None = None

    @property
    def busy(self) -> bool:
        return self._call is not None and not self._call.done()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._call = self._executor.submit(fn, *args, **kwargs)
        self._call.add_done_callback(lambda _: self._wake())
        return self._call
