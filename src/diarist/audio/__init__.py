"""Recordings in, samples out: the only way from bytes to a waveform (mono, float32, 16 kHz)."""

from diarist.audio.decode import (
    SAMPLE_RATE,
    AudioInfo,
    AudioSource,
    AudioStream,
    DecodeLimits,
    decode,
    ffmpeg_version,
    open_audio,
    prepare,
    sandbox_layers,
    waveform_stream,
)

__all__ = [
    "SAMPLE_RATE",
    "AudioInfo",
    "AudioSource",
    "AudioStream",
    "DecodeLimits",
    "decode",
    "ffmpeg_version",
    "open_audio",
    "prepare",
    "sandbox_layers",
    "waveform_stream",
]
