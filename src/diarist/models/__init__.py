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
    "list_models",
    "load_embedding",
    "load_plda",
    "load_segmentation",
    "load_whisper",
    "path",
    "pull",
    "resolve",
    "verify",
]


def load_whisper(local: LocalModel) -> WhisperCheckpoint:
    """Read a Whisper model of any layout.

    Raises:
        ModelFormatError: A file cannot be read, or does not hold a Whisper of the sizes it claims.
    """
    from diarist.models.readers import whisper  # noqa: PLC0415 - torch is slow to import

    return whisper.read(local)


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
