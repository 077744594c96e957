"""Faults for hours: workers killed, servers restarted, malformed requests, everything at once.

    scripts/soak kill --count 200        # kill -9 of the worker under load
    scripts/soak restart --count 100     # SIGTERM and a new server, under load
    scripts/soak malformed --count 20000 # and schemathesis over every operation
    scripts/soak fair --minutes 5        # hazards at full size, one by one: hazard_trials.py
    scripts/soak overload --minutes 5
    scripts/soak huge --count 20
    scripts/soak slow --minutes 3
    scripts/soak mixed --minutes 45      # all kinds of callers; memory, descriptors, threads and files are watched

Every caller opens a connection for each request, so that a closed one is never mistaken for a lost answer. An answer is
lost when a request that the server took in ends without a status. The server's own log is the other side of the ledger.
SIGINT ends `kill` and `restart` early, with the figures so far.
"""

import argparse
import asyncio
import contextlib
import difflib
import io
import json
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import psutil

import hazard_trials as trials

sys.path.insert(0, str(Path(__file__).resolve().parent / "load"))
import clips

ROOT = Path(__file__).resolve().parents[1]
FORM = {"parameters": '{"language": "en"}'}
_WORKER = "diarist.engine.worker"
_ALIKE = 0.5
_SAMPLE_S = 1.0
_BETWEEN_RESTS_S = 120.0
_REST_S = 15.0  # what was asked last is answered or given up by then, and its memory handed back (every 10 s)
_ANSWERS_BETWEEN = 10
"""Between two faults, at least: so that far more is answered than is lost. A server that stops answers its last ones."""
_PAUSE_S = 0.5  # after an answer that is none
_SMALL = {"ASR_MODEL": "tiny.en", "DIARIZATION_MODEL": "none"}
"""What is started a hundred times is small, and tells no speakers apart."""
SETTINGS = {
    "kill": _SMALL,
    "restart": _SMALL,
    "overload": {"DIARIST_MAX_WAITING": "32"},  # full within a minute on any machine
    "fair": {"DIARIST_API_KEYS": ",".join(trials.FAIR_KEYS)},
}
COUNTS = {"kill": 200, "restart": 100, "malformed": 20_000, "huge": 20}
MINUTES = {"mixed": 45.0, "fair": 5.0, "overload": 5.0, "slow": 3.0}
_WARM_UP_SHARE = 0.2
_MOST_GROWTH_MB_PER_H = 5.0
_SHORT_MIN = 20.0
_MEMORY = ("server MB", "worker MB")


HTTP = httpx2.Client(limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0), timeout=300)
"""One for all threads: making one costs as much as a short clip. It keeps no connection."""


class Server:
    """`diarist serve` in a process of its own."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.settings = settings or {}
        self.log = folder / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it and wait until it is ready; seconds that this took."""
        begun = time.monotonic()
        places = {"DIARIST_SPOOL_DIR": str(self.folder / "spool"), "DIARIST_PORT": str(self.port)}
        environment = {**os.environ, **places, **self.settings}
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

    def stop(self) -> "Stop":
        """SIGTERM, and what followed."""
        if self.process is None:
            return Stop(0, 0.0, 0.0)
        with httpx2.Client(base_url=self.url, timeout=5) as client:  # one connection, open before
            with contextlib.suppress(httpx2.TransportError):  # it may not listen yet
                client.get("/livez")
            begun = time.monotonic()
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(httpx2.TransportError):  # closed: not ready either
                while client.get("/readyz").status_code == 200:
                    pass
            unready_s = time.monotonic() - begun
        return Stop(self.process.wait(60), time.monotonic() - begun, unready_s)

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


@dataclass(frozen=True, slots=True)
class Stop:
    """How a server ended."""

    status: int
    seconds: float
    """From SIGTERM to the exit."""
    unready_s: float
    """From SIGTERM until `/readyz` said 503, or nothing."""


class Callers:
    """Threads that call until they are told to stop, and what they saw."""

    def __init__(self, calls: list[Callable[[random.Random], str]]) -> None:
        self.seen: Counter[str] = Counter()
        self.refused: list[float] = []
        """When a 503 came, on the monotonic clock."""
        self._stop = threading.Event()
        self._go = threading.Event()
        self._go.set()
        self._calling = [threading.Lock() for _ in calls]
        self._threads = [threading.Thread(target=self._run, args=(call, seed)) for seed, call in enumerate(calls)]
        for thread in self._threads:
            thread.start()

    def _run(self, call: Callable[[random.Random], str], seed: int) -> None:
        source = random.Random(seed)
        while not self._stop.is_set():
            self._go.wait()
            with self._calling[seed]:
                outcome = call(source)
                self.seen[outcome] += 1
            if outcome == "503":
                self.refused.append(time.monotonic())
            if not outcome.startswith("200"):
                time.sleep(_PAUSE_S)

    def wait_for_answers(self, count: int, limit_s: float = 120.0) -> None:
        """Wait until so many more have come, whole and right."""
        wanted, until = self.seen["200"] + count, time.monotonic() + limit_s
        while self.seen["200"] < wanted and time.monotonic() < until:
            time.sleep(0.01)

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """All calls have ended, and none begins."""
        self._go.clear()
        with contextlib.ExitStack() as calls:
            for calling in self._calling:
                calls.enter_context(calling)
            try:
                yield
            finally:
                self._go.set()

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
        status = 0
        try:
            files = {"file": ("a.wav", content)}
            with HTTP.stream("POST", f"{url}/predict", files=files, data=FORM, timeout=300) as answer:
                status = answer.status_code
                answer.read()
        except httpx2.ConnectError:
            return "not listening"
        except httpx2.TransportError as error:
            return f"truncated {status}" if status else f"broken off: {type(error).__name__}"
        if status != 200:
            return str(status)
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
    """The worker is killed under load, again and again; after every tenth kill one is stopped besides."""
    started_s = server.start()
    callers = Callers([good(server.url, known(server.url, server.folder))] * 3)
    struck: list[float] = []
    gone: dict[str, list[float]] = {"SIGKILL": [], "SIGSTOP": []}
    ready: list[float] = []
    signals = [name for number in range(count) for name in ("SIGKILL", "SIGSTOP")[: 1 + (number % 10 == 9)]]
    with contextlib.suppress(KeyboardInterrupt):
        for number, name in enumerate(signals, 1):
            callers.wait_for_answers(_ANSWERS_BETWEEN)
            worker = server.worker()
            if worker is None:
                continue
            struck.append(time.monotonic())
            worker.send_signal(getattr(signal, name))
            while server.worker() in (None, worker) and time.monotonic() - struck[-1] < 60:
                time.sleep(0.01)
            gone[name].append(time.monotonic() - struck[-1])
            ready.append(server.wait_ready())
            if number % 10 == 0:
                report("so far", {"strikes": number, "outcomes": dict(callers.seen)})
    callers.stop()
    worker = server.worker()
    stop = server.stop()
    orphans = worker is not None and worker.is_running()
    told = [at - max(strike for strike in struck if strike <= at) for at in callers.refused if at >= struck[0]]
    lost = sum(n for outcome, n in callers.seen.items() if outcome not in ("200", "503"))
    report(
        "kill -9 of the worker, and SIGSTOP",
        {
            "kills": len(gone["SIGKILL"]),
            "stops": len(gone["SIGSTOP"]),
            "outcomes": dict(callers.seen),
            "lost or wrong": lost,
            "first start s": round(started_s, 2),
            "new worker after a kill s max": round(max(gone["SIGKILL"], default=0), 2),
            "new worker after a stop s max": round(max(gone["SIGSTOP"], default=0), 2),
            "503 after a strike s median, max": [
                round(statistics.median(told or [0]), 2),
                round(max(told, default=0), 2),
            ],
            "ready again s max": round(max(ready, default=0), 2),
            "spool": server.spooled(),
            "orphans": orphans,
            "exit": stop.status,
        },
    )
    return lost == 0 and stop.status == 0 and not orphans and server.spooled() == 0 and len(ready) >= len(signals) * 0.9


def restart(server: Server, count: int) -> bool:
    """SIGTERM under load and a new server, again and again."""
    server.start()
    recordings = known(server.url, server.folder)
    callers = Callers([good(server.url, recordings)] * 3)
    stops: list[Stop] = []
    starts: list[float] = []
    with contextlib.suppress(KeyboardInterrupt):
        for number in range(1, count + 1):
            callers.wait_for_answers(_ANSWERS_BETWEEN // 3)
            stops.append(server.stop())
            starts.append(server.start())
            if number % 10 == 0:
                report("so far", {"restarts": number, "outcomes": dict(callers.seen)})
    callers.stop()
    stops.append(server.stop())
    logged, seen = server.answers_logged(), callers.seen
    # what was broken off was never taken in, if every answer that the server logged has come to a caller
    came = {status: seen[str(status)] for status in (200, 503, 429)}
    lost = sum(max(0, logged[status] - came[status]) for status in came) - len(recordings)
    truncated = sum(n for outcome, n in seen.items() if outcome.startswith("truncated"))
    wrong = seen["200 with another text"] + seen["hung"] + truncated + max(0, lost)
    report(
        "rolling restarts",
        {
            "restarts": len(starts),
            "outcomes": dict(seen),
            "logged": dict(logged),
            "truncated": truncated,
            "lost or wrong": wrong,
            "exits": dict(Counter(stop.status for stop in stops)),
            "exit s max": round(max(stop.seconds for stop in stops), 2),
            "unready ms median, max": [
                round(1000 * statistics.median(stop.unready_s for stop in stops)),
                round(1000 * max(stop.unready_s for stop in stops)),
            ],
            "start s median, max": [round(statistics.median(starts), 2), round(max(starts), 2)],
            "spool": server.spooled(),
        },
    )
    clean = all(stop.status == 0 and stop.seconds <= 30 for stop in stops)
    return wrong == 0 and clean and server.spooled() == 0


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
                found[f"{name} children"] = float(len(process.children(recursive=True)))
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


def by_name(samples: list[tuple[float, dict[str, float]]], after_s: float) -> dict[str, list[tuple[float, float]]]:
    """(Seconds, value) pairs of each quantity, from some time on."""
    found: dict[str, list[tuple[float, float]]] = {}
    for at, row in samples:
        for name, value in row.items() if at > after_s else ():
            found.setdefault(name, []).append((at, value))
    return found


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
    """Callers of all kinds at once.

    What a process keeps is read every other minute, when nothing has been asked of it for a moment: what it holds
    beside that for the requests of the moment swings by 50 MB.
    """
    server.start()
    recordings = known(server.url, server.folder)
    callers = Callers([*[good(server.url, recordings)] * 3, *others(server.url, recordings)])
    begun = told = time.monotonic()
    samples: list[tuple[float, dict[str, float]]] = []
    rests: list[tuple[float, dict[str, float]]] = []
    while time.monotonic() - begun < 60 * minutes:
        time.sleep(min(_SAMPLE_S, 6 * minutes))
        samples.append((time.monotonic() - begun, figures_of(server)))
        if time.monotonic() - told >= _BETWEEN_RESTS_S:
            with callers.resting():
                time.sleep(_REST_S)
                told = time.monotonic()
                rests.append((told - begun, figures_of(server)))
            least = {name: round(rests[-1][1].get(name, math.inf), 1) for name in _MEMORY}
            report(f"{(told - begun) / 60:.0f} min, at rest", {"requests": callers.seen.total(), **least})
    callers.stop()
    time.sleep(3)
    left = server.spooled()
    status = server.stop().status
    warm_up_s = _WARM_UP_SHARE * 60 * minutes
    values, kept = by_name(samples, warm_up_s), by_name(rests, warm_up_s)
    growth = {name: trend(kept.get(name, [])) for name in _MEMORY}
    wrong = {o: n for o, n in callers.seen.items() if "another" in o or "broken" in o or "hung" in o or " 5" in o}
    last = {name: round(value, 1) for name, value in samples[-1][1].items()} if samples else {}
    report(
        "mixed soak",
        {
            "minutes": minutes,
            "requests": callers.seen.total(),
            "outcomes": dict(callers.seen),
            "lost or wrong": wrong,
            "growth per hour, at rest": {name: asdict(found) for name, found in growth.items()},
            "growth per hour": {name: trend(rows).per_hour for name, rows in values.items()},
            "last": last,
            "files left": left,
            "exit": status,
        },
    )
    flat = all(found.per_hour <= _MOST_GROWTH_MB_PER_H for found in growth.values())
    return not wrong and left == 0 and status == 0 and (flat or minutes < _SHORT_MIN)  # short runs are all warm-up


def fair(server: Server, minutes: float) -> bool:
    server.start()
    sent = short_clips(server.folder)
    found = asyncio.run(trials.fair(server.port, sent[0], sent, minutes))
    report("fairness between keys", found)
    return server.stop().status == 0 and set(found["beside"]) == {200} and found["p95 ratio"] <= 1.5


def overload(server: Server, minutes: float) -> bool:
    server.start()
    found = asyncio.run(trials.overload(server.port, short_clips(server.folder), minutes))
    report("three times what it can do", found)
    told = found["429 after ms p50, p99"][1] <= 50 and found["goodput / peak"] >= 0.95
    return server.stop().status == 0 and set(found["answers"]) <= {200, 429} and told and found["queue deepest"] <= 32


def huge(server: Server, count: int) -> bool:
    server.start()
    resident = psutil.Process(server.pid).memory_info

    def spooled() -> int:
        return sum(size for path in (server.folder / "spool").rglob("*") if (size := _size(path)))

    found = asyncio.run(trials.huge(server.port, count, lambda: resident().rss, spooled))
    report("bodies of 10 GB", found)
    before, most = found["memory MB before, most"]
    return server.stop().status == 0 and set(found["answers"]) == {413} and most - before <= 32


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # removed meanwhile
        return path.stat().st_size if path.is_file() else 0
    return 0


def slow(server: Server, minutes: float, every_s: float) -> bool:
    server.start()
    found = asyncio.run(trials.slow(server.port, short_clips(server.folder)[0], minutes, every_s))
    report("five hundred who dawdle", found)
    alone, beside = found["p95 s alone, beside"]
    cut = found["cut off after s at most"]
    in_time = max(cut.values()) <= 45  # 30 s after the last byte that the buffers took, and these are large
    return server.stop().status == 0 and in_time and beside <= 1.1 * alone


def short_clips(folder: Path) -> list[bytes]:
    """Clips of 5 to 12 s; the first is of 10 s."""
    cut = [path for path in clips.cut(clips.sample(), folder / "clips") if clips.seconds_of(path) <= 12]
    return [path.read_bytes() for path in sorted(cut, key=lambda path: clips.seconds_of(path) != 10)]


@contextlib.contextmanager
def a_server(settings: Mapping[str, str]) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), settings)
        try:
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*COUNTS, *MINUTES])
    parser.add_argument("--count", type=int, help=f"by default {COUNTS}")
    parser.add_argument("--minutes", type=float, help=f"by default {MINUTES}")
    parser.add_argument(
        "--every", type=float, default=1.0, help="seconds between two requests of the one who asks seldom"
    )
    arguments = parser.parse_args()
    kind = arguments.kind
    count, minutes = arguments.count or COUNTS.get(kind, 0), arguments.minutes or MINUTES.get(kind, 0.0)
    if kind == "malformed":
        passed = malformed(count)
    else:
        runs: dict[str, Callable[[Server], bool]] = {
            "kill": lambda server: kill(server, count),
            "restart": lambda server: restart(server, count),
            "huge": lambda server: huge(server, count),
            "fair": lambda server: fair(server, minutes),
            "overload": lambda server: overload(server, minutes),
            "slow": lambda server: slow(server, minutes, arguments.every),
            "mixed": lambda server: mixed(server, minutes),
        }
        with a_server(SETTINGS.get(kind, {})) as server:
            passed = runs[kind](server)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
