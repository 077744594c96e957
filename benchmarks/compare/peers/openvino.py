"""OpenVINO GenAI: int8 weights, computed in what OpenVINO takes for best on the processor (bf16 where it has AMX)."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from compare.environments import last_error
from compare.peer import TORCH, Environment, Kit, Peer, PeerError, made
from compare.protocol import Hear, Heard, Task, Work, serve
from compare.sound import read_wav

_OPENVINO = "2026.4.1"
_CONVERSION = Environment(
    "openvino-conversion",
    (
        "torch==2.13.0",
        "optimum-intel==2.2.0",
        f"openvino=={_OPENVINO}",
        f"openvino-tokenizers=={_OPENVINO}.0",
        "nncf==3.4.0",
    ),
    base=TORCH,
    without=("torchvision",),  # built for another torch, and transformers does not import beside it
)
_CONVERSION_S = 15 * 60


def _prepare(kit: Kit) -> Mapping[str, str]:
    from compare import weights

    def convert(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was interrupted
        _convert(weights.hugging_face_folder(kit.folder / "hugging-face"), folder, kit.python(_CONVERSION))

    return {"whisper": str(made(kit.folder / "openvino-int8", convert))}


def _convert(source: Path, folder: Path, python: Path) -> None:
    command = [str(python.with_name("optimum-cli")), "export", "openvino", "--model", str(source)]
    command += ["--task", "automatic-speech-recognition-with-past", "--weight-format", "int8", str(folder)]
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        try:
            subprocess.run(
                command,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_CONVERSION_S,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )
        except subprocess.SubprocessError:
            raise PeerError(f"cannot be converted: {last_error(log)}") from None


PEERS = (
    Peer(
        name="openvino",
        title="OpenVINO GenAI",
        settings="int8 weights, sequential, timestamps",
        module="compare.peers.openvino",
        works=("recognition",),
        environment=Environment("openvino", (f"openvino-genai=={_OPENVINO}.0", "numpy==2.4.6")),
        prepare=_prepare,
    ),
)


def _load(task: Task) -> Mapping[Work, Hear]:
    library: Any = import_module("openvino_genai")
    pipeline = library.WhisperPipeline(task.models["whisper"], "CPU", INFERENCE_NUM_THREADS=task.threads)

    def recognize(path: str) -> Heard:
        samples = read_wav(path)
        found = pipeline.generate(samples, language="<|en|>", task="transcribe", return_timestamps=True)
        return Heard(text=str(found).strip())

    return {"recognition": recognize}


if __name__ == "__main__":
    serve(_load, ("openvino-genai", "openvino"))
