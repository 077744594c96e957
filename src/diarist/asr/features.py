"""Log-mel features, equal to those of openai-whisper."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLE_RATE_HZ = 16_000
WINDOW_S = 30  # the span Whisper was trained on
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE_HZ  # 480 000
FFT_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms: one feature frame
FRAMES_PER_POSITION = 2  # the encoder's second convolution halves the rate
POSITION_S = HOP_SAMPLES * FRAMES_PER_POSITION / SAMPLE_RATE_HZ  # 0.02 s: one encoder position, one timestamp step
_SILENCE_S = 3
_LEAST_LENGTH_S = 8
_LENGTH_STEP_S = 4  # each length is a shape that libraries make programs for
_MOST_CUT_S = 24  # beyond, a cut saves little


class LogMel:
    """Log-mel spectrograms of windows.

    Args:
        n_mels: 80, or 128 for large-v3 and turbo.
        device: Where to compute.
    """

    def __init__(self, n_mels: int, device: torch.device) -> None:
        self.filters = mel_filters(n_mels).to(device)
        self.taper = torch.hann_window(FFT_SAMPLES, device=device)

    def __call__(self, waveforms: Tensor) -> Tensor:
        """Features of zero-padded windows.

        Args:
            waveforms: float32, 16 kHz, shape (batch, samples).

        Returns:
            float32, shape (batch, n_mels, samples // HOP_SAMPLES), roughly in [-1, 1].
        """
        spectrum = torch.stft(waveforms, FFT_SAMPLES, HOP_SAMPLES, window=self.taper, return_complex=True)
        power = torch.view_as_real(spectrum[..., :-1]).square().sum(dim=-1)
        log = (self.filters @ power).clamp_min_(1e-10).log10_()
        loudest = log.amax(dim=(1, 2), keepdim=True)
        return torch.maximum(log, loudest - 8.0).add_(4.0).div_(4.0)


def pad_windows(waveforms: Sequence[Tensor], device: torch.device, length: int = WINDOW_SAMPLES) -> Tensor:
    """Stack waveforms of at most `length` samples, zero-padded: shape (len(waveforms), length)."""
    batch = torch.zeros(len(waveforms), length, device=device)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return batch


def fitting_length(samples: int) -> int:
    """Length of the window that is enough for a recording, in samples.

    Whisper was trained on windows of 30 s, but hears as well when most of the silence after a short recording is left
    out (191 wrong words of the 160 shared utterances either way), in time that falls with the window. Some must stay:
    it tells that nothing more is said.

    >>> [fitting_length(seconds * SAMPLE_RATE_HZ) // SAMPLE_RATE_HZ for seconds in (1, 6, 9, 21, 22, 30)]
    [8, 12, 12, 24, 30, 30]
    """
    steps = math.ceil((samples / SAMPLE_RATE_HZ + _SILENCE_S) / _LENGTH_STEP_S)
    seconds = max(_LEAST_LENGTH_S, steps * _LENGTH_STEP_S)
    return (seconds if seconds <= _MOST_CUT_S else WINDOW_S) * SAMPLE_RATE_HZ


def mel_filters(n_mels: int) -> Tensor:
    """Triangular filters on the Slaney mel scale, each of unit area, as `librosa.filters.mel` makes them.

    Returns:
        float32, shape (n_mels, FFT_SAMPLES // 2 + 1).
    """
    fft_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, FFT_SAMPLES // 2 + 1, dtype=torch.float64)
    edges_hz = _mel_to_hz(torch.linspace(0, _hz_to_mel(SAMPLE_RATE_HZ / 2), n_mels + 2, dtype=torch.float64))
    rising = (fft_hz[None, :] - edges_hz[:-2, None]) / (edges_hz[1:-1] - edges_hz[:-2])[:, None]
    falling = (edges_hz[2:, None] - fft_hz[None, :]) / (edges_hz[2:] - edges_hz[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return (triangles * (2 / (edges_hz[2:] - edges_hz[:-2]))[:, None]).float()


_LINEAR_HZ_PER_MEL = 200 / 3  # the Slaney scale is linear below 1 kHz
_LOG_FROM_HZ = 1000.0
_LOG_FROM_MEL = _LOG_FROM_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27  # and logarithmic above


def _hz_to_mel(hz: float) -> float:
    if hz < _LOG_FROM_HZ:
        return hz / _LINEAR_HZ_PER_MEL
    return _LOG_FROM_MEL + math.log(hz / _LOG_FROM_HZ) / _LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(
        mel < _LOG_FROM_MEL,
        mel * _LINEAR_HZ_PER_MEL,
        _LOG_FROM_HZ * torch.exp(_LOG_STEP * (mel - _LOG_FROM_MEL)),
    )
