"""Weights and recordings that several tests need; each is fetched once, into the user's cache."""

from pathlib import Path
from typing import NamedTuple

import pytest

from diarist import models


class Recording(NamedTuple):
    """A recording and what is said in it by whom."""

    wav: Path
    rttm: Path
    stm: Path


@pytest.fixture(scope="session")
def base_model() -> models.LocalModel:
    return models.resolve("base", "asr")


@pytest.fixture(scope="session")
def tiny_en_model() -> models.LocalModel:
    return models.resolve("tiny.en", "asr")


@pytest.fixture(scope="session")
def segmentation_model() -> models.LocalModel:
    return models.resolve("segmentation-3.0", "segmentation")


@pytest.fixture(scope="session")
def embedding_model() -> models.LocalModel:
    return models.resolve("wespeaker-voxceleb-resnet34-LM", "embedding")


@pytest.fixture(scope="session")
def plda_model() -> models.LocalModel:
    return models.resolve("community-1-plda", "plda")


@pytest.fixture(scope="session")
def sample_recording() -> Recording:
    """30 s, two people on the telephone."""
    files = models.resolve("telephone-sample", "sample").files
    return Recording(wav=files["sample.wav"], rttm=files["sample.rttm"], stm=files["sample.stm"])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recordings with references that lie beside the repository on some machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared recordings are not here")
    return folder
