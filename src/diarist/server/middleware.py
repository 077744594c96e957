"""What every request passes before it is routed, as plain ASGI callables.

From the outside in: `Context` gives it an id, counts and logs it, and is the last to catch what goes wrong; `Gate` asks
for a key, on the path as it was sent; `BodyLimit` counts the body's bytes. Cross-origin requests are Starlette's.
"""

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections.abc import Iterable

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diarist.server.errors import Answer, ClientGone, Refusal, answer
from diarist.server.observability import Metrics, route_of
from diarist.server.progress import new_id
from diarist.server.responses import JSON, dump

PUBLIC = frozenset({("GET", path) for path in (b"/", b"/health", b"/livez", b"/readyz")}) | frozenset(
    {("HEAD", path) for path in (b"/", b"/health", b"/livez", b"/readyz")}
)
"""Requests that need no key, by method and raw path. Everything else does, whether or not there is anything there."""
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
_MOST_DISCARDED_BYTES = 1 << 20
_MOST_LINGERED_BYTES = 16 << 20
"""What a fast network carries until a client has seen the answer."""
_DISCARD_S = 0.5

_log = structlog.get_logger("diarist.server")


def raw_path(scope: Scope) -> bytes:
    """The path as it was sent, escapes and all."""
    path: bytes | None = scope.get("raw_path")
    return path if path is not None else scope["path"].encode("utf-8", "surrogateescape")


def header(scope: Scope, name: bytes) -> str:
    """A request header; empty where there is none, joined where there are several."""
    return ", ".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)


def response_of(told: Answer, path: str) -> Response:
    return Response(dump(told.body(path)), told.status, dict(told.headers), JSON)


class Context:
    """Ids, the log, the metrics, security headers; nothing that goes wrong gets past it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        begun = time.perf_counter()
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": _with_ours(message["headers"], request_id)}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, noted)
            except ClientGone:
                pass
            except Exception as error:
                if status < 500:  # else it has been logged with its answer
                    _log.exception("unexpected", error=type(error).__name__)
                if not status:
                    await response_of(answer(error), scope["path"])(scope, receive, noted)
                elif status < 500:
                    raise  # half an answer is out: the connection is cut, so that nobody takes it for whole
            finally:
                self._note(scope, status or 499, time.perf_counter() - begun)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope)
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._metrics.requests.labels(route, method, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        quiet = route in ("/livez", "/readyz", "/health", "/") and method in ("GET", "HEAD")  # once a second
        write = _log.debug if quiet else _log.info
        caller = scope["state"].get("caller", "")[:8]
        write("request", method=method, route=route, status=status, seconds=round(seconds, 4), caller=caller)


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY")


def _with_ours(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    given = list(headers)
    names = {name.lower() for name, _ in given}
    ours = [(name, value) for name, value in _SECURITY_HEADERS if name not in names]
    return [*given, *ours, (b"x-request-id", request_id.encode())]


class Gate:
    """Lets nobody in without a key, if there are keys; only their hashes are kept in memory.

    Args:
        app: What is behind it.
        digests: SHA-256 of each key; empty: everybody may come in.
    """

    def __init__(self, app: ASGIApp, digests: frozenset[bytes]) -> None:
        self._app = app
        self._digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"]["caller"] = ""
            if self._digests and (scope["method"], raw_path(scope)) not in PUBLIC:
                caller = self._caller(header(scope, b"authorization"))
                if caller is None:
                    await _refuse(_NO_KEY, scope, receive, send)
                    return
                scope["state"]["caller"] = caller
        await self._app(scope, receive, send)

    def _caller(self, authorization: str) -> str | None:
        """Who sends this header: the hash of the key, if it is one of ours."""
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        known = False
        for expected in self._digests:  # all of them, so that the time tells nothing
            known |= hmac.compare_digest(digest, expected)
        return digest.hex() if known and scheme.lower() == "bearer" else None


_NO_KEY = Refusal(
    401,
    "invalid_api_key",
    "A valid API key is needed: send it as `Authorization: Bearer KEY`.",
    headers={"www-authenticate": "Bearer"},
)


class BodyLimit:
    """Counts a body's bytes as they come, whether or not a header announced them; compressed bodies are refused."""

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._by_head(scope)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
            return
        body = _CountedBody(receive, self._max_bytes, self._metrics)

        closing = False

        async def polite(message: Message) -> None:
            """Read what little is left before refusing, and some more before closing.

            A connection that is closed on a client that still sends is reset, and the client may not see the answer.
            """
            nonlocal closing
            if message["type"] == "http.response.start" and message["status"] >= 400 and not body.ended:
                await _discard(body, _MOST_DISCARDED_BYTES)
                closing = not body.ended
                if closing:
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            elif closing and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _discard(body, _MOST_LINGERED_BYTES)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, body.receive, polite)

    def _by_head(self, scope: Scope) -> Refusal | None:
        encoding = header(scope, b"content-encoding").strip().lower()
        if encoding not in ("", "identity"):
            return Refusal(415, "unsupported_encoding", "Compressed bodies are not read: send it as it is.")
        announced = header(scope, b"content-length")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > self._max_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> Refusal:
        return _too_large(self._max_bytes)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The body is longer than the {max_bytes} bytes that are accepted.")


class _CountedBody:
    def __init__(self, receive: Receive, max_bytes: int, metrics: Metrics) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._metrics = metrics
        self.read_bytes = 0
        self.ended = False

    async def receive(self) -> Message:
        message = await self.next()
        if self.read_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        return message

    async def next(self) -> Message:
        """The next message, whatever the limit."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.ended = True
        else:
            size = len(message.get("body", b""))
            self.read_bytes += size
            self._metrics.uploaded.inc(size)
            self.ended = not message.get("more_body", False)
        return message


async def _discard(body: _CountedBody, most_bytes: int) -> None:
    allowed = body.read_bytes + most_bytes
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while not body.ended and body.read_bytes < allowed:
                await body.next()


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    response = response_of(answer(refusal), scope["path"])
    response.headers["connection"] = "close"
    await response(scope, receive, send)


def digests_of(keys: Iterable[str]) -> frozenset[bytes]:
    """The hashes of keys; blank ones are none."""
    return frozenset(hashlib.sha256(key.strip().encode()).digest() for key in keys if key.strip())
