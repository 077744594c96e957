"""The command: what it prints where, which files it writes, and how it fails."""

import inspect
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pysubs2
import pytest
import webvtt
from typer.testing import CliRunner

import fake_pipeline
from diarist import __version__, cli, models
from diarist.transcript import Transcript

FAKE = Path(fake_pipeline.__file__)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder and no variables that would change options."""
    for name in ("ASR_MODEL", "DIARIZATION_MODEL", "ASSISTANT_MODEL", "HF_TOKEN", "HF_HUB_OFFLINE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name in list(os.environ):
        if name.startswith("DIARIST_") and name != "DIARIST_CACHE":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch):
    """Runs the command with the fake pipeline in this process."""
    monkeypatch.setitem(sys.modules, "diarist.pipeline", fake_pipeline.module())
    monkeypatch.setattr(fake_pipeline.Pipeline, "made", [])
    monkeypatch.setattr(fake_pipeline.Pipeline, "called", [])

    def command(*arguments, stdin=b""):
        runner = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
        return runner.invoke(cli.app, [str(argument) for argument in arguments], input=stdin, prog_name="diarist")

    return command


def recording(path, text="Hello there."):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- what it prints and writes ----------------------------------------------------------------------------------------


def test_the_transcript_goes_to_standard_output_and_no_file_is_written(run, folder):
    recording(folder / "a.wav", "Hello Hi")
    result = run("transcribe", "a.wav")
    assert result.exit_code == 0
    assert result.stdout == "[00:00:00] SPEAKER_00: Hello\n[00:00:01] SPEAKER_01: Hi\n"
    assert result.stderr == "fetching model.bin (1.0 MB)\n"  # no bar in a pipe
    assert written(folder) == ["a.wav"]


def test_long_lines_are_not_broken_in_a_pipe(run, folder):
    recording(folder / "a.wav", "word " * 200)
    result = run("transcribe", "--no-diarize", "a.wav")
    assert result.stdout == ("word " * 200).strip() + "\n"


def test_formats_are_written_beside_each_other(run, folder):
    recording(folder / "a.wav")
    result = run("transcribe", "a.wav", "-f", "srt,JSON", "--format", "txt", "-o", "out/deep")
    assert result.exit_code == 0
    assert written(folder / "out" / "deep") == ["a.json", "a.srt", "a.txt"]
    assert [line for line in result.stderr.splitlines() if line.startswith("wrote")] == [
        f"wrote out/deep/a.{name}" for name in ("srt", "json", "txt")
    ]
    transcript = Transcript.from_json((folder / "out/deep/a.json").read_bytes())
    assert transcript.text == "Hello there."


def test_default_formats_and_folder(run, folder):
    recording(folder / "a.wav")
    run("transcribe", "a.wav", "-o", "out")
    assert written(folder / "out") == ["a.json", "a.srt", "a.txt", "a.vtt"]
    run("transcribe", "a.wav", "-f", "tsv")
    assert (folder / "a.tsv").is_file()


def test_all_formats(run, folder):
    recording(folder / "a.wav")
    run("transcribe", "a.wav", "-f", "all", "-o", "out")
    assert written(folder / "out") == [f"a.{name}" for name in ("json", "rttm", "srt", "stm", "tsv", "txt", "vtt")]
    run("transcribe", "a.wav", "-f", "all", "-o", "plain", "--no-diarize")
    assert "a.rttm" not in written(folder / "plain")


def test_quiet(run, folder):
    recording(folder / "a.wav", "Hello")
    recording(folder / "silence.wav")
    result = run("transcribe", "-q", "a.wav", "silence.wav")
    assert (result.stderr, "SPEAKER_00: Hello" in result.stdout) == ("", True)
    result = run("transcribe", "-q", "a.wav", "-f", "txt")
    assert (result.stderr, result.stdout) == ("", "")


def test_silence_and_warnings_are_told(run, folder):
    recording(folder / "silence.wav")
    result = run("transcribe", "silence.wav")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.splitlines()[1:] == [
        "silence.wav: no speech found",
        "warning: silence.wav: nothing was heard",
    ]


def test_several_files_and_folders(run, folder):
    recording(folder / "b.mp3", "Bee")
    recording(folder / "calls" / "x.wav", "Ex")
    recording(folder / "calls" / "deep" / "y.OPUS", "Why")
    recording(folder / "calls" / "notes.txt", "no")
    recording(folder / "calls" / ".hidden" / "z.wav", "no")
    result = run("transcribe", "b.mp3", "calls", "-f", "txt", "-o", "out")
    assert result.exit_code == 0
    assert re.findall("==> (.*) <==", result.stdout) == ["b.mp3", "calls/deep/y.OPUS", "calls/x.wav"]
    assert written(folder / "out") == ["b.txt", "deep/y.txt", "x.txt"]
    assert len(fake_pipeline.Pipeline.made) == 1  # loaded once


def test_equal_names_do_not_overwrite_each_other(run, folder):
    for name in ("a.wav", "a.mp3", "x/a.wav", "y/a.wav"):
        recording(folder / name, name)
    run("transcribe", "a.wav", "a.mp3", "x/a.wav", "y/a.wav", "-f", "txt", "-o", "out")
    assert {name: (folder / "out" / name).read_text().split(": ")[1].strip() for name in written(folder / "out")} == {
        "a.txt": "a.wav",
        "a.mp3.txt": "a.mp3",
        "a.wav.txt": "x/a.wav",
        "a.wav-2.txt": "y/a.wav",
    }


def test_a_recording_is_never_overwritten(run, folder):
    recording(folder / "talk.txt", "Sound")
    result = run("transcribe", "talk.txt", "-f", "txt")
    assert result.exit_code == 1
    assert "talk.txt is the recording itself" in result.stderr
    assert (folder / "talk.txt").read_text() == "Sound"


def test_standard_input(run, folder):
    result = run("transcribe", "-", "-f", "txt", "-o", ".", stdin=b"Hello")
    assert result.exit_code == 0
    assert "SPEAKER_00: Hello" in result.stdout
    assert written(folder) == ["stdin.txt"]


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_reach_the_pipeline(run, folder):
    recording(folder / "a.wav")
    arguments = (
        "transcribe a.wav --model tiny.en --diarization-model mine --language en --task translate --num-speakers 2 "
        "--min-speakers 1 --max-speakers 3 --clustering vbx --initial-prompt Names --hotwords words "
        "--no-word-timestamps --beam-size 3 --assisted true --batch-size 4 --device cpu --dtype float32 --threads 1 --cache-dir c --offline"
    )
    assert run(*arguments.split()).exit_code == 0
    (made,), (called,) = fake_pipeline.Pipeline.made, fake_pipeline.Pipeline.called
    made.pop("progress")
    assert made == {
        "asr_model": "tiny.en",
        "diarization_model": "mine",
        "assistant_model": None,
        "language": "en",
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "clustering": "vbx",
        "offline": True,
        "token": None,
        "cache_dir": Path("c"),
        "batch_size": 4,
    }
    assert called == {
        "source": Path("a.wav"),
        "task": "translate",
        "num_speakers": 2,
        "min_speakers": 1,
        "max_speakers": 3,
        "diarize": True,
        "initial_prompt": "Names",
        "hotwords": "words",
        "word_timestamps": False,
        "beam_size": 3,
        "assisted": True,
    }


def test_defaults(run, folder):
    recording(folder / "a.wav")
    run("transcribe", "a.wav", "--language", "auto")
    (made,) = fake_pipeline.Pipeline.made
    assert (made["asr_model"], made["diarization_model"], made["language"]) == ("base", "default", None)


def test_the_environment_is_read_and_flags_win(run, folder, monkeypatch):
    recording(folder / "a.wav")
    monkeypatch.setenv("ASR_MODEL", "small")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("DIARIST_THREADS", "3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run("transcribe", "a.wav")
    run("transcribe", "a.wav", "--model", "tiny")
    first, second = fake_pipeline.Pipeline.made
    assert (first["asr_model"], first["token"], first["threads"], first["offline"]) == ("small", "secret", 3, True)
    assert second["asr_model"] == "tiny"


def test_empty_variables_count_as_unset(run, folder, monkeypatch):
    recording(folder / "a.wav")
    for name in ("ASR_MODEL", "DIARIZATION_MODEL", "ASSISTANT_MODEL", "HF_TOKEN", "DIARIST_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    assert run("transcribe", "a.wav").exit_code == 0
    (made,) = fake_pipeline.Pipeline.made
    assert (made["asr_model"], made["diarization_model"], made["assistant_model"]) == ("base", "default", None)
    assert (made["token"], made["offline"]) == (None, False)


def test_diarization_can_be_switched_off_by_variable(run, folder, monkeypatch):
    recording(folder / "a.wav", "Hello")
    monkeypatch.setenv("DIARIZATION_MODEL", "none")
    assert run("transcribe", "a.wav").stdout == "Hello\n"
    assert fake_pipeline.Pipeline.made[0]["diarization_model"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "doc"], "--format: doc is not one of txt, srt, vtt, json, tsv, rttm, stm, all"),
        (["--format", ","], "--format: nothing is not one of"),
        (["--format", "rttm", "--no-diarize"], "rttm holds speakers only"),
        (["--batch-size", "1000"], "batch_size: 1000 is refused: "),
        (["--num-speakers", "0"], "Invalid value for '--num-speakers'"),
        (["--task", "sing"], "'sing' is not one of 'transcribe', 'translate'"),
        (["--modle", "base"], "No such option"),
    ],
)
def test_wrong_usage(run, folder, arguments, message):
    recording(folder / "a.wav")
    result = run("transcribe", "a.wav", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())
    assert fake_pipeline.Pipeline.made == []
    assert written(folder) == ["a.wav"]


def test_what_the_pipeline_refuses_for_every_file_ends_the_run(run, folder):
    recording(folder / "option.wav")
    recording(folder / "z.wav")
    result = run("transcribe", "option.wav", "z.wav")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "diarist: num_speakers: 0 is not between 1 and 64"
    assert len(fake_pipeline.Pipeline.called) == 1


# --- failures ---------------------------------------------------------------------------------------------------------


def test_one_failing_file_does_not_stop_the_rest(run, folder):
    for name in ("a.wav", "broken.wav", "crash.wav", "z.wav"):
        recording(folder / name, name)
    result = run("transcribe", "a.wav", "missing.wav", "broken.wav", "crash.wav", "z.wav", "-f", "txt")
    assert result.exit_code == 1
    assert "SPEAKER_00: a.wav" in result.stdout
    assert "SPEAKER_00: z.wav" in result.stdout
    assert written(folder) == ["a.txt", "a.wav", "broken.wav", "crash.wav", "z.txt", "z.wav"]
    assert [line for line in result.stderr.splitlines() if line.startswith("diarist:")] == [
        "diarist: missing.wav: no such file",
        "diarist: broken.wav is not audio",
        "diarist: crash.wav: unexpected ZeroDivisionError: division by zero (--debug shows where)",
    ]
    assert "Traceback" not in result.stderr


def test_debug_shows_where(run, folder):
    recording(folder / "crash.wav")
    result = run("transcribe", "crash.wav", "--debug")
    assert "Traceback" in result.stderr
    assert "fake_pipeline.py" in result.stderr


def test_nothing_is_loaded_for_nothing(run, folder):
    (folder / "empty").mkdir()
    result = run("transcribe", "missing.wav", "empty")
    assert result.exit_code == 1
    assert result.stderr == "diarist: missing.wav: no such file\ndiarist: empty: no recordings in this folder\n"
    assert fake_pipeline.Pipeline.made == []


def test_an_unexpected_error_while_loading_is_one_line(run, folder):
    recording(folder / "a.wav")
    result = run("transcribe", "a.wav", "--model", "hostile")
    assert result.exit_code == 1
    assert result.stderr == "diarist: unexpected KeyError: 'deep inside' (--debug shows where)\n"


def test_a_folder_that_cannot_be_made(run, folder):
    recording(folder / "a.wav")
    result = run("transcribe", "a.wav", "-o", "a.wav/out")
    assert result.exit_code == 1
    assert result.stderr == "diarist: Not a directory: a.wav/out\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_is_told(folder):
    recording(folder / "a.wav")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, FAKE, "transcribe", "a.wav"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_names_cannot_write_on_the_terminal(run, folder):
    recording(folder / "broken\x1b[31m\nred.wav")
    result = run("transcribe", "broken\x1b[31m\nred.wav")
    assert "\x1b" not in result.stderr
    assert "broken [31m" in result.stderr


def test_ctrl_c_leaves_nothing_half_written(folder):
    recording(folder / "a.wav")
    recording(folder / "sleep.wav")
    process = subprocess.Popen(
        [sys.executable, FAKE, "transcribe", "a.wav", "sleep.wav", "-f", "all", "-o", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (a background job ignores it)
    )
    for line in process.stderr:
        if line == b"sleeping\n":
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error.strip() == b"diarist: interrupted"
    assert len(written(folder / "out")) == 7  # of a.wav, all whole
    assert Transcript.from_json((folder / "out" / "a.json").read_bytes()).text == "Hello there."


def test_an_interruption_while_a_file_is_written(run, folder, monkeypatch):
    recording(folder / "a.wav")
    (folder / "a.txt").write_text("before")

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    result = run("transcribe", "a.wav", "-f", "txt")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "diarist: interrupted"
    assert written(folder) == ["a.txt", "a.wav"]
    assert (folder / "a.txt").read_text() == "before"


def test_a_reader_that_leaves_early_is_no_error(folder):
    recording(folder / "a.wav", "word " * 20_000)
    process = subprocess.Popen(
        [sys.executable, FAKE, "transcribe", "a.wav", "-q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=20) == 1


# --- terminals --------------------------------------------------------------------------------------------------------


def on_a_terminal(*arguments, **environment):
    """What the command writes to a terminal of 100 columns."""
    main_end, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, FAKE, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **environment},
    )
    os.close(terminal)
    seen = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            part = os.read(main_end, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(main_end)
    return process.wait(timeout=10), seen.decode()


def test_a_terminal_gets_a_bar_with_stage_per_cent_and_time_left(folder):
    recording(folder / "a.wav", "Hello Hi")
    status, seen = on_a_terminal("transcribe", "a.wav")
    assert status == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "fetching model.bin" in plain
    assert "a.wav: transcribing" in plain
    assert re.search(r"transcribing .* (25|50|75)%", plain)
    assert re.search(r"\d+% (-:--:--|\d:\d\d:\d\d)", plain)
    assert "[00:00:00] SPEAKER_00: Hello" in plain
    assert "\x1b[36m[00:00:00] SPEAKER_00" in seen  # each speaker in a colour
    assert "\x1b[32m[00:00:01] SPEAKER_01" in seen


def test_no_colour_where_none_is_wanted(folder):
    recording(folder / "a.wav", "Hello Hi")
    status, seen = on_a_terminal("transcribe", "a.wav", NO_COLOR="1")
    assert status == 0
    assert "\x1b[36m" not in seen


def test_a_terminal_is_no_recording(folder):
    status, seen = on_a_terminal("transcribe", "-")
    assert status == 2
    assert "reads standard input, but that is a terminal" in seen


# --- the rest ---------------------------------------------------------------------------------------------------------


INSTALLED = Path(sys.executable).with_name("diarist")


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "diarist"],
        pytest.param([INSTALLED], marks=pytest.mark.skipif(not INSTALLED.exists(), reason="run from a checkout")),
    ],
)
def test_version_of_the_command(command):
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"diarist {__version__}\n"


def test_help_names_everything(run):
    result = run("transcribe", "--help")
    assert result.exit_code == 0
    expected = (
        "--model, --no-diarize, --language, --task, --num-speakers, --min-speakers, --max-speakers, --format, "
        "--output-dir, --device, --dtype, --batch-size, --initial-prompt, --word-timestamps, --no-word-timestamps, "
        "--quiet, --offline, --clustering"
    )
    for option in expected.split(", "):
        assert option in result.stdout
    assert run("models", "--help").exit_code == 0
    assert run().exit_code == 2


def test_models_list(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIARIST_CACHE", str(tmp_path))
    result = run("models", "list")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert {"NAME", "base", "large-v3-turbo", "segmentation-3.0"} <= rows.keys()
    assert "MIT" in rows["base"]
    assert " yes " not in result.stdout


def test_models_that_are_not_here(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIARIST_CACHE", str(tmp_path))
    for command in (["path", "base"], ["verify", "base"], ["path", "no such model"]):
        result = run("models", *command)
        assert result.exit_code == 1
        assert result.stderr.startswith("diarist: ")
        assert "Traceback" not in result.stderr


@pytest.mark.weights
def test_models_path_and_verify(run, sample_recording, tmp_path, monkeypatch):
    result = run("models", "path", "telephone-sample")
    assert (result.exit_code, Path(result.stdout.strip())) == (0, sample_recording.wav.parent)
    result = run("models", "verify", "telephone-sample")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok"] * 3

    shutil.copytree(sample_recording.wav.parents[3], tmp_path / "cache", ignore=lambda *_: ["asr", "segmentation"])
    monkeypatch.setenv("DIARIST_CACHE", str(tmp_path / "cache"))
    copy = Path(run("models", "path", "telephone-sample").stdout.strip())
    assert copy.is_relative_to(tmp_path)
    content = copy / "sample.wav"
    content.chmod(0o644)
    content.write_bytes(content.read_bytes()[:-1] + b"\x7f")
    result = run("models", "verify")
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines() if "sample.wav" in line] == ["WRONG"]


@pytest.mark.weights
def test_models_pull(run, sample_recording):
    result = run("models", "pull", "telephone-sample")
    assert result.exit_code == 0
    assert str(sample_recording.wav.parent) in result.stderr.replace("\n", "")


def test_a_pipeline_is_its_models():
    parts = models.diarization_parts("default")
    assert list(cli._parts(["base", "default"])) == [
        ("base", None),
        (parts.segmentation, "segmentation"),
        (parts.embedding, "embedding"),
        (parts.plda, "plda"),
    ]


# --- with real models -------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_the_sample_from_end_to_end(sample_recording, base_model, folder):
    done = subprocess.run(
        [sys.executable, "-m", "diarist", "transcribe", sample_recording.wav, "-f", "all", "-o", "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(re.match(r"\[00:00:\d\d\] SPEAKER_0[01]: \S", line) for line in lines)
    said = re.sub(r"\[.*?: ", "", done.stdout).lower()
    for words in ("hello", "i didn't know you were there", "new jersey", "texas", "chicago"):
        assert words in said
    assert written(folder / "out") == [f"sample.{name}" for name in ("json", "rttm", "srt", "stm", "tsv", "txt", "vtt")]
    transcript = Transcript.from_json((folder / "out" / "sample.json").read_bytes())
    assert transcript.speakers == ("SPEAKER_00", "SPEAKER_01")
    assert transcript.duration == pytest.approx(30.0, abs=0.05)
    assert (folder / "out" / "sample.txt").read_text() == done.stdout
    srt = " ".join(event.plaintext for event in pysubs2.load(str(folder / "out" / "sample.srt")))
    vtt = " ".join(caption.text for caption in webvtt.read(folder / "out" / "sample.vtt"))
    assert re.sub(r"SPEAKER_0\d: ", "", srt).split() == vtt.split() == transcript.text.split()


@pytest.mark.weights
def test_real_faults_and_a_pipe(sample_recording, base_model, folder):
    (folder / "empty.wav").write_bytes(b"")
    (folder / "notes.mp3").write_text("Dear diary, this is not audio.")
    done = subprocess.run(
        [sys.executable, "-m", "diarist", "transcribe", "empty.wav", "notes.mp3", "-", "--no-diarize"],
        input=sample_recording.wav.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    error = done.stderr.decode()
    assert "Traceback" not in error
    assert [line.split(":")[0] for line in error.splitlines()] == ["diarist", "diarist"]
    assert "empty.wav" in error.splitlines()[0]
    assert "notes.mp3" in error.splitlines()[1]
    assert "new jersey" in done.stdout.decode().lower()


def test_the_help_shows_every_default_that_is_written_in_it(run):
    for command in ("transcribe", "distill", "serve"):
        shown = run(command, "--help").stdout
        source = inspect.getsource(getattr(cli, command))
        defaults = re.findall(r"(\[[^\]\"]+\])\"", source)
        assert defaults
        for default in defaults:
            assert default in " ".join(re.sub(r"[│\n]", " ", shown).split()), default
