"""The parent's half of the conversation: starting peers, asking them, and giving up on them in time."""

import contextlib
import json
import os
import selectors
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from compare.environments import last_error
from compare.peer import Peer, PeerError
from compare.protocol import Task, Work, peak_bytes

_LOOK_S = 0.2
"""How often a working peer's own child processes are looked at."""
_QUIT_S = 10.0


class Child:
    """A peer that runs: loaded once, asked many times.

    Args:
        peer: Which.
        task: What it loads.
        python: Its interpreter.
        log: Where what it prints goes.

    Raises:
        PeerError: It does not start, from any method: it failed or was too slow; it is of no more use then.
    """

    def __init__(self, peer: Peer, task: Task, python: Path, log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(python), "-m", peer.module, json.dumps(asdict(task))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment(peer, task.threads, python),
                cwd=log.parent,
            )
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ready(self, limit_s: float) -> dict[str, Any]:
        """What it says once it has loaded: seconds, and versions."""
        return self._answer("does not start", limit_s)

    def ask(self, work: Work, recording: Path, limit_s: float) -> dict[str, Any]:
        """Have it hear a recording; `peak_bytes` includes the processes that it started itself."""
        failed = f"failed at {work} of {recording.stem}"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"work": work, "recording": str(recording)}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError(f"{failed}: {self._last_words()}") from None
        return self._answer(failed, limit_s)

    def close(self) -> None:
        """End it, gently at first."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # it may have gone already
            self._process.stdin.close()
        try:
            self._process.wait(_QUIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self, failed: str, limit_s: float) -> dict[str, Any]:
        line, helpers = self._line(failed, limit_s)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise PeerError(f"{failed}: {self._last_words()}") from None
        if "error" in answer:
            raise PeerError(f"{failed}: {answer['error']}")
        if "peak_bytes" in answer:
            answer["peak_bytes"] += helpers
        return answer

    def _line(self, failed: str, limit_s: float) -> tuple[bytes, int]:
        """The next line, empty at the end of its output, and the peak memory of its own children meanwhile."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        helpers = 0
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if time.monotonic() > deadline:
                    self._process.kill()
                    raise PeerError(f"{failed}: no answer within {limit_s:.0f} s")
                if not waiting.select(_LOOK_S):
                    helpers = max(helpers, sum(peak_bytes(process) for process in descendants(self._process.pid)))
                    continue
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    return b"", helpers
                self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line, helpers

    def _last_words(self) -> str:
        """Why it ended, as far as can be told."""
        try:
            code = self._process.wait(_QUIT_S)
        except subprocess.TimeoutExpired:
            return "it answered what is not JSON"
        return f"it ended with code {code}: {last_error(self._log)}"


def environment(peer: Peer, threads: int, python: Path) -> dict[str, str]:
    """Environment variables of a peer: the same threads for all, and no network."""
    paths = [Path(__file__).resolve().parents[1]]
    if peer.environment is None:  # sees what this process sees
        paths += [Path(path).absolute() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ,
        **{name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", "")]),
        **peer.variables,
    }


def descendants(process: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            direct = [int(number) for number in children.read_text().split()]
        except OSError:
            continue  # ended meanwhile
        for child in direct:
            found += [child, *descendants(child)]
    return found
