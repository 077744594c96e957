"""Reading and writing the 16 kHz mono 16-bit WAV files that all peers are given."""

import wave
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000


def read_wav(path: str) -> NDArray[np.float32]:
    """Samples in [-1, 1). Shape (samples,)."""
    with wave.open(path, "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / np.float32(32768)


def write_wav(path: str, samples: NDArray[Any]) -> None:
    """Write samples in [-1, 1]; louder ones are cut off."""
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32768).round().clip(-32768, 32767).astype("<i2").tobytes())
