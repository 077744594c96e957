"""Seconds spent in named stages."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the time of each stage. One thread at a time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Of each stage that was timed."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time until the block is left."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun
