"""With how many threads to compute, on clocks that the test moves."""

from itertools import pairwise

import pytest

from diarist.contention import Threads


class Machine:
    """A processor on which `disturbed` says how many threads are too many."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.now = self.computed = 0.0
        self.undisturbed = threads

    def set(self, threads: int) -> None:
        self.threads = threads

    def work(self, governor: Threads, seconds: float) -> list[int]:
        """Pieces of a hundredth of a second; the threads that each of them had."""
        had = []
        for _ in range(round(seconds * 100)):
            before = self.threads
            with governor.undisturbed():
                self.now += 0.01
                self.computed += 0.01 if self.threads <= self.undisturbed else 0.005
                had.append(self.threads)
            assert self.threads == before
            self.now += 1.0  # waiting between pieces tells nothing
        return had


@pytest.fixture
def machine() -> Machine:
    return Machine(16)


@pytest.fixture
def governor(machine) -> Threads:
    return Threads(lambda: machine.now, lambda: machine.computed, lambda: machine.threads, machine.set)


def test_undisturbed_threads_stay(machine, governor):
    assert set(machine.work(governor, 5)) == {16}


def test_disturbed_threads_are_halved_until_they_are_not(machine, governor):
    machine.undisturbed = 5
    had = machine.work(governor, 0.9)
    assert list(dict.fromkeys(had)) == [16, 8, 4]


def test_one_thread_is_left(machine, governor):
    machine.undisturbed = 0
    assert machine.work(governor, 3)[-1] == 1
    assert set(machine.work(governor, 3)) <= {1, 2}


def test_more_are_tried_again_ever_more_seldom(machine, governor):
    machine.undisturbed = 15
    had = machine.work(governor, 60)
    tried = [place for place in range(1, len(had)) if had[place] == 16 and had[place - 1] == 8]
    pauses = [(after - before) / 100 for before, after in pairwise(tried)]
    assert all(after > before - 0.3 for before, after in pairwise(pauses))
    assert pauses[0] == pytest.approx(2.2, abs=0.3)
    assert pauses[-1] == pytest.approx(8.2, abs=0.3)
    assert had.count(16) < 0.05 * len(had)


def test_all_come_back_when_the_others_are_gone(machine, governor):
    machine.undisturbed = 3
    machine.work(governor, 3)
    machine.undisturbed = 16
    assert machine.work(governor, 10)[-1] == 16
    machine.undisturbed = 15  # and it begins anew
    assert machine.work(governor, 0.3)[-1] == 8
    assert machine.work(governor, 1.1)[-1] == 16


def test_what_others_set_is_the_new_maximum(machine, governor):
    machine.work(governor, 1)
    machine.threads = 4
    assert set(machine.work(governor, 5)) == {4}
    machine.undisturbed = 2
    assert machine.work(governor, 0.3)[-1] == 2
    machine.undisturbed = 16
    assert machine.work(governor, 3)[-1] == 4
