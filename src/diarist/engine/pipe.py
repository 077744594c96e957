"""Messages between the engine and its worker: frozen values, pickled by `multiprocessing.connection`.

Both ends are this program; nothing that a client wrote is unpickled. The only module that knows how they are sent.
"""

import contextlib
import threading
from multiprocessing.connection import Connection, Pipe
from typing import Any


class Channel:
    """One end of a two-way pipe. Any thread may send; one thread receives."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._sending = threading.Lock()

    @classmethod
    def from_descriptor(cls, descriptor: int) -> "Channel":
        """The end that a parent process left open for this one."""
        return cls(Connection(descriptor))

    def fileno(self) -> int:
        """Its descriptor, for handing it to a child process."""
        return self._connection.fileno()

    def send(self, message: object) -> None:
        """Send one message; waits while the pipe is full.

        Raises:
            OSError: The other end is closed.
        """
        with self._sending:
            self._connection.send(message)

    def receive(self) -> Any:
        """The next message; waits for it.

        Raises:
            EOFError: The other end is closed, or died in the middle of a message.
        """
        try:
            return self._connection.recv()
        except OSError as error:
            raise EOFError from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.close()


def channel() -> tuple[Channel, Channel]:
    """Two ends of one pipe."""
    ours, theirs = Pipe()
    return Channel(ours), Channel(theirs)
