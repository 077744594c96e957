"""What importing the package costs, and what it offers."""

import os
import subprocess
import sys

import pytest

import diarist


def test_import_is_quick():
    program = "import time; begun = time.perf_counter(); import diarist; print(time.perf_counter() - begun)"
    times = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout) for _ in range(3)
    ]
    assert min(times) < 0.2


def test_everything_offered_is_there():
    for name in diarist.__all__:
        assert getattr(diarist, name) is not None
        assert name in dir(diarist)
    assert set(diarist._HOME) | {"__version__"} == set(diarist.__all__)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = diarist.nonsense


def test_exports_are_the_originals():
    from diarist.transcript import Transcript

    assert diarist.Transcript is Transcript


@pytest.mark.parametrize(
    ("said", "expected"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_that_wait_do_not_spin_for_long_unless_told_to(said, expected):
    """With the default of GNU OpenMP a clip takes twenty times as long beside other busy processes."""
    known = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    program = "import diarist, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    told = subprocess.run([sys.executable, "-c", program], env=known | said, capture_output=True, check=True, text=True)
    assert told.stdout.strip() == str(expected)
