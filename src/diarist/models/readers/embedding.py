"""WeSpeaker's ResNet34-LM speaker embedding, every BatchNorm folded into the convolution before it.

Layouts: the ONNX export (folded already), pyannote's own checkpoint (folded here), and safetensors under the names that
this module returns.
"""

from pathlib import Path

import torch

from diarist.errors import ModelFormatError
from diarist.models import layouts
from diarist.models.readers import checks, onnx, pickles, safetensors
from diarist.models.types import LocalModel

BLOCKS = (3, 4, 6, 3)
WIDTHS = (32, 64, 128, 256)
EMBEDDING = 256
POOLED = 2 * WIDTHS[-1] * 10
"""Mean and deviation of the last layer's channels over its 10 frequency rows (80 mel bins halved three times)."""
BATCH_NORM_EPSILON = 1e-5


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns, kernel) in _convolutions().items():
        found |= {f"{name}.weight": (rows, columns, kernel, kernel), f"{name}.bias": (rows,)}
    return found | {"seg_1.weight": (EMBEDDING, POOLED), "seg_1.bias": (EMBEDDING,)}


def _convolutions() -> dict[str, tuple[int, int, int]]:
    """Name to output channels, input channels and kernel, in the order of the forward pass."""
    found = {"conv1": (WIDTHS[0], 1, 3)}
    before = WIDTHS[0]
    for layer, (blocks, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True), start=1):
        for block in range(blocks):
            found[f"layer{layer}.{block}.conv1"] = (width, before, 3)
            found[f"layer{layer}.{block}.conv2"] = (width, width, 3)
            if before != width:
                found[f"layer{layer}.{block}.shortcut"] = (width, before, 1)
            before = width
    return found


def read(model: LocalModel) -> dict[str, torch.Tensor]:
    """The network's tensors.

    Raises:
        ModelFormatError: The file cannot be read or does not hold this network.
    """
    names = layouts.network_weights(list(model.files))
    if not names:
        raise ModelFormatError(f"{model.directory} has no one weight file of an embedding model")
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
    """By the order of the convolutions: 3x3 ones make the trunk, 1x1 ones the shortcuts."""
    stored = onnx.constants_of(graph, "Conv")
    if any(len(constants) != 2 for constants in stored):
        raise ModelFormatError(f"{path} has convolutions without a bias: its BatchNorm is not folded")
    found: dict[str, torch.Tensor] = {}
    for kernel in (3, 1):
        names = [name for name, shape in _convolutions().items() if shape[2] == kernel]
        chosen = [(weight, bias) for weight, bias in stored if tuple(weight.shape[2:]) == (kernel, kernel)]
        if len(chosen) != len(names):
            raise ModelFormatError(
                f"{path} has {len(chosen)} {kernel}x{kernel} convolutions, ResNet34 has {len(names)}"
            )
        for name, (weight, bias) in zip(names, chosen, strict=True):
            found |= {f"{name}.weight": weight, f"{name}.bias": bias}
    linear = onnx.linears(graph)
    if len(linear) != 1:
        raise ModelFormatError(f"{path} has {len(linear)} linear layers, this network has one")
    weight, bias = linear[0]
    mean = onnx.constants_of(graph, "Sub")[-1:]  # WeSpeaker's mean vector, taken off the embedding
    if mean and mean[0][0].shape == bias.shape:
        bias = bias - mean[0][0]
    return found | {"seg_1.weight": weight, "seg_1.bias": bias}


def _from_pyannote(path: Path) -> dict[str, torch.Tensor]:
    state = pickles.read(path)
    stored = pickles.tensors(state.get("state_dict", state), path)
    stored = {name.removeprefix("resnet."): value for name, value in stored.items()}
    found: dict[str, torch.Tensor] = {name: value for name, value in stored.items() if name.startswith("seg_1.")}
    for name in _convolutions():
        convolution, norm = f"{name}.0", f"{name}.1"  # shortcut: a pair
        if not name.endswith("shortcut"):
            convolution, norm = name, name.replace("conv", "bn")
        found |= _folded(name, stored, convolution, norm, path)
    return found


def _folded(
    name: str, stored: dict[str, torch.Tensor], convolution: str, norm: str, path: Path
) -> dict[str, torch.Tensor]:
    """A convolution and the BatchNorm after it as one convolution with a bias, computed in double precision."""
    parts = (f"{convolution}.weight", *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")))
    missing = [part for part in parts if part not in stored]
    if missing:
        raise ModelFormatError(f"{path} lacks {missing[0]}")
    kernel, gain, shift, mean, variance = (stored[part].double() for part in parts)
    if kernel.dim() != 4 or any(part.shape != kernel.shape[:1] for part in (gain, shift, mean, variance)):
        raise ModelFormatError(f"{path}: {norm} does not fit {convolution}")
    scale = gain / torch.sqrt(variance + BATCH_NORM_EPSILON)
    dtype = stored[parts[0]].dtype
    return {
        f"{name}.weight": (kernel * scale[:, None, None, None]).to(dtype),
        f"{name}.bias": (shift - mean * scale).to(dtype),
    }
