"""The HTTP application over an engine."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response

from diarist import __version__
from diarist.engine.engine import Engine
from diarist.errors import DiaristError, OptionError, TranscriptError
from diarist.server import documents, names, observability, openai, original, responses
from diarist.server.errors import ClientGone, Refusal, answer
from diarist.server.middleware import BodyLimit, Context, Gate, digests_of, response_of
from diarist.server.service import Service
from diarist.settings import ServerSettings

_LOOK_S = 0.2
_EXPECTED = (503, 504, 507)
"""Statuses that say how things stand, not that something is broken."""
_log = structlog.get_logger("diarist.server")


def create_app(settings: ServerSettings, engine: Engine) -> FastAPI:
    """The application: every route, its guards, and the engine's start and stop.

    Args:
        settings: Limits and keys.
        engine: Not started yet; the application's lifespan starts and stops it.

    Raises:
        OptionError: A setting cannot be followed.
    """
    service = Service(settings, engine)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        left = await asyncio.to_thread(service.spool.open)
        if left:
            _log.warning("removed what a killed process left in the spool", files=left)
        watching = [asyncio.create_task(work) for work in (service.metrics.watch_loop(), _announce(service))]
        await engine.start()
        try:
            yield
        finally:
            service.stopping = True
            for task in watching:
                task.cancel()
            await engine.stop(settings.graceful_stop_s)
            await asyncio.to_thread(service.spool.close)

    app = FastAPI(
        title="diarist",
        version=__version__,
        description="Turns recordings into who-said-what transcripts.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # served below, like any other route behind the key
        redirect_slashes=False,  # a redirect would be built from the Host header
    )
    app.state.service = service
    app.include_router(original.router(service))
    app.include_router(openai.router(service, "/v1"))
    app.include_router(openai.router(service, "/api/v1"), include_in_schema=False)
    _add_operations(app, service, has_keys=bool(settings.api_keys or settings.api_keys_file))
    for kind in (DiaristError, Refusal, ClientGone, HTTPException, RequestValidationError, OSError):
        app.add_exception_handler(kind, _told)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, metrics=service.metrics)
    app.add_middleware(Gate, digests=keys(settings))
    if origins := [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    if settings.otel:
        observability.trace(app)
    app.add_middleware(Context, metrics=service.metrics)
    return app


async def _announce(service: Service) -> None:
    """Log once what is loaded, and which layers of the decoder's sandbox are in force here."""
    while not service.engine.ready:  # noqa: ASYNC110 (the engine has no event for it)
        await asyncio.sleep(_LOOK_S)
    info = service.engine.info
    _log.info("ready", models=names.models_shown(info.models), device=info.device, sandbox=list(info.sandbox))


def keys(settings: ServerSettings) -> frozenset[bytes]:
    """The hashes of all keys that are accepted.

    Raises:
        OptionError: The file of keys cannot be read, or keys were asked for and there is none.
    """
    given = settings.api_keys.get_secret_value().split(",") if settings.api_keys else []
    if settings.api_keys_file:
        try:
            lines = settings.api_keys_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise OptionError("api_keys_file", "the file cannot be read") from None
        given += [line for line in lines if not line.lstrip().startswith("#")]
    digests = digests_of(given)
    if not digests and (settings.api_keys or settings.api_keys_file):
        raise OptionError("api_keys", "keys are asked for, but there is none")
    return digests


async def _told(request: HttpRequest, error: Exception) -> Response:
    """Any exception as an answer; what it says itself goes to the log."""
    if isinstance(error, RequestValidationError):
        error = OptionError("parameters", "a value in the address is not valid")
    path = request.scope["path"]  # never request.url, which believes the Host header
    told = answer(error, path)
    if told.status in _EXPECTED:
        _log.warning("not now", code=told.code, error=type(error).__name__)
    elif told.status >= 500:
        shown = None if isinstance(error, TranscriptError) else error  # that one quotes what was said
        _log.error("failed", code=told.code, error=type(error).__name__, exc_info=shown)
    elif told.status >= 400:
        _log.info("refused", code=told.code, error=type(error).__name__)
    return response_of(told, path)


def _add_operations(app: FastAPI, service: Service, *, has_keys: bool) -> None:
    @functools.cache
    def document() -> dict[str, Any]:
        found = app.openapi()
        if has_keys:
            found.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{"key": []}]
        return found

    @functools.cache
    def written() -> bytes:
        return responses.dump(document())

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        page = await asyncio.to_thread(service.metrics.page)
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(await asyncio.to_thread(written), media_type=responses.JSON)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(await asyncio.to_thread(lambda: documents.page(document())))
