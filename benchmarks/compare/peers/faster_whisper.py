"""faster-whisper (CTranslate2), int8: sequential with all its checks, and batched."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from compare.peer import Environment, Kit, Peer
from compare.protocol import Hear, Heard, Task, Work, serve

_ENVIRONMENT = Environment("faster-whisper", ("faster-whisper==1.2.1",))


def _prepare(_: Kit) -> Mapping[str, str]:
    from compare import weights

    return {"whisper": str(weights.ctranslate2_folder())}


PEERS = (
    Peer(
        name="faster-whisper",
        title="faster-whisper",
        settings="int8, sequential, all checks",
        module="compare.peers.faster_whisper",
        works=("recognition",),
        environment=_ENVIRONMENT,
        prepare=_prepare,
    ),
    Peer(
        name="faster-whisper-batched",
        title="faster-whisper, batched",
        settings="int8, batch 8, its own speech detector",
        module="compare.peers.faster_whisper",
        works=("recognition",),
        environment=_ENVIRONMENT,
        prepare=_prepare,
        options={"batch_size": 8},
    ),
)


def _load(task: Task) -> Mapping[Work, Hear]:
    # imported by name, so that types can be checked where it is not installed
    library: Any = import_module("faster_whisper")
    model = library.WhisperModel(
        task.models["whisper"], device="cpu", compute_type="int8", cpu_threads=task.threads, local_files_only=True
    )
    batched = library.BatchedInferencePipeline(model) if task.options else None

    def recognize(path: str) -> Heard:
        if batched is None:
            segments, _ = model.transcribe(path, language="en", beam_size=1, condition_on_previous_text=False)
        else:
            segments, _ = batched.transcribe(path, language="en", beam_size=1, **task.options)
        return Heard(text=" ".join(segment.text.strip() for segment in segments))

    return {"recognition": recognize}


if __name__ == "__main__":
    serve(_load, ("faster-whisper", "ctranslate2"))
