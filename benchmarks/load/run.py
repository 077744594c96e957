"""Load on two servers after one another, in one table: ours, and the original's design on the same weights.

    python benchmarks/load/run.py --clients 1 4 16 64 --seconds 60 --out FOLDER    # 9 to 10 minutes in all

Throughput counts the audio of answers that came inside the run. Latencies are those of answered requests. Both servers
run with the same number of processor threads, and locust beside them on the same machine.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import clips

HERE = Path(__file__).resolve().parent
_LONGEST_START_S = 120.0
_LONGEST_STOP_S = 40.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one server did with so many clients."""

    server: str
    clients: int
    figures: dict[str, float]


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextlib.contextmanager
def serving(command: Sequence[str], url: str, health: str, threads: int, log: Path) -> Iterator[None]:
    """A server in a process of its own, ready."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "DIARIST_THREADS": str(threads)}
    with log.open("wb") as errors, subprocess.Popen(command, stderr=errors, env=environment) as child:
        try:
            until = time.monotonic() + _LONGEST_START_S
            while not is_up(url + health):
                if child.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield
        finally:
            child.terminate()
            try:
                child.wait(_LONGEST_STOP_S)
            except subprocess.TimeoutExpired:  # the original's design answers everybody first who has long gone
                child.kill()


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] if ordered else float("nan")


def measure(url: str, health: str, clients: int, seconds: int, folder: Path) -> dict[str, float]:
    """One row of the table."""
    result = folder / "result.json"
    environment = {**os.environ, "LOAD_CLIPS": str(folder / "clips"), "LOAD_RESULT": str(result), "LOAD_HEALTH": health}
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
    command += ["-u", str(clients + 1), "-r", "100", "-t", f"{seconds}s", "--stop-timeout", "0", "-H", url]
    result.unlink(missing_ok=True)
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=seconds + 120)
    if not result.exists():
        raise SystemExit(f"locust (pip install '.[bench]') gave no result: {done.stderr[-2000:]}")
    raw = json.loads(result.read_text())
    waits = [wait for _, wait in raw["answered"]]
    return {
        "throughput": sum(length for length, _ in raw["answered"]) / raw["seconds"],
        "p50": percentile(waits, 0.5),
        "p95": percentile(waits, 0.95),
        "p99": percentile(waits, 0.99),
        "answered": len(waits),
        "rejected": raw["rejected"],
        "failed": raw["failed"],
        "health_p99_ms": 1000 * percentile(raw["probes"], 0.99),
        "stall_ms": 1000 * loop_stall(url),
    }


def loop_stall(url: str) -> float:
    """The longest stall of the event loop since this was last asked, in seconds; NaN where nobody counts it."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
            page = response.read().decode()
    except OSError:
        return float("nan")
    rows = [line for line in page.splitlines() if line.startswith("diarist_event_loop_stall_seconds ")]
    return float(rows[0].split()[1]) if rows else float("nan")


COLUMNS = {
    "throughput": "audio s/s", "p50": "p50 s", "p95": "p95 s", "p99": "p99 s", "answered": "answered",
    "rejected": "429", "failed": "failed", "health_p99_ms": "health p99 ms", "stall_ms": "loop stall ms",
}  # fmt: skip
"""Figures of a row, and how they are headed."""


def cells(row: Mapping[str, float]) -> list[str]:
    """The figures of a row as they are shown; a dash for what a server does not count."""
    shown = [
        f"{row[key]:.2f}" if head.endswith("s") and row[key] < 100 else f"{row[key]:.0f}"
        for key, head in COLUMNS.items()
    ]
    return [cell.replace("nan", "-") for cell in shown]


def table(rows: Sequence[Row], about: Mapping[str, object]) -> str:
    """Markdown: what was measured on, the rows, and how many times the original's throughput ours is."""
    lines = [", ".join(f"{name} {value}" for name, value in about.items()), ""]
    lines += ["| server | clients | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    lines += [f"| {row.server} | {row.clients} | " + " | ".join(cells(row.figures)) + " |" for row in rows]
    theirs = {row.clients: row.figures["throughput"] for row in rows if row.server == "original"}
    times = [
        f"{row.clients} clients: {row.figures['throughput'] / theirs[row.clients]:.1f}x"
        for row in rows
        if row.server == "diarist" and theirs.get(row.clients)
    ]
    return "\n".join(
        [*lines, "", *(["Throughput beside the original's design: " + ", ".join(times)] if times else []), ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=int, default=60, help="for each row")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--recording", type=Path, help="16-bit wav that the clips are cut from")
    parser.add_argument("--only", choices=["diarist", "original"])
    parser.add_argument("--out", type=Path, help="folder for load.json and load.md")
    arguments = parser.parse_args()
    about = {
        "Whisper": "base",
        "clips": "5-60 s, no diarization",
        "seconds a row": arguments.seconds,
        "threads": arguments.threads,
        "cores": os.cpu_count(),
        "date": datetime.now(tz=UTC).date().isoformat(),
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clips.cut(arguments.recording or clips.sample(), folder / "clips")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        ours = [sys.executable, "-m", "diarist", "serve", "--model", "base", "--diarization-model", "none"]
        servers = {
            "diarist": ([*ours, "--port", str(port)], "/readyz", "/livez"),
            "original": ([sys.executable, str(HERE / "original.py"), str(port)], "/health", "/health"),
        }
        for name, (command, ready, health) in servers.items():
            if arguments.only not in (None, name):
                continue
            with serving(command, url, ready, arguments.threads, folder / f"{name}.log"):
                loop_stall(url)
                for clients in arguments.clients:
                    rows.append(Row(name, clients, measure(url, health, clients, arguments.seconds, folder)))
                    print("|", " | ".join([name, str(clients), *cells(rows[-1].figures)]), "|", flush=True)
    print(table(rows, about))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "load.md").write_text(table(rows, about))
        figures = [{"server": row.server, "clients": row.clients, **row.figures} for row in rows]
        (arguments.out / "load.json").write_text(json.dumps({"about": about, "rows": figures}, indent=2))


if __name__ == "__main__":
    main()
