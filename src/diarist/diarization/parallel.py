"""Threads that each run torch on one core.

A recurrent layer is a long chain of small products: given two cores, oneDNN takes as long as with one. Two halves of a
batch on two threads take half the time.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A fixed set of threads, made at once; as many as torch uses cores now, none for a GPU.

    Args:
        device: Where the work will run.
    """

    def __init__(self, device: torch.device) -> None:
        threads = torch.get_num_threads()
        self.count = threads if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        if self.count > 1:
            # torch's number of threads belongs to the calling thread, but the last one set is also what threads made
            # later begin with: hence all are made here, and the caller's number is set again after the last of them.
            ready = threading.Barrier(self.count + 1)

            def begin() -> None:
                torch.set_num_threads(1)
                ready.wait()

            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="diarist-diarization", initializer=begin)
            for _ in range(self.count):
                self._pool.submit(int)
            ready.wait()
            torch.set_num_threads(threads)

    def shares(self, items: int, least: int = 1) -> list[slice]:
        """Cut a number of items into nearly equal shares, one per worker, none smaller than `least` if it can be."""
        shares = max(1, min(self.count, items // least))
        bounds = [items * share // shares for share in range(shares + 1)]
        return [slice(first, last) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Results in the order of the items; the first exception is raised."""
        if self._pool is None or len(items) < 2:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))
