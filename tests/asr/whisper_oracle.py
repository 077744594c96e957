"""The same weights in transformers' Whisper, as the oracle of the recognizer's tests."""

import contextlib
import re
from collections.abc import Iterator

import numpy as np
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.generation import GenerationMixin
from transformers.generation.logits_process import (
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)
from transformers.utils import logging

from diarist.asr.features import FRAMES_PER_POSITION, WINDOW_SAMPLES, fitting_length
from diarist.models import WhisperCheckpoint, WhisperDims

logging.set_verbosity_error()

_RENAMED = (
    (r"blocks\.", "layers."),
    (r"\.cross_attn\.query", ".encoder_attn.q_proj"),
    (r"\.cross_attn\.key", ".encoder_attn.k_proj"),
    (r"\.cross_attn\.value", ".encoder_attn.v_proj"),
    (r"\.cross_attn\.out", ".encoder_attn.out_proj"),
    (r"\.attn\.query", ".self_attn.q_proj"),
    (r"\.attn\.key", ".self_attn.k_proj"),
    (r"\.attn\.value", ".self_attn.v_proj"),
    (r"\.attn\.out", ".self_attn.out_proj"),
    (r"\.cross_attn_ln", ".encoder_attn_layer_norm"),
    (r"\.attn_ln", ".self_attn_layer_norm"),
    (r"\.mlp\.0", ".fc1"),
    (r"\.mlp\.2", ".fc2"),
    (r"\.mlp_ln", ".final_layer_norm"),
    (r"token_embedding", "embed_tokens"),
    (r"positional_embedding", "embed_positions.weight"),
    (r"encoder\.ln_post", "encoder.layer_norm"),
    (r"decoder\.ln\.", "decoder.layer_norm."),
)


def oracle_config(dims: WhisperDims) -> WhisperConfig:
    return WhisperConfig(
        vocab_size=dims.n_vocab,
        num_mel_bins=dims.n_mels,
        d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer,
        encoder_attention_heads=dims.n_audio_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        decoder_layers=dims.n_text_layer,
        decoder_attention_heads=dims.n_text_head,
        decoder_ffn_dim=4 * dims.n_text_state,
        max_source_positions=dims.n_audio_ctx,
        max_target_positions=dims.n_text_ctx,
        pad_token_id=50257,
        bos_token_id=50257,
        eos_token_id=50257,
        decoder_start_token_id=50258,
    )


def oracle_model(checkpoint: WhisperCheckpoint) -> WhisperForConditionalGeneration:
    """transformers' model with the checkpoint's weights, in float32."""
    model = WhisperForConditionalGeneration(oracle_config(checkpoint.dims))
    state = {}
    for name, tensor in checkpoint.tensors.items():
        renamed = name
        for pattern, replacement in _RENAMED:
            renamed = re.sub(pattern, replacement, renamed)
        state[f"model.{renamed}"] = tensor.float()
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def oracle_features(waveform: np.ndarray, n_mels: int, length: int = WINDOW_SAMPLES) -> torch.Tensor:
    """Of a window of so many samples: shape (1, n_mels, length // 160)."""
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    features = extractor(waveform, sampling_rate=16_000, return_tensors="pt", padding="max_length", max_length=length)
    return features.input_features


@contextlib.contextmanager
def _hearing(model: WhisperForConditionalGeneration, positions: int) -> Iterator[None]:
    """Within it the model takes windows of so many encoder positions."""
    embedding, whole = model.model.encoder.embed_positions, model.config.max_source_positions
    model.config.max_source_positions = embedding.num_embeddings = positions
    try:
        yield
    finally:
        model.config.max_source_positions = embedding.num_embeddings = whole


@torch.inference_mode()
def oracle_tokens(
    model: WhisperForConditionalGeneration, checkpoint: WhisperCheckpoint, waveform: np.ndarray, *, timestamps: bool
) -> list[int]:
    """What greedy `generate` writes for English transcription of a fitting window, without prompt and end: one pass."""
    prompt = [50258, 50259, 50359, *([] if timestamps else [50363])]
    config = GenerationConfig(
        eos_token_id=50257,
        pad_token_id=50257,
        bos_token_id=50257,
        no_timestamps_token_id=50363,
        max_initial_timestamp_index=50,
        max_length=448,
    )
    rules = [
        SuppressTokensLogitsProcessor(checkpoint.suppress_tokens),
        SuppressTokensAtBeginLogitsProcessor([220, 50257], len(prompt)),
    ]
    if timestamps:
        rules.append(WhisperTimeStampLogitsProcessor(config, len(prompt)))
    features = oracle_features(waveform, checkpoint.dims.n_mels, fitting_length(len(waveform)))
    with _hearing(model, features.shape[-1] // FRAMES_PER_POSITION):
        # Whisper's own `generate` goes on behind the last timestamp; this one ends with the window.
        out = GenerationMixin.generate(
            model, features, config, LogitsProcessorList(rules), decoder_input_ids=torch.tensor([prompt])
        )
    return [token for token in out[0].tolist()[len(prompt) :] if token != 50257]
