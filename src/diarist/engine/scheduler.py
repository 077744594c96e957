"""Which piece of work the computing thread does next. Knows neither models nor processes.

Recordings that are under way are *tasks*, each in a *lane*: urgent ones, short ones, long ones, suspects. A lane has a decode loop,
in whose batches the windows of its tasks are decoded together. Lanes share the time by weight (stride scheduling,
Waldspurger and Weihl 1995): work of the express lane goes before that of the others, but not so far that they stand
still. Within a lane the task with the least left to do goes first, and tasks go before the loop as long as the batch
has room: then those that come together are decoded together.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from diarist.engine.wire import LaneName

WEIGHTS: dict[LaneName, float] = {"urgent": 1000.0, "express": 12.0, "bulk": 1.0, "solo": 1.0}
"""Shares of the time of lanes that all have work. What is urgent goes before everything: the engine gives the word only
to those who have not had their share."""

_PATIENCE_S = 0.8
"""Time of tasks that brings no window, until the loop steps again. The time of its steps is given back: so a silent
recording takes half of the time from those that speak."""
_GOOD_STEPS = 500  # about two windows' worth: the window that was too much is through by then


class Loop(Protocol):
    """A decode loop, as `asr.decoding.DecodingLoop` is one."""

    rows: int
    limit: int

    @property
    def pending(self) -> int: ...
    @property
    def wanted(self) -> int: ...
    @property
    def active(self) -> int: ...
    def step(self) -> None: ...
    def restart(self, limit: int) -> None: ...
    def give_up(self, error: Exception) -> None: ...
    def relax(self) -> None: ...
    def rest(self) -> None: ...


class Task(Protocol):
    """A recording under way."""

    id: str

    @property
    def seconds_left(self) -> float:
        """Seconds of sound that are still to be done, as far as that is known."""

    @property
    def ready(self) -> bool:
        """Whether `advance` would not wait for sound."""

    def advance(self) -> bool:
        """Do the next piece of work; True if the loop must step before there is another. Raises nothing."""

    def cancel(self) -> None:
        """Give it up."""

    @property
    def over(self) -> bool:
        """Whether it has come to its end, good or bad."""


@dataclass(eq=False, slots=True)
class Lane:
    """Tasks that share a decode loop."""

    name: LaneName
    loop: Loop
    weight: float
    clock: Callable[[], float]
    tasks: list[Task] = field(default_factory=list)
    stalled: set[str] = field(default_factory=set)
    """Ids of tasks that wait for the loop's next step."""
    passed: float = 0.0
    """Time it has had, divided by its weight."""
    steps: int = 0
    rows_used: int = 0
    halvings: int = 0
    _good_steps: int = 0
    _patience_s: float = _PATIENCE_S

    @property
    def ready(self) -> list[Task]:
        """Tasks that could go on now, the shortest first."""
        if not self.loop.pending:
            self.stalled.clear()
        able = (task for task in self.tasks if task.id not in self.stalled and task.ready)
        return sorted(able, key=lambda task: task.seconds_left)

    @property
    def has_work(self) -> bool:
        return self.loop.pending > 0 or bool(self.ready)

    def work(self, at: Callable[[Iterable[str]], None]) -> float:
        """Do one piece of work; the seconds that it took.

        Args:
            at: Told the ids of the requests that the piece is about, before it is done.
        """
        ready, pending, begun = self.ready, self.loop.pending, self.clock()
        if ready and (not pending or (self.loop.wanted and self._patience_s > 0)):
            task = ready[0]
            at([task.id])
            if task.advance():
                self.stalled.add(task.id)
            took = self.clock() - begun
            self._patience_s = _PATIENCE_S if self.loop.pending > pending else self._patience_s - took
        elif pending:
            at([task.id for task in self.tasks])
            self._step()
            self.stalled.clear()
            took = self.clock() - begun
            self._patience_s = min(_PATIENCE_S, self._patience_s + took)
        else:
            took = 0.0
        for task in self.tasks:
            if task.over:
                self.stalled.discard(task.id)
        self.tasks = [task for task in self.tasks if not task.over]
        return took

    def _step(self) -> None:
        """Step the loop. What does not work with many windows is tried with fewer; what does not work alone is given up."""
        loop = self.loop
        try:
            loop.step()
        except Exception as error:
            if is_device_broken(error):
                raise
            alone = loop.limit == 1
            loop.restart(loop.limit // 2 if is_out_of_memory(error) else 1)
            self._good_steps = 0
            if alone:
                loop.give_up(error)
            elif is_out_of_memory(error):
                self.halvings += 1
            return
        self.steps += 1
        self.rows_used += loop.active
        self._good_steps += 1
        if loop.limit < loop.rows and self._good_steps >= _GOOD_STEPS:
            self._good_steps = 0
            loop.relax()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at once might work: a `MemoryError`, or torch's own error, which is none."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_device_broken(error: BaseException) -> bool:
    """Whether the accelerator may compute nonsense from now on, so that this process must not go on (hazard 25)."""
    return type(error).__name__ == "AcceleratorError" and not is_out_of_memory(error)


class Scheduler:
    """Chooses among lanes.

    Args:
        make_loop: The decode loop of a lane, made when the lane is first needed.
        at: Told before each piece of work which requests it is about.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        make_loop: Callable[[LaneName], Loop],
        at: Callable[[Iterable[str]], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.lanes: dict[LaneName, Lane] = {}
        self._make_loop = make_loop
        self._at = at
        self._clock = clock
        self._busy: set[LaneName] = set()  # lanes that had work when last looked at
        self._reached = 0.0  # `passed` of the lane that worked last
        self.compute_s = 0.0
        """Time spent in pieces of work."""

    def lane(self, name: LaneName) -> Lane:
        """The lane of that name."""
        if name not in self.lanes:
            self.lanes[name] = Lane(name, self._make_loop(name), WEIGHTS[name], self._clock)
        return self.lanes[name]

    @property
    def tasks(self) -> list[Task]:
        """Tasks under way."""
        return [task for lane in self.lanes.values() for task in lane.tasks]

    def cancel(self, id_: str) -> None:
        """Give a task up, if it is under way."""
        for lane in self.lanes.values():
            for task in [task for task in lane.tasks if task.id == id_]:
                task.cancel()
                lane.tasks.remove(task)
                lane.stalled.discard(id_)

    def run_once(self) -> bool:
        """Do one piece of work; False if there is none."""
        lane = self._next()
        if lane is None:
            return False
        took = lane.work(self._at)
        self._at([])
        self.compute_s += took
        self._reached = lane.passed
        lane.passed += took / lane.weight
        return True

    def rest(self) -> None:
        """Nothing has come for a while."""
        for lane in self.lanes.values():
            lane.loop.rest()

    def _next(self) -> Lane | None:
        able = [lane for lane in self.lanes.values() if lane.has_work]
        for lane in able:
            if lane.name not in self._busy:  # time in which it had nothing to do is not made up for
                lane.passed = max(lane.passed, self._reached)
        self._busy = {lane.name for lane in able}
        return min(able, key=lambda lane: (lane.passed, -lane.weight), default=None)
