"""The same weights in transformers' Whisper, as the oracle of the recognizer's tests."""

import re

import numpy as np
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.utils import logging

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


def oracle_features(waveform: np.ndarray, n_mels: int) -> torch.Tensor:
    """Shape (1, n_mels, 3000)."""
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_features


@torch.inference_mode()
def oracle_tokens(
    model: WhisperForConditionalGeneration, checkpoint: WhisperCheckpoint, waveform: np.ndarray, *, timestamps: bool
) -> list[int]:
    """What greedy `generate` writes for English transcription, without prompt and end."""
    model.generation_config = GenerationConfig(
        decoder_start_token_id=50258,
        eos_token_id=50257,
        pad_token_id=50257,
        bos_token_id=50257,
        is_multilingual=True,
        lang_to_id={"<|en|>": 50259},
        task_to_id={"transcribe": 50359, "translate": 50358},
        no_timestamps_token_id=50363,
        max_initial_timestamp_index=50,
        suppress_tokens=list(checkpoint.suppress_tokens),
        begin_suppress_tokens=[220, 50257],
        return_timestamps=timestamps,
        max_length=448,
        num_beams=1,
        do_sample=False,
        use_cache=True,
    )
    out = model.generate(
        oracle_features(waveform, checkpoint.dims.n_mels),
        language="en",
        task="transcribe",
        return_timestamps=timestamps,
    )
    prompt = {50258, 50259, 50359, 50363}
    tokens = out[0].tolist()
    return [token for index, token in enumerate(tokens) if token != 50257 and not (index < 4 and token in prompt)]
