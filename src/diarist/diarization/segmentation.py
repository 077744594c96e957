"""The segmentation network: who of up to three local speakers is speaking in each frame of a window.

SincNet (a bank of band-pass filters, then two convolutions), four bidirectional LSTM layers, two linear layers:
pyannote/segmentation-3.0 (Bredin, "pyannote.audio 2.1 speaker diarization pipeline", Interspeech 2023; Plaquet and
Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization", Interspeech 2023).

Windows of one recording overlap by nine tenths, and the filter bank is two thirds of SincNet's work. It is run once
per stretch of sound and its output cut into windows, exactly: the network normalises each window to w * z + b before
the filters, and filtering is linear, so with r the response to the raw sound and s the sum of a filter's taps

    |filter(w * (x - mean) / std + b)|  =  (w / std) * |r + s * (b * std / w - mean)|

What is left of w / std cancels in the instance normalisation that follows, but for its epsilon.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from diarist.compute import Compute
from diarist.diarization.frames import FRAMES, WINDOW_SAMPLES
from diarist.diarization.kernels import convolution, recurrence

CLASSES = 7
"""Sets of at most two of three local speakers: {}, 1, 2, 3, 12, 13, 23."""

_TAPS = 251
BAND_SAMPLES = 10  # stride of the filter bank: windows of a filtered stretch begin at multiples of it
_COLUMNS = 512  # that are filtered at once: as many as stay in a processor's cache with all of their taps
_POOL = 3
_TOGETHER = (1, 2, 4, 8, 16, 24, 32)  # windows that the recurrence sees at once: oneDNN keeps a program for each number
_EPSILON = 1e-5
_SLOPE = 0.01


@dataclass(frozen=True, slots=True)
class Bands:
    """A stretch of sound after the filter bank."""

    waveform: Tensor
    """Shape (samples,), float32."""
    responses: Tensor
    """One column every `BAND_SAMPLES`. Shape (columns, filters)."""

    def cut(self, start: int, samples: int) -> "Bands":
        """The part that `samples` samples from `start` on give, `start` being a multiple of `BAND_SAMPLES`."""
        first = start // BAND_SAMPLES
        columns = (samples - _TAPS) // BAND_SAMPLES + 1
        return Bands(self.waveform[start : start + samples], self.responses[first : first + columns])


class SegmentationModel:
    """Weights made ready for one device. Safe to use from several threads.

    Args:
        tensors: As `models.load_segmentation` gives them.
        compute: Where to run; convolutions and recurrences in its `dtype`, filters, statistics and probabilities in
            float32. With `int8`, for which there must be `native`, recurrences are `native.Recurrence`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], compute: Compute) -> None:
        self.device, self.dtype, self._is_native = compute.device, compute.dtype, compute.int8
        weights = {name: tensor.to(self.device, torch.float32) for name, tensor in tensors.items()}
        filters = weights["sincnet.conv1d.0.filters"][:, 0]
        self._filters = filters.T.contiguous()
        self._filter_sums = filters.sum(dim=1)
        self._wave_weight = float(weights["sincnet.wav_norm1d.weight"])
        self._wave_bias = float(weights["sincnet.wav_norm1d.bias"])
        self._norms = [(weights[f"sincnet.norm1d.{i}.weight"], weights[f"sincnet.norm1d.{i}.bias"]) for i in range(3)]
        self._convolutions = [
            convolution(
                weights[f"sincnet.conv1d.{i}.weight"][:, :, None].to(self.dtype),
                weights[f"sincnet.conv1d.{i}.bias"].to(self.dtype),
                size=(1, size),
            )
            for i, size in ((1, 5325), (2, 1773))
        ]
        self._recurrence = recurrence(
            {name.removeprefix("lstm."): w for name, w in weights.items() if name.startswith("lstm.")}, 4, compute
        )
        self._linears = [
            (weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in ("linear.0", "linear.1", "classifier")
        ]

    @torch.inference_mode()
    def __call__(self, windows: Tensor) -> Tensor:
        """Log-probabilities of the classes.

        Args:
            windows: Shape (batch, samples), 16 kHz; the network was trained on 10 s.

        Returns:
            Shape (batch, frames, 7), float32 on the CPU; 589 frames for 10 s.
        """
        inputs = [self._sincnet(self.filtered(window)) for window in windows]
        return self._classified(torch.stack(inputs, dim=1))

    @torch.inference_mode()
    def filtered(self, waveform: Tensor) -> Bands:
        """Run the filter bank over a stretch of sound of shape (samples,)."""
        waveform = waveform.to(self.device)
        taps = waveform.unfold(0, _TAPS, BAND_SAMPLES)
        responses = torch.empty(len(taps), self._filters.shape[1], device=self.device)
        together = _COLUMNS if self.device.type == "cpu" else len(taps)
        for first in range(0, len(taps), together):
            part = slice(first, first + together)
            torch.mm(taps[part], self._filters, out=responses[part])
        return Bands(waveform, responses)

    @torch.inference_mode()
    def windows(self, bands: Bands, starts: Sequence[int]) -> Tensor:
        """Log-probabilities for windows of 10 s of a filtered stretch.

        Args:
            bands: The stretch.
            starts: Where the windows begin in it, in samples; multiples of `BAND_SAMPLES`.

        Returns:
            Shape (len(starts), 589, 7), float32 on the CPU.
        """
        if self.device.type != "cpu":
            return self._classified(self._sincnets(bands, starts))
        together = len(starts)
        if not self._is_native:
            together = next((size for size in _TOGETHER if len(starts) <= size), len(starts))
        inputs = torch.zeros(FRAMES, together, 60, device=self.device, dtype=self.dtype)
        for index, start in enumerate(starts):  # one by one, what a window needs stays in the processor's cache
            inputs[:, index] = self._sincnet(bands.cut(start, WINDOW_SAMPLES))
        return self._classified(inputs)[: len(starts)]

    def _sincnet(self, bands: Bands) -> Tensor:
        """The rest of SincNet for one window. Returns shape (frames, 60)."""
        mean = bands.waveform.mean()
        power = bands.waveform.dot(bands.waveform) / len(bands.waveform)  # many times faster than torch.var
        spread = math.sqrt(max(0.0, float(power - mean**2)) + _EPSILON) / self._wave_weight
        offset = self._filter_sums * (self._wave_bias * spread - float(mean))
        x = _pooled((bands.responses + offset).abs_())
        x = self._normalised(x.to(self.dtype), 0, _EPSILON * spread**2)
        for index, convolve in enumerate(self._convolutions, start=1):
            x = self._normalised(_pooled(convolve(x)[0, :, 0].T), index, _EPSILON)
        return x[0, :, 0].T

    def _sincnets(self, bands: Bands, starts: Sequence[int]) -> Tensor:
        """As `_sincnet` for several windows at once, in few large steps. Returns shape (frames, windows, 60)."""
        begins = torch.tensor(starts, device=self.device)
        waveforms = bands.waveform.unfold(0, WINDOW_SAMPLES, 1)[begins]
        columns = (WINDOW_SAMPLES - _TAPS) // BAND_SAMPLES + 1
        responses = bands.responses.unfold(0, columns, 1)[begins // BAND_SAMPLES]  # (windows, filters, columns)
        power, mean = torch.var_mean(waveforms, dim=1, correction=0)
        spread = (power + _EPSILON).sqrt_() / self._wave_weight
        offset = self._filter_sums * (self._wave_bias * spread - mean)[:, None]
        x = F.max_pool1d((responses + offset[:, :, None]).abs_(), _POOL)
        x = self._each_normalised(x, 0, _EPSILON * spread.square())
        epsilon = torch.full_like(spread, _EPSILON)
        for index, convolve in enumerate(self._convolutions, start=1):
            x = convolve(x[:, :, None].to(self.dtype))[:, :, 0].float()
            x = self._each_normalised(F.max_pool1d(x, _POOL), index, epsilon)
        return x.permute(2, 0, 1).to(self.dtype)

    def _each_normalised(self, x: Tensor, index: int, epsilon: Tensor) -> Tensor:
        """Instance normalisation and leaky ReLU of (windows, channels, columns), with an epsilon (windows,) for each."""
        weight, bias = self._norms[index]
        variance, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
        scale = weight[:, None] / (variance + epsilon[:, None, None]).sqrt()
        return F.leaky_relu_((x - mean) * scale + bias[:, None], _SLOPE)

    def _normalised(self, columns: Tensor, index: int, epsilon: float) -> Tensor:
        """Instance normalisation and leaky ReLU of shape (columns, channels).

        Returns shape (1, channels, 1, columns), channels last in memory. One window is one batch: batch
        normalisation with the batch's own statistics is the same function and far faster on channels-last memory.
        """
        weight, bias = self._norms[index]
        x = F.batch_norm(columns.T[None, :, None], None, None, weight, bias, training=True, eps=epsilon)
        return F.leaky_relu_(x, _SLOPE)

    def _classified(self, x: Tensor) -> Tensor:
        """Recurrent and linear layers. `x` has shape (frames, batch, 60); returns (batch, frames, 7)."""
        x = self._recurrence(x).transpose(0, 1).float()
        for weight, bias in self._linears[:-1]:
            x = F.leaky_relu_(F.linear(x, weight, bias), _SLOPE)
        return F.log_softmax(F.linear(x, *self._linears[-1]), dim=-1).cpu()


def _pooled(columns: Tensor) -> Tensor:
    """The largest of every three columns. Shape (columns, channels) to (columns // 3, channels)."""
    whole = len(columns) // _POOL * _POOL
    return torch.maximum(torch.maximum(columns[0:whole:_POOL], columns[1:whole:_POOL]), columns[2:whole:_POOL])
