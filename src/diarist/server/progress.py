"""How far requests have come: who asked may look, and may give up, but only at their own.

Ids are made here, of 128 random bits; whoever holds another key is told that there is no such request.
"""

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Protocol

from diarist.engine.messages import Status
from diarist.server.errors import Refusal

KEPT_S = 600.0
"""Ended requests are remembered for so many seconds, so that a last look tells how they ended."""
MOST_KEPT = 4096
MOST_SHOWN = 100
"""Ended requests in a list."""


class Running(Protocol):
    """The part of the engine's ticket that is looked at here."""

    @property
    def status(self) -> Status: ...

    def cancel(self) -> None: ...


@dataclass(slots=True)
class Entry:
    """One request, from its first byte to some time after its last."""

    id: str
    owner: str
    """Hash of the caller's key; empty without keys."""
    label: str = ""
    """What the client calls it (`X-Client-Request-Id`)."""
    ticket: Running | None = None
    """Until it has ended: the ticket holds the transcript, and what has ended is remembered for long."""
    cancelled: bool = False
    ended_as: str | None = None
    reached: float | None = None
    """The share that was done when it ended."""
    ended_at: float = 0.0
    begun_at: float = field(default_factory=time.monotonic)

    def view(self) -> dict[str, Any]:
        """What its owner is shown."""
        status = self.ticket.status if self.ticket else None
        stage = self.ended_as or (status.stage if status else "uploading")
        fraction = status.fraction if status else self.reached
        return {
            "id": self.id,
            "object": "request",
            "client_request_id": self.label or None,
            "status": stage,
            "step": status.step if status else "",
            "percent": None if fraction is None else round(100 * fraction, 1),
            "seconds_left": status.seconds_left if status else None,
            "ahead": status.ahead if status else 0,
            "age_s": round((self.ended_at or time.monotonic()) - self.begun_at, 3),
        }

    def cancel(self) -> None:
        """Give it up, whatever it is doing; once it has ended this does nothing."""
        if self.ended_as is None:
            self.cancelled = True
            if self.ticket:
                self.ticket.cancel()

    def end(self, ended_as: str) -> None:
        """It is over: remember how far it came, and let go of its transcript."""
        self.ended_as, self.ended_at = ended_as, time.monotonic()
        if self.ticket:
            self.reached, self.ticket = self.ticket.status.fraction, None


def new_id() -> str:
    return f"req_{secrets.token_hex(16)}"


class Registry:
    """All requests under way, and those that ended a short while ago."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    @property
    def open(self) -> int:
        """Requests under way."""
        return sum(entry.ended_as is None for entry in self._entries.values())

    def open_of(self, owner: str) -> int:
        """A caller's requests under way."""
        return sum(entry.ended_as is None and entry.owner == owner for entry in self._entries.values())

    def add(self, request_id: str, owner: str, label: str) -> Entry:
        self._forget()
        entry = self._entries[request_id] = Entry(request_id, owner, label)
        return entry

    def of(self, owner: str) -> list[Entry]:
        """A caller's requests under way, and the last of those that have ended."""
        own = [entry for entry in self._entries.values() if entry.owner == owner]
        under_way = [entry for entry in own if entry.ended_as is None]
        return [*under_way, *[entry for entry in own if entry.ended_as is not None][-MOST_SHOWN:]]

    def find(self, request_id: str, owner: str) -> Entry:
        """A caller's own request.

        Raises:
            Refusal: There is none with this id, or it is another's.
        """
        entry = self._entries.get(request_id)
        if entry is None or entry.owner != owner:
            raise Refusal(404, "request_not_found", "There is no such request.", param="id")
        return entry

    def _forget(self) -> None:
        oldest = time.monotonic() - KEPT_S
        excess = len(self._entries) - MOST_KEPT
        gone = [
            key
            for place, (key, entry) in enumerate(self._entries.items())
            if entry.ended_as and (entry.ended_at < oldest or place < excess)
        ]
        for key in gone:
            del self._entries[key]
