"""Faults for hours: workers killed, servers restarted, malformed requests, everything at once.

    scripts/soak kill --count 200        # kill -9 of the worker under load
    scripts/soak restart --count 100     # SIGTERM and a new server, under load
    scripts/soak malformed --count 20000 # and schemathesis over every operation
    scripts/soak mixed --minutes 45      # all kinds of callers; memory, descriptors, threads and files are watched

Every caller opens a connection for each request, so that a closed one is never mistaken for a lost answer. An answer is
lost when a request that the server took in ends without a status. The server's own log is the other side of the ledger.
"""

import argparse
import contextlib
import difflib
import io
import itertools
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent / "load"))
import clips

ROOT = Path(__file__).resolve().parents[1]
FORM = {"parameters": '{"language": "en"}'}
_WORKER = "diarist.engine.worker"
_ALIKE = 0.5
_SAMPLE_S = 1.0
_FLOOR_S = 60.0
_WARM_UP_SHARE = 0.2
_MOST_GROWTH_MB_PER_H = 5.0
_SHORT_MIN = 20.0
_MEMORY = ("server MB", "worker MB")


HTTP = httpx2.Client(limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0), timeout=300)
"""One for all threads: making one costs as much as a short clip. It keeps no connection."""


class Server:
    """`diarist serve` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it and wait until it is ready; seconds that this took."""
        begun = time.monotonic()
        environment = {**os.environ, "DIARIST_SPOOL_DIR": str(self.folder / "spool"), "DIARIST_PORT": str(self.port)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "diarist", "serve"], stderr=log, env=environment)
        self.wait_ready()
        return time.monotonic() - begun

    def wait_ready(self, limit_s: float = 120.0) -> float:
        begun = time.monotonic()
        while time.monotonic() - begun < limit_s:
            with contextlib.suppress(httpx2.TransportError):
                if HTTP.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return time.monotonic() - begun
            time.sleep(0.02)
        raise SystemExit("the server is not ready")

    @property
    def pid(self) -> int:
        if self.process is None:
            raise SystemExit("the server has not been started")
        return self.process.pid

    def worker(self) -> psutil.Process | None:
        """The process with the models, if there is one just now."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                if _WORKER in child.cmdline():
                    return child
        return None

    def stop(self) -> tuple[int, float]:
        """SIGTERM; the exit status, and the seconds until it."""
        begun = time.monotonic()
        if self.process is None:
            return 0, 0.0
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60), time.monotonic() - begun

    def spooled(self) -> int:
        """Files of clients that lie in the spool."""
        return sum(path.is_file() and path.name != "lock" for path in (self.folder / "spool").rglob("*"))

    def answers_logged(self) -> Counter[int]:
        """Statuses of `/predict`, as the server's log has them."""
        found: Counter[int] = Counter()
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("event") == "request" and entry.get("route") == "/predict":
                    found[entry["status"]] += 1
        return found


class Callers:
    """Threads that call until they are told to stop, and what they saw."""

    def __init__(self, calls: list[Callable[[random.Random], str]]) -> None:
        self.seen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(call, seed)) for seed, call in enumerate(calls)]
        for thread in self._threads:
            thread.start()

    def _run(self, call: Callable[[random.Random], str], seed: int) -> None:
        source = random.Random(seed)
        while not self._stop.is_set():
            outcome = call(source)
            self.seen[outcome] += 1
            if not outcome.startswith("200"):
                time.sleep(0.1)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)
            if thread.is_alive():
                self.seen["hung"] += 1


def good(url: str, recordings: list[tuple[bytes, str]]) -> Callable[[random.Random], str]:
    """A caller that sends a clip whose text is known."""

    def call(source: random.Random) -> str:
        content, text = source.choice(recordings)
        try:
            answer = HTTP.post(f"{url}/predict", files={"file": ("a.wav", content)}, data=FORM, timeout=300)
        except httpx2.ConnectError:
            return "not listening"
        except httpx2.TransportError as error:
            return f"broken off: {type(error).__name__}"
        if answer.status_code != 200:
            return str(answer.status_code)
        return "200" if alike(answer.json()["text"], text) else "200 with another text"

    return call


def alike(text: str, expected: str) -> bool:
    """Whether two texts are of the same recording: batch mates may change how a doubtful word is heard."""
    return difflib.SequenceMatcher(None, text.split(), expected.split()).ratio() >= _ALIKE


def known(url: str, folder: Path, count: int = 6) -> list[tuple[bytes, str]]:
    """Short clips with what the server says about each alone."""
    chosen = [path for path in clips.cut(clips.sample(), folder / "clips") if clips.seconds_of(path) <= 12][:count]
    found = []
    for path in chosen:
        answer = HTTP.post(f"{url}/predict", files={"file": ("a.wav", path.read_bytes())}, data=FORM, timeout=300)
        found.append((path.read_bytes(), answer.json()["text"]))
    return found


def report(title: str, figures: dict[str, object]) -> None:
    print(f"{title}: {json.dumps(figures, default=str)}", flush=True)


def kill(server: Server, count: int) -> bool:
    """The worker is killed under load, again and again."""
    started_s = server.start()
    callers = Callers([good(server.url, known(server.url, server.folder))] * 6)
    unready, ready = [], []
    for _ in range(count):
        time.sleep(random.uniform(0.2, 1.5))
        worker = server.worker()
        if worker is None:
            continue
        begun = time.monotonic()
        worker.kill()
        while server.worker() in (None, worker) and time.monotonic() - begun < 60:
            time.sleep(0.01)
        unready.append(time.monotonic() - begun)
        ready.append(server.wait_ready())
    callers.stop()
    worker = server.worker()
    status, _ = server.stop()
    orphans = worker is not None and worker.is_running()
    lost = sum(n for outcome, n in callers.seen.items() if outcome not in ("200", "503"))
    report(
        "kill -9 of the worker",
        {
            "kills": len(ready),
            "outcomes": dict(callers.seen),
            "lost or wrong": lost,
            "first start s": round(started_s, 2),
            "new worker s max": round(max(unready, default=0), 2),
            "ready again s max": round(max(ready, default=0), 2),
            "spool": server.spooled(),
            "orphans": orphans,
            "exit": status,
        },
    )
    return lost == 0 and status == 0 and not orphans and server.spooled() == 0 and len(ready) >= count * 0.9


def restart(server: Server, count: int) -> bool:
    """SIGTERM under load and a new server, again and again."""
    server.start()
    callers = Callers([good(server.url, known(server.url, server.folder))] * 6)
    exits: Counter[int] = Counter()
    stops, starts = [], []
    for _ in range(count):
        time.sleep(random.uniform(0.2, 1.0))
        status, seconds = server.stop()
        exits[status] += 1
        stops.append(seconds)
        starts.append(server.start())
    callers.stop()
    exits[server.stop()[0]] += 1
    logged, seen = server.answers_logged(), callers.seen
    # what was broken off was never taken in, if every answer that the server logged has come to a caller
    came = seen["200"] + seen["503"] + seen["429"]
    wrong = seen["200 with another text"] + seen["hung"] + max(0, logged[200] + logged[503] + logged[429] - 6 - came)
    report(
        "rolling restarts",
        {
            "restarts": count,
            "outcomes": dict(seen),
            "logged": dict(logged),
            "lost or wrong": wrong,
            "exits": dict(exits),
            "stop s max": round(max(stops), 2),
            "start s max": round(max(starts), 2),
            "spool": server.spooled(),
        },
    )
    return wrong == 0 and set(exits) == {0} and max(stops) <= 30 and server.spooled() == 0


def malformed(count: int) -> bool:
    """What the schema test sends, in numbers: `count` malformed requests, and cases of every operation in proportion."""
    environment = {**os.environ, "DIARIST_FUZZ_CASES": str(max(1, count // 25))}
    command = [sys.executable, "-m", "pytest", "-q", "tests/server/test_server_schema.py", "--durations=20"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    report("malformed requests", {"count": count, "exit": done.returncode, "tail": done.stdout.splitlines()[-1:]})
    return done.returncode == 0


def others(url: str, recordings: list[tuple[bytes, str]]) -> list[Callable[[random.Random], str]]:
    """Callers that leave, stream, cancel, send rubbish or too much."""
    transcriptions = f"{url}/v1/audio/transcriptions"

    def leaves(source: random.Random) -> str:
        with contextlib.suppress(httpx2.TransportError):
            files = {"file": ("a.wav", recordings[0][0])}
            HTTP.post(f"{url}/predict", files=files, data=FORM, timeout=source.uniform(0.01, 1.0))
        return "left"

    def streams(source: random.Random) -> str:
        content, text = source.choice(recordings)
        form = {"model": "m", "stream": "true", "language": "en"}
        with contextlib.suppress(httpx2.TransportError):
            answer = HTTP.post(transcriptions, files={"file": ("a.wav", content)}, data=form, timeout=300)
            if answer.status_code != 200:
                return f"stream {answer.status_code}"
            told = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            return "stream" if told and alike(told[-1].get("text", ""), text) else "stream with another text"
        return "stream broken off"

    def rubbish(source: random.Random) -> str:
        try:
            answer = HTTP.post(url, content=source.randbytes(source.randint(0, 100_000)), timeout=60)
        except httpx2.TransportError:
            return "rubbish broken off"
        return "rubbish" if answer.status_code in (413, 415, 422, 429) else f"rubbish {answer.status_code}"

    def cancels(_: random.Random) -> str:
        with contextlib.suppress(httpx2.TransportError):
            entries = HTTP.get(f"{url}/v1/requests", timeout=60).json()["data"]
            for entry in entries:
                if entry["client_request_id"] == "to be cancelled" and entry["status"] in ("queued", "running"):
                    HTTP.delete(f"{url}/v1/requests/{entry['id']}", timeout=60)
        time.sleep(0.5)
        return "cancelled some"

    def cancelled(source: random.Random) -> str:
        content, _ = source.choice(recordings)
        headers = {"x-client-request-id": "to be cancelled"}
        with contextlib.suppress(httpx2.TransportError):
            files = {"file": ("a.wav", content)}
            status = HTTP.post(f"{url}/predict", files=files, data=FORM, headers=headers, timeout=300).status_code
            return "cancelled" if status in (200, 499, 429) else f"cancelled {status}"
        return "cancelled broken off"

    def varied(source: random.Random) -> str:
        """A clip of a length that hardly comes twice: what is kept for each length must not be kept for ever."""
        content = cut_short(source.choice(recordings)[0], source.uniform(1.0, 8.0))
        try:
            answer = HTTP.post(f"{url}/predict", files={"file": ("a.wav", content)}, data=FORM, timeout=300)
        except httpx2.TransportError:
            return "varied broken off"
        return f"varied {answer.status_code}"

    return [leaves, streams, streams, rubbish, cancels, cancelled, varied]


def cut_short(content: bytes, seconds: float) -> bytes:
    """The beginning of a wav file."""
    cut = io.BytesIO()
    with wave.open(io.BytesIO(content)) as source, wave.open(cut, "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(round(seconds * source.getframerate())))
    return cut.getvalue()


def figures_of(server: Server) -> dict[str, float]:
    """What must not grow."""
    worker = server.worker()
    found = {"files": float(server.spooled())}
    for name, process in (("server", psutil.Process(server.pid)), ("worker", worker)):
        if process is not None:
            with contextlib.suppress(psutil.Error):
                found[f"{name} MB"] = process.memory_info().rss / 1e6
                found[f"{name} descriptors"] = float(process.num_fds())
                found[f"{name} threads"] = float(process.num_threads())
                found[f"{name} children"] = float(len(process.children()))
    return found


@dataclass(frozen=True, slots=True)
class Trend:
    """The straight line through what was seen of a quantity, by least squares."""

    per_hour: float
    error: float
    """One standard error of `per_hour`."""
    late_per_hour: float
    """Of the last third alone: near 0 where a quantity has found its level, whatever it rose before."""


def trend(rows: list[tuple[float, float]]) -> Trend:
    """Of (seconds, value) pairs in order of time."""
    slope, error = _line(rows)
    late, _ = _line(rows[len(rows) * 2 // 3 :])
    return Trend(round(3600 * slope, 2), round(3600 * error, 2), round(3600 * late, 2))


def floors(rows: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The least of each minute: what a process keeps, without what the request of the moment needs on top."""
    minutes = itertools.groupby(rows, key=lambda row: row[0] // _FLOOR_S)
    return [((minute + 0.5) * _FLOOR_S, min(value for _, value in group)) for minute, group in minutes]


def _line(rows: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope of the least-squares line, and its standard error; zeros where there are too few rows for one."""
    if len(rows) < 3:
        return 0.0, 0.0
    mean_t, mean_v = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    spread = sum((t - mean_t) ** 2 for t, _ in rows)
    if not spread:
        return 0.0, 0.0
    slope = sum((t - mean_t) * (v - mean_v) for t, v in rows) / spread
    left = sum((v - mean_v - slope * (t - mean_t)) ** 2 for t, v in rows)
    return slope, math.sqrt(left / (len(rows) - 2) / spread)


def mixed(server: Server, minutes: float) -> bool:
    """Callers of all kinds at once."""
    server.start()
    recordings = known(server.url, server.folder)
    callers = Callers([*[good(server.url, recordings)] * 3, *others(server.url, recordings)])
    begun = told = time.monotonic()
    samples: list[tuple[float, dict[str, float]]] = []
    while time.monotonic() - begun < 60 * minutes:
        time.sleep(min(_SAMPLE_S, 6 * minutes))
        seen = figures_of(server)
        samples.append((time.monotonic() - begun, seen))
        if time.monotonic() - told >= _FLOOR_S:
            lately, told = told - begun, time.monotonic()
            rows = [row for at, row in samples if at > lately]
            least = {name: round(min(row.get(name, math.inf) for row in rows), 1) for name in _MEMORY}
            report(f"{(told - begun) / 60:.0f} min, least", {"requests": callers.seen.total(), **least})
    callers.stop()
    time.sleep(3)
    left = server.spooled()
    status, _ = server.stop()
    warm = [sample for sample in samples if sample[0] > _WARM_UP_SHARE * 60 * minutes]
    names = sorted(set(itertools.chain.from_iterable(row for _, row in samples)))
    values = {name: [(t, row[name]) for t, row in warm if name in row] for name in names}
    kept = {name: trend(floors(values[name])) for name in _MEMORY}
    wrong = {o: n for o, n in callers.seen.items() if "another" in o or "broken" in o or "hung" in o or " 5" in o}
    last = {name: round(value, 1) for name, value in samples[-1][1].items()} if samples else {}
    report(
        "mixed soak",
        {
            "minutes": minutes,
            "requests": callers.seen.total(),
            "outcomes": dict(callers.seen),
            "lost or wrong": wrong,
            "least of each minute": {name: asdict(found) for name, found in kept.items()},
            "growth per hour": {name: trend(rows).per_hour for name, rows in values.items()},
            "last": last,
            "files left": left,
            "exit": status,
        },
    )
    flat = all(found.per_hour <= _MOST_GROWTH_MB_PER_H for found in kept.values())
    return not wrong and left == 0 and status == 0 and (flat or minutes < _SHORT_MIN)  # short runs are all warm-up


@contextlib.contextmanager
def a_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["kill", "restart", "malformed", "mixed"])
    parser.add_argument("--count", type=int, help="kills, restarts or requests; by default 200, 100 and 20 000")
    parser.add_argument("--minutes", type=float, default=45.0)
    arguments = parser.parse_args()
    count = arguments.count or {"kill": 200, "restart": 100, "malformed": 20_000, "mixed": 0}[arguments.kind]
    if arguments.kind == "malformed":
        passed = malformed(count)
    else:
        with a_server() as server:
            runs = {"kill": kill, "restart": restart}
            passed = (
                mixed(server, arguments.minutes) if arguments.kind == "mixed" else runs[arguments.kind](server, count)
            )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
