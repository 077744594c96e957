"""Clips of mixed length for the load tests, cut from one recording."""

import random
import wave
from pathlib import Path

from diarist import models

LENGTHS_S = (5, 8, 10, 12, 15, 20, 25, 30, 45, 60)


def sample() -> Path:
    """The 30 s telephone call that the tests use."""
    return models.resolve("telephone-sample", "sample").files["sample.wav"]


def cut(recording: Path, folder: Path, count: int = 40, seed: int = 1) -> list[Path]:
    """Clips of `LENGTHS_S` in turn, from random places; recordings that are too short are taken several times over.

    Args:
        recording: A 16-bit wav file.
        folder: Where the clips go; named after their length, `007-12s.wav`.
        count: How many.
        seed: Of the places.
    """
    source = random.Random(seed)
    with wave.open(str(recording)) as opened:
        parameters, rate = opened.getparams(), opened.getframerate()
        sound = opened.readframes(opened.getnframes())
    frame_bytes = parameters.sampwidth * parameters.nchannels
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(count):
        seconds = LENGTHS_S[number % len(LENGTHS_S)]
        start = source.randrange(len(sound) // frame_bytes) * frame_bytes
        wanted = seconds * rate * frame_bytes
        repeated = (sound * (2 + wanted // len(sound)))[start : start + wanted]
        path = folder / f"{number:03d}-{seconds:02d}s.wav"
        with wave.open(str(path), "wb") as target:
            target.setparams(parameters)
            target.writeframes(repeated)
        clips.append(path)
    return clips


def seconds_of(clip: Path) -> float:
    """The length that a clip's name says."""
    return float(clip.stem.partition("-")[2].rstrip("s"))
