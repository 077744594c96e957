"""How the soak and the benchmark of long recordings judge memory."""

import math

import long_recording
import soak


def test_a_straight_line_has_its_slope_and_no_error():
    found = soak.trend([(60.0 * minute, 100.0 + 2.0 * minute) for minute in range(30)])
    assert (found.per_hour, found.error, found.late_per_hour) == (120.0, 0.0, 120.0)


def test_a_level_that_is_approached_shows_in_the_last_third():
    found = soak.trend([(60.0 * minute, 100.0 * (1 - math.exp(-minute / 5))) for minute in range(45)])
    assert found.per_hour > 40
    assert 0 < found.late_per_hour < 5


def test_noise_on_top_of_a_level_is_no_growth():
    noisy = [(float(second), 500.0 + (second * 7919 % 60)) for second in range(1800)]
    found = soak.floors(noisy)
    assert len(found) == 30
    assert {value for _, value in found} == {500.0}
    assert soak.trend(found).per_hour == 0.0


def test_too_few_to_tell():
    assert soak.trend([(0.0, 1.0), (1.0, 2.0)]) == soak.Trend(0.0, 0.0, 0.0)


def test_memory_by_length_is_judged_from_an_hour_on():
    assert long_recording.too_much({1: 900.0, 60: 1500.0, 240: 1690.0}) is None
    assert long_recording.too_much({1: 900.0, 60: 1500.0, 240: 1710.0}) == "210 MB more for 240 min than for 60"
    assert long_recording.too_much({60: 2100.0, 240: 2200.0}) == "2200 MB for 240 min"
    assert long_recording.too_much({10: 1000.0}) is None
