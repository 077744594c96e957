"""Assistants that `diarist distill` made: decoder layers for the encoder and the embeddings of one main model.

Before the layers stands `decoder.fuse`, which joins a token's embedding with the main decoder's hidden state.

Such a folder holds, in transformers' names, only what the main model does not have; `config.json` has the sizes of the
whole and, under `diarist`, the hash of the encoder that it was made for.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from diarist.errors import ModelFormatError
from diarist.models.readers import checks, safetensors, whisper
from diarist.models.types import LocalModel, WhisperCheckpoint

CONFIG_KEY = "diarist"
"""Where `config.json` says what the folder holds."""


def read(model: LocalModel, main: WhisperCheckpoint) -> WhisperCheckpoint:
    """The assistant as a whole Whisper: its layers, and everything else of the main model, which is shared, not copied.

    Raises:
        ModelFormatError: The folder holds no such assistant, or one for another encoder.
    """
    config = description(model)
    path = model.files["model.safetensors"]
    if config.get("encoder_sha256") != encoder_sha256(main.tensors):
        raise ModelFormatError(
            f"{path} is an assistant for {config.get('assistant_for')!r}, and the main model has another encoder"
        )
    dims = dataclasses.replace(main.dims, n_text_layer=whisper.text_layers(model.files))
    own = whisper.from_transformers(safetensors.read(path))
    foreign = sorted(name for name in own if not name.startswith("decoder."))
    if foreign:
        raise ModelFormatError(f"{path} holds {foreign[0]}, which an assistant shares with its main model")
    tensors = {name: tensor for name, tensor in main.tensors.items() if not name.startswith("decoder.blocks.")} | own
    state = dims.n_text_state
    fuse = {"decoder.fuse.weight": (state, 2 * state), "decoder.fuse.bias": (state,)}
    checks.require_shapes(tensors, whisper.shapes(dims) | fuse, path)
    checks.require_finite(own, path)
    return dataclasses.replace(main, dims=dims, tensors=tensors, alignment_heads=())


def description(model: LocalModel) -> Mapping[str, Any]:
    """What `config.json` says under `diarist`; empty for models that `diarist distill` did not make.

    Raises:
        ModelFormatError: The file cannot be read.
    """
    table = whisper.configuration(model.files).get(CONFIG_KEY)
    return table if isinstance(table, dict) and table.get("shares_encoder") is True else {}


def encoder_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of an encoder: the names of its tensors in order, each with its values as float32.

    The layouts store one model in different types and orders, which must not make it another.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if name.startswith("encoder.")):
        digest.update(name.encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
