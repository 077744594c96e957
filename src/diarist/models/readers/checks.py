"""What every set of weights is held to before it leaves `models/`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from diarist.errors import ModelFormatError


def require_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that hold NaN or infinity: every output would be silently wrong.

    Raises:
        ModelFormatError: Naming the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)  # both are NaN as soon as one element is
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise ModelFormatError(f"{path}: {name} holds NaN or infinite values")


def require_shapes(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]], path: Path) -> None:
    """Hold tensors to exactly these names and shapes.

    Raises:
        ModelFormatError: Naming what is missing, what is too much, or the first wrong shape.
    """
    _report(path, "lacks", (name for name in shapes if name not in tensors))
    _report(path, "holds tensors that this network does not have:", (name for name in tensors if name not in shapes))
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != tuple(shape):
            found = list(tensors[name].shape)
            raise ModelFormatError(f"{path}: {name} has shape {found}, the network needs {list(shape)}")
        if not tensors[name].is_floating_point():
            raise ModelFormatError(f"{path}: {name} holds {tensors[name].dtype}, not floating point")


def _report(path: Path, complaint: str, names: Iterable[str]) -> None:
    found = list(names)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ModelFormatError(f"{path} {complaint} {', '.join(found[:3])}{more}")
