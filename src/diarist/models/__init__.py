"""The only door from names to verified files, and from files to tensors.

`resolve` finds or fetches a model, `load_*` reads it. torch is imported by the `load_*` functions, when called.
"""

from typing import TYPE_CHECKING, Any

from diarist.models.resolve import diarization_parts, list_models, path, pull, resolve, verify
from diarist.models.types import (
    DiarizationParts,
    FileCheck,
    Kind,
    LocalModel,
    ModelSummary,
    Progress,
    WhisperCheckpoint,
    WhisperDims,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = [
    "DiarizationParts",
    "FileCheck",
    "Kind",
    "LocalModel",
    "ModelSummary",
    "Progress",
    "WhisperCheckpoint",
    "WhisperDims",
    "diarization_parts",
    "encoder_sha256",
    "is_assistant",
    "list_models",
    "load_assistant",
    "load_embedding",
    "load_plda",
    "load_segmentation",
    "load_whisper",
    "path",
    "pull",
    "read_tensors",
    "resolve",
    "to_transformers",
    "verify",
    "write_tensors",
]


def load_whisper(local: LocalModel) -> WhisperCheckpoint:
    """Read a Whisper model of any layout.

    Raises:
        ModelFormatError: A file cannot be read, or does not hold a Whisper of the sizes it claims.
    """
    from diarist.models.readers import whisper  # noqa: PLC0415 - torch is slow to import

    return whisper.read(local)


def load_assistant(local: LocalModel, main: WhisperCheckpoint) -> WhisperCheckpoint:
    """Read an assistant that `diarist distill` made, as a whole Whisper that shares the main model's tensors.

    Raises:
        ModelFormatError: It cannot be read, is no such assistant, or was made for another encoder.
    """
    from diarist.models.readers import assistant  # noqa: PLC0415 - torch is slow to import

    return assistant.read(local, main)


def is_assistant(local: LocalModel) -> bool:
    """Whether it is a model for `load_assistant`, rather than a whole one for `load_whisper`."""
    from diarist.models.readers import assistant  # noqa: PLC0415 - torch is slow to import

    return bool(assistant.description(local))


def encoder_sha256(main: WhisperCheckpoint) -> str:
    """Hash of a model's encoder, the same whatever layout its file has: what an assistant names in `config.json`."""
    from diarist.models.readers import assistant  # noqa: PLC0415 - torch is slow to import

    return assistant.encoder_sha256(main.tensors)


def to_transformers(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Tensors of an assistant under the names that transformers gives such in `model.safetensors`."""
    from diarist.models.readers import whisper  # noqa: PLC0415 - torch is slow to import

    return whisper.to_transformers(tensors)


def read_tensors(path: "Path") -> "dict[str, torch.Tensor]":
    """The tensors of one safetensors file, mapped from it.

    Raises:
        ModelFormatError: It is none.
    """
    from diarist.models.readers import safetensors  # noqa: PLC0415 - torch is slow to import

    return safetensors.read(path)


def write_tensors(path: "Path", tensors: "Mapping[str, torch.Tensor]") -> None:
    """Write a safetensors file; it appears whole or not at all."""
    from diarist.models import writers  # noqa: PLC0415 - torch is slow to import

    writers.write_tensors(path, tensors)


def load_segmentation(local: LocalModel) -> "dict[str, torch.Tensor]":
    """Read pyannote's segmentation network: `sincnet.*`, `lstm.*` in torch's gate order, `linear.*`, `classifier.*`.

    Raises:
        ModelFormatError: The file cannot be read or does not hold this network.
    """
    from diarist.models.readers import segmentation  # noqa: PLC0415 - torch is slow to import

    return segmentation.read(local)


def load_embedding(local: LocalModel) -> "dict[str, torch.Tensor]":
    """Read the ResNet34-LM speaker embedding: `conv1`, `layer{1..4}.{i}.*`, `seg_1`, BatchNorm folded.

    Raises:
        ModelFormatError: The file cannot be read or does not hold this network.
    """
    from diarist.models.readers import embedding  # noqa: PLC0415 - torch is slow to import

    return embedding.read(local)


def load_plda(local: LocalModel) -> "dict[str, NDArray[np.floating[Any]]]":
    """Read the PLDA for VBx clustering: `mean1`, `mean2`, `lda`, `mu`, `tr`, `psi`.

    Raises:
        ModelFormatError: A file is unreadable, or an array is missing or has another shape.
    """
    from diarist.models.readers import plda  # noqa: PLC0415 - like the others

    return plda.read(local)
