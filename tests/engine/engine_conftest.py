"""Engines in tests: with a fake pipeline for faults, with real models for results."""

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import pytest

from diarist.engine.engine import Engine, EngineOptions

FAKE = (sys.executable, str(Path(__file__).with_name("engine_fakes.py")))


async def until(condition, seconds: float = 20.0) -> float:
    """Wait until something is so; how long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "it never came"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


@contextlib.asynccontextmanager
async def running(options: EngineOptions, *, ready: bool = True):
    engine = Engine(options)
    await engine.start()
    try:
        if ready:
            await until(lambda: engine.ready)
        yield engine
    finally:
        await engine.stop(drain_s=0.0)


@pytest.fixture
def fake_engine():
    """Makes an engine with the fake pipeline: `async with fake_engine(max_waiting=3, pipeline={...}) as engine`."""

    def make(*, ready: bool = True, **options):
        return running(EngineOptions(**{"command": FAKE, "heartbeat_s": 0.1, "hang_s": 1.5, **options}), ready=ready)

    return make
