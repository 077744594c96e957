"""The child process that turns the bytes of a recording into samples, with everything else taken from it.

Run by file, never imported by the parent for its work: `python -I -B -S sandbox.py PATHS`. To start Python and to import
PyAV takes a tenth of a second, as long as it takes to decode minutes; so that is done once, by a *fork server*, which
itself never reads a byte of a recording. For each recording it forks a child, which has the recording as descriptor 0, a
pipe as descriptor 1 and nothing else.

The fork server gets its orders from a socket, descriptor 0: each a JSON request with three descriptors, those two and a
*leash*. When the other end of the leash is shut, the child is killed; when the child has ended, its exit code comes back
through it. When nobody holds the other end of the socket any more, the fork server ends, and with it all children.

What a child says on the pipe is a sequence of messages, each a `PREFIX` (kind, length) and a payload:

    H   once, first: JSON, the facts of the container (see `_header`)
    S   any number: mono float32 samples at 16 kHz, native byte order, at most `PIECE_BYTES`
    T   once, last: JSON, how it ended (see `_Outcome`)

A pipe that ends without a T is a child that was killed or crashed. The parent takes nothing in these messages on
trust, and words the errors itself: from here come only reasons out of a fixed list.

**Time** is the child's own: a timer of the kernel that runs only while this process uses the processor (ITIMER_PROF)
is set again after every piece, to `base_deadline_s + deadline_per_second x` the seconds decoded so far. A child that waits for
a slow reader of the pipe uses none; one that loops for ever is ended by SIGPROF. RLIMIT_CPU stands behind it.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.filter import Graph

SAMPLE_RATE = 16_000
SAMPLE_BYTES = 4  # float32
PREFIX = struct.Struct("=cI")
EXIT_CODE = struct.Struct("=i")
"""What comes back through a leash: negative is a signal."""
PIECE_BYTES = SAMPLE_RATE * SAMPLE_BYTES  # one second: little waiting for the first sound, few messages

# FFmpeg's names of demuxers. Whatever else its probing takes the bytes for (a playlist, an image, a subtitle) is refused.
FORMATS = ("wav", "w64", "flac", "ogg", "mp3", "mov", "matroska", "aac", "amr", "aiff", "asf")
# FFmpeg's names of *decoders*: MP3 is `mp3float`. Video decoders are not among them, so none is ever opened.
CODECS = (
    *("pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"),
    *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw"),
    *("adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "gsm", "gsm_ms"),  # telephone recorders
    *("flac", "alac", "mp3float", "mp2", "aac", "opus", "vorbis", "amrnb", "amrwb"),
    *("wmav1", "wmav2", "wmapro", "wmavoice", "ac3", "eac3"),
)
# Containers that state their own length. The others' is FFmpeg's guess from the bit rate, and may be far off.
STATES_DURATION = frozenset({"wav", "w64", "flac", "ogg", "mov", "matroska", "aiff", "asf"})
# Containers whose time stamps are their own, so that a gap in them is a gap in the sound.
STATES_TIMES = frozenset({"ogg", "mov", "matroska", "asf"})

PLACEHOLDER_BYTES = 2**31 - 2**16  # recorders that write to a pipe put such a length, or a larger one, for "unknown"
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000  # outside, one packet becomes hours, or one filter gigabytes
MAX_CHANNELS = 64  # of libswresample
QUEUE_SAMPLES = 8_192  # run the filters for so many samples at once: each time costs an exception
MIN_GAP_S = 0.1  # shorter gaps between time stamps are rounding
MAX_GAP_S = 60.0  # longer ones are broken time stamps, not pauses


class Refusal(Exception):  # noqa: N818 - it says what is done, and the parent's errors are the errors
    """The recording ends here, for a `reason` of the fixed list that `decode.py` words."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Request:
    """What the parent asks for. Fields as in `decode.DecodeLimits` where the names agree."""

    start_bytes: int
    """Where in the descriptor the recording begins."""
    size_bytes: int
    """How much of it there is; zero asks only for the layers in force."""
    max_duration_s: float
    max_native_bytes: int
    address_space_bytes: int
    base_deadline_s: float
    deadline_per_second: float


@dataclass(slots=True)
class _Outcome:
    """How decoding ended, and what a user should be warned of."""

    reason: str = ""
    detail: str = ""
    damaged_packets: int = 0
    cut_short: bool = False
    """The file stops inside something, or the demuxer gave up before its end."""
    silence_s: float = 0.0
    """Seconds of silence put where the container's time stamps leave a gap."""


# --- the layers -------------------------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 1, 22, 2, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000

# System calls left to the child once everything is imported, as (x86-64, AArch64) numbers; -1 where there is none. All
# others fail with EPERM: it opens no file and no socket, starts no process and no thread, signals nobody.
# fmt: off
_ALLOWED_CALLS = {
    "read": (0, 63), "readv": (19, 65), "pread64": (17, 67), "write": (1, 64), "writev": (20, 66), "close": (3, 57),
    "lseek": (8, 62), "fstat": (5, 80), "newfstatat": (262, 79), "poll": (7, -1), "ppoll": (271, 73),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "setitimer": (38, 103), "clock_gettime": (228, 113), "gettimeofday": (96, 169), "getrusage": (98, 165),
    "getpid": (39, 172), "gettid": (186, 178), "getrandom": (318, 278), "restart_syscall": (219, 128),
    "exit": (60, 93), "exit_group": (231, 94),
}
# fmt: on
_MACHINES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}  # column of the table, AUDIT_ARCH_*


def _limit(request: Request) -> None:
    """Resource limits; those that the parent itself has lower stay lower. Signals as in a new process."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent that ignores it would pass that on
    cpu_s = int(request.base_deadline_s + request.deadline_per_second * request.max_duration_s) + 2
    for kind, wanted in (
        (resource.RLIMIT_AS, request.address_space_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_FSIZE, 0),  # no file can grow, nor a memory file
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))


def _system_call(name: str, *arguments: object) -> bool:
    """Call a function of the C library that answers 0 when it worked. False also where there is no such function."""
    function = getattr(ctypes.CDLL(None), name, None)
    return function is not None and function(*arguments) == 0


def _cut_network() -> bool:
    """An own, empty network; where only root may ask for one, as root of an own user namespace."""
    return _system_call("unshare", _CLONE_NEWNET) or _system_call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)


def _filter_program(machine: str) -> bytes:
    """The Berkeley packet filter that lets `_ALLOWED_CALLS` pass: `struct sock_filter` entries (see seccomp(2))."""
    column, architecture = _MACHINES[machine]
    numbers = sorted(call[column] for call in _ALLOWED_CALLS.values() if call[column] >= 0)

    def entry(code: int, jump_true: int, jump_false: int, k: int) -> bytes:
        return struct.pack("=HBBI", code, jump_true, jump_false, k)

    load, jump_equal, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    allow, kill, refuse = 0x7FFF_0000, 0x8000_0000, 0x0005_0001  # refuse: SECCOMP_RET_ERRNO with EPERM
    program = [
        entry(load, 0, 0, 4),
        entry(jump_equal, 1, 0, architecture),
        entry(answer, 0, 0, kill),
        entry(load, 0, 0, 0),
    ]
    program += [entry(jump_equal, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    program += [entry(answer, 0, 0, refuse), entry(answer, 0, 0, allow)]
    return b"".join(program)


def _filter_system_calls() -> bool:
    """From here on only `_ALLOWED_CALLS`. False on another machine or a kernel without filters."""
    machine = os.uname().machine
    if machine not in _MACHINES or sys.maxsize < 2**32:
        return False
    program = _filter_program(machine)
    entries = ctypes.create_string_buffer(program, len(program))
    pointer = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(entries)))
    return _system_call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, pointer, 0, 0)


# --- decoding ---------------------------------------------------------------------------------------------------------


class _NamelessFile:
    """The recording as PyAV wants it. Without a `name`: FFmpeg would pick formats by its ending.

    Reads at positions of its own, so that the descriptor's shared offset, which the parent's file object also uses, stays.
    """

    def __init__(self, start_bytes: int, size_bytes: int) -> None:
        self.size = size_bytes
        self._start = start_bytes
        self._position = 0

    def peek(self, position: int, count: int) -> bytes:
        """Up to `count` bytes from `position` on."""
        return os.pread(0, max(0, min(count, self.size - position)), self._start + position)

    def read(self, count: int) -> bytes:
        data = self.peek(self._position, count)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if origin + offset < 0:
            raise ValueError("seek before the start")
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position


def _looks_known(head: bytes) -> bool:
    """Whether the first bytes are those of an allowed container: then it is damaged rather than something else."""
    asf, w64 = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), b"riff\x2e\x91\xcf\x11"
    starts = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"#!AMR", b"FORM", b"\x1aE\xdf\xa3", asf, w64)
    mpeg_frame = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    return head.startswith(starts) or head[4:8] in (b"ftyp", b"moov", b"mdat") or mpeg_frame


def _open(av: Any, file: _NamelessFile) -> "InputContainer":
    options = {"format_whitelist": ",".join(FORMATS), "codec_whitelist": ",".join(CODECS), "protocol_whitelist": "pipe"}
    try:
        # This copy of the codec list binds the probing that `av.open` does; `_audio_stream` binds the decoding.
        container: InputContainer = av.open(file, container_options=options, metadata_errors="replace")
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        raise Refusal("corrupt" if _looks_known(file.peek(0, 16)) else "format") from error
    return container


def _audio_stream(av: Any, container: "InputContainer") -> "AudioStream":
    """The first stream of sound, ready to decode on one thread; all others are skipped unread where possible."""
    if not container.streams.audio:
        raise Refusal("no_sound" if container.streams.video else "format")
    stream = container.streams.audio[0]
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    codec = stream.codec_context
    if codec is None or codec.name not in CODECS:  # None: a code number that FFmpeg knows no decoder for
        raise Refusal("codec", codec.name if codec else "something unknown")
    if not MIN_RATE_HZ <= codec.sample_rate <= MAX_RATE_HZ:
        raise Refusal("rate", str(codec.sample_rate))
    if not 1 <= codec.channels <= MAX_CHANNELS:
        raise Refusal("channels", str(codec.channels))
    codec.options = {"codec_whitelist": ",".join(CODECS)}
    codec.thread_count = 1
    return stream


def _container_name(container: "InputContainer") -> str:
    """FFmpeg's name, reduced to the one in `FORMATS` ("mov,mp4,m4a,3gp,3g2,mj2" is "mov")."""
    return next((name for name in container.format.name.split(",") if name in FORMATS), "")


def _claimed_duration(container: "InputContainer", stream: "AudioStream", file: _NamelessFile) -> float | None:
    """What the header says, in seconds; None where it says nothing.

    FFmpeg shortens the claim of a WAV or Wave64 file to what the file can hold; here it is stretched again, so that a
    file that was cut short is known as one.
    """
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / 1e6
    else:
        return None
    head = file.peek(0, 24)
    promised_bytes = 0
    if head.startswith(b"RIFF"):
        promised_bytes = int.from_bytes(head[4:8], "little") + 8
    elif head.startswith(b"riff"):
        promised_bytes = int.from_bytes(head[16:24], "little")
    if file.size < promised_bytes < PLACEHOLDER_BYTES:
        seconds *= promised_bytes / file.size
    return max(0.0, seconds)


def _ends_inside_ogg_page(file: _NamelessFile) -> bool:
    """Whether an Ogg file stops before the end of its last page (RFC 3533, section 6: at most 65 307 bytes)."""
    tail = file.peek(max(0, file.size - 65_307), 65_307)
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return not segments or len(page) < 27 + page[26] + sum(segments)


def _header(container: "InputContainer", stream: "AudioStream", file: _NamelessFile) -> dict[str, object]:
    """The facts of `decode.AudioInfo`, and whether the duration is the container's own word."""
    name = _container_name(container)
    codec = stream.codec_context
    return {
        "container": name,
        "codec": codec.codec.canonical_name,
        "sample_rate": codec.sample_rate,
        "channels": codec.channels,
        "duration": _claimed_duration(container, stream, file),
        "states_duration": name in STATES_DURATION,
    }


class _Mixer:
    """Frames of any format to mono float32 bytes at 16 kHz: averages the channels, then resamples (libswresample)."""

    def __init__(self, av: Any) -> None:
        self._av = av
        self._graph: Graph | None = None
        self._made_for: tuple[object, ...] = ()
        self._queued_samples = 0

    def push(self, frame: "AudioFrame") -> Iterator[bytes]:
        """The samples that became ready. A frame unlike the one before drains the filters and builds new ones."""
        kind = (frame.format.name, frame.sample_rate, frame.layout.name)
        if self._graph is None or kind != self._made_for:
            yield from self.drain()
            self._graph, self._made_for = self._build(frame), kind
        frame.pts = None  # times are kept by `_Decoder`; the filters only count samples
        self._graph.push(frame)
        self._queued_samples += frame.samples
        if self._queued_samples >= QUEUE_SAMPLES:
            yield from self._pull(self._graph)

    def drain(self) -> Iterator[bytes]:
        """What the filters still hold. They are gone afterwards."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._pull(self._graph)
        self._graph = None

    def _build(self, frame: "AudioFrame") -> "Graph":
        graph: Graph = self._av.filter.Graph()
        graph.threads = 1
        channels = frame.layout.nb_channels
        nodes = [
            graph.add_abuffer(
                sample_rate=frame.sample_rate,
                format=frame.format.name,
                layout=frame.layout.name,
                time_base=frame.time_base,
            ),
            graph.add("aformat", sample_fmts="fltp"),
        ]
        if channels > 1:  # plain shares, not FFmpeg's downmix matrices: those favour the centre and can exceed 1
            nodes.append(graph.add("pan", "mono|c0=" + "+".join(f"{1 / channels:.9f}*c{i}" for i in range(channels))))
        nodes += [
            graph.add("aresample", str(SAMPLE_RATE)),
            graph.add("aformat", sample_fmts="flt"),
            graph.add("abuffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph

    def _pull(self, graph: "Graph") -> Iterator[bytes]:
        self._queued_samples = 0
        with contextlib.suppress(self._av.error.BlockingIOError, self._av.error.EOFError):
            while True:
                ready = cast("AudioFrame", graph.pull())
                yield memoryview(ready.planes[0])[: ready.samples * SAMPLE_BYTES].tobytes()


class _Decoder:
    """Decodes one stream, counts what comes out against the caps, keeps the container's time and sends the samples."""

    def __init__(self, av: Any, request: Request, send: Callable[[bytes, bytes], None], outcome: _Outcome) -> None:
        self._av, self._request, self._send, self._outcome = av, request, send, outcome
        self._mixer = _Mixer(av)
        self._unsent = bytearray()
        self._kept_samples = 0
        self._native_bytes = 0
        self._time = 0.0  # where the next frame belongs, in seconds, by the samples before it

    def run(self, container: "InputContainer", stream: "AudioStream") -> None:
        """Decode to the end of the file, or of what can be read of it.

        Raises:
            Refusal: A cap was reached, or nothing at all could be decoded.
        """
        error_types = (self._av.error.FFmpegError, ValueError)
        follows_stamps = _container_name(container) in STATES_TIMES
        origin = (container.start_time or 0) / 1e6
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except error_types:
                self._outcome.cut_short = True
                break
            try:
                frames = packet.decode()
            except self._av.error.EOFError:
                break
            except error_types:
                self._outcome.damaged_packets += 1
                continue
            for frame in frames:
                if follows_stamps and frame.time is not None:
                    origin = self._follow(frame.time, origin)
                self._take(frame)
        self._keep(self._mixer.drain())
        self._flush()
        if not self._kept_samples and (self._outcome.damaged_packets or self._outcome.cut_short):
            raise Refusal("corrupt")

    def _follow(self, stamp: float, origin: float) -> float:
        """Put silence where the time stamps leave a gap, so that later words keep their times.

        Args:
            stamp: The frame's, in seconds of the container's clock.
            origin: The recording's start on that clock, in seconds.

        Returns:
            The origin for the frames to come: another one where the clock jumped (joined files, broken stamps).
        """
        gap = stamp - origin - self._time
        if gap < -MIN_GAP_S or gap > MAX_GAP_S:
            return stamp - self._time
        if gap > MIN_GAP_S:
            self._keep(self._mixer.drain())
            self._keep([bytes(round(gap * SAMPLE_RATE) * SAMPLE_BYTES)])
            self._outcome.silence_s += gap
            self._time += gap
        return origin

    def _take(self, frame: "AudioFrame") -> None:
        channels = frame.layout.nb_channels
        if not MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ:
            raise Refusal("rate", str(frame.sample_rate))
        if not 1 <= channels <= MAX_CHANNELS:
            raise Refusal("channels", str(channels))
        self._time += frame.samples / frame.sample_rate
        self._native_bytes += frame.samples * channels * SAMPLE_BYTES
        if self._native_bytes > self._request.max_native_bytes:
            raise Refusal("native")
        self._keep(self._mixer.push(frame))

    def _keep(self, pieces: Iterator[bytes] | list[bytes]) -> None:
        for piece in pieces:
            self._kept_samples += len(piece) // SAMPLE_BYTES
            if self._kept_samples > self._request.max_duration_s * SAMPLE_RATE:
                raise Refusal("duration")
            self._unsent += piece
        while len(self._unsent) >= PIECE_BYTES:
            self._flush(PIECE_BYTES)

    def _flush(self, count: int | None = None) -> None:
        if self._unsent:
            self._send(b"S", bytes(self._unsent[:count]))
            del self._unsent[:count]
            _wind_timer(self._request, self._kept_samples / SAMPLE_RATE)


def _wind_timer(request: Request, seconds_decoded: float) -> None:
    """Let the kernel end this process once it has computed for longer than the sound so far allows.

    Raises:
        Refusal: It already has. (The timer ticks in milliseconds; wound again within one, it would never ring.)
    """
    allowed = request.base_deadline_s + request.deadline_per_second * seconds_decoded
    left_s = allowed - time.process_time()
    if left_s <= 0:
        raise Refusal("deadline")
    signal.setitimer(signal.ITIMER_PROF, left_s)


def _send(kind: bytes, payload: bytes) -> None:
    unsent = memoryview(PREFIX.pack(kind, len(payload)) + payload)
    while unsent:
        unsent = unsent[os.write(1, unsent) :]


def _import_av() -> Any:
    """The `av` module, complete."""
    try:
        import av  # noqa: PLC0415 - the parent imports this module, and not PyAV

        # PyAV imports these when it first meets subtitles, which is too late to open files.
        import av.subtitles.codeccontext  # noqa: PLC0415
        import av.subtitles.stream  # noqa: PLC0415
        import av.subtitles.subtitle  # noqa: PLC0415
    except ImportError as error:
        raise Refusal("unavailable", str(error)) from error
    return av


def _confine(request: Request) -> tuple[list[str], Any]:
    """Take away what is not needed, import PyAV unless the fork server has, then take away the rest.

    Returns:
        The names of the layers in force, and the `av` module.
    """
    layers = ["resource limits"]
    _wind_timer(request, 0.0)
    _limit(request)
    if _system_call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        layers.append("no new privileges")
    if _cut_network():
        layers.append("no network")
    av = _import_av()
    if _filter_system_calls():
        layers.append("system call filter")
    return layers, av


def _serve(request: Request, outcome: _Outcome) -> None:
    layers, av = _confine(request)
    if not request.size_bytes:
        _send(b"H", json.dumps({"layers": layers, "ffmpeg": av.ffmpeg_version_info}).encode())
        return
    file = _NamelessFile(request.start_bytes, request.size_bytes)
    container = _open(av, file)
    stream = _audio_stream(av, container)
    header = _header(container, stream, file)
    outcome.cut_short = header["container"] == "ogg" and _ends_inside_ogg_page(file)
    _send(b"H", json.dumps(header).encode())
    _Decoder(av, request, _send, outcome).run(container, stream)


def _answer(request: Request) -> NoReturn:
    """The child's whole life; it leaves without any clean-up that could hang."""
    outcome = _Outcome()
    try:
        _serve(request, outcome)
    except Refusal as refusal:
        outcome.reason, outcome.detail = refusal.reason, refusal.detail
    except MemoryError:
        outcome.reason = "memory"
    except BrokenPipeError:
        os._exit(0)  # nobody listens any more
    except Exception as error:  # noqa: BLE001 - whatever a hostile file provokes is an answer too
        outcome.reason, outcome.detail = "failed", type(error).__name__
    with contextlib.suppress(BrokenPipeError):
        _send(b"T", json.dumps(asdict(outcome)).encode())
    os._exit(0)


# --- the fork server --------------------------------------------------------------------------------------------------

_ORDER_BYTES = 4096


class _ForkServer:
    """Forks a child for each order, ends it when its leash is let go, and says how it ended."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._leashes: dict[int, socket.socket] = {}  # by the child's process id
        self._children: dict[int, int] = {}  # process ids by the leash's descriptor
        self._poll = select.poll()

    def run(self) -> None:
        """Until nobody can give orders any more."""
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that there is something to wake up for
        self._poll.register(self._orders, select.POLLIN)
        self._poll.register(woken, select.POLLIN)
        while True:
            # What was registered first comes first: no leash gets the number of one that is closed later in the list.
            for descriptor, _ in self._poll.poll():
                if descriptor == self._orders.fileno():
                    if not self._take_order():
                        return
                elif descriptor == woken:
                    os.read(woken, _ORDER_BYTES)
                    self._reap()
                elif descriptor in self._children:
                    self._poll.unregister(descriptor)
                    os.kill(self._children[descriptor], signal.SIGKILL)  # not reaped yet, so it is nobody else

    def _take_order(self) -> bool:
        """Fork; False if there will be no more orders."""
        order, descriptors, _, _ = socket.recv_fds(self._orders, _ORDER_BYTES, 3)
        if not order:
            return False
        recording, pipe, end = descriptors
        leash = socket.socket(fileno=end)
        server = os.getpid()
        try:
            child = os.fork()
        except OSError:  # too many processes: the parent sees an end without a word
            leash.close()
        else:
            if not child:
                _become_child(recording, pipe, server)
                _answer(Request(**json.loads(order)))
            self._leashes[child] = leash
            self._children[leash.fileno()] = child
            self._poll.register(leash, select.POLLRDHUP)
        os.close(recording)
        os.close(pipe)
        return True

    def _reap(self) -> None:
        while self._leashes:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            with self._leashes.pop(child) as leash:
                del self._children[leash.fileno()]
                with contextlib.suppress(KeyError):  # it was let go
                    self._poll.unregister(leash)
                with contextlib.suppress(OSError):  # nobody asks any more
                    leash.send(EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))


def _become_child(recording: int, pipe: int, server: int) -> None:
    """Let go of everything that is the fork server's or another child's."""
    os.setsid()  # a Ctrl-C in the terminal is not for it
    _system_call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:
        os._exit(0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(recording, 0)
    os.dup2(pipe, 1)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def main() -> None:
    """Serve. The first argument is JSON: where to import PyAV from, as -I and -S leave no such place."""
    sys.path += json.loads(sys.argv[1])
    with contextlib.suppress(Refusal):  # a child will say it
        _import_av()
    _ForkServer(socket.socket(fileno=0)).run()


if __name__ == "__main__":
    main()
