"""The child: what is taken from it, what becomes of one that dies, hangs or lies, and that nothing of it is left behind."""

import gc
import json
import os
import pkgutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from audio_samples import encode, repeated, sound

from diarist.audio import SAMPLE_RATE, DecodeLimits, decode, ffmpeg_version, open_audio, sandbox, sandbox_layers
from diarist.audio.decode import _decoders
from diarist.errors import AudioCorruptError, AudioEmptyError, AudioError, AudioTimeoutError, AudioTooLargeError

SOURCE = Path(sandbox.__file__).parents[2]


def children_of(parent: int) -> set[int]:
    """Process ids, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it ended meanwhile
            continue
        if int(text.rpartition(")")[2].split()[1]) == parent:
            found.add(int(stat.parent.name))
    return found


def fork_server() -> int:
    """Its process id; it is started if need be."""
    _decoders.prepare()
    return _decoders._server._process.pid


def children() -> set[int]:
    """Process ids of the decoding children, zombies included."""
    return children_of(fork_server())


@pytest.fixture
def another_server():
    """What the test changes is what the fork server is started with."""
    _decoders.close()
    yield
    _decoders.close()


def wait_until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(scope="module")
def long_file(tmp_path_factory) -> Path:
    """Half an hour of silence, which is never decoded faster than the pipe is read."""
    path = tmp_path_factory.mktemp("long") / "long.aac"
    path.write_bytes(repeated(1_800, 16_000, "adts", "aac"))
    return path


# --- confinement ------------------------------------------------------------------------------------------------------


def test_the_layers_are_told():
    layers = sandbox_layers()
    assert set(layers) <= {"resource limits", "no new privileges", "no network", "system call filter"}
    assert layers[:2] == ("resource limits", "no new privileges")
    assert {"no network", "system call filter"} & set(layers)
    assert ffmpeg_version()[0].isdigit()


ATTEMPTS = """
import ctypes, json, os, resource, signal, socket, sys, threading
sys.path[:0] = [{folder!r}, *{path!r}]
import sandbox
request = sandbox.Request(0, 1, 60.0, 1 << 30, 1 << 30, 2.0, 0.02)
before = set(sys.modules)
layers, av = sandbox._confine(request)
libc = ctypes.CDLL(None, use_errno=True)

def outcome(act):
    try:
        return str(act())
    except BaseException as error:
        return type(error).__name__

def memory_file():
    handle = libc.syscall(319, b"a", 0)
    return "refused" if handle < 0 else outcome(lambda: os.write(handle, b"x"))

def thread():
    started = threading.Thread(target=print)
    started.start()
    return "started"

results = {{
    "open": outcome(lambda: open("/etc/passwd").read()),
    "write": outcome(lambda: open("written", "w").write("x")),
    "list": outcome(lambda: os.listdir("/")),
    "tcp": outcome(lambda: socket.socket().connect(("127.0.0.1", {port}))),
    "udp": outcome(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))),
    "unix": outcome(lambda: socket.socket(socket.AF_UNIX)),
    "fork": outcome(os.fork),
    "exec": outcome(lambda: os.execv("/bin/true", ["true"])),
    "kill": outcome(lambda: os.kill(os.getppid(), 0)),
    "ptrace": str(libc.ptrace(16, os.getppid(), 0, 0)),
    "thread": outcome(thread),
    "memory": outcome(lambda: len(bytearray(2 << 30))),
    "memory file": memory_file(),
    "limits": outcome(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))),
}}
os.write(1, json.dumps([layers, results, sorted(sys.modules)]).encode())
os._exit(0)
"""


def test_h08_h09_the_child_can_do_nothing_but_decode(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        script = ATTEMPTS.format(folder=str(SOURCE / "diarist" / "audio"), path=sys.path, port=server.getsockname()[1])
        answer = subprocess.run(
            [sys.executable, "-I", "-B", "-S", "-c", script], cwd=tmp_path, capture_output=True, check=True, timeout=30
        )
        with pytest.raises(TimeoutError):
            server.accept()
    layers, results, modules = json.loads(answer.stdout)
    assert not list(tmp_path.iterdir()) or (tmp_path / "written").stat().st_size == 0
    assert not {"numpy", "torch", "diarist", "scipy", "soxr"} & set(modules)
    import av

    parts = {part.name for part in pkgutil.walk_packages(av.__path__, "av.")} - {"av.__main__", "av.datasets"}
    assert parts <= set(modules)  # what PyAV would import later, it could not any more
    assert results["memory"] == "MemoryError"
    assert results["tcp"] in ("PermissionError", "OSError")  # refused, or a network without a route
    if "system call filter" in layers:
        for attempt in ("open", "write", "list", "tcp", "udp", "unix", "fork", "exec", "kill"):
            assert results[attempt] == "PermissionError", attempt
        assert results["limits"] == "ValueError"  # Python's word for EPERM
        assert results["ptrace"] == "-1"
        assert results["thread"] == "RuntimeError"
        assert results["memory file"] == "refused"


def run_filter(program: bytes, architecture: int, call: int) -> int:
    """A machine for the three instructions that the filter uses (see seccomp(2)); returns its verdict."""
    at, value = 0, 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        match code:
            case 0x20:
                value = {0: call, 4: architecture}[k]
            case 0x15:
                at += if_true if value == k else if_false
            case 0x06:
                return k


@pytest.mark.parametrize(
    ("machine", "architecture", "wanted", "unwanted"),
    [
        (
            "x86_64",
            0xC000003E,
            {0, 1, 3, 9, 17, 202, 231},
            {2, 41, 42, 56, 57, 59, 62, 101, 257, 272, 319, 425, 435, 437},
        ),
        ("aarch64", 0xC00000B7, {57, 63, 64, 67, 93, 222}, {56, 97, 117, 129, 198, 203, 220, 221, 279, 425, 435, 437}),
    ],
)
def test_the_filter_program(machine, architecture, wanted, unwanted):
    program = sandbox._filter_program(machine)
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050001
    verdicts = {call: run_filter(program, architecture, call) for call in range(500)}
    assert {verdicts[call] for call in wanted} == {allow}
    assert {verdicts[call] for call in unwanted} == {refuse}
    assert list(verdicts.values()).count(allow) <= len(sandbox._ALLOWED_CALLS)
    assert run_filter(program, architecture, 0x40000000) == refuse  # the x32 numbering
    assert run_filter(program, 0x40000003, 0) == kill  # 32-bit calls


def test_the_child_is_alone(long_file, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    before = children()
    with open_audio(long_file, block_s=1.0) as stream:
        next(stream)
        (child,) = children() - before
        folder = Path(f"/proc/{child}")
        assert b"secret" not in (folder / "environ").read_bytes()
        assert os.getsid(child) == child  # its own session and group: a Ctrl-C in the terminal is not for it
        assert long_file.name.encode() not in (folder / "cmdline").read_bytes()
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines())
        assert status["NoNewPrivs"] == "1"
        assert status["Threads"] == "1"
        if "system call filter" in sandbox_layers():
            assert status["Seccomp"] == "2"
        open_files = {str(entry.readlink()) for entry in (folder / "fd").iterdir()}
        assert {name for name in open_files if name.startswith("/")} == {str(long_file), "/dev/null"}
        limits = (folder / "limits").read_text()
        assert "Max core file size        0 " in limits
        assert "Max file size             0 " in limits


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_slow_reader_is_not_punished(long_file):
    """The child waits for the pipe: neither its processor time nor our waiting for it grows."""
    limits = DecodeLimits(base_deadline_s=1.2, deadline_per_second=0.0, wait_factor=2.0)
    with open_audio(long_file, limits=limits, block_s=50.0) as stream:
        for _ in range(4):
            next(stream)
            time.sleep(0.8)  # 3.2 s in all
    assert stream.seconds_read == 200


def test_h08_a_child_that_computes_too_long_is_ended(long_file):
    before = children()
    with pytest.raises(AudioTimeoutError, match=r"'long\.aac' took too long"):
        decode(long_file, limits=DecodeLimits(base_deadline_s=0.15, deadline_per_second=0.0, wait_factor=200.0))
    assert children() == before


LOOP = """
import sys
sys.path[:0] = [{folder!r}, *{path!r}]
import sandbox
sandbox._confine(sandbox.Request(0, 1, 60.0, 1 << 30, 1 << 30, 0.5, 0.02))
while True:
    pass
"""


def test_h08_a_decoder_that_loops_for_ever_is_ended_by_the_kernel():
    """Also where the parent ignores the timer's signal, which its children inherit."""
    script = LOOP.format(folder=str(SOURCE / "diarist" / "audio"), path=sys.path)
    previous = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        ended = subprocess.run([sys.executable, "-I", "-B", "-S", "-c", script], timeout=30, check=False)
    finally:
        signal.signal(signal.SIGPROF, previous)
    assert ended.returncode == -signal.SIGPROF


def test_h08_a_child_that_hangs_is_ended(long_file):
    before = children()
    limits = DecodeLimits(base_deadline_s=0.5, deadline_per_second=0.0, wait_factor=2.0)
    stream = open_audio(long_file, limits=limits, block_s=60.0)
    (child,) = children() - before
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(AudioTimeoutError):
        list(stream)
    assert children() == before


# --- deaths and lies --------------------------------------------------------------------------------------------------


def test_a_child_that_is_killed(long_file):
    before = children()
    stream = open_audio(long_file, block_s=60.0, name="talk")
    (child,) = children() - before
    os.kill(child, signal.SIGKILL)
    with pytest.raises(AudioCorruptError, match="the decoder crashed on 'talk'"):
        list(stream)
    assert children() == before


@pytest.mark.usefixtures("another_server")
@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGPROF, AudioTimeoutError), (signal.SIGXCPU, AudioTimeoutError), (signal.SIGSEGV, AudioCorruptError)],
)
def test_the_signal_that_ended_a_child_tells_why(number, kind, tmp_path, monkeypatch):
    source = lying(tmp_path, monkeypatch, f"say(b'H', header); os.kill(os.getpid(), {int(number)})")
    with pytest.raises(AudioError) as caught:
        decode(source)
    assert type(caught.value) is kind


HEADER = {
    "container": "wav",
    "codec": "x",
    "sample_rate": 16_000,
    "channels": 1,
    "duration": 1.0,
    "states_duration": True,
}
LIES = {
    "nothing": "",
    "half a prefix": "out(b'H\\x05')",
    "half a message": "out(struct.pack('=cI', b'S', 1000) + b'abc')",
    "too long a message": "out(struct.pack('=cI', b'H', 2**32 - 1) + b'a' * 70000)",
    "too long a piece": "say(b'H', header); out(struct.pack('=cI', b'S', 2**31) + b'a' * 70000)",
    "not json": "say(b'H', b'{')",
    "a list": "say(b'H', b'[1, 2]')",
    "deep json": "say(b'H', b'[' * 60000)",
    "not text": "say(b'H', b'\\xff\\xfe\\x00')",
    "no facts": "say(b'H', b'{}')",
    "infinite rate": "say(b'H', header.replace(b'16000', b'Infinity'))",
    "an infinite duration": "say(b'H', header.replace(b'1.0', b'Infinity').replace(b'wav', b'mp3'))",
    "no duration at all": "say(b'H', header.replace(b'1.0', b'NaN'))",
    "a rate in words": "say(b'H', header.replace(b'16000', b'\"fast\"'))",
    "samples first": "say(b'S', bytes(64)); say(b'H', header)",
    "an unknown kind": "say(b'X', b'')",
    "a second header": "say(b'H', header); say(b'H', header)",
    "half a sample": "say(b'H', header); say(b'S', bytes(5))",
    "an end without facts": "say(b'H', header); say(b'T', b'7')",
    "an unknown reason": 'say(b\'T\', b\'{"reason": "\\\\u001b[31mred", "detail": 7}\')',
    "a success at once": "say(b'T', b'{\"reason\": \"\"}')",
}
LIAR = """
import os, struct, sys
sys.path.insert(0, {folder!r})
import sandbox
def out(data): os.write(1, data)
def say(kind, payload): out(struct.pack("=cI", kind, len(payload)) + payload)
header = {header!r}
def serve(request, outcome):
{lie}
    os._exit(0)
sandbox._serve = serve
sandbox.main()
"""


def lying(tmp_path, monkeypatch, lie: str) -> bytes:
    script = tmp_path / "liar.py"
    folder, said = str(SOURCE / "diarist" / "audio"), textwrap.indent(lie, "    ")
    script.write_text(LIAR.format(folder=folder, header=json.dumps(HEADER).encode(), lie=said))
    monkeypatch.setattr(sandbox, "__file__", str(script))
    return b"any bytes"


@pytest.mark.usefixtures("another_server")
@pytest.mark.parametrize("kind", LIES)
def test_a_child_that_lies(kind, tmp_path, monkeypatch):
    """As if the recording had taken the decoder over."""
    with pytest.raises(AudioCorruptError) as caught:
        decode(lying(tmp_path, monkeypatch, LIES[kind]))
    assert str(caught.value).isprintable()
    assert children() == set()


@pytest.mark.usefixtures("another_server")
def test_a_child_that_never_stops_talking(tmp_path, monkeypatch):
    source = lying(tmp_path, monkeypatch, "say(b'H', header)\nwhile True: say(b'S', bytes(64000))")
    with pytest.raises(AudioTooLargeError, match="limit of 0:01:00"):
        decode(source, limits=DecodeLimits(max_duration_s=60))


@pytest.mark.usefixtures("another_server")
def test_a_child_that_stays_after_its_last_word(tmp_path, monkeypatch):
    lie = "import time; say(b'H', header); say(b'S', bytes(8)); say(b'T', b'{\"reason\": \"\"}'); time.sleep(60)"
    started = time.monotonic()
    assert len(decode(lying(tmp_path, monkeypatch, lie))[0]) == 2
    assert time.monotonic() - started < 5
    assert children() == set()


@pytest.mark.usefixtures("another_server")
def test_a_decoder_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SOURCE)])
    with pytest.raises(AudioError, match="install it again"):
        decode(b"any bytes")


@pytest.mark.usefixtures("another_server")
def test_an_interpreter_that_is_not_there(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(AudioError, match="cannot be started"):
        decode(b"any bytes")


# --- nothing left behind ----------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_process_and_no_descriptor_is_left(tmp_path, long_file):
    good = encode(sound(0.2, SAMPLE_RATE), SAMPLE_RATE)
    path = tmp_path / "a.wav"
    path.write_bytes(good)
    processes, files = children(), descriptors()

    def fails(source, kind, **options):
        with pytest.raises(kind):
            decode(source, **options)

    for _ in range(3):
        decode(good)
        decode(path)
        fails(b"", AudioEmptyError)
        fails(b"nothing", AudioError)
        fails(good[:40], AudioError)
        fails(good, AudioTooLargeError, limits=DecodeLimits(max_duration_s=0.1))
        fails(good, AudioTooLargeError, limits=DecodeLimits(max_input_bytes=10))
        with open_audio(long_file, block_s=1.0) as stream:
            next(stream)
        open_audio(long_file, block_s=1.0).close()
        with pytest.raises(KeyError), open_audio(long_file, block_s=1.0):
            raise KeyError
    assert children() == processes
    assert descriptors() == files


def test_h42_no_copy_of_the_input_stays_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_audio(encode(sound(5.0, SAMPLE_RATE), SAMPLE_RATE), block_s=1.0) as stream:
        next(stream)
        assert list(tmp_path.iterdir()) == []  # unlinked from the beginning: even kill -9 leaves nothing


PARENT = """
import os, signal, sys, time
from pathlib import Path
from diarist.audio import open_audio
stream = open_audio(sys.argv[1], block_s=1.0)
next(stream)
from diarist.audio.decode import _decoders
server = _decoders._server._process.pid
print(server, *Path(f"/proc/{server}/task/{server}/children").read_text().split(), flush=True)
time.sleep(60)
"""


def test_a_child_does_not_outlive_its_parent(long_file):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    arguments = [sys.executable, "-c", PARENT, str(long_file)]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        processes = [int(process) for process in parent.stdout.readline().split()]
        assert len(processes) == 2
        assert all(Path(f"/proc/{process}").exists() for process in processes)
        parent.kill()

    def gone(process: int) -> bool:
        try:
            return ") Z " in Path(f"/proc/{process}/stat").read_text()  # nobody may be there to reap it
        except OSError:
            return True

    assert wait_until(lambda: all(gone(process) for process in processes))


# --- the fork server --------------------------------------------------------------------------------------------------


def test_a_fork_server_that_is_killed_is_replaced(long_file):
    before = fork_server()
    stream = open_audio(long_file, block_s=60.0, name="talk")
    os.kill(before, signal.SIGKILL)
    with pytest.raises(AudioCorruptError, match="the decoder crashed on 'talk'"):
        list(stream)
    assert wait_until(lambda: ") Z " in Path(f"/proc/{before}/stat").read_text())
    assert len(decode(encode(sound(0.2, SAMPLE_RATE), SAMPLE_RATE))[0])
    assert fork_server() != before
    assert not Path(f"/proc/{before}").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python's own, about what was forgotten
def test_a_forgotten_stream_leaves_no_child(long_file):
    before = children()
    stream = open_audio(long_file, block_s=1.0)
    assert len(children() - before) == 1
    del stream
    gc.collect()
    assert wait_until(lambda: children() == before)


def test_the_fork_server_keeps_nothing_of_its_children(long_file):
    folder = Path(f"/proc/{fork_server()}/fd")
    before = len(list(folder.iterdir()))
    for _ in range(3):
        open_audio(long_file, block_s=1.0).close()
    assert wait_until(lambda: len(list(folder.iterdir())) == before)


def test_many_at_once():
    originals = [sound(0.5 + 0.1 * index, SAMPLE_RATE) for index in range(12)]
    with ThreadPoolExecutor(6) as pool:
        decoded = list(pool.map(lambda original: decode(encode(original, SAMPLE_RATE))[0], originals))
    for original, waveform in zip(originals, decoded, strict=True):
        np.testing.assert_allclose(waveform, original[0], atol=0.51 / 32768)


def test_one_file_object_by_several_children(tmp_path):
    """They share its offset, and must not disturb each other."""
    original = sound(3.0, 44_100)
    path = tmp_path / "a.m4a"
    path.write_bytes(encode(original, 44_100, "ipod", "aac"))
    expected, _, _ = decode(path)
    with path.open("rb") as file, ThreadPoolExecutor(4) as pool:
        for waveform, _, _ in pool.map(decode, [file] * 4):
            assert np.array_equal(waveform, expected)
