"""One key presses, another asks seldom: the engine's admission and the worker's scheduler together, on a clock that work moves."""

import asyncio
from collections import deque
from concurrent.futures import Executor, Future

import pytest
from engine_fakes import FakeLoop, FakeTask, Machine, silence, work

from diarist.engine.engine import Engine, EngineOptions
from diarist.engine.scheduler import Scheduler
from diarist.engine.wire import Begin, Cancel, Finished
from diarist.errors import QueueFullError
from diarist.transcript import build

ROWS = 16
STEP_S = 0.04  # five of them and a piece of work make a window: 0.3 s for one alone, as with the base model
PIECE_S = 0.1
DONE = build([], duration=10.0, language="en")


class AtOnce(Executor):
    def submit(self, fn, /, *args, **kwargs):
        done = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Worker:
    """Stands for the supervisor and the worker behind it; computes in virtual time."""

    ready, recovering, rows, counters, why_not_ready = True, True, ROWS, {}, ""

    def __init__(self, engine: Engine, machine: Machine) -> None:
        self.engine, self.machine = engine, machine
        self.plan = Scheduler(self._loop, machine.at, lambda: machine.now)
        self.commands = deque()
        self.tasks: list[FakeTask] = []
        self.ended: dict[str, float] = {}

    def _loop(self, name) -> FakeLoop:
        return FakeLoop(4 if name == "urgent" else ROWS, pause=lambda: self.machine.spend(STEP_S))

    def send(self, command) -> None:
        self.commands.append(command)

    def run_once(self) -> bool:
        """One piece of work, and what comes of it."""
        while self.commands:
            match self.commands.popleft():
                case Begin(id=id_, urgent=urgent):
                    lane = self.plan.lane("urgent" if urgent else "express")
                    self.tasks.append(FakeTask(id_, self.machine, lane.loop, [PIECE_S]))
                    lane.tasks.append(self.tasks[-1])
                case Cancel(id=id_):
                    self.plan.cancel(id_)
        worked = self.plan.run_once()
        for task in [task for task in self.tasks if task.over]:
            self.tasks.remove(task)
            self.ended[task.id] = task.ended
            self.engine._reported(Finished(task.id, DONE))
        return worked


async def settled() -> None:
    for _ in range(4):  # a fingerprint comes through the event loop
        await asyncio.sleep(0)


async def served(
    recording,
    rates: dict[str, float],
    seconds: float,
):
    """Requests of each key at its rate, evenly spaced; waits and refusals by key, in virtual time."""
    engine, machine = Engine(EngineOptions()), Machine()
    engine._supervisor = worker = Worker(engine, machine)
    engine._files = AtOnce()
    came: dict[str, tuple[str, float]] = {}
    refused = dict.fromkeys(rates, 0)
    due = sorted((number / rate, key) for key, rate in rates.items() for number in range(int(seconds * rate)))
    for at, key in due:
        while machine.now < at:
            if not worker.run_once():
                machine.now = at
        try:
            came[engine.submit(work(recording), key=key).id] = key, at
            await settled()
        except QueueFullError:
            refused[key] += 1
    while worker.run_once():
        pass
    waits = {key: sorted(worker.ended[id_] - at for id_, (its, at) in came.items() if its == key) for key in rates}
    return waits, refused


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return silence(tmp_path_factory.mktemp("fair") / "a.wav", 10.0)


def p95(waits: list[float]) -> float:
    return waits[round(0.95 * (len(waits) - 1))]


@pytest.mark.parametrize("rate", [0.3, 1.0])
async def test_h02_one_request_a_second_beside_fifty(recording, rate):
    alone, _ = await served(recording, {"b": rate}, 60)
    beside, refused = await served(recording, {"a": 50.0, "b": rate}, 60)
    assert refused["b"] == 0
    assert refused["a"] > 1000
    assert p95(beside["b"]) <= 1.5 * p95(alone["b"])


async def test_h02_who_asks_for_more_than_its_share_gets_no_more(recording):
    both, _ = await served(recording, {"a": 50.0, "b": 8.0}, 40)
    assert len(both["b"]) <= 1.1 * len(both["a"])


async def test_without_keys_every_place_may_be_taken(recording):
    engine = Engine(EngineOptions(max_waiting=256))
    engine._supervisor = Worker(engine, Machine())
    engine._files = AtOnce()
    for _ in range(256):
        engine.submit(work(recording))
    with pytest.raises(QueueFullError):
        engine.submit(work(recording))


async def test_h01_h02_the_last_places_are_kept_for_others(recording):
    engine = Engine(EngineOptions(max_waiting=256))
    engine._supervisor = Worker(engine, Machine())
    engine._files = AtOnce()
    for _ in range(224):
        engine.submit(work(recording), key="a")
    with pytest.raises(QueueFullError):
        engine.check("a")
    for _ in range(16):
        engine.submit(work(recording), key="b")
    assert len(engine._waiting()) == 240
