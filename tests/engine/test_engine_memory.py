"""A process that serves stays small: few arenas, holes handed back, no garbage kept. Each in a process of its own."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt and malloc_trim are glibc's")

# Twelve threads at a time allocate, as request after request does; then nine tenths of 80 MB are freed in holes.
SCRIPT = """
import ctypes, json, sys, threading, time
from diarist.engine import memory

memory._PERIOD_S = 0.2
if sys.argv[1] == "small":
    memory.keep_small()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(12)

def allocate():
    together.wait()
    for _ in range(200):
        libc.malloc(ctypes.c_size_t(1000))
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
blocks = [bytes([1]) * 100_000 for _ in range(800)]
full = memory.resident_bytes()
blocks = [block for number, block in enumerate(blocks) if number % 10 == 0]
until = time.monotonic() + 10
while memory.resident_bytes() > full - 50e6 and time.monotonic() < until and sys.argv[1] == "small":
    time.sleep(0.05)
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
arenas = open(sys.argv[2]).read().count("<heap nr=")
print(json.dumps({"given back MB": (full - memory.resident_bytes()) / 1e6, "arenas": arenas}))
"""


def found(kind, folder):
    command = [sys.executable, "-c", SCRIPT, kind, str(folder / "malloc.xml")]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout)


def test_holes_are_handed_back_and_threads_share_arenas(tmp_path):
    small = found("small", tmp_path)
    assert small["given back MB"] > 50
    assert small["arenas"] <= 2


def test_without_it_they_would_be_kept(tmp_path):
    """Otherwise the test above shows nothing."""
    plain = found("plain", tmp_path)
    assert plain["given back MB"] < 20
    assert plain["arenas"] > 2


CYCLES = """
import time
from diarist.engine import memory

class Request:
    def __init__(self):
        self.itself, self.sound = self, bytes([1]) * 50_000_000

memory._PERIOD_S = 0.2
memory.keep_small()
memory.settle()
before = memory.resident_bytes()
Request()
until = time.monotonic() + 10
while memory.resident_bytes() > before + 25e6 and time.monotonic() < until:
    time.sleep(0.05)
print((memory.resident_bytes() - before) / 1e6)
"""


def test_what_refers_to_itself_does_not_wait_for_hundreds_of_others():
    done = subprocess.run([sys.executable, "-c", CYCLES], check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert float(done.stdout) < 25


SHAPES = """
import sys
import torch
from diarist.engine import memory

if sys.argv[1] == "small":
    memory.keep_small()
weight = torch.randn(64, 64, 3)
for length in (100, *range(101, 400), 100):
    torch.nn.functional.conv1d(torch.randn(4, 64, length), weight)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(("kind", "times"), [("plain", 1), ("small", 2)])
def test_programs_for_shapes_of_long_ago_are_let_go(kind, times):
    """oneDNN's own log says whether the program for the last shape, which is the first, was still there."""
    command, told = [sys.executable, "-c", SHAPES, kind], os.environ | {"ONEDNN_VERBOSE": "2"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60, env=told)
    first = [line for line in done.stdout.splitlines() if "convolution" in line and "iw100ow98" in line]
    assert sum("create:cache_miss" in line for line in first) == times
