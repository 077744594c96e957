"""Servers for the tests: one over the real model, others over a fake engine."""

import contextlib
import wave

import pytest
import structlog
from fake_engine import FakeEngine
from listening import serving

from diarist.engine.engine import Engine, EngineOptions


@pytest.fixture(scope="session", autouse=True)
def _plain_log():
    """As the server's own: the default renderer spends seconds on a traceback."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def clip(sample_recording, tmp_path_factory):
    """The first 10 s of the sample: one person says hello."""
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    with wave.open(str(sample_recording.wav)) as source, wave.open(str(path), "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(10 * source.getframerate()))
    return path


@pytest.fixture(scope="session")
def real(base_model, segmentation_model, embedding_model, tmp_path_factory):
    """The base model behind every contract."""
    options = {"asr_model": "base", "diarization_model": "default", "threads": 1}
    engine = Engine(EngineOptions(pipeline=options))
    with serving(engine, tmp_path_factory.mktemp("spool")) as running:
        yield running


@pytest.fixture(scope="session")
def fake(tmp_path_factory):
    """A fake engine without limits."""
    with serving(FakeEngine(), tmp_path_factory.mktemp("spool")) as running:
        yield running


@pytest.fixture
def start(tmp_path):
    """Start servers over fake engines with settings of one's own."""
    with contextlib.ExitStack() as stack:

        def make(engine=None, **settings):
            return stack.enter_context(serving(engine or FakeEngine(), tmp_path / "spool", **settings))

        yield make
