"""How the soak and the benchmark of long recordings judge memory."""

import math
import time

import long_recording
import soak


def test_a_straight_line_has_its_slope_and_no_error():
    found = soak.trend([(60.0 * minute, 100.0 + 2.0 * minute) for minute in range(30)])
    assert (found.per_hour, found.error, found.late_per_hour) == (120.0, 0.0, 120.0)


def test_a_level_that_is_approached_shows_in_the_last_third():
    found = soak.trend([(60.0 * minute, 100.0 * (1 - math.exp(-minute / 5))) for minute in range(45)])
    assert found.per_hour > 40
    assert 0 < found.late_per_hour < 5


def test_callers_rest_and_go_on():
    running = []

    def call(source):
        running.append(1)
        time.sleep(source.random() / 100)
        running.pop()
        return "200"

    callers = soak.Callers([call] * 4)
    try:
        for _ in range(5):
            callers.wait_for_answers(20)
            with callers.resting():
                seen = callers.seen.total()
                time.sleep(0.05)
                assert (running, callers.seen.total()) == ([], seen)
    finally:
        callers.stop()


def test_what_was_seen_while_warming_up_is_left_out():
    samples = [(1.0, {"a": 5.0}), (2.0, {"a": 6.0, "b": 1.0}), (3.0, {"b": 2.0})]
    assert soak.by_name(samples, 1.0) == {"a": [(2.0, 6.0)], "b": [(2.0, 1.0), (3.0, 2.0)]}


def test_too_few_to_tell():
    assert soak.trend([(0.0, 1.0), (1.0, 2.0)]) == soak.Trend(0.0, 0.0, 0.0)


def test_memory_by_length_is_judged_from_an_hour_on():
    assert long_recording.too_much({1: 900.0, 60: 1500.0, 240: 1690.0}) is None
    assert long_recording.too_much({1: 900.0, 60: 1500.0, 240: 1710.0}) == "210 MB more for 240 min than for 60"
    assert long_recording.too_much({60: 2100.0, 240: 2200.0}) == "2200 MB for 240 min"
    assert long_recording.too_much({10: 1000.0}) is None
