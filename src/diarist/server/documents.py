"""The OpenAPI document's parts that FastAPI cannot read off our signatures, since bodies are read as they stream."""

import html
from typing import Any

from diarist.original import InferenceConfig
from diarist.server.parameters import TranscriptionForm, TranslationForm

Responses = dict[int | str, dict[str, Any]]

_PLAIN_ERROR = {
    "type": "object",
    "required": ["error", "detail"],
    "properties": {"error": {"type": "string"}, "detail": {"type": "string"}, "code": {"type": "string"}},
}
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MEANINGS = {
    400: "A parameter is wrong.",
    401: "No valid key.",
    404: "There is no such thing.",
    413: "Too large or too long.",
    415: "Not audio, or compressed.",
    422: "The recording cannot be decoded, or the JSON not parsed.",
    429: "Too much is waiting.",
    499: "Cancelled.",
    500: "The server failed.",
    503: "Not ready, or the worker was lost: try again.",
    504: "Not ready in time.",
    507: "No room.",
}
_TIME = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}


def errors(schema: dict[str, Any], statuses: tuple[int, ...] = tuple(_MEANINGS)) -> Responses:
    return {
        status: {"description": _MEANINGS[status], "content": {"application/json": {"schema": schema}}}
        for status in statuses
    }


def _json(description: str, required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, which would point outside the document."""
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return resolve(definitions[part["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in part.items()}
        return [resolve(item) for item in part] if isinstance(part, list) else part

    resolved: dict[str, Any] = resolve(schema)
    return resolved


_PARAMETERS = _inlined(InferenceConfig.model_json_schema())
_FILE = {"type": "string", "format": "binary", "description": "The recording, audio or video, in any container."}

ORIGINAL_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": _FILE,
                        "parameters": {"type": "string", "description": "JSON object, as in the JSON form."},
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "inputs": {"type": "string", "format": "byte", "description": "The recording in base64."},
                        "parameters": _PARAMETERS,
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
ORIGINAL_RESPONSES: Responses = {
    200: _json(
        "Who said what.",
        ["speakers", "chunks", "text"],
        {
            "speakers": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["speaker", "text", "timestamp"],
                    "properties": {"speaker": {"type": "string"}, "text": {"type": "string"}, "timestamp": _TIME},
                },
            },
            "chunks": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["text", "timestamp"],
                    "properties": {"text": {"type": "string"}, "timestamp": _TIME},
                },
            },
            "text": {"type": "string"},
        },
    ),
    **errors(_PLAIN_ERROR),
}
READY_RESPONSES: Responses = {503: {"description": "Not ready."}}


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    """A form's fields with the recording among them; lists under the names that OpenAI's client sends."""
    fields = {f"{name}[]" if part.get("type") == "array" else name: part for name, part in schema["properties"].items()}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", *schema.get("required", [])],
                        "properties": {**fields, "file": _FILE},
                    }
                }
            },
        }
    }


TRANSCRIPTION_BODY = _form(_inlined(TranscriptionForm.model_json_schema()))
TRANSLATION_BODY = _form(_inlined(TranslationForm.model_json_schema()))
OPENAI_ERRORS = errors(_OPENAI_ERROR)
AUDIO_RESPONSES: Responses = {
    200: {
        "description": "The transcript, in the response format that was asked for.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["text"]}},
            "text/plain": {"schema": {"type": "string"}},
            "text/vtt": {"schema": {"type": "string"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **OPENAI_ERRORS,
}
LOOK_RESPONSES = errors(_OPENAI_ERROR, (401, 404))
LIST_RESPONSES = errors(_OPENAI_ERROR, (401,))


def page(document: dict[str, Any]) -> str:
    """The OpenAPI document for people, as a page that loads nothing from anywhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>diarist API</title><style>",
        "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}code{background:#eee;padding:0 .3em}",
        "table{border-collapse:collapse}td,th{text-align:left;padding:.2rem .8rem;border-bottom:1px solid #ddd;vertical-align:top}",
        "</style><h1>diarist API</h1><p>Machine-readable: <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', operation.get('summary', '')))}</p>")
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                parts.append(f"<p>Body <code>{html.escape(media_type)}</code></p>")
                parts += _rows(content.get("schema", {}).get("properties", {}))
            parts.append(f"<p>Answers: {', '.join(map(str, operation.get('responses', {})))}</p>")
    return "".join(parts)


def _rows(properties: dict[str, Any]) -> list[str]:
    rows = ["<table>"]
    for name, schema in properties.items():
        default = f"default {schema['default']!r}" if schema.get("default") is not None else ""
        cells = (f"<code>{html.escape(name)}</code>", html.escape(schema.get("description", "")), html.escape(default))
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        if schema.get("type") == "object" and "properties" in schema:
            rows += ["<tr><td></td><td colspan=2>", *_rows(schema["properties"]), "</td></tr>"]
    return [*rows, "</table>"]
