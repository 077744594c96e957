"""What the main model makes of the sample, for all tests of distillation."""

import pytest

from diarist.compute import choose
from diarist.distillation.teacher import Teacher
from diarist.models import load_whisper
from plain_audio import read_audio


@pytest.fixture(scope="session")
def checkpoint(base_model):
    return load_whisper(base_model)


@pytest.fixture(scope="session")
def exact():
    return choose("cpu", "float32")


@pytest.fixture(scope="session")
def waveform(sample_recording):
    return read_audio(sample_recording.wav)[: 30 * 16_000]


@pytest.fixture(scope="session")
def examples(checkpoint, exact, waveform):
    """Three windows of the sample, labelled in float32."""
    teacher = Teacher(checkpoint, exact, rows=3)
    windows = [(waveform[start * 16_000 : end * 16_000], "en") for start, end in ((0, 10), (10, 18), (18, 30))]
    return sorted(teacher.label(windows, lambda _: None), key=lambda example: example.tokens.tolist())
