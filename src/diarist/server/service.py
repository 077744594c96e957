"""From a request to a transcript: room, spool, engine, and what happens when the client leaves."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from starlette.requests import Request as HttpRequest
from starlette.types import Receive

from diarist.engine.engine import Engine, Ticket
from diarist.engine.fairness import has_room
from diarist.engine.messages import Work
from diarist.errors import AudioEmptyError, CancelledError, NotReadyError, QueueFullError
from diarist.server.errors import ClientGone, Refusal
from diarist.server.middleware import header
from diarist.server.observability import Metrics
from diarist.server.progress import Entry, Registry
from diarist.server.uploads import FormLimits, RequestFiles, Spool, SpooledFile
from diarist.settings import ServerSettings
from diarist.transcript import Transcript

_LEAST_BYTES_PER_SECOND = 2000
"""Of speech at 16 kbit/s: a file is taken to last as long as its size may mean, so that no deadline is too short."""
_SECONDS_PER_SECOND = {"gpu": 0.1, "cpu": 3.0}
_LONGEST_LABEL = 128
_T = TypeVar("_T")
_log = structlog.get_logger("diarist.server")


@dataclass(frozen=True, slots=True)
class Call:
    """One request for a transcript."""

    entry: Entry
    files: RequestFiles
    receive: Receive


class Service:
    """What the routes share. Built once, by `create_app`."""

    def __init__(self, settings: ServerSettings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self.spool = Spool(settings.spool_dir, settings.min_free_bytes)
        self.registry = Registry()
        self.metrics = Metrics(self._engine_figures, lambda: float(self.registry.open))
        self.stopping = False
        self.form_limits = FormLimits(settings.max_form_files, settings.max_form_fields, settings.max_text_bytes)

    def _engine_figures(self) -> dict[str, float]:
        return {**self.engine.metrics(), "ready": float(self.engine.ready)}

    @property
    def not_ready(self) -> str:
        """Why no request can be served now, in one word; empty when ready."""
        if self.stopping:
            return "stopping"
        if not self.engine.ready:
            return "starting"
        return "" if self.spool.has_room else "disk_full"

    @asynccontextmanager
    async def call(self, request: HttpRequest) -> AsyncIterator[Call]:
        """Take in a request; its files are gone when this ends.

        Raises:
            QueueFullError: As many are under way as may run and wait together.
            NotReadyError: The models are not there yet, or the server is stopping.
            Refusal: The spool's disk is full.
        """
        state = request.scope["state"]
        most = self.settings.max_running + self.settings.max_waiting
        if self.stopping:
            raise NotReadyError("stopping", retry_after_s=5.0)
        own = self.registry.open_of(state["caller"]) if state["caller"] else 0
        if not has_room(most, self.registry.open, own):
            raise QueueFullError(f"{most} requests are under way", retry_after_s=5.0)
        self.engine.check(state["caller"])  # here, too, before the body is read
        if not self.spool.has_room:
            raise Refusal(
                507, "no_space", "The server has no room for the recording now.", headers={"retry-after": "30"}
            )
        label = header(request.scope, b"x-client-request-id")[:_LONGEST_LABEL]
        entry = self.registry.add(state["request_id"], state["caller"], label)
        files = RequestFiles(self.spool)
        ended_as = "failed"
        try:
            yield Call(entry, files, request.receive)
            ended_as = "done"
        except (ClientGone, CancelledError, asyncio.CancelledError):
            ended_as = "cancelled"
            raise
        finally:
            entry.end(ended_as)
            await asyncio.shield(asyncio.to_thread(files.remove))

    def submit(self, call: Call, file: SpooledFile, work: Work) -> Ticket:
        """Hand a recording to the engine.

        Raises:
            DiaristError: The engine does not take it.
        """
        if file.size_bytes == 0:
            raise AudioEmptyError("no bytes")
        if call.entry.cancelled:
            raise CancelledError("cancelled while it was uploaded")
        deadline_s = self.deadline_s(file.size_bytes)
        ticket = self.engine.submit(work, key=call.entry.owner, deadline_s=deadline_s)
        call.entry.ticket = ticket
        return ticket

    async def transcribe(self, call: Call, file: SpooledFile, work: Work) -> Transcript:
        """The transcript of a recording, unless its client leaves before.

        Raises:
            ClientGone: It did; the work has been given up.
            DiaristError: The engine failed.
        """
        begun = time.monotonic()
        ticket = self.submit(call, file, work)
        try:
            transcript = await unless_gone(call.receive, ticket.result())
        except BaseException:
            ticket.cancel()
            raise
        self.metrics.transcribed(transcript, time.monotonic() - begun)
        return transcript

    def deadline_s(self, size_bytes: int) -> float:
        """Seconds that a recording may take, by the longest that its size may last."""
        per_second = self.settings.deadline_per_second
        if per_second is None:
            per_second = _SECONDS_PER_SECOND["gpu" if self.engine.info.device.startswith("cuda") else "cpu"]
        longest_s = min(size_bytes / _LEAST_BYTES_PER_SECOND, self.settings.max_audio_s)
        return self.settings.deadline_base_s + per_second * longest_s


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """What the work gives, unless the client closes the connection before.

    Raises:
        ClientGone: It did.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
