"""whisper.cpp, through pywhispercpp."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from compare.peer import Environment, Kit, Peer
from compare.protocol import Hear, Heard, Task, Work, serve
from compare.sound import read_wav


def _prepare(kit: Kit) -> Mapping[str, str]:
    from compare import weights

    return {"whisper": str(weights.ggml_file(kit.folder / "ggml" / f"{weights.MODEL}.bin"))}


PEERS = (
    Peer(
        name="whisper.cpp",
        title="whisper.cpp",
        settings="fp16, sequential",
        module="compare.peers.whisper_cpp",
        works=("recognition",),
        environment=Environment("whisper-cpp", ("pywhispercpp==1.5.1", "numpy==2.4.6")),
        prepare=_prepare,
    ),
)


def _load(task: Task) -> Mapping[Work, Hear]:
    library: Any = import_module("pywhispercpp.model")
    model = library.Model(
        task.models["whisper"],
        n_threads=task.threads,
        language="en",
        greedy={"best_of": 1},
        print_progress=False,
        print_realtime=False,
    )

    def recognize(path: str) -> Heard:
        return Heard(text=" ".join(segment.text.strip() for segment in model.transcribe(read_wav(path))))

    return {"recognition": recognize}


if __name__ == "__main__":
    serve(_load, ("pywhispercpp",))
