"""Reader for `.npz` arrays."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diarist.errors import ModelFormatError

MAX_BYTES = 256 << 20
"""No array file that diarist reads comes near it: the PLDA has a tenth of a megabyte."""


def read(path: Path) -> dict[str, NDArray[np.floating]]:
    """The arrays of an npz file under their own names.

    Raises:
        ModelFormatError: Not an npz, truncated, absurdly large, or holding anything but finite numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        if len({info.filename for info in infos}) != len(infos):
            raise ModelFormatError(f"{path} holds an array twice")
        if sum(info.file_size for info in infos) > MAX_BYTES:
            raise ModelFormatError(f"{path} unpacks to more than {MAX_BYTES >> 20} MiB")
        with np.load(path, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, MemoryError) as error:
        raise ModelFormatError(f"{path} is not a readable npz of plain numbers: {error}") from error
    for name, values in arrays.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise ModelFormatError(f"{path}: {name} is not an array of finite numbers")
    return arrays
