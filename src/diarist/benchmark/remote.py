"""A running server answers: diarist's, or any that speaks the original's contract."""

import json
import secrets
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
from numpy.typing import NDArray

from diarist.audio import SAMPLE_RATE
from diarist.benchmark.cells import Cell
from diarist.benchmark.rounds import PLAIN, Answered, Way, added
from diarist.errors import DiaristError, OptionError

ROWS = 16
"""Windows that a server is taken to decode together: it does not say."""
_LOOK_S = 10.0
_LONGEST_S = 3600.0
_SHOWN = 300  # characters of an answer in a message


class Server:
    """Sends recordings as forms, and holds every answer to status 200 and a text.

    Args:
        url: Of the server, or of its route that takes recordings.
        key: Sent as `Authorization: Bearer`; empty: none.
        language: Spoken in the recordings; None leaves it to the server.

    Raises:
        OptionError: The address is no http or https address.
        DiaristError: Nobody answers there.
    """

    rows = ROWS

    def __init__(self, url: str, key: str = "", language: str | None = None) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise OptionError("--url", f"{url!r} is no http or https address")
        self._url = url if urlsplit(url).path else f"{url}/"
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._language = language
        self._info = self._look()
        if self._info.get("assists") is False:
            self.ways = [PLAIN]
        else:
            assistant = (self._info.get("models") or {}).get("assistant") or {}
            name = str(assistant.get("name") or "assistant")
            self.ways = [PLAIN, Way(name, asked=True), *([Way(name, "auto")] if self._info else [])]

    @property
    def title(self) -> str:
        return self._url

    @property
    def description(self) -> dict[str, Any]:
        """What answers, as plain values; models only where the server tells them."""
        return {"url": self._url, **{name: self._info.get(name) for name in ("version", "models", "device")}}

    def answer(self, cell: Cell, way: Way) -> Answered:
        parameters: dict[str, Any] = {"assisted": way.asked, "diarize": False, "temperature": 0}
        if self._language:
            parameters["language"] = self._language
        bodies = [form(wav(sound), parameters) for sound in cell.sounds]
        with ThreadPoolExecutor(len(bodies)) as requests:
            begun = time.perf_counter()
            answers = list(requests.map(self._post, bodies))
            seconds = time.perf_counter() - begun
        return Answered(
            seconds=seconds,
            texts=tuple(str(answer["text"]) for answer in answers),
            assistance=added([answer.get("assistance") for answer in answers]),
        )

    def _post(self, sent: tuple[str, bytes]) -> Mapping[str, Any]:
        media_type, body = sent
        request = urllib.request.Request(  # noqa: S310 - the scheme has been checked
            self._url, body, {"content-type": media_type, **self._headers}, method="POST"
        )
        status, content = _exchange(request, _LONGEST_S)
        if status != 200:
            shown = content[:_SHOWN].decode("utf-8", "replace")
            raise DiaristError(f"{self._url} answered {status}, not 200: {shown}")
        answer = _object(content)
        if not isinstance(answer.get("text"), str):
            raise DiaristError(f"{self._url} answered without a text: it does not speak the original's contract")
        return answer

    def _look(self) -> Mapping[str, Any]:
        """What a diarist server says of itself; empty for others."""
        request = urllib.request.Request(urljoin(self._url, "/info"), headers=self._headers)  # noqa: S310
        status, content = _exchange(request, _LOOK_S)
        told = _object(content) if status == 200 else {}
        return told if told.get("name") == "diarist" else {}


def _exchange(request: urllib.request.Request, longest_s: float) -> tuple[int, bytes]:
    """Status and body of the answer.

    Raises:
        DiaristError: There was none.
    """
    try:
        with urllib.request.urlopen(request, timeout=longest_s) as answer:  # noqa: S310 - the scheme has been checked
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()
    except OSError as error:
        raise DiaristError(f"{request.full_url} does not answer: {error}") from error


def _object(content: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def form(recording: bytes, parameters: Mapping[str, Any]) -> tuple[str, bytes]:
    """Media type and body of a form as the original takes it: `file` and, as JSON, `parameters`."""
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="'
    parts = (
        f'{head}parameters"\r\n\r\n{json.dumps(parameters)}\r\n'.encode(),
        f'{head}file"; filename="recording.wav"\r\nContent-Type: audio/wav\r\n\r\n'.encode(),
        recording,
        f"\r\n--{boundary}--\r\n".encode(),
    )
    return f"multipart/form-data; boundary={boundary}", b"".join(parts)


def wav(sound: NDArray[np.float32]) -> bytes:
    """A WAV file with 16 bits a sample.

    Args:
        sound: Mono, 16 kHz, in [-1, 1]; shape (samples,).
    """
    samples = np.round(np.clip(sound, -1.0, 1.0) * 32_767).astype("<i2").tobytes()
    layout = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    head = b"RIFF" + struct.pack("<I", 36 + len(samples)) + b"WAVEfmt " + layout
    return head + b"data" + struct.pack("<I", len(samples)) + samples
