"""With how many threads to compute where others want the processor too.

The threads of a parallel loop wait for the last of them. If one has lost its core to another process all stand still,
and that thousands of times in a second: beside one busy process on two cores, two threads take 1.95 s for a clip that one
thread takes 0.54 s for (undisturbed 0.37 and 0.49 s). Who waits spins, and only then sleeps; so a thread that nobody
disturbs is on its core nearly all the time, and one look at its processor time tells.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_LOOK_S = 0.2  # of work, between two decisions
_DISTURBED = 0.75  # share of that time on the core, below which threads are in each other's way
_HOLD_S, _MOST_HOLD_S = 1.0, 8.0  # of work with fewer threads, until more are tried again


class Threads:
    """Halves torch's threads for some work while they are disturbed, and tries more again.

    Outside of that work there are as many as before: how many there may be is the caller's affair, and torch keeps a
    number for each thread that calls it.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        processor_clock: Callable[[], float] = time.thread_time,
        get_threads: Callable[[], int] = torch.get_num_threads,
        set_threads: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self._clock, self._processor_clock = clock, processor_clock
        self._get, self._set = get_threads, set_threads
        self._limit = math.inf
        self._worked_s = self._computed_s = 0.0  # since the last look
        self._held_s = 0.0  # of work since threads were taken away
        self._hold_s = _HOLD_S
        self._trying = False  # whether more have been given, and not been looked at yet

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Do work that never waits, with as many threads as get a core."""
        most = self._get()
        threads = int(min(most, self._limit))
        if threads < most:
            self._set(threads)
        begun, computed = self._clock(), self._processor_clock()
        try:
            yield
        finally:
            self._worked_s += self._clock() - begun
            self._computed_s += self._processor_clock() - computed
            if threads < most:
                self._set(most)
            if self._worked_s >= _LOOK_S:
                self._decide(threads, most, disturbed=self._computed_s < _DISTURBED * self._worked_s)
                self._worked_s = self._computed_s = 0.0

    def _decide(self, threads: int, most: int, *, disturbed: bool) -> None:
        if disturbed and threads > 1:
            self._hold_s = min(2 * self._hold_s, _MOST_HOLD_S) if self._trying else _HOLD_S
            self._held_s, self._trying = 0.0, False
            self._limit = threads // 2
        elif threads < most:
            self._held_s += self._worked_s
            self._trying = self._held_s >= self._hold_s
            if self._trying:
                self._limit = 2 * threads
        else:
            self._limit, self._trying = math.inf, False


_threads = Threads()


def undisturbed(device: torch.device) -> AbstractContextManager[None]:
    """Around work on a device that never waits: on a processor, with as many threads as get a core."""
    return _threads.undisturbed() if device.type == "cpu" else nullcontext()
