"""One checkpoint in the formats that peers read. Runs beside diarist, whose readers the tensors come from."""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from compare.peer import PeerError, made

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diarist.models import LocalModel, WhisperCheckpoint

MODEL = "base"
_CTRANSLATE2_FILES = ("config.json", "model.bin", "tokenizer.json")


def whisper() -> "LocalModel":
    """The checkpoint that is compared."""
    from diarist import models

    return models.resolve(MODEL, "asr")


def ctranslate2_folder() -> Path:
    """The checkpoint as CTranslate2 reads it.

    Raises:
        PeerError: diarist's copy came in another layout.
    """
    folder = whisper().directory
    missing = [name for name in _CTRANSLATE2_FILES if not (folder / name).is_file()]
    if missing:
        raise PeerError(f"cannot be converted: the weights are not in CTranslate2's layout ({', '.join(missing)})")
    return folder


# --- transformers ---------------------------------------------------------------------------------------------------

_HUGGING_FACE_NAMES = (
    (r"\.blocks\.", ".layers."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"_attn\.query\.", "_attn.q_proj."),
    (r"_attn\.key\.", "_attn.k_proj."),
    (r"_attn\.value\.", "_attn.v_proj."),
    (r"_attn\.out\.", "_attn.out_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.token_embedding\.", ".embed_tokens."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
    (r"\.ln_post\.", ".layer_norm."),
    (r"^decoder\.ln\.", "decoder.layer_norm."),
)


def hugging_face_name(name: str) -> str:
    """transformers' name for one of openai-whisper's tensors.

    >>> hugging_face_name("decoder.blocks.3.cross_attn.query.weight")
    'model.decoder.layers.3.encoder_attn.q_proj.weight'
    """
    for pattern, replacement in _HUGGING_FACE_NAMES:
        name = re.sub(pattern, replacement, name)
    return f"model.{name}"


def hugging_face_folder(folder: Path) -> Path:
    """The checkpoint as transformers reads it, in float32; written unless that has been done."""
    return made(folder, _write_hugging_face)


def _write_hugging_face(folder: Path) -> None:
    from safetensors.torch import save_file

    from diarist import models

    checkpoint = models.load_whisper(whisper())
    folder.mkdir(exist_ok=True)
    tensors = {hugging_face_name(name): tensor.float().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, table in _hugging_face_tables(checkpoint).items():
        (folder / name).write_text(json.dumps(table, indent=1))
    # transformers' tokenizers have these beside tokenizer.json, and OpenVINO's converter reads them
    tokenizer = json.loads(checkpoint.tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]), encoding="utf-8")
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")


def _hugging_face_tables(checkpoint: "WhisperCheckpoint") -> dict[str, dict[str, Any]]:
    dims, vocabulary = checkpoint.dims, checkpoint.tokenizer.get_vocab()
    token = vocabulary.__getitem__
    start, end = token("<|startoftranscript|>"), token("<|endoftext|>")
    ids = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "begin_suppress_tokens": list(checkpoint.begin_suppress_tokens),
        "suppress_tokens": list(checkpoint.suppress_tokens),
    }
    after_languages = token("<|translate|>")
    languages = {text: number for text, number in vocabulary.items() if start < number < after_languages}
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    return {
        "config.json": {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "vocab_size": dims.n_vocab,
            "num_mel_bins": dims.n_mels,
            "d_model": dims.n_audio_state,
            "encoder_layers": dims.n_audio_layer,
            "encoder_attention_heads": dims.n_audio_head,
            "encoder_ffn_dim": 4 * dims.n_audio_state,
            "decoder_layers": dims.n_text_layer,
            "decoder_attention_heads": dims.n_text_head,
            "decoder_ffn_dim": 4 * dims.n_text_state,
            "max_source_positions": dims.n_audio_ctx,
            "max_target_positions": dims.n_text_ctx,
            "is_encoder_decoder": True,
            "torch_dtype": "float32",
            **ids,
        },
        "generation_config.json": {
            **ids,
            "alignment_heads": [list(head) for head in checkpoint.alignment_heads],
            "is_multilingual": checkpoint.multilingual,
            "lang_to_id": languages,
            "max_initial_timestamp_index": 50,
            "max_length": dims.n_text_ctx,
            "no_timestamps_token_id": token("<|notimestamps|>"),
            "prev_sot_token_id": token("<|startofprev|>"),
            "return_timestamps": False,
            "task_to_id": {"transcribe": token("<|transcribe|>"), "translate": token("<|translate|>")},
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": dims.n_mels,
            "sampling_rate": 16_000,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": 30,
            "n_samples": 480_000,
            "nb_max_frames": 3000,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "WhisperTokenizer",
            "processor_class": "WhisperProcessor",
            "model_max_length": 1024,
            "pad_token": "<|endoftext|>",
            **special,
        },
        "special_tokens_map.json": {"pad_token": "<|endoftext|>", **special},
    }


# --- whisper.cpp ----------------------------------------------------------------------------------------------------

_GGML_MAGIC = 0x67676D6C
_GGML_FLOAT32, _GGML_FLOAT16 = 0, 1
_GGML_ALWAYS_FLOAT32 = ("encoder.positional_embedding", "decoder.positional_embedding")
_GGML_COLUMNS = ("encoder.conv1.bias", "encoder.conv2.bias")


def ggml_file(path: Path) -> Path:
    """The checkpoint as whisper.cpp reads it, matrices in float16; written unless that has been done."""
    return made(path, _write_ggml)


def _write_ggml(path: Path) -> None:
    """Little-endian: magic, eleven sizes, mel filters, the vocabulary without its special tokens, the tensors.

    (ggml-org/whisper.cpp, `models/README.md` and `whisper_model_load`.)
    """
    from diarist import models
    from diarist.asr.features import mel_filters

    checkpoint = models.load_whisper(whisper())
    dims = checkpoint.dims
    with path.open("wb") as file:
        audio = (dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
        text = (dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer)
        file.write(struct.pack("<12i", _GGML_MAGIC, dims.n_vocab, *audio, *text, dims.n_mels, _GGML_FLOAT16))
        filters = mel_filters(dims.n_mels).numpy().astype("<f4")
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        words = vocabulary_bytes(json.loads(checkpoint.tokenizer.to_str())["model"]["vocab"])
        file.write(struct.pack("<i", len(words)))
        for word in words:
            file.write(struct.pack("<i", len(word)) + word)
        for name, tensor in checkpoint.tensors.items():
            _write_ggml_tensor(file, name, tensor.float().numpy())


def _write_ggml_tensor(file: BinaryIO, name: str, values: "NDArray[np.float32]") -> None:
    if name in _GGML_COLUMNS:  # added to a [channels, frames] product
        values = values[:, None]
    whole = name in _GGML_ALWAYS_FLOAT32 or name in _GGML_COLUMNS or values.ndim < 2
    kind, dtype = (_GGML_FLOAT32, "<f4") if whole else (_GGML_FLOAT16, "<f2")
    encoded = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(encoded), kind))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    file.write(encoded + values.astype(dtype).tobytes())


def vocabulary_bytes(vocabulary: Mapping[str, int]) -> list[bytes]:
    """The bytes of each token in order, of a byte-level vocabulary whose letters stand for bytes.

    >>> vocabulary_bytes({"a": 0, "Ġb": 1})
    [b'a', b' b']
    """
    byte_of = _byte_of_letter()
    ordered = sorted(vocabulary, key=lambda token: vocabulary[token])
    return [bytes(byte_of[letter] for letter in token) for token in ordered]


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for what follows Latin-1, in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
