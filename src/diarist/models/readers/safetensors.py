"""Reader for safetensors files, whole or sharded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from diarist.errors import ModelFormatError

INDEX = "model.safetensors.index.json"


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, in the stored dtype, mapped from it.

    Raises:
        ModelFormatError: Not a safetensors file, truncated, or with a header that does not fit its size.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelFormatError(f"{path} is not a readable safetensors file: {error}") from error


def read_sharded(files: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    """The tensors of a model whose index names several files.

    Args:
        files: The model's files by name; the index may name no other.

    Raises:
        ModelFormatError: The index is not one, or a file or tensor that it names is missing.
    """
    path = files[INDEX]
    weight_map = _weight_map(path)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for shard in sorted(set(weight_map.values())):
        if shard not in files:
            raise ModelFormatError(f"{path} names {shard}, which is not beside it")
        shards[shard] = read(files[shard])
    missing = [name for name, shard in weight_map.items() if name not in shards[shard]]
    if missing:
        raise ModelFormatError(f"{path} names {missing[0]}, which {weight_map[missing[0]]} does not hold")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _weight_map(path: Path) -> dict[str, str]:
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFormatError(f"{path} is not a safetensors index: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(shard, str) for shard in table.values()):
        raise ModelFormatError(f"{path} is not a safetensors index: its weight_map does not map names to files")
    return table
