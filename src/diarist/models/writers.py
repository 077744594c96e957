"""Tensors into files, the other way through the door: for what diarist itself trains."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file aside and rename it, so that whoever looks finds it whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
