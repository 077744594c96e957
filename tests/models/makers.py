"""Small models in every layout that diarist reads, and the files that it must refuse."""

import hashlib
import json
import struct
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from diarist.models.readers import whisper
from diarist.models.types import WhisperDims

TASK_TOKENS = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)
TIMESTAMPS = tuple(f"<|{step * 0.02:.2f}|>" for step in range(1501))
N_VOCAB = 256 + len(TASK_TOKENS) + len(TIMESTAMPS)

DIMS = WhisperDims(
    n_mels=80,
    n_audio_ctx=20,
    n_audio_state=8,
    n_audio_head=2,
    n_audio_layer=2,
    n_vocab=N_VOCAB,
    n_text_ctx=12,
    n_text_state=8,
    n_text_head=2,
    n_text_layer=3,
)


def tokenizer(*, timestamps: bool = True) -> tokenizers.Tokenizer:
    """Single bytes, the task tokens, and the timestamps."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(TASK_TOKENS))
    if timestamps:
        made.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in TIMESTAMPS])
    return made


def tensors(dims: WhisperDims = DIMS, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random weights under openai-whisper's names."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in whisper.shapes(dims).items()}


def write_openai(path: Path, dims: WhisperDims = DIMS, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = tensors(dims, dtype=torch.float16) | changes
    table = {name: getattr(dims, name) for name in WhisperDims.__slots__}
    torch.save({"dims": table, "model_state_dict": weights}, path)
    return weights


def hf_config(dims: WhisperDims = DIMS) -> dict[str, object]:
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "num_mel_bins": dims.n_mels,
        "max_source_positions": dims.n_audio_ctx,
        "max_target_positions": dims.n_text_ctx,
        "d_model": dims.n_audio_state,
        "encoder_attention_heads": dims.n_audio_head,
        "decoder_attention_heads": dims.n_text_head,
        "encoder_layers": dims.n_audio_layer,
        "decoder_layers": dims.n_text_layer,
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "vocab_size": dims.n_vocab,
        "pad_token_id": 256,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "decoder_start_token_id": 257,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }


@contextmanager
def importable(module: str, *classes: type) -> Iterator[None]:
    """Let classes be pickled as if they belonged to a module that is not installed."""
    parts = module.split(".")
    names = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules |= {name: types.ModuleType(name) for name in names}
    for held in classes:
        held.__module__, held.__qualname__ = module, held.__name__
        setattr(sys.modules[module], held.__name__, held)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules |= before


# --- CTranslate2 ---

CT2_CODES = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.float16): 4}


def ct2_bytes(
    variables: Mapping[str, np.ndarray], aliases: Mapping[str, str] | None = None, spec: str = "WhisperSpec"
) -> bytes:
    def text(value: str) -> bytes:
        raw = value.encode() + b"\0"
        return struct.pack("<H", len(raw)) + raw

    out = struct.pack("<I", 6) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, values in variables.items():
        out += text(name) + struct.pack("<B", values.ndim) + b"".join(struct.pack("<I", size) for size in values.shape)
        out += struct.pack("<BI", CT2_CODES[values.dtype], values.nbytes) + values.tobytes()
    out += struct.pack("<I", len(aliases or {}))
    return out + b"".join(text(alias) + text(name) for alias, name in (aliases or {}).items())


def ct2_variables(weights: Mapping[str, torch.Tensor], dims: WhisperDims = DIMS) -> dict[str, np.ndarray]:
    """openai-whisper's tensors as a CTranslate2 converter fuses and names them."""
    found: dict[str, np.ndarray] = {
        "encoder/num_heads": np.array(dims.n_audio_head, np.int16),
        "decoder/num_heads": np.array(dims.n_text_head, np.int16),
        "decoder/pre_norm": np.array(1, np.int8),
    }
    value = {name: tensor.numpy() for name, tensor in weights.items()}

    def linear(name: str, *sources: str) -> None:
        found[f"{name}/weight"] = np.concatenate([value[f"{source}.weight"] for source in sources])
        found[f"{name}/bias"] = np.concatenate(
            [value.get(f"{source}.bias", np.zeros_like(value[f"{sources[0]}.weight"][:, 0])) for source in sources]
        )

    def norm(name: str, source: str) -> None:
        found[f"{name}/gamma"], found[f"{name}/beta"] = value[f"{source}.weight"], value[f"{source}.bias"]

    for side, depth in (("encoder", dims.n_audio_layer), ("decoder", dims.n_text_layer)):
        found[f"{side}/position_encodings/encodings"] = value[f"{side}.positional_embedding"]
        for layer in range(depth):
            ours, theirs = f"{side}.blocks.{layer}", f"{side}/layer_{layer}"
            linear(f"{theirs}/self_attention/linear_0", *(f"{ours}.attn.{part}" for part in ("query", "key", "value")))
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.attn.out")
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.attn_ln")
            if side == "decoder":
                linear(f"{theirs}/attention/linear_0", f"{ours}.cross_attn.query")
                linear(f"{theirs}/attention/linear_1", f"{ours}.cross_attn.key", f"{ours}.cross_attn.value")
                linear(f"{theirs}/attention/linear_2", f"{ours}.cross_attn.out")
                norm(f"{theirs}/attention/layer_norm", f"{ours}.cross_attn_ln")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.mlp.0")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.mlp.2")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.mlp_ln")
    for index in (1, 2):
        linear(f"encoder/conv{index}", f"encoder.conv{index}")
    norm("encoder/layer_norm", "encoder.ln_post")
    norm("decoder/layer_norm", "decoder.ln")
    found["decoder/embeddings/weight"] = value["decoder.token_embedding.weight"]
    return found


def write_ct2(folder: Path, weights: Mapping[str, torch.Tensor], dims: WhisperDims = DIMS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    (folder / "model.bin").write_bytes(ct2_bytes(ct2_variables(weights, dims), aliases))
    config = {"alignment_heads": [[2, 1]], "suppress_ids": [1, 2, 3], "suppress_ids_begin": [4, 256]}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(folder / "tokenizer.json"))


# --- ONNX ---


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def proto(number: int, value: int | bytes | str) -> bytes:
    """One protobuf field."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def onnx_tensor(name: str, values: np.ndarray, *extra: bytes) -> bytes:
    codes = {"float32": 1, "int32": 6, "int64": 7, "float16": 10, "float64": 11}
    shape = b"".join(proto(1, size) for size in values.shape)
    return shape + proto(2, codes[values.dtype.name]) + proto(8, name) + proto(9, values.tobytes()) + b"".join(extra)


def onnx_model(*tensors_: bytes, nodes: tuple[bytes, ...] = ()) -> bytes:
    graph = b"".join(proto(1, node) for node in nodes) + b"".join(proto(5, tensor) for tensor in tensors_)
    return proto(1, 8) + proto(7, graph)


# --- wheels ---


def wheel(
    folder: Path, package: str, members: Mapping[str, bytes], *, requires_python: str = ">=3.8", link: str | None = None
) -> tuple[Path, str]:
    """A wheel of the package index, and its sha256.

    Args:
        link: A member that is stored as a symbolic link.
    """
    name = package.replace("-", "_")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Python: {requires_python}\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            entry = zipfile.ZipInfo(member)
            entry.external_attr = (0o120777 if member == link else 0o100644) << 16
            archive.writestr(entry, data)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()
