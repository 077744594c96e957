"""`diarist benchmark`: what is measured, how it is counted, and what the table says."""

import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from diarist.asr.planning import Assistance
from diarist.benchmark import report
from diarist.benchmark.cells import CELLS, Cell, beginning, fullest, make_cells
from diarist.benchmark.rounds import PLAIN, Answered, Row, Way, added, measure, verdict
from diarist.errors import DiaristError

ALWAYS, AUTO = Way("tiny.en", True), Way("tiny.en", "auto")
SHORT = Cell("short", (np.ones(8 * 16_000, np.float32),))
LONG = Cell("long", (np.ones(60 * 16_000, np.float32),))


# --- cells ------------------------------------------------------------------------------------------------------------


def lengths(cell):
    return [round(len(sound) / 16_000, 3) for sound in cell.sounds]


def test_cells_of_a_recording_that_is_too_short_repeat_it(sample_recording):
    short, long, batch, concurrent = make_cells([sample_recording.wav], CELLS, rows=3, requests=5)
    assert [lengths(cell) for cell in (short, long, batch, concurrent)] == [[8.0], [60.0], [90.0], [8.0] * 5]
    assert [cell.repeats for cell in (short, long, batch, concurrent)] == [False, True, True, False]
    assert (long.title, concurrent.title) == ("long: 60 s", "concurrent: 5 x 8 s")


def test_a_batch_fills_the_rows_once_and_at_most_twice(sample_recording):
    (batch,) = make_cells([sample_recording.wav] * 2, ["batch"], rows=1, requests=1)
    assert (lengths(batch), batch.repeats) == ([30.0, 30.0], False)
    (batch,) = make_cells([sample_recording.wav] * 4, ["batch"], rows=1, requests=1)
    assert lengths(batch) == [30.0, 30.0]
    (batch,) = make_cells([sample_recording.wav] * 2, ["batch"], rows=3, requests=1)
    assert (lengths(batch), batch.repeats) == ([60.0, 30.0], True)


def test_clips_are_cut_where_somebody_speaks():
    sound = np.concatenate(
        [np.full(seconds * 16_000, level, np.float32) for seconds, level in ((3, 0.001), (4, 0.5), (2, 0))]
    )
    assert np.array_equal(fullest(sound, 4.0), np.full(64_000, 0.5, np.float32))
    assert np.array_equal(fullest(sound[:32_000], 3.0), np.resize(sound[:32_000], 48_000))


def test_no_more_is_read_than_is_needed(sample_recording):
    assert len(beginning(sample_recording.wav, 2.5)) == 40_000


# --- rounds -----------------------------------------------------------------------------------------------------------


class Answerer:
    """Takes seconds as told: of each way, round after round, the first of which warms up."""

    ways, rows, title, description = (PLAIN, ALWAYS, AUTO), 1, "fake", {}

    def __init__(self, seconds, texts=None):
        self.seconds = {way: iter(each) for way, each in seconds.items()}
        self.texts, self.asked = texts or {}, []

    def answer(self, cell, way):
        self.asked.append((cell.name, way))
        seconds = next(self.seconds[way])
        drafted = 0 if way == PLAIN else 8
        assistance = Assistance(
            passes=4, tokens=8, assisted=4 if drafted else 0, drafted=drafted, accepted=drafted // 2
        )
        return Answered(seconds, (self.texts.get(way, "Hello there."),), seconds / 2, assistance)


def test_rounds_are_interleaved_and_ratios_are_taken_within_them():
    subject = Answerer({PLAIN: [9, 1, 10, 4], ALWAYS: [1, 0.5, 8, 1], AUTO: [1, 1, 10, 4]}, {ALWAYS: "Hello here. You"})
    told = []
    rows = measure(subject, [SHORT], 3, lambda *progress: told.append(progress))
    assert [way for _, way in subject.asked] == [PLAIN, ALWAYS, AUTO] * 4
    assert [row.seconds for row in rows] == [4, 1, 4]
    assert [row.faster for row in rows] == [1, 2, 1]  # of 2, 1.25 and 4
    assert [row.decoding_faster for row in rows] == [1, 2, 1]
    assert [row.decoder_share for row in rows] == [0.5] * 3
    assert [row.words_differ for row in rows] == [0, 2, 0]
    assert [row.chosen for row in rows] == ["not assisted", "assisted", "assisted"]
    assert told[0] == (0, 12, "short: 8 s, not assisted")
    assert told[-1] == (12, 12, "")


def test_an_answer_without_a_text_is_no_answer():
    subject = Answerer({way: itertools.repeat(1.0) for way in (PLAIN, ALWAYS, AUTO)}, {AUTO: " "})
    with pytest.raises(DiaristError, match="begins with speech"):
        measure(subject, [SHORT], 1)


def test_what_transcripts_say_of_the_assistant_is_added():
    one = {"passes": 10, "tokens": 30, "assisted_passes": 0.5, "drafted": 20, "accepted": 15}
    whole = added([one, None, {**one, "assisted_passes": 1.0}])
    assert (whole.passes, whole.tokens, whole.assisted, whole.drafted, whole.accepted) == (20, 60, 15, 40, 30)
    assert added([None]) is None


def row(way, faster, share, cell=SHORT, decoding=None):
    counted = Assistance(passes=100, tokens=200, assisted=round(100 * share), drafted=200, accepted=100)
    return Row(cell, way, 1 / faster, faster, decoding, None, counted.summary, 0)


@pytest.mark.parametrize(
    ("always", "auto", "share", "good"),
    [
        (1.4, 1.4, 1.0, True),
        (0.6, 1.0, 0.0, True),
        (0.6, 0.9, 0.0, True),  # slower, but not by assisting
        (0.6, 1.0, 0.1, True),  # tried, and cost nothing
        (0.6, 0.8, 0.1, False),
        (0.6, 1.0, 0.9, False),  # assists where always assisting loses
    ],
)
def test_auto_must_not_assist_where_that_does_not_pay(always, auto, share, good):
    rows = [row(PLAIN, 1.0, 0.0), row(ALWAYS, always, 1.0), row(AUTO, auto, share)]
    (said,) = verdict(rows)
    assert (said == "auto does not assist where that does not pay") == good
    assert good or said.startswith("short: auto assists with tiny.en")
    assert verdict(rows[:2]) == []


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_stands_beside_what_was_published():
    rows = [row(PLAIN, 1.0, 0.0), row(ALWAYS, 1.5, 0.9, decoding=2.0), row(AUTO, 1.0, 0.0), row(ALWAYS, 0.5, 0.9, LONG)]
    lines = report.markdown("base", rows, 3).splitlines()
    assert lines[0] == "base"
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(line) for line in table} == {len(report.HEADS)}
    plain, always, auto, long = (dict(zip(report.HEADS, line, strict=True)) for line in table[2:])
    assert (plain["published"], always["published"]) == ("0.784 s", "0.327 s, 2.40x")
    assert (auto["published"], long["published"]) == ("", "4.15 s, 0.84x")
    assert (always["faster"], always["decoding faster"], always["accepted"]) == ("1.50x", "2.00x", "50%")
    assert (always["assisted"], auto["assisted"], plain["assisted"]) == ("90%", "no", "")
    assert "auto does not assist where that does not pay." in lines
    document = json.loads(json.dumps(report.document({}, rows, 3)))
    assert document["cells"][1]["asked"] is True
    assert document["published"]["seconds"]["long"] == [3.48, 4.15]


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_the_terminal(width):
    distilled = Way("/somewhere/quite/far/away/my-assistant", True)
    rows = [row(PLAIN, 1.0, 0.0), row(distilled, 1.5, 0.9, decoding=2.0), row(PLAIN, 1.0, 0.0, LONG)]
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(report.table("base", rows, width))
    lines = console.file.getvalue().splitlines()
    drafted = next(line for line in lines if "my-assistant, always" in line)
    assert (
        drafted.split()[2:6] == ["0.667", "1.50x", "90%", "yes"] if width == 80 else ["0.667", "1.50x", "2.00x", "90%"]
    )
    assert "…" not in "".join(lines)
    assert [line.strip() for line in lines if ": " in line] == ["short: 8 s", "long: 60 s"]


# --- real models ------------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_the_command_measures(base_model, tiny_en_model, segmentation_model, sample_recording, tmp_path):
    """Two clips at once, which share a batch; in float32, where no word may differ."""
    command = [sys.executable, "-m", "diarist", "benchmark", "--rounds", "1", "--threads", "1", "--dtype", "float32"]
    command += ["--only", "concurrent", "--requests", "2", "--assistant", "tiny.en"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "figures.json")], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.startswith("base, cpu float32, 1 threads\n")
    assert "| concurrent: 2 x 8 s | tiny.en, always |" in done.stdout
    assert done.stderr == f"wrote {tmp_path / 'figures.json'}\n"
    cells = json.loads((tmp_path / "figures.json").read_text())["cells"]
    assert [(cell["cell"], cell["asked"]) for cell in cells] == [
        ("concurrent", asked) for asked in (False, True, "auto")
    ]
    assert {cell["words_differ"] for cell in cells} == {0}
    assert all(0 < cell["decoder_share"] < 1 for cell in cells)
    always = cells[1]["assistance"]
    assert always["chosen"] == "assisted"
    assert always["tokens_per_pass"] > 1.5  # 1.9 and more: how much is drafted depends on measured times
    assert cells[0]["assistance"]["assisted_passes"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "medium"], "'medium' is not one of short, long, batch, concurrent"),
        (["--url", "ftp://somewhere"], "no http or https address"),
        (["missing.wav"], "missing.wav: no such file"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path):
    command = [sys.executable, "-m", "diarist", "benchmark", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
