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
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class WorkerProcess:
    """One worker from its start to its end. Nothing here blocks the event loop.

    The thread that starts the process also receives from it, and lives until it is dead: the kernel kills the worker
    with this thread. A second thread sends.

    Args:
        command: Program and first arguments; two descriptors are added.
        setup: The first message.
        heard: Called in the event loop with each report.
        ended: Called in the event loop, once and last, with the ids that stood on the blackboard at the end.
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
        self._killed.set()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def cpu_s(self) -> float:
        """Processor time that it has used, in seconds; 0 before its start and after its end."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return 0.0
        fields = status.rpartition(")")[2].split()  # the name before it may hold anything
        return (int(fields[11]) + int(fields[12])) * _TICK_S

    def _live(self) -> None:
        page = Blackboard.descriptor()
        blackboard = Blackboard(page)
        ours, theirs = channel()
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
            self._killed.set()
            self._outbox.put(None)
            theirs.close()
            if self._process is not None:
                self.kill()
                self._process.wait()
            ours.close()
            suspects = blackboard.read()
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


def _import_path() -> list[str]:
    return [entry for entry in sys.path if Path(entry).is_absolute()]
