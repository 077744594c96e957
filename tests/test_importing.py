"""torch in less time: what is left out, and that it can be had after all."""

import subprocess
import sys

import pytest

from diarist import importing

LEFT_OUT = "torch._meta_registrations"


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_what_is_left_out_comes_when_it_is_asked_for():
    program = f"""
import gc, sys
from diarist.importing import import_lean, import_rest
import_lean("diarist.pipeline")
import torch
assert gc.isenabled()
assert not hasattr(torch, "_meta_registrations")
print("{LEFT_OUT}" in sys.modules)
import_rest()
print("{LEFT_OUT}" in sys.modules)
print(*torch.nn.Conv1d(2, 3, 3, device="meta")(torch.empty(1, 2, 8, device="meta")).shape)
"""
    assert run(program).split("\n") == ["False", "True", "1 3 6"]


def test_no_cycles_are_looked_for_among_what_torch_brings():
    """It is all old at once, so that the first look at what is new does not go through it."""
    program = """
import gc
looked = []
gc.callbacks.append(lambda phase, about: looked.append((about["generation"], len(gc.get_objects(generation=0)))))
from diarist import Pipeline
print(gc.isenabled(), gc.get_freeze_count(), max(young for _, young in looked) < 10_000, len(gc.get_objects(generation=2)) > 100_000)
"""
    assert run(program) == "True 0 True True"


@pytest.mark.parametrize("before", ["import torch", 'importing._PROVED = ("another version",)'])
def test_a_torch_that_is_there_or_unknown_stays_whole(before):
    program = f"""
import sys
from diarist import importing
{before}
importing.import_lean("torch")
print("{LEFT_OUT}" in sys.modules)
"""
    assert run(program) == "True"


def test_this_torch_is_known():
    assert importing._is_proved()


@pytest.mark.weights
def test_sampling_is_the_same(sample_recording):
    """At a temperature numbers are drawn at random, for which torch wants some of what was left out."""
    program = """
import sys
from diarist.importing import import_lean
if sys.argv[1] == "lean":
    import_lean("diarist.pipeline")
from diarist import Pipeline
print(Pipeline("tiny.en", None)(sys.argv[2], temperature=0.4).text)
"""
    lean, whole = (run(program, kind, str(sample_recording.wav)) for kind in ("lean", "whole"))
    assert lean == whole
    assert len(lean) > 100
