"""The only door from an exception to a client: one table, fixed messages, nothing of the exception's own text.

Three exceptions say what a client did, and their text is ours about the client's own input, so it may go out:
`OptionError`, `Refusal` (raised by this package) and Starlette's `HTTPException` (of which only the status is taken).
Everything else gets the message of its class from `RULES`, or of its nearest base there; what it says itself goes to
the log, under the request id. Paths under `/v1` get OpenAI's shape, all others the original's.
"""

import errno
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from starlette.exceptions import HTTPException

from diarist import errors
from diarist.formats import one_line

MAX_RETRY_AFTER_S = 120.0
"""Clients of OpenAI's API do not retry at all when told to wait for longer."""
_DEFAULT_RETRY_AFTER_S = 5.0
_LONGEST_MESSAGE = 500
CLIENT_CLOSED = 499
"""Nobody reads this one, or somebody asked for it (DELETE); the number is the one proxies use."""


class Refusal(Exception):  # noqa: N818 (a request is refused; nothing has failed)
    """A request that this package refuses by itself.

    Args:
        status: HTTP status.
        code: Stable word for programs.
        message: For the person who sent the request; holds nothing of the server's.
        param: The field that is at fault, as the client wrote it.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


class ClientGone(Exception):  # noqa: N818 (nothing went wrong: nobody is left to answer)
    """The client closed the connection before its answer."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How errors of one class are told."""

    status: int
    message: str | None
    """None: the exception's own text, which is about the client's input only."""
    retry: bool = False
    """Whether trying again later makes sense."""


_INTERNAL = "The server failed; the request id helps its operator to find out why."
RULES: Mapping[type[errors.DiaristError], Rule] = MappingProxyType(
    {
        errors.DiaristError: Rule(500, _INTERNAL),
        errors.OptionError: Rule(400, None),
        errors.AudioError: Rule(422, "The recording cannot be decoded."),
        errors.AudioNotFoundError: Rule(500, _INTERNAL),  # our own spool file: not the client's doing
        errors.AudioEmptyError: Rule(422, "The recording holds no bytes."),
        errors.AudioFormatError: Rule(
            415,
            "This is not audio, or it is in a container or codec that is not read. Send wav, flac, mp3, m4a, ogg, opus, "
            "webm, aac, amr, wma or aiff, or an mp4, mov or mkv video with sound.",
        ),
        errors.AudioCorruptError: Rule(422, "The recording is damaged: nothing in it can be decoded."),
        errors.AudioTooLargeError: Rule(413, "The recording is longer or larger than is accepted here."),
        errors.AudioTimeoutError: Rule(422, "The recording takes too long to decode."),
        errors.ModelError: Rule(500, _INTERNAL),
        errors.ModelNotFoundError: Rule(500, _INTERNAL),
        errors.ModelIntegrityError: Rule(500, _INTERNAL),
        errors.ModelFormatError: Rule(500, _INTERNAL),
        errors.ComputeError: Rule(500, _INTERNAL),
        errors.OutOfMemoryError: Rule(503, "There is not enough memory for this recording now. Try again.", retry=True),
        errors.TranscriptError: Rule(500, _INTERNAL),
        errors.DeployError: Rule(500, _INTERNAL),
        errors.CancelledError: Rule(CLIENT_CLOSED, "The request was cancelled."),
        errors.EngineError: Rule(500, _INTERNAL),
        errors.QueueFullError: Rule(429, "Too many requests are waiting. Try again later.", retry=True),
        errors.NotReadyError: Rule(503, "The server is starting or stopping. Try again later.", retry=True),
        errors.WorkerLostError: Rule(503, "The request was lost with its worker. Try again.", retry=True),
        errors.PoisonError: Rule(422, "This recording has stopped the server twice and is refused."),
        errors.DeadlineError: Rule(504, "The answer was not ready within the time that requests are given."),
    }
)
"""Exhaustive: a test walks `diarist.errors`."""

_HTTP_CODES = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "unprocessable",
}
_HTTP_MESSAGES = {404: "There is nothing at this address.", 405: "This address does not take that method."}

_PHRASES = {int(status): status.phrase for status in HTTPStatus}

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """An error as it is told to a client."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, path: str) -> dict[str, Any]:
        """The JSON body in the shape that clients of a path read."""
        return self.openai_body() if speaks_openai(path) else self.plain_body()

    def openai_body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else _OPENAI_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def plain_body(self) -> dict[str, Any]:
        """`huggingface_hub` shows `error`, clients of the original read `detail`."""
        return {"error": self.message, "detail": self.message, "code": self.code}


def speaks_openai(path: str) -> bool:
    """Whether clients of a path expect OpenAI's errors.

    >>> speaks_openai("/v1/models"), speaks_openai("/api/v1/audio"), speaks_openai("/predict")
    (True, True, False)
    """
    return path.startswith(("/v1/", "/api/v1/"))


def answer(error: BaseException, path: str = "") -> Answer:
    """What a client is told about an exception.

    Args:
        error: Whatever was raised.
        path: Of the request: the original puts words before its validation errors.
    """
    if isinstance(error, Refusal):
        return Answer(error.status, error.code, _clean(error.message), _clean(error.param or "") or None, error.headers)
    if isinstance(error, HTTPException):
        return _of_status(error.status_code, error.headers or {})
    if isinstance(error, errors.OptionError):
        text = error.message if speaks_openai(path) else f"Error validating parameters: {error.param}: {error.message}"
        return Answer(400, error.code, _clean(text), error.param)
    if isinstance(error, errors.DiaristError):
        return _of_class(error)
    if isinstance(error, ClientGone):
        return Answer(CLIENT_CLOSED, "client_gone", "The client has gone.")
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return Answer(507, "no_space", "The server has no room for the recording now. Try again later.", None, _retry())
    return Answer(500, "internal_error", _INTERNAL)


_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS})
"""The machine's state, not the request's."""


def _of_class(error: errors.DiaristError) -> Answer:
    known = next(kind for kind in type(error).__mro__ if kind in RULES)
    rule = RULES[known]
    headers: dict[str, str] = {}
    if rule.retry:
        headers = _retry(getattr(error, "retry_after_s", None))
    elif rule.status >= 500:
        headers = {"x-should-retry": "false"}  # the same recording would fail the same way
    return Answer(rule.status, error.code, rule.message or _INTERNAL, None, headers)


def _of_status(status: int, headers: Mapping[str, str]) -> Answer:
    kept = {name: value for name, value in headers.items() if name.lower() in ("allow", "www-authenticate")}
    message = _HTTP_MESSAGES.get(status) or _PHRASES.get(status, "The request failed.")
    return Answer(status, _HTTP_CODES.get(status, "error"), message, None, kept)


def _retry(after_s: float | None = None) -> dict[str, str]:
    seconds = _DEFAULT_RETRY_AFTER_S if after_s is None or not math.isfinite(after_s) else after_s
    return {"retry-after": str(math.ceil(min(max(seconds, 1.0), MAX_RETRY_AFTER_S)))}


def _clean(message: str) -> str:
    """One line of bounded length, whatever a client put into it."""
    return one_line(message)[:_LONGEST_MESSAGE]
