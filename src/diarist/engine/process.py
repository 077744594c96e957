"""Starting the worker process, talking to it from an event loop, and burying it."""

import asyncio
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diarist.engine.pipe import Channel, channel
from diarist.engine.wire import Blackboard, Command, Report, Setup

COMMAND = (sys.executable, "-P", "-m", "diarist.engine.worker")
_STOPPED = ("T", "t")  # by a signal, by a debugger
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class WorkerProcess:
    """One worker from its start to its end. Nothing here blocks the event loop.

    The thread that starts the process also receives from it, and lives until it is dead: the kernel kills the worker
    with this thread. A second thread sends.

    Args:
        command: Program and first arguments; two descriptors are added.
        setup: The first message.
        heard: Called in the event loop with each report.
        ended: Called in the event loop, once and last, with the ids of the requests that may be to blame: those on the
            blackboard, unless somebody outside ended or stopped the worker.
    """

    def __init__(
        self,
        command: Sequence[str],
        setup: Setup,
        heard: Callable[[Report], None],
        ended: Callable[[list[str]], None],
    ) -> None:
        self._command, self._heard, self._ended = command, heard, ended
        self._loop = asyncio.get_running_loop()
        self._outbox: queue.SimpleQueue[Command | Setup | None] = queue.SimpleQueue()
        self._outbox.put(setup)
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = threading.Event()
        self._was_stopped = False
        self.over = asyncio.Event()
        """Set after `ended` was called."""
        threading.Thread(target=self._live, name="worker", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """None until it is started."""
        return self._process.pid if self._process else None

    def send(self, command: Command) -> None:
        """Send it soon."""
        self._outbox.put(command)

    def kill(self) -> None:
        """End it at once, with everything that it started. Twice is harmless."""
        process = self._process
        if not self._killed.is_set():
            self._was_stopped = self._state() in _STOPPED
            self._killed.set()
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def cpu_s(self) -> float:
        """Processor time that it has used, in seconds; 0 before its start and after its end."""
        fields = self._status()
        return (int(fields[11]) + int(fields[12])) * _TICK_S if fields else 0.0

    def _state(self) -> str:
        """As in `ps`: R, S, D, T, Z; empty when it is gone."""
        return "".join(self._status()[:1])

    def _status(self) -> list[str]:
        """What the kernel says of it, from the third field on; empty when it is gone."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return status.rpartition(")")[2].split()  # the name before it may hold anything

    def _live(self) -> None:
        page = Blackboard.descriptor()
        blackboard = Blackboard(page)
        ours, theirs = channel()
        oom_kills = _oom_kills()
        suspects: list[str] = []
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                [*self._command, str(theirs.fileno()), str(page)],
                pass_fds=(theirs.fileno(), page),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
                start_new_session=True,
            )
            theirs.close()
            threading.Thread(target=self._send, args=(ours,), name="worker-commands", daemon=True).start()
            self._receive(ours)
        finally:
            self._outbox.put(None)
            theirs.close()
            if self._process is not None:
                hung = self._killed.is_set() and not self._was_stopped
                code = _exit_code(self._process)
                if hung or is_own_doing(code, oom_killed=_oom_kills() > oom_kills):
                    suspects = blackboard.read()
                self.kill()  # what it has started, too
                self._process.wait()
            ours.close()
            blackboard.close()
            os.close(page)
            self._tell(self._end, suspects)

    def _receive(self, ours: Channel) -> None:
        while not self._killed.is_set():
            try:
                report: Report = ours.receive()
            except EOFError:
                return
            self._tell(self._heard, report)

    def _send(self, ours: Channel) -> None:
        while (command := self._outbox.get()) is not None:
            try:
                ours.send(command)
            except OSError:
                return

    def _end(self, suspects: list[str]) -> None:
        self._ended(suspects)
        self.over.set()

    def _tell(self, function: Callable[[Any], None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(function, argument)


def is_own_doing(exit_code: int | None, *, oom_killed: bool) -> bool:
    """Whether a worker that ended so was ended by what it computed, not by somebody outside.

    Args:
        exit_code: As of `subprocess.Popen`; None if it still runs.
        oom_killed: Whether the kernel has killed something for want of memory meanwhile.
    """
    if exit_code == -signal.SIGKILL:
        return oom_killed
    return exit_code not in (None, 0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


def _exit_code(process: "subprocess.Popen[bytes]") -> int | None:
    """Of a process whose pipe is closed; None if it lives on without it."""
    try:
        return process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return None


def _oom_kills() -> int:
    """How often the kernel has killed a process for want of memory."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _import_path() -> list[str]:
    return [entry for entry in sys.path if Path(entry).is_absolute()]
