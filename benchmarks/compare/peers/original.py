"""The original's way: transformers' pipeline and pyannote.audio, one after the other, joined by nearest end times.

The recipe is that of the original server: float32, windows of 30 s with overlap, 24 of them at once; pyannote's 3.1
pipeline; consecutive turns of a speaker made one that lasts until the next speaker begins; and to each of these, the
chunks of text up to the one whose end lies nearest.
"""

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from compare.peer import Kit, Peer
from compare.peers import pyannote
from compare.protocol import Hear, Heard, Task, Work, serve
from compare.sound import SAMPLE_RATE, read_wav

_WINDOW_S = 30
_BATCH = 24


def _prepare(kit: Kit) -> Mapping[str, str]:
    from compare import weights

    return {"whisper": str(weights.hugging_face_folder(kit.folder / "hugging-face")), **pyannote.prepare(kit)}


PEERS = (
    Peer(
        name="original",
        title="the original's way: transformers, then pyannote.audio",
        settings=f"fp32, batch {_BATCH}; diarization 3.1, batch {pyannote.BATCH}",
        module="compare.peers.original",
        works=("whole",),
        environment=pyannote.ENVIRONMENT,
        prepare=_prepare,
        variables=pyannote.VARIABLES,
    ),
)

Chunk = tuple[float, str]
"""End in seconds, and text."""


def joined(turns: Sequence[tuple[float, float, str]], chunks: Sequence[Chunk]) -> tuple[tuple[str, str], ...]:
    """Speaker and text as the original joins them.

    >>> joined([(0, 4, "A"), (4, 9, "B"), (9, 10, "B")], [(3.5, "one"), (9.8, "two")])
    (('A', 'one'), ('B', 'two'))
    """
    left = list(chunks)
    found = []
    for speaker, end in _stretches(turns):
        if not left:
            break
        nearest = min(range(len(left)), key=lambda place: abs(left[place][0] - end))
        found.append((speaker, "".join(text for _, text in left[: nearest + 1])))
        left = left[nearest + 1 :]
    return tuple(found)


def _stretches(turns: Sequence[tuple[float, float, str]]) -> list[tuple[str, float]]:
    """Speakers with the time at which the next one begins, for the last one the time at which it ends."""
    stretches = []
    for place, (_, end, speaker) in enumerate(turns):
        following = turns[place + 1] if place + 1 < len(turns) else None
        if following is None:
            stretches.append((speaker, end))
        elif following[2] != speaker:
            stretches.append((speaker, following[0]))
    return stretches


def _load(task: Task) -> Mapping[Work, Hear]:
    pyannote.without_torchaudio_extension()  # transformers imports it too
    torch: Any = import_module("torch")
    torch.set_num_threads(task.threads)
    transformers: Any = import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    pipeline = transformers.pipeline(
        "automatic-speech-recognition", model=task.models["whisper"], dtype=torch.float32, device=torch.device("cpu")
    )
    diarize = pyannote.diarizer(task) if "whole" in task.works else None

    def transcribed(path: str) -> tuple[str, list[Chunk]]:
        found = pipeline(
            {"raw": read_wav(path), "sampling_rate": SAMPLE_RATE},
            chunk_length_s=_WINDOW_S,
            batch_size=_BATCH,
            return_timestamps=True,
            generate_kwargs={"task": "transcribe", "language": "en", "num_beams": 1},
        )
        ends = [chunk["timestamp"][1] for chunk in found["chunks"]]
        texts = [chunk["text"] for chunk in found["chunks"]]
        # a last chunk without an end would stop the original; it is given the end of all
        return found["text"], [
            (float("inf") if end is None else end, text) for end, text in zip(ends, texts, strict=True)
        ]

    def recognize(path: str) -> Heard:
        return Heard(text=transcribed(path)[0])

    if diarize is None:
        return {"recognition": recognize}

    def whole(path: str) -> Heard:
        begun = time.perf_counter()
        text, chunks = transcribed(path)
        between = time.perf_counter()
        turns = diarize(path).turns
        parts: dict[Work, float] = {"recognition": between - begun, "diarization": time.perf_counter() - between}
        return Heard(text=text, turns=turns, utterances=joined(turns, chunks), parts=parts)

    return {"recognition": recognize, "whole": whole}


if __name__ == "__main__":
    serve(_load, ("transformers", "pyannote.audio", "torch"))
