"""pyannote.audio with the weights that diarist has, as its 3.1 pipeline and with community-1's clustering."""

import sys
from collections.abc import Mapping
from importlib import import_module
from math import sqrt
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from compare.peer import TORCH, Environment, Kit, Peer, made
from compare.protocol import Hear, Heard, Task, Work, serve
from compare.sound import SAMPLE_RATE, read_wav

if TYPE_CHECKING:
    from torch import Tensor

ENVIRONMENT = Environment(
    "original",
    (
        "torch==2.13.0",
        "transformers==5.23.0",
        "pyannote.audio==4.0.7",
        "torchaudio==2.11.0",
        "torchcodec==0.13.0",
        "safetensors==0.8.0",
    ),
    base=TORCH,
)
VARIABLES = {"PYANNOTE_METRICS_ENABLED": "false"}  # it reports usage unless told otherwise
BATCH = 32
_CLUSTERING: Mapping[str, Mapping[str, Any]] = {
    "AgglomerativeClustering": {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7045654963945799},
    "VBxClustering": {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8},
}


def prepare(kit: Kit) -> Mapping[str, str]:
    """diarist's tensors as files that need no diarist to be read."""
    from safetensors.torch import save_file

    from diarist import models

    parts = models.diarization_parts("default")
    folder = kit.folder / "pyannote"

    def segmentation(path: Path) -> None:
        save(models.load_segmentation(models.resolve(parts.segmentation, "segmentation")), path)

    def embedding(path: Path) -> None:
        save(models.load_embedding(models.resolve(parts.embedding, "embedding")), path)

    def save(tensors: "Mapping[str, Tensor]", path: Path) -> None:
        save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, path)

    return {
        "segmentation": str(made(folder / "segmentation.safetensors", segmentation)),
        "embedding": str(made(folder / "embedding.safetensors", embedding)),
        "plda": str(models.resolve(parts.plda or "", "plda").directory),
    }


PEERS = (
    Peer(
        name="pyannote",
        title="pyannote.audio",
        settings=f"3.1 pipeline, fp32, batch {BATCH}",
        module="compare.peers.pyannote",
        works=("diarization",),
        environment=ENVIRONMENT,
        prepare=prepare,
        variables=VARIABLES,
    ),
    Peer(
        name="pyannote-vbx",
        title="pyannote.audio, VBx",
        settings=f"community-1's clustering, fp32, batch {BATCH}",
        module="compare.peers.pyannote",
        works=("diarization",),
        environment=ENVIRONMENT,
        prepare=prepare,
        options={"clustering": "VBxClustering"},
        variables=VARIABLES,
    ),
)


def without_torchaudio_extension() -> None:
    """Let torchaudio import beside a torch of another build.

    Its compiled extension is linked to CUDA, which a CPU build of torch does not bring; pyannote.audio needs only the
    parts that are Python.
    """
    stub: Any = ModuleType("torchaudio._extension")
    stub._IS_TORCHAUDIO_EXT_AVAILABLE = stub._IS_ALIGN_AVAILABLE = False  # noqa: SLF001 - torchaudio's own names
    stub._check_cuda_version = lambda: None  # noqa: SLF001
    stub.fail_if_no_align = lambda function: function
    sys.modules["torchaudio._extension"] = stub


def diarizer(task: Task) -> Hear:
    """The pipeline, loaded; answers with turns."""
    without_torchaudio_extension()
    torch: Any = import_module("torch")
    torch.set_num_threads(task.threads)
    pipelines: Any = import_module("pyannote.audio.pipelines")
    clustering = str(task.options.get("clustering", "AgglomerativeClustering"))
    pipeline = pipelines.SpeakerDiarization(
        segmentation=_segmentation(task.models["segmentation"]),
        embedding=_embedding(task.models["embedding"]),
        plda=task.models["plda"],
        clustering=clustering,
        embedding_exclude_overlap=True,
        segmentation_batch_size=BATCH,
        embedding_batch_size=BATCH,
    )
    pipeline.instantiate({"segmentation": {"min_duration_off": 0.0}, "clustering": dict(_CLUSTERING[clustering])})

    def diarize(path: str) -> Heard:
        waveform = torch.from_numpy(read_wav(path))[None]
        found = pipeline({"waveform": waveform, "sample_rate": SAMPLE_RATE, "uri": "recording"}).speaker_diarization
        tracks = found.itertracks(yield_label=True)
        return Heard(turns=tuple((segment.start, segment.end, speaker) for segment, _, speaker in tracks))

    return diarize


def _segmentation(path: str) -> Any:
    """pyannote's segmentation network; its first layer holds the filters themselves, not what they are made from."""
    torch: Any = import_module("torch")
    task: Any = import_module("pyannote.audio.core.task")
    models: Any = import_module("pyannote.audio.models.segmentation")
    tensors = dict(import_module("safetensors.torch").load_file(path))
    model = models.PyanNet(lstm={"hidden_size": 128, "num_layers": 4, "bidirectional": True})
    model.specifications = task.Specifications(
        problem=task.Problem.MONO_LABEL_CLASSIFICATION,
        resolution=task.Resolution.FRAME,
        duration=10.0,
        classes=["speaker#1", "speaker#2", "speaker#3"],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    model.build()
    filters = tensors.pop("sincnet.conv1d.0.filters")
    model.sincnet.conv1d[0] = torch.nn.Conv1d(1, len(filters), filters.shape[-1], stride=10, bias=False)
    model.load_state_dict({**tensors, "sincnet.conv1d.0.weight": filters})
    return model.eval()


def _embedding(path: str) -> Any:
    """pyannote's speaker network, each BatchNorm reduced to the bias that was folded into its convolution."""
    torch: Any = import_module("torch")
    models: Any = import_module("pyannote.audio.models.embedding")
    tensors = import_module("safetensors.torch").load_file(path)
    model = models.WeSpeakerResNet34()
    norms = {
        name: part
        for name, part in model.resnet.named_modules()
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
    }
    state = model.resnet.state_dict()
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem == "seg_1":
            state[name] = tensor
        elif kind == "weight":
            state[f"{stem}.0.weight" if stem.endswith("shortcut") else name] = tensor
        else:
            norm = f"{stem}.1" if stem.endswith("shortcut") else stem.replace("conv", "bn")
            state[f"{norm}.bias"] = tensor
            state[f"{norm}.running_mean"] = torch.zeros_like(tensor)
            state[f"{norm}.running_var"] = torch.ones_like(tensor)
            state[f"{norm}.weight"] = torch.full_like(tensor, sqrt(1 + norms[norm].eps))
    model.resnet.load_state_dict(state)
    return model.eval()


def _load(task: Task) -> Mapping[Work, Hear]:
    return {"diarization": diarizer(task)}


if __name__ == "__main__":
    serve(_load, ("pyannote.audio", "torch"))
