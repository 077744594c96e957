"""Reader for what `torch.save` wrote: OpenAI's `.pt`, Hugging Face's `pytorch_model.bin`, pyannote's checkpoints.

A pickle can run any code. These are read with `weights_only=True` and in no other way: a file that needs more than
tensors, plain containers and the inert stand-ins below is refused.
"""

import pickle
import threading
import zipfile
from pathlib import Path
from typing import Any

import torch

from diarist.errors import ModelFormatError

MAX_PICKLE_BYTES = 64 << 20
"""Of the part that is interpreted. Whisper large's has a fifth of a megabyte; tensors lie outside it."""


class Inert:
    """Stands in for a class that a checkpoint names but whose meaning is not needed. Nothing of it is ever called."""

    def __init__(self, *_: Any) -> None:
        """Accept and drop whatever the pickle passes."""

    def __setstate__(self, state: Any) -> None:
        """Drop the state."""


INERT_GLOBALS = (
    "pyannote.audio.core.task.Specifications",
    "pyannote.audio.core.task.Problem",
    "pyannote.audio.core.task.Resolution",
    "pyannote.audio.core.model.Introspection",
)
"""Classes inside pyannote's published checkpoints: descriptions of the task, beside the weights."""

_globals_lock = threading.Lock()
"""torch keeps its list of allowed classes per process."""


def read(path: Path) -> dict[str, Any]:
    """The dictionary that a checkpoint holds; its tensors are mapped from the file.

    Raises:
        ModelFormatError: Not a zip-based PyTorch checkpoint, truncated, or not made of tensors and plain values alone.
    """
    _require_plain_archive(path)
    stand_ins = [(_stand_in(name), name) for name in INERT_GLOBALS]
    try:
        with _globals_lock, torch.serialization.safe_globals([*stand_ins, torch.torch_version.TorchVersion]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ModelFormatError(
            f"{path} is refused: it is a pickle that holds more than tensors ({_reason(error)})."
            " Use a safetensors version of the model, or save its state_dict alone from an environment you trust."
        ) from error
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, EOFError, AttributeError, IndexError) as error:
        raise ModelFormatError(f"{path} is not a readable PyTorch checkpoint: {_reason(error)}") from error
    if not isinstance(loaded, dict):
        raise ModelFormatError(f"{path} holds a {type(loaded).__name__}, not named tensors")
    return loaded


def tensors(table: Any, path: Path) -> dict[str, torch.Tensor]:
    """A state dictionary, checked to be names and ordinary tensors in memory.

    Raises:
        ModelFormatError: It is anything else.
    """
    if not isinstance(table, dict):
        raise ModelFormatError(f"{path} holds no state dictionary")
    for name, value in table.items():
        plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not isinstance(name, str) or not plain or value.is_quantized:
            raise ModelFormatError(f"{path}: {name!r} is not an ordinary tensor")
    return table


def _require_plain_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise ModelFormatError(
            f"{path} is not a PyTorch checkpoint, is truncated, or was saved before PyTorch 1.6:"
            " use a safetensors version of the model"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ModelFormatError(f"{path} is not a readable PyTorch checkpoint: {error}") from error
    if len({info.filename for info in infos}) != len(infos):
        raise ModelFormatError(f"{path} holds a member twice")
    if any(info.filename.endswith(".pkl") and info.file_size > MAX_PICKLE_BYTES for info in infos):
        raise ModelFormatError(f"{path} has a pickle of more than {MAX_PICKLE_BYTES >> 20} MiB")
    if any(info.filename.rpartition("/")[2] == "constants.pkl" for info in infos):
        raise ModelFormatError(f"{path} is refused: it is a TorchScript archive, which holds code")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise ModelFormatError(f"{path} is compressed, as PyTorch never writes it")


def _stand_in(name: str) -> type[Inert]:
    return type(name.rpartition(".")[2], (Inert,), {})


def _reason(error: Exception) -> str:
    """Torch's message without its advice, which is to turn the protection off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    return told.partition("Please use")[0].strip()[:200] or type(error).__name__
