"""WhisperX: its speech detector and batched recognition, int8.

It pins a torch of its own time and asks for gigabytes with it; here it runs, against its pins, beside the one torch
that the other peers share. Its alignment model is not among what can be converted, so it is not asked to align, and its
diarization is pyannote.audio, which has a row of its own.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from compare.peer import Environment, Kit, Peer
from compare.peers import pyannote
from compare.protocol import Hear, Heard, Task, Work, serve
from compare.sound import read_wav

_BATCH = 8


def _prepare(_: Kit) -> Mapping[str, str]:
    from compare import weights

    return {"whisper": str(weights.ctranslate2_folder())}


PEERS = (
    Peer(
        name="whisperx",
        title="WhisperX",
        settings=f"int8, batch {_BATCH}, no alignment, beside another torch than it pins",
        module="compare.peers.whisperx",
        works=("recognition",),
        environment=Environment(
            "whisperx",
            (
                "whisperx==3.8.6",
                "faster-whisper==1.2.1",
                "ctranslate2==4.8.5",
                "onnxruntime==1.32.0",
                "flatbuffers==25.12.19",
                "av==18.1.0",
                "nltk==3.9.2",
                "omegaconf==2.3.0",
                "antlr4-python3-runtime==4.9.3",
            ),
            base=pyannote.ENVIRONMENT,
            dependencies=False,
        ),
        prepare=_prepare,
        variables=pyannote.VARIABLES,
    ),
)


def _load(task: Task) -> Mapping[Work, Hear]:
    pyannote.without_torchaudio_extension()
    torch: Any = import_module("torch")
    torch.set_num_threads(task.threads)
    library: Any = import_module("whisperx")
    model = library.load_model(
        task.models["whisper"],
        "cpu",
        compute_type="int8",
        language="en",
        asr_options={"beam_size": 1, "best_of": 1},
        threads=task.threads,
        local_files_only=True,
    )

    def recognize(path: str) -> Heard:
        found = model.transcribe(read_wav(path), batch_size=_BATCH, language="en")
        return Heard(text=" ".join(segment["text"].strip() for segment in found["segments"]))

    return {"recognition": recognize}


if __name__ == "__main__":
    serve(_load, ("whisperx", "faster-whisper", "pyannote.audio", "torch"))
