"""The speaker network: one embedding for what a mask selects of a stretch of sound.

WeSpeaker's ResNet34 (Wang et al., "WeSpeaker: a research and production oriented speaker embedding learning toolkit",
ICASSP 2023) on 80 filter banks; mean and standard deviation over time of its last layer, then one linear layer. Only
the pooling looks at the mask, so the trunk is run once for a stretch of sound, whoever speaks in it.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from diarist.compute import Compute
from diarist.diarization.features import BINS
from diarist.diarization.kernels import Convolution, convolution
from diarist.native import Room

DIMENSION = 256
TRUNK_STRIDE = 8  # feature frames per trunk frame
TRUNK_CONTEXT = 112  # feature frames on either side that a trunk frame hears
TRUNK_SIZE = 2560  # 10 frequencies of 256 channels

_BLOCKS = (3, 4, 6, 3)
_TYPICAL_FRAMES = 3000  # the weights are packed for blocks of about this length
_STEP = 200
"""Feature frames are filled up to a multiple of this. oneDNN keeps a dozen programs for each length that it meets, 1 MB in
all; there are 16 such lengths instead of 3200. Windows (998) and blocks (3088, 3200) need next to nothing more."""

Rooms = tuple[Room, Room, Room]
"""For a block's inner image, and in turns for what the blocks of one size give and those of the next."""


def new_rooms() -> Rooms:
    return Room(), Room(), Room()


class EmbeddingModel:
    """Weights made ready for one device. Safe to use from several threads.

    Args:
        tensors: As `models.load_embedding` gives them.
        compute: Where to run; the trunk in 12 bits if `int8`, else in its `dtype`; pooling and what follows in float32.
    """

    def __init__(self, tensors: Mapping[str, Tensor], compute: Compute) -> None:
        self.device = compute.device
        self.dtype = torch.float32 if compute.int8 else compute.dtype  # steps are made of float32
        self.together = 1 if compute.device.type == "cpu" else 32  # on a processor one stretch stays in its cache
        weights = {name: tensor.to(self.device, torch.float32) for name, tensor in tensors.items()}

        def prepare(name: str, stride: int, frames: int) -> Convolution:
            # Time runs along the height here and along the width where the weights come from.
            weight = weights[f"{name}.weight"].transpose(2, 3).contiguous()
            return convolution(
                weight.to(self.dtype),
                weights[f"{name}.bias"].to(self.dtype),
                stride=stride,
                padding=(weight.shape[2] // 2, weight.shape[3] // 2),
                size=(frames, frames * BINS // _TYPICAL_FRAMES),
                in_steps=compute.int8 and weight.shape[1] > 1,  # all but the first hear what has been through ReLU
            )

        frames = _TYPICAL_FRAMES
        self._stem = prepare("conv1", 1, frames)
        self._blocks: list[tuple[Convolution, Convolution, Convolution | None]] = []
        for layer, blocks in enumerate(_BLOCKS, start=1):
            for block in range(blocks):
                name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
                shortcut = prepare(f"{name}.shortcut", stride, frames) if stride > 1 else None
                first = prepare(f"{name}.conv1", stride, frames)
                frames //= stride
                self._blocks.append((first, prepare(f"{name}.conv2", 1, frames), shortcut))
        # Pooled features are numbered channel by channel in the weights, frequency by frequency in memory here.
        weight = weights["seg_1.weight"].view(DIMENSION, 2, 256, TRUNK_SIZE // 256)
        self._weight = weight.transpose(2, 3).reshape(DIMENSION, 2 * TRUNK_SIZE).contiguous()
        self._bias = weights["seg_1.bias"]

    @torch.inference_mode()
    def __call__(self, features: Tensor) -> Tensor:
        """Embed whole stretches.

        Args:
            features: Filter banks minus their mean over time. Shape (batch, frames, 80).

        Returns:
            Shape (batch, 256), float32 on the CPU.
        """
        trunks = [self.trunk(stretch[None])[0] for stretch in features]
        return torch.cat([self.pool(trunk, torch.ones(1, len(trunk), device=self.device)) for trunk in trunks]).cpu()

    @torch.inference_mode()
    def trunk(self, features: Tensor, rooms: Rooms | None = None) -> Tensor:
        """What the convolutions make of stretches.

        Args:
            features: Filter banks minus a mean. Shape (n, frames, 80); at most `together` of them are fastest.
            rooms: For one stretch after another, so that memory is not new for each.

        Returns:
            Shape (n, ceil(frames / 8), 2560), float32 on the device.
        """
        frames = features.shape[1]
        x = F.pad(features.to(self.device, self.dtype), (0, 0, 0, -frames % _STEP))
        x = x[:, None].contiguous(memory_format=torch.channels_last)
        x = _silenced(self._stem(x, relu=True), frames)
        between, *others = rooms or new_rooms()
        for first, second, shortcut in self._blocks:
            if shortcut is not None:
                frames = -(-frames // 2)
                others.reverse()  # the image before is still to be read
            inner = _silenced(first(x, between, relu=True), frames)
            x = _silenced(second.add(inner, x if shortcut is None else shortcut(x, others[0])), frames)
        x = x[:, :, :frames].permute(0, 2, 3, 1).flatten(2)
        return x.to(torch.float32, copy=True)  # the room is for the next stretch

    @torch.inference_mode()
    def pool(self, trunk: Tensor, masks: Tensor) -> Tensor:
        """Embed what each mask selects.

        Args:
            trunk: From `trunk`. Shape (frames, 2560).
            masks: Weights of the frames. Shape (n, frames), float32 on the device.

        Returns:
            Shape (n, 256), float32 on the device. A mask of nothing gives the embedding of all-zero statistics.
        """
        centre = trunk.mean(dim=0)  # taken out first, so that the difference of squares below cancels no digits
        centred = trunk - centre
        total = masks.sum(dim=1, keepdim=True) + 1e-8
        shift = masks @ centred / total
        mean = torch.where(total > 1e-6, shift + centre, 0.0)
        # The unbiased weighted variance, after pyannote.audio (the statistics that the PLDA was trained on).
        spread = (masks @ centred.square() - total * shift.square()).clamp_(min=0.0)
        deviation = (spread / (total - masks.square().sum(dim=1, keepdim=True) / total + 1e-8)).sqrt_()
        return F.linear(torch.cat([mean, deviation], dim=1), self._weight, self._bias)


def _silenced(x: Tensor, frames: int) -> Tensor:
    """Zero after the first `frames` of shape (n, channels, frames, width): what a convolution sees beyond the end."""
    x[:, :, frames:] = 0
    return x
