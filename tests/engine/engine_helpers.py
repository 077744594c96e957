"""Engines for tests."""

import asyncio
import contextlib
import dataclasses
import sys
import time
from pathlib import Path

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


def fake_engine(*, ready: bool = True, **options):
    """An engine with the fake pipeline."""
    return running(EngineOptions(**{"command": FAKE, "heartbeat_s": 0.1, "hang_s": 1.5, **options}), ready=ready)


@contextlib.contextmanager
def limits(engine: Engine, **changed):
    """Other limits for a while."""
    before = engine.options
    engine.options = dataclasses.replace(before, **changed)
    yield engine
    engine.options = before
