"""The README is a test: its commands and examples are run, and what it shows is what comes out.

Blocks marked `console` hold commands (lines that begin with `$ `) and what they print; blocks marked `python` are run
one after the other, in one namespace. They run in an empty folder in which every recording that they name is the
sample. `scripts/demo` stands for the command it runs in the end; other scripts and the commands around them (git,
cd, pip) are only checked for being there. `diarist serve` is run once, on a free port that takes the place of the one
shown. A block after `<!-- not run: reason -->` is left out: only for what needs a
network, a server elsewhere or an account.
"""

import difflib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")
RECORDING = re.compile(r"(?<![\w/.:-])(?:[\w-]+/)*[\w-]+\.(?:wav|mp3|m4a|flac|ogg|opus|mp4|webm|aac)\b")
AROUND = ("git ", "cd ", "pip ", "python -m venv ", "python3 -m venv ", "source ", "export ")
SERVE = "diarist serve"
ADDRESS = "http://localhost:7860"
SIMILAR = 0.8
"""Least share of shown words that must come out: precision and hardware change a word here and there."""


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(text):
    """The fenced blocks of a document that are to be run."""
    return [
        Block(found[2], found[3], text.count("\n", 0, found.start()) + 1)
        for found in FENCE.finditer(text)
        if not NOT_RUN.search(text[: found.start()])
    ]


def commands(block):
    """Commands of a console block, each with the lines shown after it."""
    found = []
    for line in map(str.strip, block.text.splitlines()):
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found and found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0][:-1].rstrip()} {line}", [])
        elif found:
            found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def workspace(sample_recording, tmp_path_factory):
    """A folder with the recordings that the README names, and the command on the path."""
    folder = tmp_path_factory.mktemp("readme")
    for name in set(RECORDING.findall(README.read_text(encoding="utf-8"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample_recording.wav, folder / name)
    programs = tmp_path_factory.mktemp("bin")
    (programs / "diarist").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m diarist "$@"\n')
    (programs / "diarist").chmod(0o755)
    return folder, {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def server(workspace, base_model):
    """The address of the server that the README starts."""
    folder, environment = workspace
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://localhost:{free.getsockname()[1]}"
    command = f"exec {SERVE} --port {address.rpartition(':')[2]}"
    with subprocess.Popen(["bash", "-c", command], cwd=folder, env=environment, stderr=subprocess.DEVNULL) as process:
        while not answers(f"{address}/health"):
            assert process.poll() is None, "the server has ended"
            time.sleep(0.2)
        yield address
        process.terminate()
        assert process.wait(60) == 0


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def words(text):
    return re.findall(r"\w+", text.lower())


def likeness(shown, printed):
    """Share of the words shown that were printed, in order."""
    pairs = difflib.SequenceMatcher(None, words(shown), words(printed), autojunk=False).get_matching_blocks()
    return sum(pair.size for pair in pairs) / max(1, len(words(shown)))


CONSOLE = [
    pytest.param(command, shown, id=f"line {block.line}: {command[:50]}")
    for block in blocks(README.read_text(encoding="utf-8") if README.exists() else "")
    if block.language in ("console", "bash", "sh")
    for command, shown in commands(block)
]


@pytest.mark.weights
@pytest.mark.parametrize(("command", "shown"), CONSOLE)
def test_commands_do_what_is_shown(command, shown, workspace, sample_recording, base_model, request):
    folder, environment = workspace
    if command.startswith(AROUND):
        return
    if command.startswith(SERVE):
        assert answers(f"{request.getfixturevalue('server')}/readyz")
        return
    if ADDRESS in command:
        command = command.replace(ADDRESS, request.getfixturevalue("server"))
        command = command.replace("curl ", "curl --fail --silent --show-error ")
    program = command.split()[0]
    if (ROOT / program).is_file():
        assert os.access(ROOT / program, os.X_OK)
        subprocess.run(["bash", "-n", ROOT / program], check=True)
        if command != "scripts/demo" or not shown:
            return
        command = f"diarist transcribe {sample_recording.wav}"
        shown = [line for line in shown if line.startswith("[")]
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    if shown and "..." not in shown:
        assert likeness("\n".join(shown), done.stdout + done.stderr) >= SIMILAR


@pytest.mark.weights
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # clients in examples are left unclosed
def test_python_examples_run(workspace, base_model, server, monkeypatch):
    folder, _ = workspace
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_TOKEN", "")
    namespace = {}
    for block in blocks(README.read_text(encoding="utf-8")):
        if block.language == "python":
            text = block.text.replace(ADDRESS, server)
            exec(compile(text, f"README.md, block at line {block.line}", "exec"), namespace)


def test_there_is_something_to_run():
    text = README.read_text(encoding="utf-8")
    languages = [block.language for block in blocks(text)]
    assert "console" in languages
    assert "python" in languages
    assert "scripts/demo" in text
    assert "scripts/test" in text


def test_a_block_is_left_out_only_with_a_reason():
    document = "<!-- not run: needs a network -->\n```console\n$ curl x\n```\n\n```console\n$ ls\na\n$ a \\\n  b\n```\n"
    (block,) = blocks(document)
    assert commands(block) == [("ls", ["a"]), ("a b", [])]
    assert block.line == 6
    assert RECORDING.findall("diarist transcribe calls/a-b.mp3 meeting.wav http://x/y.wav") == [
        "calls/a-b.mp3",
        "meeting.wav",
    ]


def test_likeness():
    assert likeness("Oh, hello there", "oh hello -- there you") == 1.0
    assert likeness("something else entirely", "oh hello there") == 0.0


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:\s]+)\)", README.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
