"""Kaldi filter banks: what the speaker network reads.

80 mel bins between 20 Hz and 8 kHz, frames of 25 ms every 10 ms, no dither, Hamming window, each frame freed of its own
mean and pre-emphasised by 0.97, as `compute-fbank-feats` of Kaldi does them (and WeSpeaker in training). The waveform
is scaled to the 16-bit range first.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

BINS = 80
FRAME_SAMPLES = 400  # 25 ms
SHIFT_SAMPLES = 160  # 10 ms
_FFT_SAMPLES = 512
_PREEMPHASIS = 0.97
_SCALE = 32768.0  # the networks were trained on 16-bit sample values
_FLOOR = torch.finfo(torch.float32).eps  # of a mel bin's energy, as in Kaldi: digital silence has a logarithm too


def frame_count(samples: int) -> int:
    """Frames that fit wholly into that many samples."""
    return max(0, 1 + (samples - FRAME_SAMPLES) // SHIFT_SAMPLES)


def log_mel(waveform: Tensor) -> Tensor:
    """Logarithmic mel energies.

    Args:
        waveform: 16 kHz, nominally in [-1, 1]. Shape (..., samples), at least `FRAME_SAMPLES`, float32.

    Returns:
        Shape (..., frames, 80), float32.

    >>> log_mel(torch.zeros(16_000)).shape
    torch.Size([98, 80])
    """
    window, window_spectrum, mel = _constants(waveform.device)
    signal = waveform * _SCALE
    means = signal.unfold(-1, FRAME_SAMPLES, SHIFT_SAMPLES).mean(dim=-1, keepdim=True)
    emphasised = torch.cat([signal[..., :1], signal[..., 1:] - _PREEMPHASIS * signal[..., :-1]], dim=-1)
    frames = emphasised.unfold(-1, FRAME_SAMPLES, SHIFT_SAMPLES) * window
    # Kaldi pre-emphasises inside the frame, where the first sample stands for the one before it.
    frames[..., 0] = signal.unfold(-1, FRAME_SAMPLES, SHIFT_SAMPLES)[..., 0] * ((1 - _PREEMPHASIS) * window[0])
    # The mean of a frame passes through pre-emphasis as 0.03 of itself: it is taken out after the transform.
    spectrum = torch.fft.rfft(frames, _FFT_SAMPLES).sub_(means * ((1 - _PREEMPHASIS) * window_spectrum))
    power = torch.view_as_real(spectrum).square().sum(dim=-1)
    return (power @ mel).clamp_(min=_FLOOR).log_()


@lru_cache(maxsize=4)
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The window, its spectrum, and the mel filters of shape (257, 80)."""
    window = torch.hamming_window(FRAME_SAMPLES, periodic=False)
    low, high = _mel(20.0), _mel(8000.0)
    edges = torch.linspace(low, high, BINS + 2, dtype=torch.float64)[:, None]
    bins = torch.tensor([_mel(16_000 / _FFT_SAMPLES * k) for k in range(_FFT_SAMPLES // 2 + 1)], dtype=torch.float64)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0.0).T.contiguous()
    return window.to(device), torch.fft.rfft(window, _FFT_SAMPLES).to(device), filters.float().to(device)


def _mel(hertz: float) -> float:
    return 1127.0 * math.log1p(hertz / 700.0)
