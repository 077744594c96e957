"""Whisper checkpoints of every layout, under openai-whisper's names."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from diarist.errors import ModelFormatError
from diarist.models import catalog, layouts
from diarist.models.readers import checks, ctranslate2, pickles, safetensors, tokenizer
from diarist.models.types import LocalModel, WhisperCheckpoint, WhisperDims

MAX_DIMENSION = 1_000_000
"""Far above any Whisper; keeps absurd configurations from costing memory before shapes are compared."""

_HF_LAYER = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
_HF_OUTSIDE = {
    "encoder.conv1": "encoder.conv1",
    "encoder.conv2": "encoder.conv2",
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.embed_tokens": "decoder.token_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "decoder.layer_norm": "decoder.ln",
}
_CT2_OUTSIDE = {
    "encoder/conv1/weight": "encoder.conv1.weight",
    "encoder/conv1/bias": "encoder.conv1.bias",
    "encoder/conv2/weight": "encoder.conv2.weight",
    "encoder/conv2/bias": "encoder.conv2.bias",
    "encoder/position_encodings/encodings": "encoder.positional_embedding",
    "encoder/layer_norm/gamma": "encoder.ln_post.weight",
    "encoder/layer_norm/beta": "encoder.ln_post.bias",
    "decoder/embeddings/weight": "decoder.token_embedding.weight",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "decoder/layer_norm/gamma": "decoder.ln.weight",
    "decoder/layer_norm/beta": "decoder.ln.bias",
}


def read(model: LocalModel) -> WhisperCheckpoint:
    """Everything that recognition needs from a model's files.

    Raises:
        ModelFormatError: A file cannot be read, or does not hold a Whisper of the sizes it claims.
    """
    dims, tensors, path = _network(model.files)
    checks.require_shapes(tensors, shapes(dims), path)
    checks.require_finite(tensors, path)
    words = tokenizer.read(model.files, dims.n_vocab)
    settings = _settings(model.files)
    suppressed = _token_list(settings, ("suppress_tokens", "suppress_ids"), dims)
    begin = _token_list(settings, ("begin_suppress_tokens", "suppress_ids_begin"), dims)
    return WhisperCheckpoint(
        dims=dims,
        tensors=tensors,
        tokenizer=words,
        multilingual=dims.n_vocab >= tokenizer.MULTILINGUAL,
        alignment_heads=_alignment_heads(settings, model, dims),
        suppress_tokens=suppressed or tokenizer.suppressed_by_default(words),
        begin_suppress_tokens=begin or tokenizer.begin_suppressed_by_default(words),
    )


def vocabulary_size(files: Mapping[str, Path]) -> int:
    """Rows of the token embedding: tells which tokenizer a model without one needs."""
    return _network(files)[0].n_vocab


def text_layers(files: Mapping[str, Path]) -> int:
    """Decoder layers that `config.json` names.

    Raises:
        ModelFormatError: It names no plausible number of them.
    """
    count = configuration(files).get("decoder_layers")
    if type(count) is not int or not 0 < count <= MAX_DIMENSION:
        raise ModelFormatError(f"decoder_layers is {count!r} in the model's config.json, not a plausible size")
    return count


def configuration(files: Mapping[str, Path]) -> dict[str, Any]:
    """`config.json`; empty where there is none.

    Raises:
        ModelFormatError: It cannot be read.
    """
    return _json(files["config.json"]) if "config.json" in files else {}


def from_transformers(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under our names; unknown ones keep theirs."""
    return dict(_from_hf(stored))


def to_transformers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of layers, under our names, under those of transformers; what it does not know keeps its name."""
    theirs = {ours: theirs for theirs, ours in _HF_LAYER.items()}
    found = {}
    for name, tensor in tensors.items():
        side, _, rest = name.partition(".blocks.")
        if not rest:
            found[f"model.{name}"] = tensor
            continue
        layer, _, part = rest.partition(".")
        stem, _, end = part.rpartition(".")
        found[f"model.{side}.layers.{layer}.{theirs[stem]}.{end}"] = tensor
    return found


def shapes(dims: WhisperDims) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Whisper of these sizes."""
    audio, text = dims.n_audio_state, dims.n_text_state
    found: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (audio, dims.n_mels, 3),
        "encoder.conv1.bias": (audio,),
        "encoder.conv2.weight": (audio, audio, 3),
        "encoder.conv2.bias": (audio,),
        "encoder.positional_embedding": (dims.n_audio_ctx, audio),
        "decoder.token_embedding.weight": (dims.n_vocab, text),
        "decoder.positional_embedding": (dims.n_text_ctx, text),
    }
    found |= _norm("encoder.ln_post", audio) | _norm("decoder.ln", text)
    for layer in range(dims.n_audio_layer):
        found |= _block(f"encoder.blocks.{layer}", audio, ("attn",))
    for layer in range(dims.n_text_layer):
        found |= _block(f"decoder.blocks.{layer}", text, ("attn", "cross_attn"))
    return found


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(name: str, width: int, attentions: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        f"{name}.mlp.0.weight": (4 * width, width),
        f"{name}.mlp.0.bias": (4 * width,),
        f"{name}.mlp.2.weight": (width, 4 * width),
        f"{name}.mlp.2.bias": (width,),
        **_norm(f"{name}.mlp_ln", width),
    }
    for attention in attentions:
        found |= _norm(f"{name}.{attention}_ln", width)
        for part in ("query", "key", "value", "out"):
            found[f"{name}.{attention}.{part}.weight"] = (width, width)
            if part != "key":  # a bias there would cancel in the softmax
                found[f"{name}.{attention}.{part}.bias"] = (width,)
    return found


def _network(files: Mapping[str, Path]) -> tuple[WhisperDims, dict[str, torch.Tensor], Path]:
    """Sizes, tensors under our names, and the file to name in complaints."""
    weights = layouts.whisper_weights(list(files)) or tuple(name for name in files if name.endswith((".pt", ".bin")))
    if not weights:
        raise ModelFormatError("the model has no weight file that diarist reads")
    path = files[weights[0]]
    if path.name == "model.bin":
        variables = ctranslate2.read(path, "WhisperSpec")
        return _ct2_dims(variables, path), dict(_from_ct2(variables, path)), path
    if path.suffix == ".pt":
        return *_from_openai(path), path
    if path.name == safetensors.INDEX:
        stored = safetensors.read_sharded(files)
    elif path.suffix == ".safetensors":
        stored = safetensors.read(path)
    else:
        stored = pickles.tensors(pickles.read(path), path)
    return _hf_dims(files, path), dict(_from_hf(stored)), path


# --- the three layouts ---


def _from_openai(path: Path) -> tuple[WhisperDims, dict[str, torch.Tensor]]:
    checkpoint = pickles.read(path)
    if "dims" not in checkpoint or "model_state_dict" not in checkpoint:
        raise ModelFormatError(f"{path} is not an openai-whisper checkpoint: it lacks dims or model_state_dict")
    tensors = pickles.tensors(checkpoint["model_state_dict"], path)
    return _dims(checkpoint["dims"], path), {name: value for name, value in tensors.items() if name != "decoder.mask"}


def _from_hf(stored: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in stored.items():
        if name != "proj_out.weight":  # the token embedding again
            yield _hf_name(name.removeprefix("model.")), tensor


def _hf_name(name: str) -> str:
    """Our name for one of transformers'; unknown names pass unchanged, to be named in the complaint."""
    side, _, rest = name.partition(".layers.")
    if rest:
        layer, _, part = rest.partition(".")
        stem, _, end = part.rpartition(".")
        return f"{side}.blocks.{layer}.{_HF_LAYER[stem]}.{end}" if stem in _HF_LAYER else name
    for theirs, ours in _HF_OUTSIDE.items():
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name[len(theirs) :]
    return name


def _hf_dims(files: Mapping[str, Path], path: Path) -> WhisperDims:
    config = configuration(files)
    if config.get("model_type") != "whisper":
        raise ModelFormatError(f"{path} has no config.json of a Whisper beside it")
    return _dims(
        {
            "n_mels": config.get("num_mel_bins"),
            "n_audio_ctx": config.get("max_source_positions"),
            "n_audio_state": config.get("d_model"),
            "n_audio_head": config.get("encoder_attention_heads"),
            "n_audio_layer": config.get("encoder_layers"),
            "n_vocab": config.get("vocab_size"),
            "n_text_ctx": config.get("max_target_positions"),
            "n_text_state": config.get("d_model"),
            "n_text_head": config.get("decoder_attention_heads"),
            "n_text_layer": config.get("decoder_layers"),
        },
        path,
    )


def _from_ct2(variables: Mapping[str, torch.Tensor], path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Rename, and take the fused projections apart."""
    for theirs, ours in _CT2_OUTSIDE.items():
        if theirs in variables:
            yield ours, variables[theirs]
    for name, tensor in variables.items():
        side, _, rest = name.partition("/layer_")
        layer, _, part = rest.partition("/")
        if side not in {"encoder", "decoder"} or not layer.isdigit() or not tensor.dim():
            continue
        yield from _from_ct2_layer(f"{side}.blocks.{layer}", part, tensor, path)


def _from_ct2_layer(block: str, part: str, tensor: torch.Tensor, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    module, _, kind = part.rpartition("/")
    end = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
    where, _, which = module.partition("/")
    name = f"{block}.{ {'self_attention': 'attn', 'attention': 'cross_attn', 'ffn': 'mlp'}.get(where, where) }"
    fused = {("self_attention", "linear_0"): ("query", "key", "value"), ("attention", "linear_1"): ("key", "value")}
    single = {
        ("self_attention", "linear_1"): ".out",
        ("attention", "linear_0"): ".query",
        ("attention", "linear_2"): ".out",
        ("ffn", "linear_0"): ".0",
        ("ffn", "linear_1"): ".2",
    }
    if which == "layer_norm":
        yield f"{name}_ln.{end}", tensor
    elif (where, which) in single:
        yield f"{name}{single[where, which]}.{end}", tensor
    elif (where, which) in fused:
        parts = fused[where, which]
        if len(tensor) % len(parts):
            raise ModelFormatError(f"{path}: {block} has {len(tensor)} rows, which do not divide into {len(parts)}")
        for label, piece in zip(parts, tensor.tensor_split(len(parts)), strict=True):
            if (label, end) != ("key", "bias"):
                yield f"{name}.{label}.{end}", piece
            elif piece.any():
                raise ModelFormatError(f"{path}: {block} has a bias on its keys, which Whisper does not have")
    else:
        yield f"{block}.{part}", tensor  # unknown: named in the complaint


def _ct2_dims(variables: Mapping[str, torch.Tensor], path: Path) -> WhisperDims:
    def size(name: str, axis: int, rank: int) -> int:
        if name not in variables or variables[name].dim() != rank:
            raise ModelFormatError(f"{path} lacks {name}, or it has the wrong rank")
        return variables[name].shape[axis] if rank else int(variables[name])

    def layers(side: str) -> int:
        found = {
            name.split("/")[1]
            for name in variables
            if name.startswith(f"{side}/layer_") and "layer_norm/" not in name[:20]
        }
        return len(found)

    return _dims(
        {
            "n_mels": size("encoder/conv1/weight", 1, 3),
            "n_audio_ctx": size("encoder/position_encodings/encodings", 0, 2),
            "n_audio_state": size("encoder/conv1/weight", 0, 3),
            "n_audio_head": size("encoder/num_heads", 0, 0),
            "n_audio_layer": layers("encoder"),
            "n_vocab": size("decoder/embeddings/weight", 0, 2),
            "n_text_ctx": size("decoder/position_encodings/encodings", 0, 2),
            "n_text_state": size("decoder/embeddings/weight", 1, 2),
            "n_text_head": size("decoder/num_heads", 0, 0),
            "n_text_layer": layers("decoder"),
        },
        path,
    )


def _dims(table: Any, path: Path) -> WhisperDims:
    """Sizes from a table of any origin, held to be plausible."""
    names = [field.name for field in fields(WhisperDims)]
    if not isinstance(table, dict):
        raise ModelFormatError(f"{path}: the sizes of the network are not a table")
    for name in names:
        value = table.get(name)
        if type(value) is not int or not 0 < value <= MAX_DIMENSION:
            raise ModelFormatError(f"{path}: {name} is {value!r}, not a plausible size")
    dims = WhisperDims(**{name: table[name] for name in names})
    if dims.n_audio_state % dims.n_audio_head or dims.n_text_state % dims.n_text_head:
        raise ModelFormatError(f"{path}: the attention heads do not divide the width of the network")
    return dims


# --- what stands beside the weights ---


def _json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(table, dict):
        raise ModelFormatError(f"{path} holds no JSON object")
    return table


def _settings(files: Mapping[str, Path]) -> dict[str, Any]:
    """`config.json`, overlaid with `generation_config.json`, which transformers prefers."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if name in files:
            found |= {key: value for key, value in _json(files[name]).items() if value is not None}
    return found


def _token_list(settings: Mapping[str, Any], keys: tuple[str, ...], dims: WhisperDims) -> tuple[int, ...]:
    for key in keys:
        value = settings.get(key)
        if isinstance(value, list):
            return tuple(token for token in value if type(token) is int and 0 <= token < dims.n_vocab)
    return ()


def _alignment_heads(settings: Mapping[str, Any], model: LocalModel, dims: WhisperDims) -> tuple[tuple[int, int], ...]:
    """From the model's files, else as published for a model of that name, else the upper half of the decoder.

    Heads that the network does not have are dropped: distilled models carry their teacher's list.
    """
    stated = settings.get("alignment_heads")
    entry = catalog.load().find(model.name, "asr") or catalog.load().find(_stem(model), "asr")
    for pairs in (stated if isinstance(stated, list) else (), entry.alignment_heads if entry else ()):
        found = tuple((pair[0], pair[1]) for pair in pairs if _is_head(pair, dims))
        if found:
            return found
    upper = range(dims.n_text_layer // 2, dims.n_text_layer)
    return tuple((layer, head) for layer in upper for head in range(dims.n_text_head))


def _stem(model: LocalModel) -> str:
    """`small.en` for a path to `small.en.pt`."""
    return next((Path(name).stem for name in model.files if name.endswith(".pt")), "")


def _is_head(pair: Any, dims: WhisperDims) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(part) is int for part in pair):
        return False
    return pair[0] in range(dims.n_text_layer) and pair[1] in range(dims.n_text_head)
