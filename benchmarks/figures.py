"""Speed and accuracy on the shared conversations, as one markdown table.

Whisper base, English given, no speaker hint, weights fetched beforehand. RTFx is seconds of audio per second of work,
decoding of the file included; times are medians over the rounds, and each round does everything once, so that a
disturbance hits all alike.
"""

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compare.sound import write_wav
from diarist import models
from diarist.audio import SAMPLE_RATE, decode
from recordings import CONVERSATIONS, SHARED, Conversation, conversations, joined
from scoring import Errors, diarization_errors, speaker_word_errors, together, word_errors

if TYPE_CHECKING:
    from diarist import Pipeline

_MODEL = "base"
_PEER_FILES = ("config.json", "model.bin", "tokenizer.json")
_CLIP_S, _CLIP_REPEATS = 8, 10
_START_S = 10


@dataclass(slots=True)
class Track:
    """One way of hearing the conversations: seconds of work of each round, and how wrong it was on each."""

    rounds: list[list[float]] = field(default_factory=list)
    errors: list[Errors] = field(default_factory=list)


@dataclass(slots=True)
class Figures:
    hardware: str = ""
    durations: list[float] = field(default_factory=list)
    recognition: Track = field(default_factory=Track)
    exact: list[Errors] = field(default_factory=list)
    diarization: Track = field(default_factory=Track)
    reference_diarization: list[Errors] = field(default_factory=list)
    pipeline: Track = field(default_factory=Track)
    peer: Track = field(default_factory=Track)
    peer_name: str = ""
    clip_s: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    start_diarizing_s: list[float] = field(default_factory=list)
    start_mb: float = 0.0
    longest_mb: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="processor threads [2]")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every measurement [3]")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="shared recordings [../shared/data]")
    parser.add_argument("--peers", action="store_true", help="measure faster-whisper too, in turns with diarist")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has faster-whisper [this one]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the raw numbers")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    if not (options.data / "conversations").is_dir():
        parser.error(f"no recordings in {options.data}; name their folder with --data")

    figures = measure(
        options.data,
        threads=options.threads,
        rounds=options.rounds,
        peer_python=(options.peer_python or Path(sys.executable)) if options.peers else None,
    )
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(asdict(figures), indent=1) + "\n")


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(data: Path, *, threads: int, rounds: int, peer_python: Path | None) -> Figures:
    figures = Figures()
    heard = conversations(data)
    clip = decode(data / "clips" / "jfk.flac")[0]

    # Processes first: a child's peak memory is never less than that of the parent it was started from.
    measure_processes(figures, heard[-1].audio, clip, threads=threads, rounds=rounds)

    from diarist import Pipeline

    pipeline = Pipeline(_MODEL, language="en", threads=threads)
    figures.hardware = hardware(pipeline, threads)
    pipeline(heard[0].audio)  # first calls compile and allocate
    say("words in float32")
    exact = Pipeline(_MODEL, language="en", dtype="float32", threads=threads)
    figures.exact = [word_errors(each.text, exact(each.audio, diarize=False).text) for each in heard]
    del exact
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        measure_diarist(figures, pipeline, heard)
        if peer_python is not None:
            measure_peer(figures, peer_python, heard, threads)
    eight_seconds = clip[: _CLIP_S * SAMPLE_RATE]
    pipeline(eight_seconds, diarize=False)
    for _ in range(_CLIP_REPEATS):
        begun = time.perf_counter()
        pipeline(eight_seconds, diarize=False)
        figures.clip_s.append(time.perf_counter() - begun)
    return figures


def measure_diarist(figures: Figures, pipeline: "Pipeline", heard: Sequence[Conversation]) -> None:
    """One round over the conversations, without and with diarization; the first is also scored."""
    scoring = not figures.recognition.rounds
    recognition, diarization, whole = list[float](), list[float](), list[float]()
    for conversation in heard:
        begun = time.perf_counter()
        plain = pipeline(conversation.audio, diarize=False)
        recognition.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        transcript = pipeline(conversation.audio)
        whole.append(time.perf_counter() - begun)
        diarization.append(sum(transcript.timings[stage] for stage in ("segmentation", "embedding", "clustering")))
        if not scoring:
            continue
        duration = transcript.duration
        utterances = tuple((utterance.speaker or "", utterance.text) for utterance in transcript.utterances)
        figures.durations.append(duration)
        figures.recognition.errors.append(word_errors(conversation.text, plain.text))
        figures.pipeline.errors.append(speaker_word_errors(conversation.text_by_speaker, joined(utterances)))
        figures.diarization.errors.append(diarization_errors(conversation.turns, transcript.turns, duration))
        figures.reference_diarization.append(
            diarization_errors(conversation.turns, conversation.reference_turns, duration)
        )
    figures.recognition.rounds.append(recognition)
    figures.diarization.rounds.append(diarization)
    figures.pipeline.rounds.append(whole)


def measure_peer(figures: Figures, python: Path, heard: Sequence[Conversation], threads: int) -> None:
    """One round of faster-whisper over the conversations, with the weights that diarist uses."""
    folder = models.resolve(_MODEL, "asr").directory
    missing = [name for name in _PEER_FILES if not (folder / name).is_file()]
    if missing:
        sys.exit(f"{folder} is not a CTranslate2 model: {', '.join(missing)} missing")
    script = Path(__file__).with_name("peer_faster_whisper.py")
    recordings = [str(conversation.audio) for conversation in heard]
    command = [str(python), str(script), str(folder), *recordings, "--threads", str(threads)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"faster-whisper failed in {python}; name an interpreter that has it with --peer-python")
    found = json.loads(done.stdout)
    figures.peer.rounds.append([result["seconds"] for result in found["recordings"]])
    if not figures.peer.errors:
        figures.peer_name = f"faster-whisper {found['version']} (sequential, beam 1, int8)"
        figures.peer.errors = [
            word_errors(conversation.text, result["text"])
            for conversation, result in zip(heard, found["recordings"], strict=True)
        ]


def measure_processes(figures: Figures, longest: Path, clip: NDArray[np.float32], *, threads: int, rounds: int) -> None:
    """The command, from the start of its process."""
    say("starting processes")
    common = ["--model", _MODEL, "--language", "en", "--threads", str(threads), "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        short = Path(folder) / "clip.wav"
        write_wav(str(short), clip[: _START_S * SAMPLE_RATE])
        run_command([str(short), *common])  # fetches weights, reads them into the page cache
        for _ in range(rounds):
            seconds, megabytes = run_command([str(short), "--no-diarize", *common])
            figures.start_s.append(seconds)
            figures.start_mb = max(figures.start_mb, megabytes)
            figures.start_diarizing_s.append(run_command([str(short), *common])[0])
    figures.longest_mb = run_command([str(longest), *common])[1]


def run_command(arguments: Sequence[str]) -> tuple[float, float]:
    """Run `diarist transcribe`: seconds until the first line of the transcript, and peak resident MB."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "diarist", "transcribe", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begun
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not line:
        sys.exit(f"{' '.join(command)} ended with {process.returncode} and {'a' if line else 'no'} transcript")
    return seconds, usage.ru_maxrss * 1024 / 1e6  # Linux counts in KiB


def hardware(pipeline: "Pipeline", threads: int) -> str:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    today = dt.datetime.now(tz=dt.UTC).date()
    return f"{processor}, {threads} threads, {pipeline.compute.name}, torch {torch.__version__}, {today}"


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


# --- showing --------------------------------------------------------------------------------------------------------


def table(figures: Figures) -> str:
    rows: list[list[str]] = [
        speed_row("recognition RTFx", figures.recognition, figures.durations),
        error_row("recognition WER", figures.recognition.errors),
        error_row("recognition WER in float32", figures.exact),
    ]
    if figures.peer_name:
        rows += [
            speed_row(f"{figures.peer_name} RTFx", figures.peer, figures.durations),
            error_row(f"{figures.peer_name} WER", figures.peer.errors),
        ]
    rows += [
        speed_row("diarization RTFx", figures.diarization, figures.durations),
        error_row("diarization DER", figures.diarization.errors),
        error_row("DER of pyannote.audio (3.1)", figures.reference_diarization),
        speed_row("whole pipeline RTFx", figures.pipeline, figures.durations),
        error_row("whole pipeline cpWER", figures.pipeline.errors),
        [f"{_CLIP_S} s clip, warm, no diarization", f"{statistics.median(figures.clip_s):.3f} s"],
        [f"process start to transcript, {_START_S} s clip", f"{statistics.median(figures.start_s):.2f} s"],
        ["the same with diarization", f"{statistics.median(figures.start_diarizing_s):.2f} s"],
        [f"peak memory, {_START_S} s clip, no diarization", f"{figures.start_mb:.0f} MB"],
        [f"peak memory, {figures.durations[-1] / 60:.0f} min, diarization", f"{figures.longest_mb:.0f} MB"],
    ]
    titles = ["", "together", *CONVERSATIONS]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    padded = [[*line, *[""] * (len(titles) - len(line))] for line in lines]
    return "\n".join([f"{figures.hardware}\n", *(f"| {' | '.join(line)} |" for line in padded)])


def speed_row(title: str, track: Track, durations: Sequence[float]) -> list[str]:
    whole = statistics.median(sum(seconds) for seconds in track.rounds)
    each = [statistics.median(column) for column in zip(*track.rounds, strict=True)]
    speeds = [duration / seconds for duration, seconds in zip(durations, each, strict=True)]
    return [title, *(f"{speed:.1f}" for speed in (sum(durations) / whole, *speeds))]


def error_row(title: str, errors: Sequence[Errors]) -> list[str]:
    return [title, *(f"{part.percent:.2f} %" for part in (together(errors), *errors))]


if __name__ == "__main__":
    main()
