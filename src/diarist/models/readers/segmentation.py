"""pyannote's segmentation network (PyanNet: SincNet, four bidirectional LSTMs, three linear layers).

Layouts: the ONNX export, pyannote's own checkpoint (whose first layer is kept as cut-off frequencies), and safetensors
under the names that this module returns.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from diarist.errors import ModelFormatError
from diarist.models import layouts
from diarist.models.readers import checks, onnx, pickles, safetensors
from diarist.models.types import LocalModel

FILTERS, KERNEL, CHANNELS = 80, 251, 60
HIDDEN, LAYERS, LINEAR, CLASSES = 128, 4, 128, 7
SINC_SAMPLE_RATE_HZ = 16_000.0
SINC_MIN_LOW_HZ = SINC_MIN_BAND_HZ = 50.0


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    found: dict[str, tuple[int, ...]] = {
        "sincnet.wav_norm1d.weight": (1,),
        "sincnet.wav_norm1d.bias": (1,),
        "sincnet.conv1d.0.filters": (FILTERS, 1, KERNEL),
        "sincnet.conv1d.1.weight": (CHANNELS, FILTERS, 5),
        "sincnet.conv1d.1.bias": (CHANNELS,),
        "sincnet.conv1d.2.weight": (CHANNELS, CHANNELS, 5),
        "sincnet.conv1d.2.bias": (CHANNELS,),
    }
    for index, width in enumerate((FILTERS, CHANNELS, CHANNELS)):
        found |= {f"sincnet.norm1d.{index}.{part}": (width,) for part in ("weight", "bias")}
    for layer in range(LAYERS):
        for direction in ("", "_reverse"):
            end = f"l{layer}{direction}"
            found[f"lstm.weight_ih_{end}"] = (4 * HIDDEN, 2 * HIDDEN if layer else CHANNELS)
            found[f"lstm.weight_hh_{end}"] = (4 * HIDDEN, HIDDEN)
            found[f"lstm.bias_ih_{end}"] = found[f"lstm.bias_hh_{end}"] = (4 * HIDDEN,)
    for name, (rows, columns) in {
        "linear.0": (LINEAR, 2 * HIDDEN),
        "linear.1": (LINEAR, LINEAR),
        "classifier": (CLASSES, LINEAR),
    }.items():
        found |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return found


def read(model: LocalModel) -> dict[str, torch.Tensor]:
    """The network's tensors.

    Raises:
        ModelFormatError: The file cannot be read or does not hold this network.
    """
    names = layouts.network_weights(list(model.files))
    if not names:
        raise ModelFormatError(f"{model.directory} has no one weight file of a segmentation model")
    path = model.files[names[0]]
    if path.suffix == ".onnx":
        tensors = onnx.read_network(path, _from_onnx)
    elif path.suffix == ".safetensors":
        tensors = safetensors.read(path)
    else:
        tensors = _from_pyannote(path)
    checks.require_shapes(tensors, shapes(), path)
    checks.require_finite(tensors, path)
    return tensors


def _from_onnx(graph: onnx.Graph, path: Path) -> dict[str, torch.Tensor]:
    """By the order of the operations, which an exporter must keep; constants' names differ between exporters."""
    found: dict[str, torch.Tensor] = {}
    norms = ["sincnet.wav_norm1d", *(f"sincnet.norm1d.{index}" for index in range(3))]
    for name, (scale, shift) in _pair(norms, graph, "InstanceNormalization", path):
        found |= {f"{name}.weight": scale, f"{name}.bias": shift}
    convolutions = ["sincnet.conv1d.0", "sincnet.conv1d.1", "sincnet.conv1d.2"]
    for name, constants in _pair(convolutions, graph, "Conv", path):
        parts = ("filters",) if name == convolutions[0] else ("weight", "bias")
        found |= {f"{name}.{part}": value for part, value in zip(parts, constants, strict=True)}
    layers = [f"l{layer}" for layer in range(LAYERS)]
    for name, (inputs, recurrent, biases, *_) in _pair(layers, graph, "LSTM", path):
        for direction, end in enumerate((name, f"{name}_reverse")):
            found[f"lstm.weight_ih_{end}"] = _gates(inputs[direction])
            found[f"lstm.weight_hh_{end}"] = _gates(recurrent[direction])
            found[f"lstm.bias_ih_{end}"] = _gates(biases[direction, : 4 * HIDDEN])
            found[f"lstm.bias_hh_{end}"] = _gates(biases[direction, 4 * HIDDEN :])
    for name, (weight, bias) in zip(("linear.0", "linear.1", "classifier"), onnx.linears(graph), strict=False):
        found |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return found


def _pair(
    names: list[str], graph: onnx.Graph, operator: str, path: Path
) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
    """Names with the constants of the operations of one kind. An operation repeated on the same constants counts once.

    (The exporter writes SincNet's first convolution into both branches of a condition on the shape of the input.)
    """
    constants = onnx.constants_of(graph, operator)
    if len(constants) != len(names):
        raise ModelFormatError(f"{path} has {len(constants)} {operator} operations, this network has {len(names)}")
    return zip(names, constants, strict=True)


def _gates(stacked: torch.Tensor) -> torch.Tensor:
    """Gates from ONNX's order (input, output, forget, cell) into torch's (input, forget, cell, output)."""
    into, output, forget, cell = stacked.chunk(4)
    return torch.cat([into, forget, cell, output])


def _from_pyannote(path: Path) -> dict[str, torch.Tensor]:
    state = pickles.read(path)
    stored = pickles.tensors(state.get("state_dict", state), path)
    found = {name: stored[name] for name in shapes() if name in stored}
    prefix = "sincnet.conv1d.0.filterbank"
    if f"{prefix}.low_hz_" in stored and f"{prefix}.band_hz_" in stored:
        found["sincnet.conv1d.0.filters"] = sinc_filters(stored[f"{prefix}.low_hz_"], stored[f"{prefix}.band_hz_"])
    return found


def sinc_filters(low_hz: torch.Tensor, band_hz: torch.Tensor) -> torch.Tensor:
    """SincNet's band-pass filters from their learned cut-off frequencies, even ones before odd ones.

    The parametrisation of asteroid-filterbanks' `ParamSincFB`: the lower edge is 50 Hz above |low_hz|, the band is at
    least 50 Hz wide and ends at the Nyquist frequency, and a Hamming window limits it to `KERNEL` samples.

    Args:
        low_hz: Shape (FILTERS / 2, 1), in Hz.
        band_hz: The same.

    Returns:
        Shape (FILTERS, 1, KERNEL), in the dtype of the parameters.
    """
    half = KERNEL // 2
    # The reference computes in float32; float64 inside changes the filters by less than its rounding.
    low = SINC_MIN_LOW_HZ + low_hz.double().abs().reshape(-1, 1)
    high = (low + SINC_MIN_BAND_HZ + band_hz.double().abs().reshape(-1, 1)).clamp(
        SINC_MIN_LOW_HZ, SINC_SAMPLE_RATE_HZ / 2
    )
    band = high - low
    angle = 2 * math.pi * torch.arange(-half, 0, dtype=torch.float64) / SINC_SAMPLE_RATE_HZ
    window = torch.hamming_window(KERNEL, periodic=False, dtype=torch.float64)[:half]
    even = (torch.sin(high * angle) - torch.sin(low * angle)) / (angle / 2) * window
    odd = (torch.cos(low * angle) - torch.cos(high * angle)) / (angle / 2) * window
    evens = torch.cat([even, 2 * band, even.flip(1)], dim=1)
    odds = torch.cat([odd, torch.zeros_like(band), -odd.flip(1)], dim=1)
    filters = torch.cat([evens / (2 * band), odds / (2 * band)])
    return filters.reshape(-1, 1, KERNEL).to(low_hz.dtype)
