"""What is computed next, held against what the lanes promise. No model, no process, no clock on the wall."""

import pytest
from engine_fakes import AcceleratorError, FakeLoop, FakeTask, Machine
from hypothesis import given, settings
from hypothesis import strategies as st

from diarist.engine.scheduler import WEIGHTS, Scheduler

STEP_S = 0.02


def scheduler(machine: Machine, rows: int = 8) -> Scheduler:
    loops = lambda name: FakeLoop(rows, pause=lambda: machine.spend(STEP_S))  # noqa: E731
    return Scheduler(loops, machine.at, lambda: machine.now)


def add(plan: Scheduler, machine: Machine, lane: str, id_: str, pieces: list[float], fault: str = "") -> FakeTask:
    task = FakeTask(id_, machine, plan.lane(lane).loop, pieces, fault)
    plan.lane(lane).tasks.append(task)
    return task


pieces = st.lists(st.floats(0.01, 0.3), max_size=6)


@given(st.lists(st.tuples(st.sampled_from(sorted(WEIGHTS)), pieces), max_size=12))
def test_everything_is_done_and_then_there_is_nothing_to_do(requests):
    machine = Machine()
    plan = scheduler(machine)
    tasks = [add(plan, machine, lane, f"{n:032x}", work) for n, (lane, work) in enumerate(requests)]
    for _ in range(2000):
        if not plan.run_once():
            break
    assert [(task.over, task.texts) for task in tasks] == [(True, len(work)) for _, work in requests]
    assert not plan.run_once()
    assert plan.tasks == []
    assert plan.compute_s == pytest.approx(machine.now)


@given(st.lists(st.floats(0.05, 0.3), min_size=40, max_size=40), st.floats(0.0, 4.0))
def test_h03_a_short_recording_waits_for_one_piece_of_a_long_one(long_pieces, comes_after):
    machine = Machine()
    plan = scheduler(machine)
    add(plan, machine, "bulk", "b" * 32, long_pieces)
    while machine.now < comes_after:
        plan.run_once()
    came = machine.now
    short = add(plan, machine, "express", "a" * 32, [0.3])
    while not short.over:
        plan.run_once()
    alone = 0.3 + 5 * STEP_S
    bulk_share = alone / WEIGHTS["express"] * WEIGHTS["bulk"]
    assert short.ended - came <= alone + bulk_share + 0.3 + 1e-9  # its own work, the others' share, one piece of theirs


def test_h02_the_urgent_one_is_done_before_a_full_express_lane():
    machine = Machine()
    plan = scheduler(machine)
    flood = [add(plan, machine, "express", f"{n:032x}", [0.2]) for n in range(20)]
    for _ in range(30):
        plan.run_once()
    came = machine.now
    urgent = add(plan, machine, "urgent", "a" * 32, [0.2])
    while not urgent.over:
        plan.run_once()
    alone = 0.2 + 5 * STEP_S
    assert machine.now - came < 1.5 * alone + 0.2
    assert not all(task.over for task in flood)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.02, 0.3), st.floats(0.02, 0.3))
def test_h03_long_recordings_get_on_under_a_stream_of_short_ones(express_piece, bulk_piece):
    machine = Machine()
    plan = scheduler(machine)
    bulk = add(plan, machine, "bulk", "b" * 32, [bulk_piece] * 500)
    number = 0
    spent = {"express": 0.0, "bulk": 0.0}
    while machine.now < 60:
        while len(plan.lane("express").tasks) < 3:
            number += 1
            add(plan, machine, "express", f"{number:032x}", [express_piece])
        before = {name: lane.passed for name, lane in plan.lanes.items()}
        plan.run_once()
        for name in spent:
            spent[name] += (plan.lanes[name].passed - before[name]) * WEIGHTS[name]
    share = WEIGHTS["bulk"] / (WEIGHTS["express"] + WEIGHTS["bulk"])
    assert spent["bulk"] >= 60 * share - 0.5
    assert spent["express"] >= 60 * (1 - share) - 1.0
    assert bulk.texts > 0


def test_those_that_come_together_are_decoded_together():
    machine = Machine()
    plan = scheduler(machine)
    tasks = [add(plan, machine, "express", f"{n:032x}", [0.1]) for n in range(6)]
    while not all(task.over for task in tasks):
        plan.run_once()
    lane = plan.lane("express")
    assert lane.rows_used / lane.steps > 4
    assert lane.steps < 3 * 5


def test_a_silent_recording_does_not_hold_up_those_that_speak():
    machine = Machine()
    plan = scheduler(machine)
    speaking = add(plan, machine, "bulk", "a" * 32, [0.2])
    plan.run_once()
    silent = add(plan, machine, "bulk", "b" * 32, [])
    silent.pieces = [0.2] * 300
    silent.advance = lambda: bool(machine.spend(silent.pieces.pop(0)))
    while not speaking.over:
        plan.run_once()
    assert machine.now < 3


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_is_not_ready_is_never_advanced_and_never_awaited(data):
    machine = Machine()
    plan = scheduler(machine)
    tasks = [add(plan, machine, "bulk", f"{n:032x}", [0.1] * 5) for n in range(4)]
    for _ in range(100):
        for task in tasks:
            task.ready = data.draw(st.booleans())
        plan.run_once()  # `advance` asserts
    for task in tasks:
        task.ready = True
    while plan.run_once():
        pass
    assert all(task.over for task in tasks)


@given(
    st.lists(st.sampled_from(["", "oom:1", "oom:3", "oom:0", "bug"]), min_size=1, max_size=12),
    st.sampled_from([1, 4, 8]),
)
def test_h24_h26_only_what_does_not_work_alone_fails(faults, rows):
    machine = Machine()
    plan = scheduler(machine, rows)
    tasks = [add(plan, machine, "express", f"{n:032x}", [0.1], fault) for n, fault in enumerate(faults)]
    for _ in range(5000):
        if not plan.run_once():
            break
    hopeless = {"oom:0": MemoryError, "bug": KeyError}
    assert [type(task.error) for task in tasks] == [hopeless.get(fault, type(None)) for fault in faults]
    assert [task.texts for task in tasks] == [int(fault not in hopeless) for fault in faults]


def test_h24_a_batch_grows_again_after_it_was_halved():
    machine = Machine()
    plan = scheduler(machine)
    for n in range(8):
        add(plan, machine, "express", f"{n:032x}", [0.1], "oom:3" if n == 2 else "")
    while plan.run_once():
        pass
    lane = plan.lane("express")
    assert (lane.halvings, lane.loop.limit) == (2, 2)
    add(plan, machine, "express", "f" * 32, [0.1] * 1500)
    while plan.run_once():
        pass
    assert lane.loop.limit == 8


def test_h25_a_broken_device_is_nobodys_fault():
    machine = Machine()
    plan = scheduler(machine)
    add(plan, machine, "express", "a" * 32, [0.1], "broken")
    assert plan.run_once()
    assert plan.run_once()
    with pytest.raises(AcceleratorError):
        plan.run_once()


def test_h18_a_cancelled_task_is_stepped_no_more():
    machine = Machine()
    plan = scheduler(machine)
    task = add(plan, machine, "bulk", "a" * 32, [0.1] * 50)
    other = add(plan, machine, "bulk", "b" * 32, [0.1] * 50)
    for _ in range(10):
        plan.run_once()
    plan.cancel(task.id)
    done = task.texts
    while plan.run_once():
        pass
    assert (task.texts, other.texts) == (done, 50)


def test_h23_the_blackboard_names_those_who_are_computed():
    machine = Machine()
    plan = scheduler(machine)
    add(plan, machine, "express", "a" * 32, [0.1])
    add(plan, machine, "bulk", "b" * 32, [0.1])
    while plan.run_once():
        pass
    named = [ids for _, ids in machine.log if ids]
    assert {tuple(ids) for ids in named} == {("a" * 32,), ("b" * 32,)}
    assert machine.log[-1][1] == []
