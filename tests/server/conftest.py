"""Servers that really listen, in a thread of this process: one over the real model, others over a fake engine."""

import contextlib
import threading
import time
import wave

import pytest
import structlog
from fake_engine import FakeEngine

from diarist.engine.engine import Engine, EngineOptions
from diarist.server.serve import make_server
from diarist.settings import ServerSettings


@pytest.fixture(scope="session", autouse=True)
def _plain_log():
    """As the server's own: the default renderer spends seconds on a traceback."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    yield
    structlog.reset_defaults()


class Running:
    """A server that listens."""

    def __init__(self, server, engine):
        self.server, self.engine = server, engine
        self.port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.service = server.config.app.state.service

    def spooled(self):
        """Files of clients that lie in the spool."""
        return [path for path in self.service.spool.folder.iterdir() if path.name != "lock"]


@contextlib.contextmanager
def serving(engine, spool, **settings):
    made = make_server(ServerSettings(_env_file=None, port=0, spool_dir=spool, graceful_stop_s=8.0, **settings), engine)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not (made.started and engine.ready):
        assert thread.is_alive(), "the server has ended"
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.02)
    try:
        yield Running(made, engine)
    finally:
        made.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the server did not stop"


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
