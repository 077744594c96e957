"""The comparison with peers: its protocol, its order, its tables, and that no peer is dropped without a word."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compare import environments, report, results, run
from compare.children import Child, environment
from compare.corpus import Recording
from compare.measure import Contender, Plan, measure, questions, steps
from compare.peer import Environment, Peer, PeerError
from compare.peers import ONLY_IF_NAMED, TABLE, original
from compare.protocol import Task
from compare.results import OURS, PeerResults, Results, Run, Score
from compare.sound import SAMPLE_RATE, read_wav, write_wav
from compare.weights import hugging_face_name, vocabulary_bytes
from diarist.models import WhisperDims
from diarist.models.readers import whisper
from diarist.timeline import Segment, Turn

REFERENCE = Recording(
    name="talk",
    path=Path("/nowhere/talk.wav"),
    duration=2.0,
    sentences=(("A", "one two"), ("B", "three four")),
    turns=(Turn(Segment(0, 1), "A"), Turn(Segment(1, 2), "B")),
)
PLAN = Plan(rounds=2, starts=1, clips=2, limit_s=30)


@pytest.fixture(autouse=True)
def peers_see_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def fake(name: str, works=("recognition",), **options) -> Peer:
    return Peer(
        name=name,
        title=name,
        settings="a script",
        module="fake_peer",
        works=works,
        environment=None,
        prepare=lambda _: {},
        options=options,
    )


def contender(peer: Peer, folder: Path, text: str = "one two three four") -> Contender:
    task = Task(models={"text": text}, options=peer.options, works=peer.works, threads=1)
    row = PeerResults(peer.name, peer.title, peer.settings)
    return Contender(peer, task, Path(sys.executable), folder / "logs" / f"{peer.name}.log", row)


def compared(folder: Path, peers: list[Contender], plan: Plan = PLAN) -> tuple[Results, list[str], int]:
    """Results, what was said meanwhile, and how many steps the progress bar took."""
    found = Results("2026-01-02", {"processor": "a | b"}, 1, {"talk": 2.0}, 8, [peer.found for peer in peers])
    said: list[str] = []
    taken: list[None] = []
    saved: list[int] = []
    measure(
        found,
        peers,
        [REFERENCE],
        folder / "clip.wav",
        plan,
        say=said.append,
        step=lambda: taken.append(None),
        save=lambda so_far: saved.append(len(so_far.peers)),
    )
    assert saved == [len(peers)] * (plan.rounds + 1)
    return found, said, len(taken)


# --- protocol -------------------------------------------------------------------------------------------------------


def test_a_peer_answers_line_by_line_whatever_its_libraries_print(tmp_path):
    peer = contender(fake("x", ("recognition", "whole"), seconds=0.05), tmp_path)
    with peer.start(peer.peer.works) as child:
        ready = child.ready(20)
        first = child.ask("recognition", REFERENCE.path, 20)
        second = child.ask("whole", REFERENCE.path, 20)
    assert re.fullmatch(r"\d+\.\d+.*", ready["versions"]["numpy"])
    assert first["text"] == second["text"] == "one two three four"
    assert 0.05 <= first["seconds"] < 5
    assert first["peak_bytes"] > 1e6
    assert second["turns"] == [[0.0, 1.0, "S0"], [1.0, 2.0, "S1"]]
    assert "from C too" in peer.log.read_text()


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("load", "does not start: ValueError: the weights are of another kind"),
        ("hear", "failed at recognition of talk: RuntimeError: too loud"),
        ("die", "failed at recognition of talk: it ended with code 3: fatal error: out of luck"),
        ("hang", "failed at recognition of talk: no answer within 1 s"),
    ],
)
def test_a_peer_that_fails_says_why(tmp_path, trouble, reason):
    peer = contender(fake("x", trouble=trouble), tmp_path)
    with peer.start(("recognition",)) as child, pytest.raises(PeerError) as caught:  # noqa: PT012 - either may fail
        child.ready(20)
        child.ask("recognition", REFERENCE.path, 1)
    assert str(caught.value) == reason


def test_a_module_that_is_not_there_is_a_reason(tmp_path):
    peer = Peer("x", "x", "", "no_such_peer", ("recognition",), None, lambda _: {})
    task = Task({}, {}, ("recognition",), 1)
    with Child(peer, task, Path(sys.executable), tmp_path / "x.log") as child, pytest.raises(PeerError) as caught:
        child.ready(20)
    assert "No module named no_such_peer" in str(caught.value)


def test_peers_have_the_same_threads_and_their_own_packages(monkeypatch):
    apart = Peer("x", "x", "", "m", ("whole",), Environment("e", ()), lambda _: {}, variables={"MINE": "1"})
    variables = environment(apart, 3, Path("/env/bin/python"))
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "3"
    assert variables["MINE"] == variables["HF_HUB_OFFLINE"] == "1"
    assert str(Path(__file__).parent) not in variables["PYTHONPATH"].split(":")
    assert variables["PATH"].startswith("/env/bin:")


# --- order ----------------------------------------------------------------------------------------------------------


def test_peers_take_turns_on_each_recording_and_another_begins_each_time():
    works = [("recognition", "whole"), ("recognition",), ("whole",), ("recognition",)]
    asked = [(each.recording, each.work, each.contender) for each in questions(works, 2, 1)]
    assert asked == [
        *[(0, "recognition", place) for place in (1, 3, 0)],
        *[(0, "whole", place) for place in (2, 0)],
        *[(1, "recognition", place) for place in (3, 0, 1)],
        *[(1, "whole", place) for place in (0, 2)],
    ]


def test_measuring_interleaves_and_counts_every_step(tmp_path):
    peers = [contender(fake(OURS, ("recognition", "whole")), tmp_path), contender(fake("other", ("whole",)), tmp_path)]
    found, said, taken = compared(tmp_path, peers)
    heard = [line.split(" of ")[0] for line in said if ": " in line]
    assert heard == [
        *(f"{OURS}: recognition", f"{OURS}: whole", "other: whole"),
        *(f"{OURS}: recognition", "other: whole", f"{OURS}: whole"),
    ]
    assert taken == steps(2, [peer.peer.works for peer in peers], 1, PLAN)
    ours, other = found.peers
    assert [len(ours.start_s), len(ours.clip_s), len(other.start_s), len(other.clip_s)] == [1, 2, 1, 2]
    assert [(score.measure, score.wrong) for score in other.scores] == [("WER", 0), ("DER", 0), ("cpWER", 0)]
    assert {run.seconds for run in other.runs if run.work == "diarization"} == {0.5}
    assert {run.peak_bytes for run in other.runs if run.work == "diarization"} == {None}


def test_a_peer_without_time_for_another_round_is_asked_no_more(tmp_path):
    peers = [contender(fake(OURS), tmp_path), contender(fake("slow", seconds=0.3), tmp_path)]
    found, _, _ = compared(tmp_path, peers, Plan(rounds=3, starts=0, clips=0, limit_s=0.5))
    assert [len(peer.runs) for peer in found.peers] == [3, 1]
    assert found.peers[1].failure is None


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_failing_peer_is_listed_with_its_reason_and_the_others_go_on(tmp_path):
    peers = [contender(fake(OURS), tmp_path), contender(fake("broken", trouble="hear"), tmp_path)]
    found, _, _ = compared(tmp_path, peers)
    assert len(found.peers[0].runs) == 2
    shown = report.markdown(found)
    assert "| broken (a script) | failed at recognition of clip: RuntimeError: too loud |" in shown
    assert "RuntimeError: too loud" in report.page(found, b"")


def test_a_peer_that_cannot_be_installed_or_converted_keeps_its_row(tmp_path, monkeypatch):
    def no_index(environment, cache):
        raise PeerError(f"cannot be installed: no matching distribution for {environment.requirements[0]}")

    def no_weights(kit):
        raise OSError("disk full")

    monkeypatch.setattr(run.environments, "ensure", no_index)
    absent = Peer("a", "A", "", "m", ("recognition",), Environment("e", ("ghost==1",)), lambda _: {})
    unconverted = Peer("b", "B", "", "m", ("recognition",), None, no_weights)
    rows = [PeerResults(peer.name, peer.title, peer.settings) for peer in (absent, unconverted, fake("c"))]
    found = Results("2026-01-02", {}, 1, {"talk": 2.0}, 8, rows)
    ready = run.prepare([absent, unconverted, fake("c")], found, tmp_path, 1, lambda _: None)
    assert [each.peer.name for each in ready] == ["c"]
    assert [row.failure for row in rows] == [
        "cannot be installed: no matching distribution for ghost==1",
        "cannot be prepared: OSError: disk full",
        None,
    ]


def test_environments_are_made_once_and_see_the_packages_of_their_bases(tmp_path, monkeypatch):
    commands = []

    def pretend(command, output, log):
        commands.append(" ".join(command[2:]))
        packages(tmp_path / "environments" / command[-1].rsplit("/", 1)[-1]).mkdir(parents=True, exist_ok=True)

    def packages(folder):
        return environments._packages(folder)

    monkeypatch.setattr(environments, "_run", pretend)
    first = Environment("first", ("torch==1",))
    second = Environment("second", ("b==1",), base=first)
    third = Environment("third", ("c==1",), base=second, dependencies=False, without=("vision",))
    for _ in range(2):
        environments.ensure(third, tmp_path)
    install = "pip install --disable-pip-version-check --no-input"
    where = tmp_path / "environments"
    assert commands == [
        *(f"venv --clear {where}/first", f"{install} torch==1"),
        *(f"venv --clear {where}/second", f"{install} b==1"),
        *(f"venv --clear {where}/third", f"{install} --no-deps c==1", "pip uninstall --yes vision"),
    ]
    seen = (packages(where / "third") / "bases.pth").read_text().splitlines()
    assert seen == [str(packages(where / "second")), str(packages(where / "first"))]


def test_an_installation_that_fails_says_why(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", "print('ERROR: no such package'); print('a notice'); raise SystemExit(1)"]
    with log.open("w") as output, pytest.raises(PeerError, match="cannot be installed: ERROR: no such package"):
        environments._run(command, output.fileno(), log)


def test_the_command_goes_from_recordings_to_all_its_files(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "clips").mkdir()
    for name in ("talk.wav", "clips/jfk.flac"):
        write_wav(str(tmp_path / name), np.zeros(2 * SAMPLE_RATE))
    (tmp_path / "talk.stm").write_text("talk 1 A 0 1 one two\ntalk 1 B 1 2 three four\n")
    (tmp_path / "talk.rttm").write_text(
        "SPEAKER talk 1 0 1 <NA> <NA> A <NA> <NA>\nSPEAKER talk 1 1 1 <NA> <NA> B <NA> <NA>\n"
    )
    ours = replace(fake(OURS, ("recognition", "whole")), prepare=lambda _: {"text": "one two three five"})
    monkeypatch.setattr(run, "TABLE", (ours, fake("unprepared"), fake("left-out")))
    places = ["--data", str(tmp_path), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    amounts = ["--rounds", "1", "--starts", "0", "--clips", "0", "--threads", "1"]
    run.main(["--peers", "unprepared", "--recordings", str(tmp_path / "talk.wav"), *places, *amounts])

    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [f"results.{end}" for end in ("html", "json", "md", "png")]
    found = results.load(out / "results.json")
    assert [peer.name for peer in found.peers] == [OURS, "unprepared"]
    assert found.durations == {"talk": 2.0}
    assert [(score.measure, score.wrong) for score in found.peers[0].scores] == [("WER", 1), ("cpWER", 0)]
    assert found.peers[1].failure == "failed at recognition of clip-8s: KeyError: 'text'"
    assert capsys.readouterr().out == (out / "results.md").read_text() == report.markdown(found)


# --- results --------------------------------------------------------------------------------------------------------


def given() -> Results:
    """Two recordings of 100 s; ours takes 2 s and 4 s for both, the other peer always three times as long."""
    ours, other = PeerResults(OURS, OURS, "as it comes"), PeerResults("x", "Peer <X>", "int8", {"x": "1.0"})
    for number, seconds in enumerate((1.0, 2.0)):
        for name in ("a", "b"):
            ours.runs.append(Run("recognition", name, number, seconds, 500_000_000))
            other.runs.append(Run("recognition", name, number, 3 * seconds, None))
    other.runs.append(Run("recognition", "a", 2, 9.0, None))  # a round that was not ended
    ours.scores = [Score("WER", "a", 1, 100), Score("WER", "b", 3, 100)]
    ours.clip_s, other.clip_s, ours.start_s = [0.1, 0.2, 0.3], [0.2, 0.4, 0.6], [2.0]
    gone = PeerResults("y", "Peer Y", "fp16", failure="cannot be installed: no network")
    hardware = {"processor": "Some CPU", "memory": "24 GiB"}
    return Results("2026-01-02", hardware, 2, {"a": 100.0, "b": 100.0}, 8, [other, ours, gone])


def test_figures_are_medians_of_whole_rounds_and_ratios_within_them():
    ours, other = results.rows(given(), "recognition")
    assert (ours.rtfx.middle, ours.rtfx.low, ours.rtfx.high) == (75, 50, 100)
    assert (ours.slower, ours.percent, ours.peak_bytes, ours.rounds) == (None, 2, 500_000_000, 2)
    assert (other.slower, other.percent, other.peak_bytes, other.rounds) == (3, None, None, 2)
    assert other.rtfx.middle == 25
    assert results.rows(given(), "diarization") == []


def test_the_table_says_all_of_it():
    lines = report.readme_markdown(given()).splitlines()
    assert lines[2].startswith("| system | RTFx (lowest – highest) | diarist is faster | WER % | peak memory, MB | 8 s")
    assert lines[4] == (
        "| diarist | 75.0 (50.0 – 100.0) | – | 2.00 | 500 | 0.200 (0.100 – 0.300) | – | 2.00 (2.00 – 2.00) | – |"
    )
    assert lines[5] == (
        "| Peer <X> (int8) | 25.0 (16.7 – 33.3) | 3.0× | – | – | 0.400 (0.200 – 0.600) | 2.0× | – | – |"
    )
    assert "| Peer Y (fp16) | cannot be installed: no network |" in lines
    assert "Measured on 2026-01-02: processor: Some CPU; memory: 24 GiB." in lines[-1]
    assert "| Peer <X> | int8 | x 1.0 |" in report.markdown(given())


@pytest.mark.parametrize("name", ["results.json", "results-avx2.json"])
def test_the_readme_shows_what_was_measured(name):
    root = Path(__file__).parents[1]
    measured = results.load(root / "benchmarks" / "comparison" / name)
    assert report.readme_markdown(measured).strip() in (root / "README.md").read_text(encoding="utf-8")


def test_the_page_needs_nothing_beside_it():
    shown = report.page(given(), b"\x89PNG")
    assert "data:image/png;base64,iVBORw==" in shown
    assert "<td>Peer &lt;X&gt; (int8)</td>" in shown
    assert '<tr class="ours"><td>diarist</td>' in shown
    assert not re.search(r'(src|href)="(?!data:)', shown)


def test_the_plot_is_a_picture_with_a_panel_for_each_kind_of_work():
    pytest.importorskip("matplotlib")
    from compare import plot

    one = given()
    both = given()
    both.peers[1].runs += [Run("whole", name, 0, 4.0, 1) for name in ("a", "b")]
    heights = [int.from_bytes(plot.png(found)[20:24]) for found in (one, both)]
    assert plot.png(one)[:8] == b"\x89PNG\r\n\x1a\n"
    assert heights[1] > heights[0]


def test_results_come_back_from_their_file(tmp_path):
    results.save(given(), tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == given()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


# --- peers ----------------------------------------------------------------------------------------------------------


def test_peers_have_names_of_their_own_and_modules_that_exist():
    names = [peer.name for peer in TABLE]
    assert len(set(names)) == len(names)
    assert names[0] == OURS
    assert set(ONLY_IF_NAMED) < set(names)
    assert {peer.module for peer in TABLE} <= {f"compare.peers.{path.stem}" for path in peer_files()}


def peer_files() -> list[Path]:
    return list((Path(__file__).parents[1] / "benchmarks" / "compare" / "peers").glob("*.py"))


def test_requirements_are_pinned_and_torch_is_always_the_same():
    wanted = {peer.environment for peer in TABLE if peer.environment}
    requirements = {each for environment in wanted for each in environment.requirements}
    assert {each for each in requirements if each.startswith("torch==")} == {"torch==2.13.0"}
    assert all("==" in each for each in requirements)


def test_tensors_are_renamed_to_what_diarist_reads_back():
    dims = WhisperDims(80, 1500, 64, 2, 2, 51865, 448, 64, 2, 2)
    for name in whisper.shapes(dims):
        assert whisper._hf_name(hugging_face_name(name).removeprefix("model.")) == name


def test_tokens_are_written_as_their_bytes():
    assert vocabulary_bytes({"!": 0, "Ġa": 2, "Ċ": 1, "ÃĹ": 3}) == [b"!", b"\n", b" a", "×".encode()]


def test_text_goes_to_turns_as_in_the_original():
    turns = [(0, 5, "A"), (5, 5.4, "B"), (5.4, 20, "A")]
    chunks = [(7.0, " one"), (14.0, " two"), (20.0, " three")]
    assert original.joined(turns, chunks) == (("A", " one"), ("B", " two"), ("A", " three"))
    assert original.joined([(0, 5, "A")], chunks) == (("A", " one"),)  # the rest is lost, as there
    assert original.joined([], chunks) == ()


def test_sound_survives_its_file(tmp_path):
    said = np.linspace(-1, 0.999, 50)
    write_wav(str(tmp_path / "x.wav"), said)
    assert abs(read_wav(str(tmp_path / "x.wav")) - said).max() < 1 / 32768
