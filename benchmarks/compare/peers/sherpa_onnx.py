"""sherpa-onnx: diarization with the same two networks, its own features and clustering."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compare.peer import Environment, Kit, Peer, PeerError, made
from compare.protocol import Hear, Heard, Task, Work, serve
from compare.sound import read_wav

if TYPE_CHECKING:
    from diarist.models import LocalModel

_THRESHOLD = 0.5  # its own default, for speakers of unknown number
_METADATA: Mapping[str, Mapping[str, object]] = {
    "segmentation": {
        "model_type": "pyannote-segmentation-3.0",
        "version": 1,
        "num_speakers": 3,
        "powerset_max_classes": 2,
        "num_classes": 7,
        "sample_rate": 16_000,
        "window_size": 160_000,
        "receptive_field_size": 991,
        "receptive_field_shift": 270,
    },
    "embedding": {
        "framework": "wespeaker",
        "language": "English",
        "url": "",
        "comment": "ResNet34-LM",
        "sample_rate": 16_000,
        "output_dim": 256,
        "feature_normalize_type": "global-mean",
        "normalize_samples": 0,
    },
}


def _prepare(kit: Kit) -> Mapping[str, str]:
    """The ONNX files with what sherpa-onnx wants to read in them."""
    from diarist import models

    parts = models.diarization_parts("default")
    segmentation = models.resolve(parts.segmentation, "segmentation")
    embedding = models.resolve(parts.embedding, "embedding")
    return {local.kind: str(_described(local, kit.folder / "sherpa-onnx")) for local in (segmentation, embedding)}


def _described(local: "LocalModel", folder: Path) -> Path:
    source = next((path for path in local.files.values() if path.suffix == ".onnx"), None)
    if source is None:
        raise PeerError(f"cannot be converted: diarist's weights for {local.kind} are not an ONNX file")

    def describe(target: Path) -> None:
        onnx: Any = import_module("onnx")
        model = onnx.load(source)
        onnx.helper.set_model_props(model, {key: str(value) for key, value in _METADATA[local.kind].items()})
        onnx.save(model, target)

    return made(folder / f"{local.kind}.onnx", describe)


PEERS = (
    Peer(
        name="sherpa-onnx",
        title="sherpa-onnx",
        settings=f"fp32, its own clustering at {_THRESHOLD}",
        module="compare.peers.sherpa_onnx",
        works=("diarization",),
        environment=Environment("sherpa-onnx", ("sherpa-onnx==2.0.1", "numpy==2.4.6")),
        prepare=_prepare,
    ),
)


def _load(task: Task) -> Mapping[Work, Hear]:
    sherpa: Any = import_module("sherpa_onnx")
    config = sherpa.OfflineSpeakerDiarizationConfig(
        segmentation=sherpa.OfflineSpeakerSegmentationModelConfig(
            pyannote=sherpa.OfflineSpeakerSegmentationPyannoteModelConfig(model=task.models["segmentation"]),
            num_threads=task.threads,
        ),
        embedding=sherpa.SpeakerEmbeddingExtractorConfig(model=task.models["embedding"], num_threads=task.threads),
        clustering=sherpa.FastClusteringConfig(num_clusters=-1, threshold=_THRESHOLD),
    )
    if not config.validate():
        raise ValueError("sherpa-onnx refuses the models")
    diarization = sherpa.OfflineSpeakerDiarization(config)

    def diarize(path: str) -> Heard:
        found = diarization.process(read_wav(path)).sort_by_start_time()
        return Heard(turns=tuple((turn.start, turn.end, str(turn.speaker)) for turn in found))

    return {"diarization": diarize}


if __name__ == "__main__":
    serve(_load, ("sherpa-onnx",))
