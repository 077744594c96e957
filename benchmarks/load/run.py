"""Load on two servers after one another, in one table: ours, and the original's design on the same weights.

    python benchmarks/load/run.py --clients 1 4 16 64 --seconds 60

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
from collections.abc import Iterator, Sequence
from pathlib import Path

import clips

HERE = Path(__file__).resolve().parent
_LONGEST_START_S = 120.0


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
            child.wait(40)


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
    subprocess.run(command, env=environment, check=False, capture_output=True, timeout=seconds + 120)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--recording", type=Path, help="16-bit wav that the clips are cut from")
    parser.add_argument("--only", choices=["diarist", "original"])
    arguments = parser.parse_args()
    heads = ("server", "clients", "audio s/s", "p50 s", "p95 s", "p99 s", "answered", "429", "failed", "health p99 ms")
    print("|", " | ".join([*heads, "stall ms"]), "|")
    print("|---" * (len(heads) + 1) + "|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clips.cut(arguments.recording or clips.sample(), folder / "clips")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        servers = {
            "diarist": ([sys.executable, "-m", "diarist", "serve", "--port", str(port)], "/readyz", "/livez"),
            "original": ([sys.executable, str(HERE / "original.py"), str(port)], "/health", "/health"),
        }
        for name, (command, ready, health) in servers.items():
            if arguments.only not in (None, name):
                continue
            with serving(command, url, ready, arguments.threads, folder / f"{name}.log"):
                loop_stall(url)
                for clients in arguments.clients:
                    row = measure(url, health, clients, arguments.seconds, folder)
                    cells = [f"{row[key]:.2f}" for key in ("throughput", "p50", "p95", "p99")]
                    cells += [
                        f"{row[key]:.0f}" for key in ("answered", "rejected", "failed", "health_p99_ms", "stall_ms")
                    ]
                    print("|", " | ".join([name, str(clients), *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
