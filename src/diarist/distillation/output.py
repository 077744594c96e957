"""The folder that a training leaves: an assistant in transformers' layout, without what it shares with its main model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diarist import models
from diarist.distillation.training import DRAFTED, Measurement
from diarist.models import LocalModel, WhisperCheckpoint

_CARD = """\
---
library_name: diarist
pipeline_tag: automatic-speech-recognition
---
# Assistant for {name}

{layers} decoder layers that draft tokens for `{name}`, which verifies them: the same text, sooner. They read its decoder's
hidden states and share its encoder, embeddings and last norm, so this folder is of use only beside it, and makes no
sense alone.

    diarist transcribe --model {name} --assistant-model THIS-FOLDER recording.mp3

* Made by `diarist distill` from {hours:.2f} hours of unlabelled speech, with the main model's own output as labels.
* Begun as copies of its decoder layers {initial}.
* On held-out recordings: {acceptance:.1%} of the tokens drafted right after what the main model wrote;
  {tokens_per_pass:.2f} tokens per pass of the main model at {drafted} drafted tokens.

Licence: the layers are a derivative of `{name}` ({licence}), whose terms hold for them too. What the recordings they
were trained on allow is for whoever trained them to know.
"""


def write_assistant(
    folder: Path,
    main: LocalModel,
    checkpoint: WhisperCheckpoint,
    tensors: Mapping[str, Tensor],
    initial_layers: Sequence[int],
    best: Measurement,
    speech_s: float,
) -> None:
    """Write `model.safetensors`, `config.json`, `tokenizer.json` and `README.md` into an existing folder.

    Args:
        folder: Where.
        main: The main model on disk.
        checkpoint: The same, read.
        tensors: What was trained: `decoder.fuse`, and layers under openai-whisper's names; float32.
        initial_layers: The main model's layers that they began as.
        best: How good they are.
        speech_s: Speech that they learned from, in seconds.
    """
    models.write_tensors(folder / "model.safetensors", models.to_transformers(tensors))
    write_text(
        folder / "config.json", json.dumps(_config(main, checkpoint, initial_layers, best, speech_s), indent=2) + "\n"
    )
    write_text(folder / "tokenizer.json", checkpoint.tokenizer.to_str())
    card = _CARD.format(
        name=main.name,
        layers=len(initial_layers),
        hours=speech_s / 3600,
        initial=", ".join(map(str, initial_layers)),
        acceptance=best.acceptance,
        tokens_per_pass=best.tokens_per_pass,
        drafted=DRAFTED,
        licence=main.licence,
    )
    write_text(folder / "README.md", card)


def _config(
    main: LocalModel,
    checkpoint: WhisperCheckpoint,
    initial_layers: Sequence[int],
    best: Measurement,
    speech_s: float,
) -> dict[str, Any]:
    dims = checkpoint.dims
    start = checkpoint.tokenizer.token_to_id("<|startoftranscript|>")
    end = checkpoint.tokenizer.token_to_id("<|endoftext|>")
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "num_mel_bins": dims.n_mels,
        "max_source_positions": dims.n_audio_ctx,
        "d_model": dims.n_audio_state,
        "encoder_layers": dims.n_audio_layer,
        "encoder_attention_heads": dims.n_audio_head,
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "max_target_positions": dims.n_text_ctx,
        "vocab_size": dims.n_vocab,
        "decoder_layers": len(initial_layers),
        "decoder_attention_heads": dims.n_text_head,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "decoder_start_token_id": start,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "diarist": {
            "assistant_for": main.name,
            "main_sha256": main.sha256,
            "shares_encoder": True,
            "encoder_sha256": models.encoder_sha256(checkpoint),
            "initialised_from_layers": list(initial_layers),
            "held_out_acceptance": best.acceptance,
            "held_out_tokens_per_pass": best.tokens_per_pass,
            "drafted": DRAFTED,
            "steps": best.step,
            "speech_seconds": speech_s,
        },
    }


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
