"""Memory and speed by the length of the recording, and by how many people speak in it.

Recordings of a length are the shared conversations, one after another, over and over; those of so many speakers are ten
minutes of utterances that take turns. Each is transcribed in a process of its own, with diarization; its resident
memory is read ten times a second. Fails where the longest takes more than 2 GiB, or 200 MB more than the first of an
hour or longer.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import wave
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from diarist.audio import SAMPLE_RATE, decode
from recordings import CONVERSATIONS, SHARED, speaker_of

_LENGTHS_MIN = (1, 10, 60, 240)
_SPEAKERS = (2, 6, 12)
_SPEAKERS_MIN = 10
_INTERVAL_S = 0.1
_MOST_MB = 2 * 2**30 / 1e6
_MOST_GROWTH_MB = 200.0
_LONG_MIN = 60  # from which on all that is kept for a while is full
_WORK = """
import json, sys, threading, time
from pathlib import Path
from diarist import Pipeline

pipeline = Pipeline("base", language="en", threads=int(sys.argv[2]))
page = 4096 / 1e6
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * page
peak, done = [resident()], threading.Event()
def watch():
    while not done.wait(float(sys.argv[3])):
        peak[0] = max(peak[0], resident())
watcher = threading.Thread(target=watch)
watcher.start()
begun = time.perf_counter()
try:
    transcript = pipeline(sys.argv[1])
finally:
    done.set()
seconds = time.perf_counter() - begun
watcher.join()
words = sum(len(utterance.words) for utterance in transcript.utterances)
print(json.dumps({"seconds": seconds, "mb": peak[0], "words": words, "speakers": len(transcript.speakers),
                  "timings": transcript.timings, "warnings": len(transcript.warnings)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="processor threads [2]")
    parser.add_argument("--minutes", type=int, nargs="*", default=_LENGTHS_MIN, help="lengths [1 10 60 240]")
    parser.add_argument("--speakers", type=int, nargs="*", default=_SPEAKERS, help="numbers of them [2 6 12]")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="shared recordings [../shared/data]")
    options = parser.parse_args()
    print("| recording | RTFx | clustering | peak memory | words | speakers | warnings |", flush=True)
    print("|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for speakers in options.speakers:
        sounds = taking_turns(options.data / "utterances", speakers)
        measured(f"{_SPEAKERS_MIN} min, {speakers} speakers", sounds, _SPEAKERS_MIN, options.threads)
    sounds = [decode(options.data / "conversations" / f"{name}.flac")[0] for name in CONVERSATIONS]
    peaks_mb = {minutes: measured(f"{minutes} min", sounds, minutes, options.threads) for minutes in options.minutes}
    sys.exit(too_much(peaks_mb) if peaks_mb else None)


def taking_turns(utterances: Path, speakers: int) -> list[np.ndarray]:
    """What the first so many speakers say, in random order."""
    said: dict[str, list[Path]] = {}
    for path in sorted(utterances.glob("*.flac")):
        said.setdefault(speaker_of(path), []).append(path)
    paths = [path for number in sorted(said)[:speakers] for path in said[number]]
    random.Random(0).shuffle(paths)
    return [decode(path)[0] for path in paths]


def measured(name: str, sounds: Sequence[np.ndarray], minutes: int, threads: int) -> float:
    """Transcribe so many minutes of the sounds, print a row of the table; peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.wav"
        write_repeated(path, sounds, minutes * 60)
        found = transcribed(path, threads)
    print(
        f"| {name} | {minutes * 60 / found['seconds']:.1f} | {found['timings'].get('clustering', 0.0):.1f} s |"
        f" {found['mb']:.0f} MB | {found['words']} | {found['speakers']} | {found['warnings']} |",
        flush=True,
    )
    return float(found["mb"])


def too_much(peaks_mb: Mapping[int, float]) -> str | None:
    """What is wrong with peak memory by length in minutes; None if nothing is.

    >>> too_much({10: 1300.0, 60: 1470.0, 240: 1660.0})
    >>> too_much({10: 1300.0, 60: 1470.0, 240: 1680.0})
    '210 MB more for 240 min than for 60'
    """
    shortest, longest = min(peaks_mb, key=lambda minutes: (minutes < _LONG_MIN, minutes)), max(peaks_mb)
    grown = peaks_mb[longest] - peaks_mb[shortest]
    if grown > _MOST_GROWTH_MB:
        return f"{grown:.0f} MB more for {longest} min than for {shortest}"
    return f"{peaks_mb[longest]:.0f} MB for {longest} min" if peaks_mb[longest] > _MOST_MB else None


def transcribed(path: Path, threads: int) -> dict[str, Any]:
    """Transcribe in a fresh process: seconds of work, peak resident MB, what was found."""
    command = [sys.executable, "-c", _WORK, str(path), str(threads), str(_INTERVAL_S)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_repeated(path: Path, sounds: Sequence[np.ndarray], seconds: int) -> None:
    """Write that many seconds of the sounds, one after another, from the first again when all have been heard."""
    left = seconds * SAMPLE_RATE
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for sound in cycle(sounds):
            part = sound[:left]
            file.writeframes((part * 32767).round().astype("<i2").tobytes())
            left -= len(part)
            if left <= 0:
                return


if __name__ == "__main__":
    main()
