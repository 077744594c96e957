"""Server-sent events of one transcription, as OpenAI's clients read them.

Text goes out as the engine settles it, while the rest of the file is still being decoded; speakers are known at the
end only, so the segments of `diarized_json` come then, and `transcript.text.done` last. An answer that fails before it
has begun has its proper status; one that fails later ends with an `error` event and without `[DONE]`.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from diarist.engine.engine import Ticket
from diarist.engine.messages import Event, PartialText, Status
from diarist.errors import DiaristError, EngineError
from diarist.server import responses
from diarist.server.errors import ClientGone, answer
from diarist.server.observability import Metrics
from diarist.server.parameters import TranscriptionForm
from diarist.server.service import unless_gone
from diarist.transcript import Transcript

_PING_S = 10.0
"""Silence after which a comment is sent: proxies close what says nothing."""
_PATIENCE_S = 10.0
"""How long the first event is waited for before the answer begins without it."""
_PING = b": ping\n\n"
_END = b"data: [DONE]\n\n"


class TicketEvents:
    """What one ticket tells, as lines of a stream.

    Args:
        ticket: Of the engine.
        form: What was asked for.
        metrics: To count the transcript.
    """

    def __init__(self, ticket: Ticket, form: TranscriptionForm, metrics: Metrics) -> None:
        self._ticket = ticket
        self._form = form
        self._metrics = metrics
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._first: Event | None = None
        self._begun = time.monotonic()
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for event in self._ticket.events():
                self._queue.put_nowait(event)
                if isinstance(event, Transcript):
                    return
            self._queue.put_nowait(EngineError("the engine ended without a transcript"))
        except Exception as error:  # noqa: BLE001 (raised again by whoever reads the queue)
            self._queue.put_nowait(error)

    def close(self) -> None:
        self._pump.cancel()
        self._ticket.cancel()

    async def open(self, receive: Receive) -> None:
        """Wait for the first text, for a short while, so that a recording that is none gets its status.

        Raises:
            ClientGone: The client has left.
            DiaristError: The engine has failed.
        """
        await unless_gone(receive, self._telling(time.monotonic() + _PATIENCE_S))

    async def _telling(self, until: float) -> None:
        while self._first is None or isinstance(self._first, Status):
            self._first = await self._next(max(0.0, until - time.monotonic()))
            if self._first is None:
                return

    async def _next(self, within_s: float) -> Event | None:
        """The next event; None where there is none in time. The engine's own timeouts are errors like others."""
        try:
            async with asyncio.timeout(within_s):
                event = await self._queue.get()
        except TimeoutError:
            return None
        if isinstance(event, Exception):
            raise event
        return event

    async def lines(self) -> AsyncIterator[bytes]:
        """The events, encoded.

        Raises:
            DiaristError: The engine has failed; the client has been told by then.
        """
        said = ""
        event = self._first
        try:
            while True:
                if isinstance(event, PartialText):
                    said += event.text
                    yield _line({"type": "transcript.text.delta", "delta": event.text})
                elif isinstance(event, Status) and self._form.progress:
                    yield _line(_progress(event))
                elif isinstance(event, Transcript):
                    break
                event = await self._next(_PING_S)
                if event is None:
                    yield _PING
        except Exception as error:
            yield _line(answer(error, "/v1/").openai_body())
            raise
        self._metrics.transcribed(event, time.monotonic() - self._begun)
        if event.text != said and event.text.startswith(said):
            yield _line({"type": "transcript.text.delta", "delta": event.text[len(said) :]})
        if self._form.response_format == "diarized_json":
            for segment in await asyncio.to_thread(responses.diarized_segments, event, self._form):
                yield _line(segment)
        done = await asyncio.to_thread(responses.done_event, event, self._form)
        yield b"data: " + await asyncio.to_thread(responses.dump, done) + b"\n\n"
        yield _END


def _line(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def _progress(status: Status) -> dict[str, Any]:
    return {
        "type": "diarist.progress",
        "stage": status.stage,
        "step": status.step,
        "percent": None if status.fraction is None else round(100 * status.fraction, 1),
        "seconds_left": status.seconds_left,
        "ahead": status.ahead,
    }


class EventStream(Response):
    """An answer that sends events as they come, and gives up their request when the client leaves.

    Args:
        events: What to send.
        owned: Closed when the answer has ended, however it did.
    """

    media_type = "text/event-stream"

    def __init__(self, events: TicketEvents, owned: AsyncExitStack) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._owned = owned

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI's signature)
        with suppress(DiaristError, ClientGone):  # told in the stream, or there is nobody to tell
            async with self._owned:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        try:
            async with aclosing(self._events.lines()) as lines:  # type: ignore[type-var]
                async for line in lines:
                    await send({"type": "http.response.body", "body": line, "more_body": True})
        except DiaristError:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})
