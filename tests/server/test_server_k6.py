"""The original's k6 scenario, run: k6's modules are played by a shim under node, the server is real."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_engine import INFO, FakeEngine

NODE = shutil.which("node")
SHIM = Path(__file__).with_name("k6_shim.mjs")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load" / "original.k6.js"
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node here")


def k6(url, short, long, **variables):
    """Exit status and summary of one run."""
    variables = {"URL": url, "SHORT": str(short), "LONG": str(long), "ITERATIONS": "1", **variables}
    done = subprocess.run(
        [NODE, SHIM, SCRIPT], env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_without_an_assistant_assisted_requests_are_refused_and_the_others_are_right(real, clip, sample_recording):
    status, summary = k6(real.url, clip, sample_recording.wav, SHORT_TEXT="hello", LONG_TEXT="new jersey")
    assert summary["failed"] == summary["crossed"] == []
    assert status == 0
    assert summary["counts"] == {"checks": [10, 10], "http_req_failed": [2, 4]}
    assert {name: len(values) for name, values in summary["trends"].items()} == {
        "seconds_short_assisted": 0,
        "seconds_short_plain": 1,
        "seconds_long_assisted": 0,
        "seconds_long_plain": 1,
    }


@pytest.fixture
def recordings(tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    short.write_text("fake: say Hello there.")
    long.write_text("fake: say Hello there. And more of it.")
    return short, long


@pytest.mark.parametrize(
    ("assists", "text", "failed"),
    [
        (True, "hello", []),
        (True, "words that nobody said", ["text is there"]),
        (False, "hello", ["status is 200"]),
    ],
)
def test_with_an_assistant_all_four_cells_must_be_right(start, recordings, assists, text, failed):
    engine = FakeEngine()
    engine._info = dataclasses.replace(INFO, assists=assists)
    status, summary = k6(start(engine).url, *recordings, ASSISTED="1", SHORT_TEXT=text)
    assert (status, set(failed) <= set(summary["failed"])) == (99 if failed else 0, True)
    if not failed:
        assert summary["counts"] == {"checks": [16, 16], "http_req_failed": [0, 4]}
