"""OpenAI's audio API: transcriptions, translations, models; and the progress of requests, which is ours.

Everything is served under `/v1` and, for the Inference Endpoints platform, under `/api/v1`.
"""

import asyncio
import re
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from diarist.engine.messages import KnownSpeaker, Work
from diarist.errors import OptionError
from diarist.server import names, responses
from diarist.server.documents import (
    AUDIO_RESPONSES,
    LIST_RESPONSES,
    LOOK_RESPONSES,
    TRANSCRIPTION_BODY,
    TRANSLATION_BODY,
)
from diarist.server.errors import Refusal
from diarist.server.parameters import TranscriptionForm, transcription_form, translation_form
from diarist.server.service import Call, Service
from diarist.server.streaming import EventStream, TicketEvents
from diarist.server.uploads import Base64File, Form, SpooledFile, read_form

_CREATED = 1_663_718_400
"""The day that Whisper was published; clients want a number."""
_PIECE_CHARACTERS = 1 << 20
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.ASCII)


def router(service: Service, prefix: str) -> APIRouter:
    """The routes over a service, below a prefix."""
    routes = APIRouter(prefix=prefix, tags=["OpenAI's"])

    @routes.post("/audio/transcriptions", responses=AUDIO_RESPONSES, openapi_extra=TRANSCRIPTION_BODY)
    async def transcriptions(request: HttpRequest) -> Response:
        """What is said in a recording, and by whom; in six formats, or as a stream of events."""
        async with AsyncExitStack() as owned:
            call = await owned.enter_async_context(service.call(request))
            form, file = await _read(service, call, request)
            wanted = transcription_form(form.fields)
            request_wanted = wanted.request(service.engine.info)
            known = await asyncio.to_thread(_known_speakers, wanted, call)
            work = Work(file.path, request_wanted, known, partials=bool(wanted.stream))
            if wanted.stream:
                events = TicketEvents(service.submit(call, file, work), wanted, service.metrics)
                owned.callback(events.close)
                await events.open(call.receive)
                return EventStream(events, owned.pop_all())
            transcript = await service.transcribe(call, file, work)
            body = await asyncio.to_thread(responses.openai, transcript, wanted)
            return Response(body.body, media_type=body.media_type)

    @routes.post("/audio/translations", responses=AUDIO_RESPONSES, openapi_extra=TRANSLATION_BODY)
    async def translations(request: HttpRequest) -> Response:
        """What is said in a recording, in English."""
        async with service.call(request) as call:
            form, file = await _read(service, call, request)
            wanted = translation_form(form.fields)
            transcript = await service.transcribe(call, file, Work(file.path, wanted.request(service.engine.info)))
            body = await asyncio.to_thread(responses.openai, transcript, wanted)
            return Response(body.body, media_type=body.media_type)

    def known_models() -> list[dict[str, Any]]:
        own = names.loaded(service.engine.info.models)
        return [
            {"id": name, "object": "model", "created": _CREATED, "owned_by": "diarist"}
            for name in dict.fromkeys([*([own] if own else []), *names.ALIASES])
        ]

    @routes.get("/models", responses=LIST_RESPONSES)
    async def models() -> JSONResponse:
        """The model that is loaded, and OpenAI's names that mean it here."""
        return JSONResponse({"object": "list", "data": known_models()})

    @routes.get("/models/{name:path}", responses=LOOK_RESPONSES)
    async def model(name: str) -> JSONResponse:
        """One of them."""
        found = next((known for known in known_models() if known["id"] == name), None)
        if found is None:
            raise Refusal(404, "model_not_found", "There is no model of this name.", param="model")
        return JSONResponse(found)

    @routes.get("/requests", responses=LIST_RESPONSES)
    async def requests(request: HttpRequest) -> JSONResponse:
        """The caller's requests: those under way, and those that ended in the last minutes."""
        entries = service.registry.of(request.scope["state"]["caller"])
        return JSONResponse({"object": "list", "data": [entry.view() for entry in entries]})

    @routes.get("/requests/{request_id}", responses=LOOK_RESPONSES)
    async def request_progress(request_id: str, request: HttpRequest) -> JSONResponse:
        """How far a request of the caller's has come: stage, per cent, seconds left."""
        return JSONResponse(service.registry.find(request_id, request.scope["state"]["caller"]).view())

    @routes.delete("/requests/{request_id}", responses=LOOK_RESPONSES)
    async def cancel(request_id: str, request: HttpRequest) -> JSONResponse:
        """Give up a request of the caller's; once it has ended this does nothing."""
        entry = service.registry.find(request_id, request.scope["state"]["caller"])
        entry.cancel()
        return JSONResponse(entry.view())

    return routes


async def _read(service: Service, call: Call, request: HttpRequest) -> tuple[Form, SpooledFile]:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refusal(400, "invalid_form", "The body must be multipart/form-data.", param="file")
    form = await read_form(call.receive, content_type, call.files, service.form_limits)
    if form.file is None:
        raise OptionError("file", "the recording is missing")
    return form, form.file


def _known_speakers(form: TranscriptionForm, call: Call) -> tuple[KnownSpeaker, ...]:
    """The voices that the client can name, in the spool. Each comes as a data URL."""
    found: list[KnownSpeaker] = []
    for name, reference in zip(form.known_speaker_names, form.known_speaker_references, strict=True):
        head = _DATA_URL.match(reference)
        if head is None:
            raise OptionError(
                "known_speaker_references", "each must be a data URL with base64: data:audio/wav;base64,..."
            )
        path = call.files.new_path()
        with path.open("wb") as file:
            decoder = Base64File(file, "known_speaker_references")
            for first in range(head.end(), len(reference), _PIECE_CHARACTERS):
                decoder.feed(reference[first : first + _PIECE_CHARACTERS].encode("ascii", "replace"))
            decoder.finish()
        found.append(KnownSpeaker(name, path))
    return tuple(found)
