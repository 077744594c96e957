"""From the wire to files: bodies are written to a spool as they come, so that memory does not grow with them.

A body's bytes are counted by the middleware before they get here (one budget for a request, whatever it is made of).
Files carry random names in a folder of this process, and are removed with their request; what a killed process left is
removed by the next start, which finds it by its unlocked lock file.
"""

import asyncio
import binascii
import fcntl
import json
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive

from diarist.server.errors import ClientGone, Refusal

_PIECE_BYTES = 1 << 20
"""Written and decoded at once: large enough to cost little, small enough to stall nothing."""
MAX_DOCUMENT_BYTES = 1_000_000
"""Longest JSON text that is parsed, in bytes, the recording in it not counted; parsing holds the interpreter."""
_MAX_PART_HEAD_BYTES = 8192
_LOCK_NAME = "lock"


class Spool:
    """A folder for the uploads of this process.

    Args:
        root: Where; None takes a folder of diarist's own in the system's folder for temporary files.
        min_free_bytes: What its disk must have free to admit anything.
    """

    def __init__(self, root: Path | None, min_free_bytes: int) -> None:
        self.root = root or Path(tempfile.gettempdir()) / "diarist-spool"
        self.folder = self.root / secrets.token_hex(16)
        self._min_free_bytes = min_free_bytes
        self._lock: IO[bytes] | None = None

    def open(self) -> int:
        """Make the folder and remove those of processes that are gone.

        Returns:
            How many files were left behind by others.

        Raises:
            OSError: The folder cannot be made.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        stale = sum(_remove_if_stale(folder) for folder in self.root.iterdir() if folder.is_dir())
        self.folder.mkdir(mode=0o700)
        self._lock = (self.folder / _LOCK_NAME).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return stale

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    @property
    def has_room(self) -> bool:
        """Whether its disk takes another upload."""
        try:
            return shutil.disk_usage(self.folder).free >= self._min_free_bytes
        except OSError:
            return False

    def new_path(self) -> Path:
        """A name that nobody can guess and no client chose."""
        return self.folder / secrets.token_hex(16)


def _remove_if_stale(folder: Path) -> int:
    """Remove a folder whose process is gone; how many files it held."""
    try:
        with (folder / _LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = sum(1 for file in folder.iterdir() if file.name != _LOCK_NAME)
            shutil.rmtree(folder, ignore_errors=True)
            return left
    except OSError:
        return 0  # in use, or not one of ours


class SpooledFile:
    """A file of the spool while it is written, a piece at a time, in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._pending = bytearray()

    async def write(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self._pending += data
        if len(self._pending) >= _PIECE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Everything written so far is in the file afterwards."""
        piece, self._pending = bytes(self._pending), bytearray()
        await asyncio.to_thread(_append, self.path, piece)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


class RequestFiles:
    """The files of one request."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._paths: list[Path] = []

    def new_path(self) -> Path:
        path = self._spool.new_path()
        self._paths.append(path)
        return path

    def remove(self) -> None:
        """Remove all of them, written or not."""
        for path in self._paths:
            path.unlink(missing_ok=True)


async def chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The body of a request as it comes.

    Raises:
        ClientGone: It ends early.
        Refusal: It is too long.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = message.get("more_body", False)
        if body := message.get("body", b""):
            yield body


async def read_raw(receive: Receive, files: RequestFiles) -> SpooledFile:
    """The whole body as a file."""
    file = SpooledFile(files.new_path())
    async for chunk in chunks(receive):
        await file.write(chunk)
    await file.flush()
    return file


# --- forms ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FormLimits:
    """How much one form may hold."""

    max_files: int
    max_fields: int
    max_text_bytes: int


@dataclass(frozen=True, slots=True)
class Form:
    """What a form held."""

    fields: tuple[tuple[str, str], ...]
    """Names and values in the order in which they came."""
    file: SpooledFile | None
    """The part named `file`."""

    def last(self, name: str) -> str | None:
        """The value of a field; of several the last."""
        return next((value for key, value in reversed(self.fields) if key == name), None)


@dataclass(slots=True)
class _Part:
    head: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    is_file: bool = False
    text: bytearray = field(default_factory=bytearray)


class _FormReader:
    """Callbacks of the multipart parser. They note what is to be written; `read_form` writes it."""

    def __init__(self, limits: FormLimits) -> None:
        self.limits = limits
        self.fields: list[tuple[str, str]] = []
        self.file_data: list[bytes] = []
        self.has_file = False
        self.ended = False
        self._files = 0
        self._part = _Part()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._head_bytes = 0

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_head,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._part = _Part()
        self._head_bytes = 0

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _MAX_PART_HEAD_BYTES:
            raise Refusal(400, "invalid_form", "The head of a form part is too long.")

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._header_name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._part.head[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_head(self) -> None:
        _, options = parse_options_header(self._part.head.get(b"content-disposition", b""))
        if b"name" not in options:
            raise Refusal(400, "invalid_form", "A form part has no name.")
        self._part.name = _utf8(options[b"name"])
        self._part.is_file = b"filename" in options or self._part.name == "file"
        if self._part.is_file:
            self._files += 1
            if self._files > self.limits.max_files:
                raise Refusal(400, "too_many_parts", f"A form may hold {self.limits.max_files} files at most.")
            if self._part.name == "file":
                if self.has_file:
                    raise Refusal(400, "invalid_form", "file: only one recording at a time.", param="file")
                self.has_file = True
        elif len(self.fields) >= self.limits.max_fields:
            raise Refusal(400, "too_many_parts", f"A form may hold {self.limits.max_fields} fields at most.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.is_file:
            if part.name == "file":  # other files are counted, not kept
                self.file_data.append(data[start:end])
            return
        if len(part.text) + end - start > self.limits.max_text_bytes:
            raise Refusal(
                413, "field_too_large", f"A text field may hold {self.limits.max_text_bytes} bytes.", param=part.name
            )
        part.text += data[start:end]

    def _end(self) -> None:
        if not self._part.is_file:
            self.fields.append((self._part.name, _utf8(bytes(self._part.text))))

    def _finish(self) -> None:
        self.ended = True


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refusal(400, "invalid_form", "A form field is not text in UTF-8.") from None


async def read_form(receive: Receive, content_type: str, files: RequestFiles, limits: FormLimits) -> Form:
    """A multipart form, its file in the spool.

    Raises:
        Refusal: It is malformed, or larger than the limits.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Refusal(400, "invalid_form", "The form's Content-Type names no boundary.")
    reader = _FormReader(limits)
    file = SpooledFile(files.new_path())
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        async for chunk in chunks(receive):
            parser.write(chunk)
            for data in reader.file_data:
                await file.write(data)
            reader.file_data.clear()
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "invalid_form", "The form is malformed.") from None
    if not reader.ended:
        raise Refusal(400, "invalid_form", "The form ends too early.")
    await file.flush()
    return Form(tuple(reader.fields), file if reader.has_file else None)


# --- JSON with a recording in it --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A JSON object that held a recording."""

    document: dict[str, Any]
    """The object; in it an empty text stands for the recording."""
    file: SpooledFile | None
    """The decoded recording; None where there was none."""


async def read_json(receive: Receive, files: RequestFiles) -> JsonBody:
    """A JSON object whose `inputs` is a recording in base64, which goes to the spool without passing through memory.

    Raises:
        Refusal: It is not JSON, not an object, or `inputs` is not base64.
    """
    body = await read_raw(receive, files)
    file = SpooledFile(files.new_path())
    document, size_bytes = await asyncio.to_thread(_split_json, body.path, file.path)
    if size_bytes is None:
        return JsonBody(document, None)
    file.size_bytes = size_bytes
    return JsonBody(document, file)


def _split_json(source: Path, target: Path) -> tuple[dict[str, Any], int | None]:
    with source.open("rb") as read, target.open("wb") as write:
        splitter = _JsonSplitter(write)
        while piece := read.read(_PIECE_BYTES):
            splitter.feed(piece)
        recording = splitter.recording
        if recording is not None:
            recording.finish()
    return parse_object(bytes(splitter.rest)), recording.size_bytes if recording else None


def parse_object(text: bytes | str, name: str = "The body") -> dict[str, Any]:
    """A JSON object; null is an empty one.

    Raises:
        Refusal: 422 where it is not JSON, 400 where it is not an object.
    """
    if len(text) > MAX_DOCUMENT_BYTES:
        raise Refusal(413, "field_too_large", f"{name} may hold {MAX_DOCUMENT_BYTES} bytes of JSON at most.")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Refusal(422, "invalid_json", f"{name} is not valid JSON.") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_json", f"Error validating parameters: {name} must be a JSON object.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class Base64File:
    """Base64 text in pieces of any length becomes bytes in a file. White space is skipped.

    >>> import io
    >>> file = Base64File(io.BytesIO())
    >>> file.feed(b"YW"); file.feed(b"Jj"); file.finish(); file.size_bytes
    3
    """

    def __init__(self, file: IO[bytes], param: str = "inputs") -> None:
        self._file = file
        self._param = param
        self._pending = b""
        self._padded = False
        self.size_bytes = 0

    def feed(self, text: bytes) -> None:
        text = self._pending + text.translate(None, b" \t\r\n")
        whole = len(text) // 4 * 4
        self._pending = text[whole:]
        if not whole:
            return
        if self._padded:
            raise self._refusal()
        try:
            data = binascii.a2b_base64(text[:whole], strict_mode=True)
        except binascii.Error:
            raise self._refusal() from None
        self._padded = text[whole - 1 : whole] == b"="
        self.size_bytes += len(data)
        self._file.write(data)

    def finish(self) -> None:
        if self._pending:
            raise self._refusal()

    def _refusal(self) -> Refusal:
        message = f"Error validating parameters: {self._param} is not base64."
        return Refusal(400, "invalid_base64", message, param=self._param)


class _JsonSplitter:
    """Parts the text of a JSON object, in pieces, into the value of its `inputs` and everything else.

    It knows just enough of JSON for that: where strings begin and end, how deep brackets are nested, and whether a
    string of the outermost object is a key. What it lets pass is parsed afterwards.
    """

    _MARKS = re.compile(rb'["{}\[\]:,]')
    _IN_STRING = re.compile(rb'["\\]')
    _KEY = b"inputs"

    def __init__(self, target: IO[bytes]) -> None:
        self.rest = bytearray()
        self.recording: Base64File | None = None
        self._target = target
        self._depth = 0
        self._value_next = False
        self._key = bytearray()
        self._in_string = False
        self._escaped = False
        self._takes_key = False
        self._diverts = False

    def feed(self, piece: bytes) -> None:
        position = 0
        while position < len(piece):
            position = self._string(piece, position) if self._in_string else self._outside(piece, position)
        if len(self.rest) > MAX_DOCUMENT_BYTES:
            raise Refusal(413, "field_too_large", f"All but inputs may hold {MAX_DOCUMENT_BYTES} bytes at most.")

    def _outside(self, piece: bytes, position: int) -> int:
        found = self._MARKS.search(piece, position)
        stop = found.end() if found else len(piece)
        self.rest += piece[position:stop]
        if not found:
            return stop
        mark = found.group()
        if mark == b'"':
            self._begin_string()
        elif mark in b"{[":
            self._depth += 1
            self._value_next = mark == b"["
        elif mark in b"}]":
            self._depth -= 1
        elif self._depth == 1:
            self._value_next = mark == b":"
        return stop

    def _begin_string(self) -> None:
        self._in_string = True
        self._takes_key = self._depth == 1 and not self._value_next
        self._diverts = self._depth == 1 and self._value_next and bytes(self._key) == self._KEY
        if self._takes_key:
            self._key.clear()
        if self._diverts:
            if self.recording is not None:
                raise Refusal(400, "invalid_json", "Error validating parameters: inputs stands there twice.")
            self.recording = Base64File(self._target)

    def _string(self, piece: bytes, position: int) -> int:
        if self._escaped:
            self._escaped = False
            self._escape(piece[position : position + 1])
            return position + 1
        found = self._IN_STRING.search(piece, position)
        stop = found.start() if found else len(piece)
        self._text(piece[position:stop])
        if not found:
            return stop
        if found.group() == b'"':
            self._in_string = False
            self.rest += b'"'
        else:
            self._escaped = True
        return found.end()

    def _text(self, text: bytes) -> None:
        if self._diverts and self.recording is not None:
            self.recording.feed(text)
            return
        self.rest += text
        if self._takes_key:
            self._key += text

    def _escape(self, character: bytes) -> None:
        if not self._diverts:
            self._text(b"\\" + character)
        elif character == b"/":  # some writers escape it; the others that stand in base64 are line ends
            self._text(b"/")
        elif character not in (b"n", b"r", b"t"):
            raise Refusal(400, "invalid_base64", "Error validating parameters: inputs is not base64.", param="inputs")
