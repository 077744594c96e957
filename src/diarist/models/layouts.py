"""Which files make a model: how each kind of model is laid out in a folder or a hub repository.

Order is preference: safetensors before CTranslate2 before pickles, because the earlier cannot carry code.
"""

import re
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath

from diarist.errors import ModelFormatError
from diarist.models.types import Kind

WHISPER_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "vocabulary.json",
    "vocabulary.txt",
)
"""Beside a Whisper's weights: sizes, suppressed tokens, alignment heads, tokenizer."""
PLDA_FILES = ("plda.npz", "xvec_transform.npz")
_EXPECTED = {
    "asr": "model.safetensors or model.bin with config.json, or one .pt",
    "segmentation": "one .safetensors, .bin, .ckpt or .onnx file",
    "embedding": "one .safetensors, .bin, .ckpt or .onnx file",
    "plda": " and ".join(PLDA_FILES),
    "tokenizer": "tokenizer.json",
    "sample": "a recording",
}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def whisper_weights(names: Sequence[str]) -> tuple[str, ...]:
    """The weight files of the best layout among `names`; empty when there is none."""
    present = set(names)
    if "model.safetensors" in present:
        return ("model.safetensors",)
    if "model.safetensors.index.json" in present:
        return ("model.safetensors.index.json", *sorted(name for name in present if _SHARD.fullmatch(name)))
    if {"model.bin", "config.json"} <= present:
        return ("model.bin",)
    if "pytorch_model.bin" in present:
        return ("pytorch_model.bin",)
    checkpoints = [name for name in present if name.endswith(".pt") and "/" not in name]
    return tuple(checkpoints) if len(checkpoints) == 1 else ()


def network_weights(names: Sequence[str]) -> tuple[str, ...]:
    """The one weight file of a segmentation or embedding model; empty when there is none or it is ambiguous."""
    for pattern in ("model.safetensors", "pytorch_model.bin", "*.onnx", "*.ckpt", "*.pt", "*.bin"):
        found = [name for name in names if PurePosixPath(name).match(pattern)]
        if len(found) == 1:
            return (found[0],)
        if found:
            shallow = [name for name in found if "/" not in name]
            return (shallow[0],) if len(shallow) == 1 else ()
    return ()


def plda_files(names: Sequence[str]) -> tuple[str, ...]:
    """Both arrays of a PLDA, in the root or in `plda/`; empty unless both are there."""
    for prefix in ("", "plda/"):
        found = tuple(prefix + name for name in PLDA_FILES)
        if set(found) <= set(names):
            return found
    return ()


def has_tokenizer(names: Container[str]) -> bool:
    """Whether a Whisper's files say how its tokens are written."""
    return "tokenizer.json" in names or ("vocab.json" in names and "merges.txt" in names)


def hub_files(kind: Kind, names: Sequence[str]) -> tuple[str, ...]:
    """What to fetch of a repository that holds `names`; empty when it has no weights that diarist reads."""
    if kind == "asr":
        weights = whisper_weights(names)
        return (*weights, *(name for name in WHISPER_SIDE_FILES if name in names)) if weights else ()
    if kind == "plda":
        return plda_files(names)
    if kind in {"segmentation", "embedding"}:
        return network_weights(names)
    return ()


def at_path(path: Path, kind: Kind) -> tuple[Path, dict[str, Path]]:
    """The folder and the files of a model that lies at `path`, a folder or one of its weight files.

    Raises:
        ModelFormatError: There are no weights there in a layout that diarist reads.
    """
    folder = path if path.is_dir() else path.parent
    names = sorted(child.name for child in folder.iterdir() if child.is_file())
    if path.is_file():
        beside = [name for name in names if name in WHISPER_SIDE_FILES or (kind == "plda" and name in PLDA_FILES)]
        chosen: tuple[str, ...] = (path.name, *(name for name in beside if name != path.name))
        if path.name == "model.safetensors.index.json":
            chosen = (*chosen, *(name for name in names if _SHARD.fullmatch(name)))
    else:
        chosen = hub_files(kind, names)
    if not chosen:
        raise ModelFormatError(f"{path} holds no {kind} weights in a layout that diarist reads: {_EXPECTED[kind]}")
    return folder, {name: folder / name for name in dict.fromkeys(chosen)}
