"""Sound read ahead of the computing thread, which never waits for a decoder.

Each request has a thread of its own here. It decodes the voices of known speakers and the beginning of the recording;
so the length of a short one is known exactly, whatever its header says. The rest of a long one is read a few blocks
ahead of where it is needed.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diarist.audio import AudioInfo, AudioStream, DecodeLimits, open_audio
from diarist.engine.messages import KnownSpeaker, Work
from diarist.engine.wire import EXPRESS_S
from diarist.errors import CancelledError, DiaristError, EngineError, OptionError

_log = logging.getLogger(__name__)

BLOCK_S = 10.0
"""What a recording comes in: short, so that no piece of work is long."""
VOICE_S = 30.0
"""Of a known speaker's recording, so much is heard."""
_AHEAD = 4  # blocks read ahead of a long recording: 2.5 MB
_AT_ONCE = threading.BoundedSemaphore(4)  # beginnings decoded at once, each by a process


class Sound(Protocol):
    """What there is of a request's sound."""

    seconds: float | None
    """Length of the recording: exact if it is short, else as its header claims."""
    long: bool
    voices: dict[str, NDArray[np.float32]]

    @property
    def ready(self) -> bool:
        """Whether the next block, or the end, is there."""

    def stream(self) -> AudioStream:
        """The recording. Once."""

    def close(self) -> None:
        """Nobody wants more of it. From any thread, any number of times."""


class Intake:
    """Reads one request's sound in a thread.

    Args:
        work: The request.
        limits: Of its recording.
        opened: Called from the thread, once, when the beginning is there: with None, or with the error instead of it.
        more: Called from the thread whenever `ready` may have turned true.
    """

    def __init__(
        self,
        work: Work,
        limits: DecodeLimits,
        opened: Callable[[DiaristError | None], None],
        more: Callable[[], None],
    ) -> None:
        self.seconds: float | None = None
        self.long = False
        self.voices: dict[str, NDArray[np.float32]] = {}
        self._work, self._limits, self._opened, self._more = work, limits, opened, more
        self._info = AudioInfo("", "", 0, 0, None)
        self._blocks: deque[NDArray[np.float32]] = deque()
        self._ended = False
        self._error: DiaristError | None = None
        self._warnings: list[str] = []
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="intake", daemon=True).start()

    @property
    def ready(self) -> bool:
        return bool(self._blocks) or self._ended

    def stream(self) -> AudioStream:
        return AudioStream(self._info, self._taken(), BLOCK_S, self._warnings, self.close)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _taken(self) -> Iterator[NDArray[np.float32]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.ready or self._closed)
                if not self._blocks:
                    if self._error is not None:
                        raise self._error
                    return
                block = self._blocks.popleft()
                self._changed.notify_all()
            yield block

    def _run(self) -> None:
        with contextlib.ExitStack() as opened:
            try:
                audio = self._begin(opened)
            except Exception as error:  # noqa: BLE001 - whatever it was, the request gets an answer
                self._opened(_worded(error))
                return
            self._opened(None)
            try:
                while not self._ended and self._wait_for_room():
                    self._take(audio)
                    self._more()
            except Exception as error:  # noqa: BLE001 - as above
                with self._changed:
                    self._error, self._ended = _worded(error), True
                    self._changed.notify_all()
                self._more()

    def _begin(self, opened: contextlib.ExitStack) -> AudioStream:
        """Read the voices, and as much of the recording as a short one holds."""
        with _AT_ONCE:
            if self._closed:
                raise CancelledError("the request was cancelled")
            self.voices = {known.name: _voice(known) for known in self._work.known_speakers}
            source, name = self._work.recording, self._work.name
            audio = opened.enter_context(open_audio(source, limits=self._limits, block_s=BLOCK_S, name=name))
            self._info = audio.info
            while audio.seconds_read <= EXPRESS_S and self._take(audio):
                pass
        self.long = not self._ended
        self.seconds = audio.info.duration if self.long else audio.seconds_read
        return audio

    def _take(self, audio: AudioStream) -> bool:
        """Read one block; False at the end."""
        block = next(audio, None)
        with self._changed:
            if block is None:
                self._warnings += audio.warnings
                self._ended = True
            else:
                self._blocks.append(block)
            self._changed.notify_all()
        return block is not None

    def _wait_for_room(self) -> bool:
        """False if nobody wants more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._blocks) < _AHEAD or self._closed)
            return not self._closed


def _worded(error: Exception) -> DiaristError:
    """The error as it may be shown."""
    if isinstance(error, DiaristError):
        return error
    _log.error("a recording could not be read", exc_info=error)
    return EngineError("the recording could not be read: an internal error")


def _voice(known: KnownSpeaker) -> NDArray[np.float32]:
    """The beginning of a known speaker's recording."""
    with open_audio(known.recording, block_s=VOICE_S, name=f"the reference of {known.name}") as audio:
        block = next(audio, None)
    if block is None:
        raise OptionError("known_speakers", f"the reference of {known.name!r} holds no sound")
    return block
