"""The PLDA of pyannote's community-1 pipeline: mean, transform and covariances for VBx clustering."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diarist.errors import ModelFormatError
from diarist.models.layouts import PLDA_FILES
from diarist.models.readers import arrays
from diarist.models.types import LocalModel

EMBEDDING, REDUCED = 256, 128
"""Dimensions before and after the transform of `xvec_transform.npz`."""
SHAPES = {
    "mean1": (EMBEDDING,),
    "mean2": (REDUCED,),
    "lda": (EMBEDDING, REDUCED),
    "mu": (REDUCED,),
    "tr": (REDUCED, REDUCED),
    "psi": (REDUCED,),
}


def read(model: LocalModel) -> dict[str, NDArray[np.floating[Any]]]:
    """`mean1`, `mean2`, `lda` of the transform and `mu`, `tr`, `psi` of the PLDA.

    Raises:
        ModelFormatError: A file is unreadable, or an array is missing or has another shape.
    """
    found: dict[str, NDArray[np.floating[Any]]] = {}
    for file in PLDA_FILES:
        if file not in model.files:
            raise ModelFormatError(f"{model.directory} has no {file}")
        found |= arrays.read(model.files[file])
    for name, shape in SHAPES.items():
        if name not in found or found[name].shape != shape:
            actual = found[name].shape if name in found else "missing"
            raise ModelFormatError(f"{model.directory}: PLDA array {name} is {actual}, not {shape}")
    return found
