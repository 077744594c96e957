"""Sound for the tests, read without the product's own decoder."""

import av
import numpy as np


def read_audio(path) -> np.ndarray:
    """A mono 16 kHz file, read without the product's own decoder."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    samples = np.concatenate(frames, axis=1)[0]
    return samples.astype(np.float32) / (32768 if samples.dtype == np.int16 else 1)
