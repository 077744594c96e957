"""The recordings that are compared on, as 16 kHz WAV files, with what is said in them by whom."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compare.sound import SAMPLE_RATE, read_wav, write_wav
from diarist.audio import decode
from diarist.timeline import Segment, Turn
from recordings import CONVERSATIONS, Spoken, read_rttm, read_stm

JOINED = "joined"
"""The conversations, one after another: what a long recording costs."""
CLIP_S = 8
_SUFFIXES = (".flac", ".wav", ".mp3")


@dataclass(frozen=True, slots=True)
class Recording(Spoken):
    """A recording and its references."""

    name: str
    path: Path
    duration: float
    sentences: tuple[tuple[str, str], ...]
    """Speaker and words, in order of their start."""
    turns: tuple[Turn, ...]


def gather(names: Sequence[str], data: Path, folder: Path) -> list[Recording]:
    """Recordings as WAV files under `folder`.

    Args:
        names: Of conversations or clips under `data`, `joined`, or paths of sound files; each with its `.stm` and
            `.rttm` beside it.
        data: The shared recordings.
        folder: Written to.

    Raises:
        FileNotFoundError: One of them is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_joined(data, folder) if name == JOINED else _converted(_find(name, data), folder) for name in names]


def clip(data: Path, folder: Path) -> Path:
    """The first seconds of the shared speech by one person, for which latency is measured."""
    path = folder / f"clip-{CLIP_S}s.wav"
    write_wav(str(path), decode(data / "clips" / "jfk.flac")[0][: CLIP_S * SAMPLE_RATE])
    return path


def _find(name: str, data: Path) -> Path:
    if Path(name).suffix in _SUFFIXES:
        return Path(name)
    places = [data / part / f"{name}{suffix}" for part in ("conversations", "clips") for suffix in _SUFFIXES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no recording {name!r} under {data}")
    return found


def _converted(source: Path, folder: Path) -> Recording:
    samples = decode(source)[0]
    path = folder / f"{source.stem}.wav"
    write_wav(str(path), samples)
    sentences, turns = read_stm(source.with_suffix(".stm")), read_rttm(source.with_suffix(".rttm"))
    return Recording(source.stem, path, len(samples) / SAMPLE_RATE, sentences, turns)


def _joined(data: Path, folder: Path) -> Recording:
    parts = [_converted(_find(name, data), folder) for name in CONVERSATIONS]
    path = folder / f"{JOINED}.wav"
    write_wav(str(path), np.concatenate([read_wav(str(part.path)) for part in parts]))
    whole = Recording(JOINED, path, 0.0, (), ())
    for part in parts:
        moved = tuple(_moved(turn, whole.duration) for turn in part.turns)
        whole = replace(
            whole,
            duration=whole.duration + part.duration,
            sentences=(*whole.sentences, *part.sentences),
            turns=(*whole.turns, *moved),
        )
    return whole


def _moved(turn: Turn, by: float) -> Turn:
    return Turn(Segment(turn.segment.start + by, turn.segment.end + by), turn.speaker)
