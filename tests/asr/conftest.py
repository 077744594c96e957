"""The default model and some recordings, loaded once for all recognition tests."""

import csv

import numpy as np
import pytest
import torch

from diarist.asr.decoding import DecodingLoop
from diarist.compute import choose
from diarist.models import load_whisper
from plain_audio import read_audio


@pytest.fixture(scope="session")
def checkpoint(base_model):
    return load_whisper(base_model)


@pytest.fixture(scope="session")
def exact_loop(checkpoint):
    """The decode loop in float32, small enough that recordings wait for rows."""
    return DecodingLoop(checkpoint, choose("cpu", "float32"), rows=6, encode_batch=2)


@pytest.fixture(scope="session")
def loop(checkpoint):
    """The decode loop as it runs on this machine."""
    return DecodingLoop(checkpoint, choose("cpu"), rows=6, encode_batch=2)


@pytest.fixture(scope="session")
def utterances(shared_data):
    """Name to (waveform, reference text) of a varied two dozen."""
    with (shared_data / "utterances" / "references.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    chosen = [row for row in rows if float(row["duration_s"]) < 30][::7]
    return {
        row["utterance"]: (read_audio(shared_data / "utterances" / f"{row['utterance']}.flac"), row["text"])
        for row in chosen
    }


@pytest.fixture(scope="session")
def sample_waveform(sample_recording):
    """The telephone sample, 30 s."""
    return read_audio(sample_recording.wav)[: 30 * 16_000]


@pytest.fixture
def random():
    torch.manual_seed(0)
    return np.random.default_rng(0)
