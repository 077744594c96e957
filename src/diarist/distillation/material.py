"""From recordings to examples on disk: the windows that the assistant learns from, and those it is measured by.

The recordings' own windows, cut and packed as for a transcript, come first. An hour of them is little to learn from,
so further "mixes" are made of the same sound: it is cut at other pauses, stretches of different recordings are joined
into full windows, louder or softer, a part of them faster or slower. The main model labels each mix anew, so whatever
was done to the sound, the label is what the main model makes of it.

A set of examples is a folder with a file for each; it is made under another name and renamed when it is whole.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diarist import models
from diarist.asr.features import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from diarist.asr.options import DecodingOptions
from diarist.asr.recognizer import RecognitionStream
from diarist.asr.windows import WindowOptions, gather, pack
from diarist.audio import open_audio, waveform_stream
from diarist.diarization.stream import Diarizer
from diarist.distillation.objective import SoftTargets
from diarist.distillation.teacher import GREEDY, Example, Teacher
from diarist.errors import AudioError
from diarist.timeline import Segment, union

_PHRASE_GAP_S = 0.3
"""Pauses at which a mix may be cut, in seconds: shorter ones are inside sentences."""
_RUN_S = (3.0, 28.0)
"""Shortest and longest stretch of one recording in a mix, in seconds of speech."""
_PAUSE_S = (0.1, 1.0)
"""Silence between two stretches of a mix, in seconds; each brings margins of its own."""
_GAIN_DB = (-10.0, 6.0)
_SPEEDS = (0.88, 0.94, 1.0, 1.0, 1.0, 1.06, 1.12)
"""Speed and pitch are changed together, as by a tape: a voice becomes another one."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording, heard."""

    waveform: NDArray[np.float32]
    """Mono, 16 kHz, shape (samples,)."""
    speech: tuple[Segment, ...]
    """Its speech track."""
    language: str
    """ISO code, as given or as the main model found it."""

    @property
    def speech_s(self) -> float:
        return sum(segment.duration for segment in self.speech)


Step = Callable[[float], None]
"""Told, now and then, the share of the work at hand that is done."""


def own_windows(
    paths: Sequence[Path],
    teacher: Teacher,
    diarizer: Diarizer,
    language: str | None,
    writer: "ExampleWriter",
    step: Step,
) -> tuple[list[Recording], list[str]]:
    """Make examples of the windows that the pipeline would make of recordings, holes decoded again included.

    Returns:
        The recordings that hold speech, and what is to be said of the others.
    """
    streams: list[tuple[NDArray[np.float32], tuple[Segment, ...], RecognitionStream]] = []
    warnings: list[str] = []
    options = DecodingOptions(language, temperatures=GREEDY.temperatures, word_timestamps=False)
    for index, path in enumerate(paths):
        try:
            waveform, speech = _hear(path, diarizer)
        except AudioError as error:
            warnings.append(f"{path}: {error}")
            continue
        if not speech:
            warnings.append(f"{path}: no speech")
            continue
        stream = RecognitionStream(teacher.loop, options)
        stream.push(speech, waveform, 0.0, final=True)
        streams.append((waveform, speech, stream))
        while not teacher.loop.wanted:
            teacher.loop.step()
            step(index / len(paths))
        writer.write(teacher.collect())
    while teacher.loop.pending:
        teacher.loop.step()
        step(1.0)
    writer.write(teacher.collect())
    heard = [Recording(wave, speech, stream.result().language) for wave, speech, stream in streams]
    return [each for each in heard if each.language], warnings


def _hear(path: Path, diarizer: Diarizer) -> tuple[NDArray[np.float32], tuple[Segment, ...]]:
    """The sound of a recording and its speech track."""
    blocks: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    track = diarizer.stream(speakers=False)
    with open_audio(path) as audio:
        for block in audio:
            blocks.append(block)
            track.push(block)
    track.finish()
    return np.concatenate(blocks), tuple(track.speech(0.0))


def mixed_windows(
    recordings: Sequence[Recording], random: np.random.Generator
) -> list[tuple[NDArray[np.float32], str]]:
    """The same sound in other windows: waveforms of at most 30 s, with their languages, in random order.

    Stretches are joined only with those of the same language.
    """
    by_language: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    for recording in recordings:
        by_language[recording.language] += _stretches(recording, random)
    windows = []
    for language, stretches in sorted(by_language.items()):
        order = random.permutation(len(stretches))
        windows += [(window, language) for window in _joined([stretches[place] for place in order], random)]
    return [windows[place] for place in random.permutation(len(windows))]


def _stretches(recording: Recording, random: np.random.Generator) -> list[NDArray[np.float32]]:
    """All speech of a recording, cut at random pauses, each stretch changed in loudness and perhaps in speed."""
    return [
        _changed(gather(window, recording.waveform, 0.0), random)
        for run in _runs(union(recording.speech, max_gap=_PHRASE_GAP_S), random)
        for window in pack(run, recording.waveform, 0.0, WindowOptions())
    ]


def _runs(phrases: Sequence[Segment], random: np.random.Generator) -> Iterator[list[Segment]]:
    """Consecutive phrases, grouped to random lengths."""
    run: list[Segment] = []
    wanted = random.uniform(*_RUN_S)
    for phrase in phrases:
        if run and sum(part.duration for part in run) + phrase.duration > wanted:
            yield run
            run, wanted = [], random.uniform(*_RUN_S)
        run.append(phrase)
    if run:
        yield run


def _changed(waveform: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    gain = 10 ** (random.uniform(*_GAIN_DB) / 20)
    loudest = float(np.abs(waveform).max(initial=1e-9))
    speed = float(random.choice(_SPEEDS))
    changed = (waveform * min(gain, 1 / loudest)).astype(np.float32)
    if speed == 1.0 or len(changed) / speed > WINDOW_SAMPLES:
        return changed
    resampled = waveform_stream(changed, round(SAMPLE_RATE_HZ * speed), len(changed) / SAMPLE_RATE_HZ)
    return np.concatenate(list(resampled))[:WINDOW_SAMPLES]


def _joined(stretches: Sequence[NDArray[np.float32]], random: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Stretches one after another, pauses between them, in windows that are as full as their order allows."""
    parts: list[NDArray[np.float32]] = []
    for stretch in stretches:
        pause = np.zeros(round(random.uniform(*_PAUSE_S) * SAMPLE_RATE_HZ), np.float32)
        if parts and sum(map(len, parts)) + len(pause) + len(stretch) > WINDOW_SAMPLES:
            yield np.concatenate(parts)
            parts = []
        parts += [pause, stretch] if parts else [stretch]
    if parts:
        yield np.concatenate(parts)


# --- on disk ---


class ExampleSet:
    """Examples in a folder, read when they are wanted.

    Args:
        folder: Where `ExampleWriter` put them.
        least_tokens: Examples with fewer are left out.
    """

    def __init__(self, folder: Path, least_tokens: int = 0) -> None:
        paths = sorted(folder.glob("*.safetensors"))
        self.paths = [path for path in paths if len(models.read_tensors(path)["tokens"]) >= least_tokens]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        stored = models.read_tensors(self.paths[index])
        soft = SoftTargets(stored["soft_tokens"], stored["soft_probabilities"])
        return Example(stored["states"], stored["tokens"], int(stored["prompt"]), stored["hidden"], soft)


class ExampleWriter:
    """Makes the folder of a set; `finish` gives it its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aside = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        self._count = 0

    def write(self, examples: Iterable[Example]) -> None:
        for example in examples:
            path = self._aside / f"{self._count:06d}.safetensors"
            tensors = {
                "states": example.states,
                "tokens": example.tokens,
                "prompt": torch.tensor(example.prompt),
                "hidden": example.hidden,
                "soft_tokens": example.soft.tokens,
                "soft_probabilities": example.soft.probabilities,
            }
            models.write_tensors(path, tensors)
            self._count += 1

    def finish(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._aside.replace(self._folder)
