"""Runs the application: listens, guards each connection's time, and stops without losing what was admitted."""

import asyncio
import ipaddress
import signal
import struct
import time
from types import FrameType
from typing import Any

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from diarist.engine.engine import Engine
from diarist.engine.memory import keep_small, settle
from diarist.errors import OptionError
from diarist.server.app import create_app, keys
from diarist.server.observability import configure_logging
from diarist.server.service import Service
from diarist.settings import ServerSettings

_WATCH_S = 1.0
_UPLOAD_GRACE_S = 10.0
_LAST_WORDS_S = 3.0
"""Of the time to stop, kept for sending the last answers and ending the worker."""
_SOL_SOCKET, _SO_LINGER = 1, 13  # Linux's numbers: who imports `socket` could open one
_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_log = structlog.get_logger("diarist.server")


def run(settings: ServerSettings, engine: Engine) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was admitted and return.

    Raises:
        OptionError: The address is public and there is no key; or a setting cannot be followed.
    """
    check_address(settings)
    configure_logging(settings.log_format, settings.log_level)
    keep_small()
    server = make_server(settings, engine)
    settle()
    try:
        server.run()
    except SystemExit:  # uvicorn's way of saying that it could not begin
        message = f"cannot serve on {settings.host} port {settings.port}: the log above says why"
        raise OptionError("port", message) from None


def check_address(settings: ServerSettings) -> None:
    """Whether the address may be listened on.

    Raises:
        OptionError: Others can reach it and no key is asked for.
    """
    if not (settings.insecure or keys(settings) or _is_loopback(settings.host)):
        message = f"{settings.host} can be reached by others: set DIARIST_API_KEYS, or say --insecure"
        raise OptionError("host", message)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_server(settings: ServerSettings, engine: Engine) -> "Server":
    """The server, not started yet."""
    app = create_app(settings, engine)

    class Protocol(PatientProtocol):
        limits = settings

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=round(settings.keep_alive_s),
        timeout_graceful_shutdown=round(_LAST_WORDS_S),
        backlog=1024,
    )
    return Server(config, app.state.service)


class Server(uvicorn.Server):
    """Stops in two steps: it refuses new work and finishes what it has while it still answers, then it closes."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (the base class's signature)
        """The first signal begins the end; SIGINT once more hurries it."""
        if self._service.stopping:
            self.force_exit = self.force_exit or sig == signal.SIGINT
            self.should_exit = True
        else:
            self._service.stopping = True  # readiness turns with the next request
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        patience_s = max(1.0, self._service.settings.graceful_stop_s - 2 * _LAST_WORDS_S)
        until = time.monotonic() + patience_s
        _log.info("stopping", requests=self._service.registry.open)
        await self._service.engine.stop(patience_s)
        while self._service.registry.open and time.monotonic() < until:  # noqa: ASYNC110 (answers that are being sent)
            await asyncio.sleep(0.02)
        self.should_exit = True


class PatientProtocol(H11Protocol):
    """A connection with an end to patience: for the head of a request, for its body, and for reading its answer."""

    limits: ServerSettings

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since: float | None = self.loop.time()
        self._body_since = 0.0
        self._body_bytes = 0
        self._unread_bytes = 0
        self._unread_since = 0.0
        self._watched_cycle: Any = None
        self._watch = self.loop.call_later(_WATCH_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_idle and self._head_since is None:
            self._head_since = self.loop.time()  # the next request of a kept connection begins
        self._body_bytes += len(data)
        super().data_received(data)
        if not self._is_idle:
            self._head_since = None

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _look(self) -> None:
        """Once a second: is anybody keeping us waiting for too long?"""
        now = self.loop.time()
        if self._head_is_late(now) or self._body_is_slow(now):
            _log.info("cut off", reason="slow sender")
            self._close_late()
        if self._answer_is_not_read(now):
            _log.info("cut off", reason="slow reader")
            self._reset()
            return
        self._watch = self.loop.call_later(_WATCH_S, self._look)

    def _head_is_late(self, now: float) -> bool:
        return self._head_since is not None and now - self._head_since > self.limits.header_timeout_s

    def _body_is_slow(self, now: float) -> bool:
        if self._is_idle or not self.cycle.more_body:
            self._watched_cycle = None
            return False
        if self._watched_cycle is not self.cycle or self.flow.read_paused:  # ours is the delay while we do not read
            self._watched_cycle, self._body_since, self._body_bytes = self.cycle, now, 0
        wanted = self.limits.min_upload_rate * (now - self._body_since - _UPLOAD_GRACE_S)
        return self._body_bytes < wanted

    def _answer_is_not_read(self, now: float) -> bool:
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread != self._unread_bytes:
            self._unread_bytes, self._unread_since = unread, now
        return unread > 0 and now - self._unread_since > self.limits.write_timeout_s

    def _reset(self) -> None:
        """Drop the connection with all that the kernel still holds for a client that reads nothing: megabytes, for minutes."""
        opened = self.transport.get_extra_info("socket")
        if opened is not None:
            opened.setsockopt(_SOL_SOCKET, _SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _close_late(self) -> None:
        self._head_since = None
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not (self.cycle and self.cycle.response_started):
            self.transport.write(_TIMEOUT)
        self.transport.close()
