"""From the bytes of a recording to its samples: the only door.

FFmpeg (through PyAV) reads what strangers send, so it runs in a process of its own, `sandbox.py`, from which everything
else is taken: files, network, processes, memory beyond a cap. One child decodes one recording and ends. It is forked
from a server that has PyAV ready, which is started with the first recording and ends with this process. This side opens
the file, hands over its descriptor (never a name), reads samples from a pipe and words the errors.

    with open_audio("meeting.mp3") as stream:
        for block in stream:              # float32, mono, 16 kHz, a minute at a time
            ...
    stream.warnings                       # "'meeting.mp3' ends after 0:12:31 although ..."

**Deadlines** do not punish a slow consumer. The child's allowance, `base_deadline_s + deadline_per_second x` seconds
decoded, is counted in its own processor time, which stands still while the pipe is full. For a child that hangs without
computing there is a second one, `wait_factor` times as long, counted only while this side waits for the child.
"""

import atexit
import contextlib
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import numpy as np
import soxr
from numpy.typing import NDArray

from diarist.audio import sandbox
from diarist.errors import (
    AudioCorruptError,
    AudioEmptyError,
    AudioError,
    AudioFormatError,
    AudioNotFoundError,
    AudioTimeoutError,
    AudioTooLargeError,
    OptionError,
)

SAMPLE_RATE = sandbox.SAMPLE_RATE

AudioSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""A path, the bytes of a file, or a file object opened for reading bytes (read from where it stands)."""

_ACCEPTED = "give it a wav, flac, mp3, m4a, ogg, opus, webm, aac, amr, wma or aiff file, or an mp4, mov or mkv video"
_MESSAGE_BYTES = 65_536  # longest JSON message that is believed
_LONGEST_CLAIM_S = 2.0**64  # more than FFmpeg can count
_SPOOL_CHUNK_BYTES = 1 << 20
_LOUDEST = 2.0**32  # beyond any integer scale that floats are written in; its square still fits in float32
_GONE_S = 10.0  # for the kernel to end a child that was killed
_CUT_SHORT_S, _CUT_SHORT_SHARE = 1.0, 0.02  # a header's duration may be off by so much, whichever is more


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one recording may cost."""

    max_duration_s: float = 4 * 3600
    """Longest recording, in seconds of decoded sound (4 h are 0.9 GiB of samples)."""
    max_native_bytes: int = 16 << 30
    """Most decoded bytes before conversion, as float32 in all channels: 8 channels at 192 kHz are 384 times 16 kHz mono."""
    max_input_bytes: int | None = None
    """Longest file. None: any file, and a stream without an end as far as `max_native_bytes`."""
    address_space_bytes: int = 1 << 30
    """Address space of the child. Real files need 0.15 GiB, libraries included."""
    base_deadline_s: float = 2.0
    """Processor time to start, to open the file and to find the first sound, in seconds."""
    deadline_per_second: float = 0.02
    """Further processor time for each decoded second: ten times what the slowest codec needs on one older core."""
    wait_factor: float = 10.0
    """How much longer than the processor time the child may be waited for: a busy machine, a slow disk."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header says. A claim: for progress and for people, never for allocating."""

    container: str
    """FFmpeg's short name: wav, mov (also mp4, m4a), matroska (also webm), ogg, ..."""
    codec: str
    sample_rate: int
    """In hertz, before conversion."""
    channels: int
    duration: float | None
    """In seconds; None where the header does not tell."""


class AudioStream(Iterator[NDArray[np.float32]]):
    """The samples of one recording in blocks; closes itself at the end, and as a context manager.

    Each block is mono float32 at 16 kHz, nominally in [-1, 1], all finite. Shape (block samples,); the last is shorter
    and never empty. Iterating raises `AudioError`s. One thread at a time; call `close()` between blocks to stop early.
    """

    def __init__(
        self,
        info: AudioInfo,
        pieces: Iterator[NDArray[np.float32]],
        block_s: float,
        warnings: list[str],
        close: Callable[[], None],
    ) -> None:
        self.info = info
        self.warnings = warnings
        """What a user should know about the result; complete when iteration has ended."""
        self._samples_read = 0
        self._close = close
        self._blocks = _assemble(pieces, round(block_s * SAMPLE_RATE), warnings)

    @property
    def seconds_read(self) -> float:
        """Length of the blocks handed out so far, in seconds."""
        return self._samples_read / SAMPLE_RATE

    def __next__(self) -> NDArray[np.float32]:
        try:
            block = next(self._blocks)
        except BaseException:  # the end, an error or a keyboard interrupt: no child is left behind
            self.close()
            raise
        self._samples_read += len(block)
        return block

    def close(self) -> None:
        """End the child, if one is still running. Further iteration yields nothing."""
        self._blocks.close()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_audio(
    source: AudioSource,
    *,
    limits: DecodeLimits = DecodeLimits(),
    block_s: float = 60.0,
    name: str | None = None,
) -> AudioStream:
    """Start decoding a recording.

    Args:
        source: A path (only from whoever runs this program: it is opened as given), bytes, or a binary file object.
            Bytes, pipes and other unseekable objects are first copied to an unlinked temporary file.
        limits: Caps on what is read and decoded.
        block_s: Length of a block, in seconds.
        name: What messages call the recording; by default its base name, else "the input".

    Returns:
        The stream, its `info` filled in. Close it, exhaust it, or use it as a context manager.

    Raises:
        AudioNotFoundError: The path cannot be opened.
        AudioEmptyError: There are no bytes.
        AudioFormatError: Not audio, or in a container or codec that is not read.
        AudioCorruptError: Damaged beyond reading.
        AudioTooLargeError: A cap was reached; also while iterating.
        AudioTimeoutError: The child did not finish in time; also while iterating.
        OptionError: `block_s` is not positive, or `source` is of another type.
    """
    _check_block(block_s)
    shown = _shown(name if name is not None else _own_name(source))
    with contextlib.ExitStack() as opened:
        file, start_bytes = _seekable(source, shown, limits, opened)
        size_bytes = os.fstat(file.fileno()).st_size - start_bytes
        if size_bytes <= 0:
            raise AudioEmptyError(f"{shown} holds no bytes; {_ACCEPTED}")
        if limits.max_input_bytes is not None and size_bytes > limits.max_input_bytes:
            raise _too_long_a_file(shown, limits.max_input_bytes)
        child = _Child(file.fileno(), _request(limits, start_bytes, size_bytes), shown, limits)
    with contextlib.ExitStack() as on_error:
        on_error.callback(child.close)
        info, states_duration = _read_info(child)
        if states_duration and info.duration is not None and info.duration > limits.max_duration_s:
            raise child.error("duration")
        on_error.pop_all()
    warnings: list[str] = []
    return AudioStream(info, _pieces(child, info, states_duration, warnings), block_s, warnings, child.close)


def decode(
    source: AudioSource,
    *,
    limits: DecodeLimits = DecodeLimits(),
    name: str | None = None,
) -> tuple[NDArray[np.float32], AudioInfo, list[str]]:
    """Decode a whole recording into memory. Arguments and errors as of `open_audio`.

    Returns:
        The waveform, mono at 16 kHz, shape (samples,); the header's facts; warnings.
    """
    samples = bytearray()  # grows in place, so the peak is the waveform and little more
    with open_audio(source, limits=limits, name=name) as stream:
        for block in stream:
            samples += block.data
    return np.frombuffer(samples, np.float32), stream.info, stream.warnings


def waveform_stream(waveform: NDArray[Any], sample_rate: int, block_s: float = 60.0) -> AudioStream:
    """The same blocks from samples that are already in memory, in this process.

    Args:
        waveform: Shape (samples,) or (channels, samples), at least as many samples as channels. Floats nominally in
            [-1, 1], or integers over the whole range of their type.
        sample_rate: In hertz.
        block_s: Length of a block, in seconds.

    Raises:
        OptionError: Another shape or type, or a rate outside 1 to 768 kHz.

    >>> [block.shape for block in waveform_stream(np.zeros((2, 48_000), np.int16), 48_000, block_s=0.75)]
    [(12000,), (4000,)]
    """
    _check_block(block_s)
    waveform = np.asarray(waveform)
    if waveform.ndim not in (1, 2) or waveform.dtype.kind not in "iuf":
        raise OptionError("waveform", "expected integers or floats in shape (samples,) or (channels, samples)")
    channels, samples = (1, *waveform.shape)[-2:]
    if waveform.ndim == 2 and (channels > samples or channels == 0):
        raise OptionError(
            "waveform", f"{channels} channels of {samples} samples; pass (channels, samples), not its transpose"
        )
    if not sandbox.MIN_RATE_HZ <= sample_rate <= sandbox.MAX_RATE_HZ:
        raise OptionError(
            "sample_rate", f"expected {sandbox.MIN_RATE_HZ} to {sandbox.MAX_RATE_HZ} Hz, not {sample_rate}"
        )
    info = AudioInfo("array", waveform.dtype.name, int(sample_rate), channels, samples / sample_rate)
    warnings: list[str] = []
    return AudioStream(info, _resampled(waveform, int(sample_rate), warnings), block_s, warnings, lambda: None)


def prepare() -> None:
    """Begin to start the decoder, so that the first recording need not wait for it. Returns at once and raises nothing."""
    with contextlib.suppress(AudioError):  # the first recording says it
        _decoders.prepare()


def sandbox_layers() -> tuple[str, ...]:
    """What confines the decoding child on this machine, for a start-up log. Starts one child the first time.

    Of "resource limits", "no new privileges", "no network", "system call filter" those that the kernel granted.
    """
    return _probe()[0]


def ffmpeg_version() -> str:
    """Version of the FFmpeg inside PyAV, as it calls itself: to hold against advisories."""
    return _probe()[1]


@functools.cache
def _probe() -> tuple[tuple[str, ...], str]:
    limits = DecodeLimits()
    with Path(os.devnull).open("rb") as nothing:
        child = _Child(nothing.fileno(), _request(limits, 0, 0), "the probe", limits)
    try:
        facts = child.header()
    finally:
        child.close()
    return tuple(facts["layers"]), str(facts["ffmpeg"])


# --- what goes to the child -------------------------------------------------------------------------------------------


def _request(limits: DecodeLimits, start_bytes: int, size_bytes: int) -> sandbox.Request:
    return sandbox.Request(
        start_bytes=start_bytes,
        size_bytes=size_bytes,
        max_duration_s=limits.max_duration_s,
        max_native_bytes=limits.max_native_bytes,
        address_space_bytes=limits.address_space_bytes,
        base_deadline_s=limits.base_deadline_s,
        deadline_per_second=limits.deadline_per_second,
    )


def _own_name(source: AudioSource) -> str:
    own = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", None)
    return os.path.basename(os.fspath(own)) if isinstance(own, (str, os.PathLike)) else ""  # noqa: PTH119 - keeps "a."


def _shown(name: str) -> str:
    r"""A name as it may stand in a message: one line, printable, not endless.

    >>> _shown("caf\x1b[31m.wav"), _shown("")
    ("'caf?[31m.wav'", 'the input')
    """
    printable = "".join(character if character.isprintable() else "?" for character in name)
    if len(printable) > 80:
        printable = f"{printable[:50]}…{printable[-29:]}"
    return f"'{printable}'" if printable else "the input"


def _seekable(
    source: AudioSource, shown: str, limits: DecodeLimits, opened: contextlib.ExitStack
) -> tuple[io.FileIO | BinaryIO, int]:
    """A file with a descriptor of a regular file, and where in it the recording begins, in bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        source = opened.enter_context(_open_path(source, shown))
    if not callable(getattr(source, "read", None)):
        raise OptionError("source", f"expected a path, bytes or a binary file, not {type(source).__name__}")
    # Only what reads the descriptor's own bytes: a gzip file also has a `fileno`, of the compressed file.
    raw = getattr(source, "raw", source)
    if isinstance(raw, io.FileIO) and raw.seekable() and os.path.isfile(raw.fileno()):  # noqa: PTH113 - a descriptor
        return raw, source.tell()
    spool = opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - `opened` closes it
    _copy(source, spool, shown, limits.max_input_bytes or limits.max_native_bytes)
    return spool, 0


def _open_path(path: str | os.PathLike[str], shown: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise AudioNotFoundError(f"{shown} does not exist; check the path") from None
    except IsADirectoryError:
        raise AudioNotFoundError(f"{shown} is a folder; name a file in it") from None
    except PermissionError:
        raise AudioNotFoundError(f"{shown} may not be read; check its permissions") from None
    except (OSError, ValueError):  # a name that no file can have: too long, with a NUL
        raise AudioNotFoundError(f"{shown} cannot be opened; check the path") from None


def _copy(source: BinaryIO, spool: Any, shown: str, max_bytes: int) -> None:
    copied = 0
    try:
        while data := source.read(_SPOOL_CHUNK_BYTES):
            if not isinstance(data, bytes):
                raise OptionError(
                    "source", f"expected a file opened for bytes, not one that reads {type(data).__name__}"
                )
            copied += len(data)
            if copied > max_bytes:
                raise _too_long_a_file(shown, max_bytes)
            spool.write(data)
        spool.flush()
    except OSError as error:
        raise AudioError(f"{shown} could not be read into a temporary file ({error.strerror or error})") from error


def _too_long_a_file(shown: str, max_bytes: int) -> AudioTooLargeError:
    return AudioTooLargeError(
        f"{shown} is longer than the limit of {_size(max_bytes)}; compress it or cut it into parts"
    )


def _check_block(block_s: float) -> None:
    if not 1 / SAMPLE_RATE <= block_s <= 86_400:
        raise OptionError("block_s", f"expected a length in seconds, above 0 and up to a day, not {block_s}")


# --- the fork server --------------------------------------------------------------------------------------------------


class _ForkServer:
    """The process that children are forked from; this side of `sandbox._ForkServer`."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = [entry for entry in sys.path if os.path.isabs(entry)]  # noqa: PTH117 - no Path is wanted
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own file, no shell, no name of a recording
                    [sys.executable, "-I", "-B", "-S", sandbox.__file__, json.dumps(paths)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={key: value for key, value in os.environ.items() if key == "LD_LIBRARY_PATH"},
                    start_new_session=True,
                )
            except OSError as error:
                self._orders.close()
                raise AudioError(f"the audio decoder cannot be started ({error.strerror})") from error

    def order(self, request: sandbox.Request, *descriptors: int) -> None:
        """Have a child forked. Raises an `OSError` if there is no server any more."""
        socket.send_fds(self._orders, [json.dumps(asdict(request)).encode()], descriptors)

    def close(self) -> None:
        """End it, and every child."""
        self._orders.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:  # somebody stopped it
            self._process.kill()
            self._process.wait()


class _Decoders:
    """The one fork server of this process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: _ForkServer | None = None

    def order(self, request: sandbox.Request, *descriptors: int) -> None:
        """Have a child forked, by a new server if there is none, or none any more."""
        with self._lock:
            try:
                try:
                    self._prepared().order(request, *descriptors)
                except ConnectionError:  # it was killed
                    self._close()
                    self._prepared().order(request, *descriptors)
            except OSError as error:
                raise AudioError(f"the audio decoder cannot be reached ({error.strerror})") from error

    def prepare(self) -> None:
        """Start the server, without waiting until it is ready."""
        with self._lock:
            self._prepared()

    def _prepared(self) -> _ForkServer:
        if self._server is None:
            self._server = _ForkServer()
        return self._server

    def close(self) -> None:
        """End the server; the next recording starts another."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


_decoders = _Decoders()
atexit.register(_decoders.close)


# --- what comes back --------------------------------------------------------------------------------------------------


class _Child:
    """The decoding process and its pipe. What comes through the pipe may have been written by the recording's author."""

    def __init__(self, descriptor: int, request: sandbox.Request, shown: str, limits: DecodeLimits) -> None:
        self.shown = shown
        self.limits = limits
        self._allowed_s = limits.base_deadline_s
        self._waited_s = 0.0
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                read_end, write_end = os.pipe()
                theirs.callback(os.close, write_end)
                self._pipe = ours.enter_context(open(read_end, "rb", buffering=0))  # noqa: PTH123 - a descriptor
                self._leash, end = socket.socketpair()
                ours.enter_context(self._leash)
                theirs.enter_context(end)
            except OSError as error:
                raise AudioError(f"the audio decoder cannot be reached ({error.strerror})") from error
            _decoders.order(request, descriptor, write_end, end.fileno())
            ours.pop_all()
        self._poll = select.poll()
        self._poll.register(self._pipe)

    def error(self, reason: str, detail: str = "") -> AudioError:
        """The error for a reason that the child gave."""
        shown, limits = self.shown, self.limits
        match reason:
            case "format":
                return AudioFormatError(
                    f"{shown} is not audio that diarist reads (no known kind of recording); {_ACCEPTED}"
                )
            case "no_sound":
                return AudioFormatError(f"{shown} has no sound track; give a video that has one, or the sound itself")
            case "codec":
                return AudioFormatError(
                    f"the sound of {shown} is coded as {detail}, which diarist does not read; {_ACCEPTED}"
                )
            case "channels":
                return AudioFormatError(f"{shown} claims {detail} channels; give it 1 to {sandbox.MAX_CHANNELS}")
            case "rate":
                return AudioCorruptError(
                    f"{shown} claims a sample rate of {detail} Hz; export it with a usual one (8 to 192 kHz)"
                )
            case "corrupt":
                return AudioCorruptError(
                    f"{shown} is damaged, nothing in it can be decoded; export or download it again"
                )
            case "duration":
                return AudioTooLargeError(
                    f"{shown} is longer than the limit of {_clock(limits.max_duration_s)}; cut it into parts"
                )
            case "native":
                return AudioTooLargeError(
                    f"{shown} decodes to more than the limit of {_size(limits.max_native_bytes)}; "
                    "lower its sample rate or its channels, or cut it into parts"
                )
            case "memory":
                return AudioTooLargeError(
                    f"{shown} needs more than {_size(limits.address_space_bytes)} of memory to decode; convert it to wav or flac"
                )
            case "deadline":
                return AudioTimeoutError(f"decoding {shown} took too long and was stopped; convert it to wav or flac")
            case "crashed":
                return AudioCorruptError(
                    f"the decoder crashed on {shown}, which is probably damaged; convert it to wav or flac"
                )
            case "unavailable":
                return AudioError(
                    f"the audio decoder does not start ({detail}); install it again: pip install --force-reinstall av"
                )
            case _:
                return AudioCorruptError(
                    f"the decoder failed on {shown}, which is probably damaged; convert it to wav or flac"
                )

    def allow(self, seconds_decoded: float) -> None:
        """Extend the deadline: so much has been decoded, in seconds of sound."""
        self._allowed_s = self.limits.base_deadline_s + self.limits.deadline_per_second * seconds_decoded

    def message(self) -> tuple[bytes, bytearray]:
        """The next message: its kind and payload.

        Raises:
            AudioError: The child died, took too long, or said something that it cannot have meant.
        """
        kind, length = sandbox.PREFIX.unpack(self._read(sandbox.PREFIX.size))
        if length > (sandbox.PIECE_BYTES if kind == b"S" else _MESSAGE_BYTES):
            raise self.error("failed")
        return kind, self._read(length)

    def header(self) -> dict[str, Any]:
        """The first message. Raises as `message`, and the error that the child reports instead of one."""
        kind, payload = self.message()
        if kind == b"T":
            self.outcome(payload)
        if kind != b"H":
            raise self.error("failed")
        return self._json(payload)

    def outcome(self, payload: bytearray) -> dict[str, Any]:
        """The last message, if decoding went well; raises the error that it reports if not."""
        tail = self._json(payload)
        if tail.get("reason"):
            raise self.error(str(tail["reason"]), _plain(tail.get("detail")))
        return tail

    def _json(self, payload: bytearray) -> dict[str, Any]:
        try:
            facts = json.loads(payload)
        except (ValueError, RecursionError):
            raise self.error("failed") from None
        if not isinstance(facts, dict):
            raise self.error("failed")
        return facts

    def close(self) -> None:
        """Kill the child, and wait until it is gone. Twice is harmless."""
        with contextlib.suppress(OSError):  # closed before, or its end came first
            self._leash.shutdown(socket.SHUT_WR)
            self._exit_code(_GONE_S)
        self._leash.close()
        self._pipe.close()

    def _read(self, count: int) -> bytearray:
        """Exactly `count` bytes from the pipe, the time spent waiting counted."""
        data = bytearray(count)
        unfilled = memoryview(data)
        while unfilled:
            started = time.monotonic()
            left_s = self._allowed_s * self.limits.wait_factor - self._waited_s
            ready = self._poll.poll(max(0.0, left_s) * 1000)
            self._waited_s += time.monotonic() - started
            if not ready:
                raise self.error("deadline")
            got = self._pipe.readinto(unfilled)
            if not got:
                raise self._died()
            unfilled = unfilled[got:]
        return data

    def _died(self) -> AudioError:
        """The error for a child that went without a word."""
        try:
            ended_by = -self._exit_code(1.0)
        except TimeoutError:  # it closed the pipe and stays
            return self.error("failed")
        return self.error("deadline" if ended_by in (signal.SIGPROF, signal.SIGXCPU) else "crashed")

    def _exit_code(self, timeout_s: float) -> int:
        """Of the child, once it is gone; 0 if the fork server went with it. Raises `TimeoutError`."""
        self._leash.settimeout(timeout_s)
        told = self._leash.recv(sandbox.EXIT_CODE.size)
        return int(sandbox.EXIT_CODE.unpack(told)[0]) if told else 0


def _read_info(child: _Child) -> tuple[AudioInfo, bool]:
    """The header's facts, and whether the container itself states its duration.

    Raises:
        AudioError: As of `_Child.header`.
    """
    facts = child.header()
    try:
        duration = None if facts["duration"] is None else float(facts["duration"])
        if duration is not None and not 0 <= duration < _LONGEST_CLAIM_S:
            raise child.error("failed")
        info = AudioInfo(
            container=_plain(facts["container"]),
            codec=_plain(facts["codec"]),
            sample_rate=int(facts["sample_rate"]),
            channels=int(facts["channels"]),
            duration=duration,
        )
        return info, bool(facts["states_duration"])
    except (ValueError, KeyError, TypeError, OverflowError):
        raise child.error("failed") from None


def _pieces(
    child: _Child, info: AudioInfo, states_duration: bool, warnings: list[str]
) -> Iterator[NDArray[np.float32]]:
    """The samples as they come, then the warnings of the child's last message."""
    samples = 0
    while True:
        kind, payload = child.message()
        if kind == b"T":
            tail = child.outcome(payload)
            warnings += _warnings(tail, child.shown, info, states_duration, samples / SAMPLE_RATE)
            return
        if kind != b"S" or len(payload) % sandbox.SAMPLE_BYTES:
            raise child.error("failed")
        samples += len(payload) // sandbox.SAMPLE_BYTES
        if samples > child.limits.max_duration_s * SAMPLE_RATE:
            raise child.error("duration")
        child.allow(samples / SAMPLE_RATE)
        yield np.frombuffer(payload, np.float32)


def _warnings(
    tail: dict[str, Any], shown: str, info: AudioInfo, states_duration: bool, seconds: float
) -> Iterator[str]:
    # FFmpeg's guess for MP3 is exact but for variable bit rates without a header; for raw AAC it is worth nothing.
    promised = info.duration if states_duration or info.container == "mp3" else None
    if promised is not None and promised - seconds > max(_CUT_SHORT_S, _CUT_SHORT_SHARE * promised):
        yield f"{shown} ends after {_clock(seconds)} although its header promises {_clock(promised)}: it seems cut short"
    elif tail.get("cut_short") is True:
        yield f"{shown} breaks off after {_clock(seconds)}: it is cut short or damaged"
    damaged = tail.get("damaged_packets")
    if isinstance(damaged, int) and damaged > 0:
        yield f"{damaged} damaged packet{'s' if damaged > 1 else ''} of {shown} could not be decoded"
    silence = tail.get("silence_s")
    if isinstance(silence, float) and silence >= 1.0:
        yield f"{silence:.1f} s of silence were put into {shown} where its time stamps leave gaps"
    if not seconds:
        yield f"{shown} holds no sound"


def _assemble(
    pieces: Iterator[NDArray[np.float32]], block_samples: int, warnings: list[str]
) -> Generator[NDArray[np.float32], None, None]:
    """Blocks of one length from pieces of any, with what is not a sample made silence."""
    silenced = 0
    pending: list[NDArray[np.float32]] = []
    pending_samples = 0
    for piece in pieces:
        rest = piece
        while pending_samples + len(rest) >= block_samples:
            cut = block_samples - pending_samples
            block = np.concatenate([*pending, rest[:cut]])
            silenced += _silence_impossible(block)
            yield block
            pending, pending_samples, rest = [], 0, rest[cut:]
        if len(rest):
            pending.append(rest)
            pending_samples += len(rest)
    if pending:
        block = np.concatenate(pending)
        silenced += _silence_impossible(block)
        yield block
    warnings += _silenced_warning(silenced)


def _silence_impossible(samples: NDArray[np.float32]) -> int:
    """Set NaN, infinities and absurdly large values to 0, in place, and count them."""
    impossible = ~(np.abs(samples) <= _LOUDEST)  # NaN compares false
    samples[impossible] = 0.0
    return int(np.count_nonzero(impossible))


def _silenced_warning(count: int) -> list[str]:
    return [f"{count} sample{'s' if count > 1 else ''} without a finite value became silence"] if count else []


def _resampled(waveform: NDArray[Any], sample_rate: int, warnings: list[str]) -> Iterator[NDArray[np.float32]]:
    """An array's samples as mono float32 at 16 kHz, some seconds at a time so that no second copy of it is made."""
    silenced = 0
    resampler = (
        None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
    )
    samples = waveform.shape[-1]
    step = 10 * sample_rate
    for first in range(0, samples, step):
        part = _floats(waveform[..., first : first + step])
        silenced += _silence_impossible(part)  # before resampling, which would spread it
        mono = part if part.ndim == 1 else part.mean(axis=0)
        yield mono if resampler is None else resampler.resample_chunk(mono, last=first + step >= samples)
    warnings += _silenced_warning(silenced)


def _floats(samples: NDArray[Any]) -> NDArray[np.float32]:
    """A copy as float32, integers scaled from the range of their type to [-1, 1)."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and then silence
            return samples.astype(np.float32)
    half_range = 2.0 ** (8 * samples.dtype.itemsize - 1)
    centre = half_range if samples.dtype.kind == "u" else 0.0
    return ((samples.astype(np.float64) - centre) / half_range).astype(np.float32)


def _plain(text: object) -> str:
    """A word of the child's, short and printable."""
    return "".join(character for character in str(text)[:100] if character.isprintable())


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(16 << 30), _size(512 << 20), _size(2000)
    ('16 GiB', '512 MiB', '2000 bytes')
    """
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


def _clock(seconds: float) -> str:
    """A length of time for people.

    >>> _clock(14_400), _clock(12.34)
    ('4:00:00', '12.3 s')
    """
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if seconds >= 60 else f"{seconds:.1f} s"
