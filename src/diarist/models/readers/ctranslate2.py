"""Reader for CTranslate2's `model.bin`.

Little-endian throughout: u32 version, string spec name, u32 spec revision, u32 count of variables; each variable is a
string name, u8 rank, u32 sizes, u8 dtype code, u32 byte count, data; then u32 count of aliases, each two strings. A
string is a u16 byte count that includes its terminating zero. (OpenNMT/CTranslate2, `python/ctranslate2/specs`.)
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diarist.errors import ModelFormatError

SUPPORTED_VERSIONS = range(5, 7)
"""Version 5 brought the spec's revision, 6 the configuration file; earlier ones are years old."""
MAX_VARIABLES = 100_000
_DTYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16, 5: torch.bfloat16}
_CURE = "use the float16 or float32 conversion of the same model (ct2-transformers-converter --quantization float16)"


@dataclass(slots=True)
class _Cursor:
    """A position in the mapped file that cannot leave it."""

    path: Path
    data: NDArray[np.uint8]
    at: int = 0

    def take(self, count: int) -> NDArray[np.uint8]:
        if count > len(self.data) - self.at:
            raise ModelFormatError(f"{self.path} is truncated: it ends at byte {len(self.data)}, inside a variable")
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)).tobytes())[0]
        return value

    def text(self) -> str:
        raw = self.take(self.number("<H")).tobytes()
        try:
            return raw.rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"{self.path} is not a CTranslate2 model: a name is not text") from error


def read(path: Path, spec: str) -> dict[str, torch.Tensor]:
    """All variables of a model, aliases resolved.

    Args:
        path: The `model.bin`.
        spec: Name of the expected specification, such as `WhisperSpec`.

    Returns:
        Tensors under CTranslate2's names, in the stored dtype, mapped from the file where their place in it is aligned.

    Raises:
        ModelFormatError: Not such a model, truncated, or quantised to integers.
    """
    if path.stat().st_size < struct.calcsize("<IH"):
        raise ModelFormatError(f"{path} is not a CTranslate2 model: it has {path.stat().st_size} bytes")
    cursor = _Cursor(path, np.memmap(path, dtype=np.uint8, mode="c"))  # private: tensors may be written, the file not
    version = cursor.number("<I")
    if version not in SUPPORTED_VERSIONS:
        raise ModelFormatError(f"{path} is not a CTranslate2 model of a known version ({version})")
    found = cursor.text()
    if found != spec:
        raise ModelFormatError(f"{path} holds a {found!r} model, not a {spec}")
    cursor.number("<I")  # revision of the spec
    count = cursor.number("<I")
    if count > MAX_VARIABLES:
        raise ModelFormatError(f"{path} claims {count} variables")
    tensors: dict[str, torch.Tensor] = {}
    for _ in range(count):
        name = cursor.text()
        if name in tensors:
            raise ModelFormatError(f"{path} holds {name!r} twice")
        tensors[name] = _variable(cursor, name)
    for _ in range(cursor.number("<I") if cursor.at < len(cursor.data) else 0):
        alias, name = cursor.text(), cursor.text()
        if name not in tensors:
            raise ModelFormatError(f"{path}: {alias!r} stands for {name!r}, which is not there")
        tensors[alias] = tensors[name]
    if cursor.at != len(cursor.data):
        raise ModelFormatError(f"{path} has {len(cursor.data) - cursor.at} bytes after its end")
    return tensors


def _variable(cursor: _Cursor, name: str) -> torch.Tensor:
    shape = [cursor.number("<I") for _ in range(cursor.number("<B"))]
    code = cursor.number("<B")
    stored = cursor.number("<I")
    if code not in _DTYPES:
        raise ModelFormatError(f"{cursor.path}: {name} has the unknown dtype code {code}")
    dtype = _DTYPES[code]
    if code in {1, 2} and shape:  # scalars are options: flags and numbers of heads
        raise ModelFormatError(f"{cursor.path} is quantised ({name} is {_named(dtype)}): {_CURE}")
    if stored != dtype.itemsize * math.prod(shape):
        made = f"{_named(dtype)} of shape {shape}"
        raise ModelFormatError(f"{cursor.path}: {name} has {stored} bytes, which do not make {made}")
    raw = torch.from_numpy(cursor.take(stored))
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()  # by all threads, which numpy would not
    return raw.view(dtype).reshape(shape)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
