"""Seconds spent in named stages."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


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

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items, adding the time that each takes to come, and not what is done with it."""
        waiting = iter(items)
        while True:
            with self.timed(stage):
                item = next(waiting, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]  # not the mark


_END = object()
