"""The original's routes, which are also those that Hugging Face's clients and platform use.

| request | what it is |
|---|---|
| `POST /`, `/predict`, multipart | the original's: `file` and `parameters` |
| the same, JSON | `{"inputs": base64, "parameters": {...}}` |
| the same, anything else | the recording itself; parameters in the query |
| `GET /`, `/health`, `/readyz`, `/livez`, `/info` | whether it works, and what is loaded |
"""

import asyncio
from typing import Any

import structlog
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from diarist import __version__, original
from diarist.engine.messages import Work
from diarist.errors import OptionError
from diarist.server import responses
from diarist.server.documents import ORIGINAL_BODY, ORIGINAL_RESPONSES, READY_RESPONSES
from diarist.server.names import models_shown
from diarist.server.parameters import original_request
from diarist.server.service import Call, Service
from diarist.server.uploads import SpooledFile, parse_object, read_form, read_json, read_raw

_log = structlog.get_logger("diarist.server")
_RETRY = {"retry-after": "5"}


def router(service: Service) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter(tags=["the original's and Hugging Face's"])

    async def predict(request: HttpRequest) -> Response:
        """Who said what in one recording: a form, JSON with base64, or the bytes themselves."""
        async with service.call(request) as call:
            file, values = await _read(service, call, request)
            config = await asyncio.to_thread(original.parse, values)
            if config.unknown:
                _log.warning("parameters ignored", count=len(config.unknown))
            return await _answer(service, call, file, config)

    async def health() -> PlainTextResponse:
        """`OK` once requests can be served; 503 while models load, and when something keeps them from it."""
        reason = service.not_ready
        return PlainTextResponse(reason or "OK", 503 if reason else 200, _RETRY if reason else None)

    async def readyz() -> JSONResponse:
        """The same for orchestrators, with the layers of the decoder's sandbox that are in force."""
        reason = service.not_ready
        body = {"ready": not reason, "reason": reason or None, "sandbox": list(service.engine.info.sandbox)}
        return JSONResponse(body, 503 if reason else 200, _RETRY if reason else None)

    async def livez() -> PlainTextResponse:
        """`OK` as long as the process answers."""
        return PlainTextResponse("OK")

    async def info() -> JSONResponse:
        """What is loaded."""
        loaded = service.engine.info
        return JSONResponse(
            {
                "name": "diarist",
                "version": __version__,
                "ready": not service.not_ready,
                "models": models_shown(loaded.models),
                "languages": list(loaded.languages),
                "multilingual": loaded.multilingual,
                "diarizes": loaded.diarizes,
                "assists": loaded.assists,
                "device": loaded.device,
                "sandbox": list(loaded.sandbox),
            }
        )

    for path in ("/", "/predict"):
        routes.add_api_route(path, predict, methods=["POST"], responses=ORIGINAL_RESPONSES, openapi_extra=ORIGINAL_BODY)
    for path, endpoint in (("/", health), ("/health", health), ("/readyz", readyz), ("/livez", livez)):
        plain = {"response_class": PlainTextResponse} if endpoint is not readyz else {}
        documented: dict[int | str, dict[str, Any]] = {} if endpoint is livez else READY_RESPONSES
        routes.add_api_route(path, endpoint, methods=["GET"], responses=documented, **plain)  # type: ignore[arg-type]
        routes.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    routes.add_api_route("/info", info, methods=["GET"])
    return routes


async def _read(service: Service, call: Call, request: HttpRequest) -> tuple[SpooledFile, dict[str, Any]]:
    """The recording and the parameters, however they were sent; the query counts where the body has none."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    values: Any = None
    file: SpooledFile | None
    if media_type == "multipart/form-data":
        form = await read_form(call.receive, content_type, call.files, service.form_limits)
        text = form.last("parameters")
        values = parse_object(text, "parameters") if text and text.strip() else None
        file, missing = form.file, "file"
    elif media_type == "application/json":
        body = await read_json(call.receive, call.files)
        values, file, missing = body.document.get("parameters"), body.file, "inputs"
    else:
        file, missing = await read_raw(call.receive, call.files), "body"
    if file is None:
        raise OptionError(missing, "the recording is missing")
    if values is not None and not isinstance(values, dict):
        raise OptionError("parameters", "must be a JSON object")
    return file, values or dict(request.query_params)


async def _answer(service: Service, call: Call, file: SpooledFile, config: original.InferenceConfig) -> Response:
    wanted = original_request(config, service.engine.info)
    transcript = await service.transcribe(call, file, Work(file.path, wanted))
    body = await asyncio.to_thread(lambda: responses.dump(original.answer(transcript, config)))
    return Response(body, media_type=responses.JSON)
