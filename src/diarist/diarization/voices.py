"""Voices that are known by name: what they sound like, and which of the speakers of a recording they are."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from diarist.diarization import features
from diarist.diarization.embedding import EmbeddingModel
from diarist.diarization.frames import SAMPLE_RATE
from diarist.errors import OptionError

MIN_VOICE_S = 0.5
"""Shorter sounds say nothing about who speaks."""
MAX_VOICE_S = 30.0
"""What is longer is cut: more changes nothing."""
SAME_VOICE = 0.6
"""Cosine similarity from which a speaker is taken for a known voice.

Measured on LibriSpeech, references of 2, 3, 5 and 10 s: against speakers found in conversations, 1 587 pairs of
strangers reach 0.51 at most, and of the same person 5 % (2 s) and 0 % (3 s and more) stay below 0.6; against speech of
another day, 4 123 pairs of strangers reach 0.55, and some pairs of the same person stay below 0.6. A known voice that is
missed keeps its number; a stranger given a name would be a lie.
"""


def embed_voice(model: EmbeddingModel, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The embedding of a voice.

    Args:
        model: The speaker network.
        waveform: One person alone; mono, 16 kHz, shape (samples,). At least `MIN_VOICE_S`.

    Returns:
        Shape (256,).

    Raises:
        OptionError: It is too short, or silent.
    """
    sound = waveform[: round(MAX_VOICE_S * SAMPLE_RATE)]
    if len(sound) < MIN_VOICE_S * SAMPLE_RATE or not np.any(sound):
        raise OptionError("known_speakers", f"a reference must hold at least {MIN_VOICE_S} s of a voice")
    frames = features.log_mel(torch.from_numpy(np.ascontiguousarray(sound)))
    return np.asarray(model((frames - frames.mean(dim=0))[None])[0].numpy(), np.float32)


def recognize_voices(
    speakers: Sequence[str],
    embeddings: NDArray[np.float32],
    known: Mapping[str, NDArray[np.float32]],
    threshold: float = SAME_VOICE,
) -> dict[str, str]:
    """Which speakers are known.

    Args:
        speakers: Found in a recording.
        embeddings: Of each of them, shape (speakers, 256).
        known: Embeddings of voices by name.
        threshold: Least cosine similarity.

    Returns:
        Names of the speakers who are surely known: no name twice, and every other speaker left out.
    """
    if not known or not speakers:
        return {}
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - takes long, and few want it

    similarity = _unit(embeddings) @ _unit(np.stack(list(known.values()))).T
    allowed = np.where(similarity >= threshold, similarity, 0.0)  # what may not be adds nothing to a sum
    names = list(known)
    return {
        speakers[row]: names[column]
        for row, column in zip(*linear_sum_assignment(allowed, maximize=True), strict=True)
        if similarity[row, column] >= threshold
    }


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))
