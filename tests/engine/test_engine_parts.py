"""The small parts: the fair queue, the watch, the blackboard."""

import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diarist.engine.fairness import FairQueue
from diarist.engine.process import is_own_doing
from diarist.engine.watch import Watch
from diarist.engine.wire import Blackboard, Pulse

requests = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 60.0)), max_size=40)


@given(requests)
def test_everything_that_waits_comes_out_once_and_in_order_within_its_key(pushed):
    queue: FairQueue[tuple[int, str]] = FairQueue()
    for number, (key, cost) in enumerate(pushed):
        queue.push((number, key), key, cost)
    popped = [queue.pop() for _ in range(len(queue))]
    assert sorted(popped) == [(number, key) for number, (key, _) in enumerate(pushed)]
    for key in "abc":
        own = [item for item in popped if item[1] == key]
        assert own == sorted(own)


@given(
    st.lists(st.floats(1.0, 20.0), min_size=30, max_size=30), st.lists(st.floats(1.0, 20.0), min_size=30, max_size=30)
)
def test_h02_keys_that_both_wait_get_the_same(first, second):
    queue: FairQueue[tuple[str, float]] = FairQueue()
    for cost in first:
        queue.push(("a", cost), "a", cost)
    for cost in second:
        queue.push(("b", cost), "b", cost)
    served = {"a": 0.0, "b": 0.0}
    left = {"a": len(first), "b": len(second)}
    while left["a"] and left["b"]:
        key, cost = queue.pop()
        served[key] += cost
        left[key] -= 1
        assert abs(served["a"] - served["b"]) <= 20.0 + 1e-6


@given(st.integers(1, 200), st.integers(0, 100))
def test_h02_one_who_asks_seldom_is_next(flood, served):
    queue: FairQueue[str] = FairQueue()
    for number in range(flood):
        queue.push(f"a{number}", "a", 10.0)
    for _ in range(min(served, flood)):
        queue.pop()
    queue.push("b", "b", 10.0)
    assert queue.ahead("b") <= 1
    assert "b" in [queue.pop() for _ in range(min(2, len(queue)))]


@given(requests, st.data())
def test_what_is_taken_out_does_not_come_and_places_are_right(pushed, data):
    queue: FairQueue[tuple[int, str]] = FairQueue()
    items = [(number, key) for number, (key, _) in enumerate(pushed)]
    for item, (key, cost) in zip(items, pushed, strict=True):
        queue.push(item, key, cost)
    removed = {item for item in items if data.draw(st.booleans())}
    assert all(queue.remove(item) for item in removed)
    assert not any(queue.remove(item) for item in removed)
    places = {item: queue.ahead(item) for item in items}
    popped = [queue.pop() for _ in range(len(queue))]
    assert {item: place for item, place in places.items() if place is not None} == {
        item: place for place, item in enumerate(popped)
    }
    assert removed == {item for item, place in places.items() if place is None}


def test_the_queue_forgets_keys():
    queue: FairQueue[int] = FairQueue()
    for number in range(1000):
        queue.push(number, f"key {number}", 1.0)
        queue.pop()
    assert len(queue._ends) <= 1
    assert len(queue._tags) == 0


def watched(**pulse) -> Pulse:
    return Pulse(**{"units": 0, "busy_s": 0.0, "compute_cpu_s": 0.0, **pulse})


@pytest.fixture
def watch():
    watch = Watch(hang_s=8, unit_s=120, now=0)
    watch.loaded(0)
    return watch


def test_h22_silence_of_a_process_that_does_nothing_is_a_hang(watch):
    watch.heard(1, watched())
    watch.seen(1, 2.0)
    assert watch.verdict(8.9) == ""
    watch.seen(9, 2.0)  # stopped: no more processor time
    assert watch.verdict(9.1) == "the worker does not answer"


def test_h22_silence_of_a_process_that_works_is_not(watch):
    for second in range(1, 100):
        watch.seen(second, second * 0.9)
    watch.heard(99, watched(units=1))
    assert watch.verdict(100) == ""
    for second in range(100, 260):
        watch.seen(second, second * 0.9)
    assert watch.verdict(260) == "the worker does not answer"  # but not for ever


def test_h22_a_computing_thread_that_waits_for_ever_is_a_hang_although_the_heart_beats(watch):
    for second in range(1, 12):
        watch.heard(second, watched(units=7, busy_s=float(second), compute_cpu_s=1.0))
        watch.seen(second, second * 0.5)
    assert watch.verdict(11) == "the worker stands still"


def test_h22_a_long_piece_of_work_is_not_a_hang(watch):
    for second in range(1, 119):
        watch.heard(second, watched(units=7, busy_s=float(second), compute_cpu_s=second * 0.5))
        assert watch.verdict(second) == ""
    watch.heard(121, watched(units=7, busy_s=121.0, compute_cpu_s=60))
    assert watch.verdict(121) == "the worker does not get on"


def test_h22_an_idle_worker_is_well(watch):
    for second in range(1, 1000, 2):
        watch.heard(second, watched(units=7, compute_cpu_s=1.0))
        assert watch.verdict(second + 1) == ""


def test_a_worker_may_take_its_time_to_load_as_long_as_its_heart_beats():
    watch = Watch(hang_s=8, unit_s=120, now=0)
    for second in range(1, 1000):
        watch.heard(second, watched())
        assert watch.verdict(second) == ""


@pytest.mark.parametrize(
    ("exit_code", "oom_killed", "own"),
    [
        (-signal.SIGSEGV, False, True),
        (-signal.SIGABRT, False, True),
        (70, False, True),
        (-signal.SIGKILL, False, False),
        (-signal.SIGKILL, True, True),
        (-signal.SIGTERM, True, False),
        (0, False, False),
        (None, False, False),
    ],
)
def test_h23_nobody_is_blamed_for_what_came_from_outside(exit_code, oom_killed, own):
    assert is_own_doing(exit_code, oom_killed=oom_killed) == own


@given(st.lists(st.integers(0, 2**128 - 1), max_size=2000))
def test_the_blackboard_says_what_was_written_last(numbers):
    descriptor = Blackboard.descriptor()
    ids = [f"{number:032x}" for number in numbers]
    board = Blackboard(descriptor)
    board.write(["0" * 32])
    board.write(ids)
    other = Blackboard(descriptor)
    assert other.read() == ids[: (Blackboard.BYTES - 4) // 16]
    board.write([])
    assert other.read() == []
    for page in (board, other):
        page.close()
    os.close(descriptor)
