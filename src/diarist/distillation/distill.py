"""Recordings in, an assistant out: labelling, mixing, training and writing, each resumable where it was left."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diarist import models
from diarist.compute import Compute, choose
from diarist.diarization.stream import Diarizer
from diarist.distillation.material import ExampleSet, ExampleWriter, Recording, mixed_windows, own_windows
from diarist.distillation.output import write_assistant, write_text
from diarist.distillation.teacher import Example, Teacher
from diarist.distillation.training import Measurement, Trainer, TrainingOptions
from diarist.errors import DiaristError, OptionError
from diarist.models import LocalModel, WhisperCheckpoint

WORK = "work"
"""Folder beside the assistant that holds examples and checkpoint; needed to go on, and by nothing else."""
MIN_SPEECH_S = 20.0
"""Less speech to learn from is refused: nothing would come of it."""
_MATERIAL_SHARE = 0.4  # of the time, after which no further mix is begun
_HELD_OUT_WINDOWS = 64  # measured at most: a few thousand tokens tell a per cent
_ROWS = 16
_SHORT_TOKENS = 50
_FIRST_LAYERS = {1: (1.0,), 2: (0.5, 1.0)}
"""By how many there are: which layers of the main decoder to begin with, as shares of its depth."""


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """What assistant to make, and from what."""

    layers: int = 2
    """Decoder layers: 1 is fastest, 2 is right more often."""
    initial_layers: tuple[int, ...] | None = None
    """The main decoder's layers to begin with; None takes the last one, or the middle one and the last."""
    language: str | None = None
    """Spoken in every recording; None detects it for each."""
    held_out: float = 0.2
    """Share of the recordings to measure by, in (0, 1); drawn by the seed. Not used if `held_out_files` are named."""
    held_out_files: tuple[Path, ...] = ()
    """Recordings to measure by; none of them is learned from. Name speakers that speak in no other recording."""
    mixes: int = 8
    """How many times the sound is cut and joined anew."""
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise OptionError("held_out", f"{self.held_out} is not between 0 and 1")
        if self.training.minutes <= 0:
            raise OptionError("minutes", f"{self.training.minutes} is not above 0")
        if self.training.steps is not None and self.training.steps < 1:
            raise OptionError("steps", f"{self.training.steps} is not above 0")
        if self.initial_layers is not None and len(self.initial_layers) != self.layers:
            raise OptionError("initial_layers", f"{len(self.initial_layers)} are named for {self.layers} layers")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it has come."""

    stage: str
    """What is being done now, for people."""
    fraction: float
    """Share of this stage that is done, in [0, 1]."""
    latest: Measurement | None = None
    """The last measurement, once there is one."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came of it."""

    folder: Path
    initial_layers: tuple[int, ...]
    best: Measurement
    """Of the weights that were written."""
    measurements: tuple[Measurement, ...]
    examples: int
    """Windows learned from."""
    speech_s: float
    """Speech in the recordings learned from, in seconds."""
    warnings: tuple[str, ...]


Report = Callable[[Progress], None]


def distill(
    model: str,
    recordings: Sequence[Path],
    output: Path,
    options: DistillOptions | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    resume: bool = False,
    report: Report | None = None,
    **resolving: Any,
) -> Distilled:
    """Make an assistant for a main model from unlabelled recordings.

    Ctrl-C, or any other end, leaves a folder that `resume` goes on with.

    Args:
        model: The main model: catalogue name, hub id or path.
        recordings: Files with speech, of the kind that the assistant will be used on.
        output: Folder to write; it must not exist unless `resume`.
        options: What to make.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, float32, bfloat16, float16 or int8; that with which the assistant will be used.
        resume: Go on with what is in `output`.
        report: Called after every piece of work.
        resolving: As of `models.resolve`: offline, token, progress, cache_dir.

    Raises:
        OptionError: An option is out of bounds, `output` exists, or does not hold what `resume` would go on with.
        ModelError: The model cannot be had or read.
        DiaristError: There is too little speech, or the time is over before training could begin.
    """
    options = options or DistillOptions()
    report = report or (lambda _: None)
    learn, measure = split(recordings, options)
    main = models.resolve(model, "asr", **resolving)
    checkpoint = models.load_whisper(main)
    initial = _initial_layers(checkpoint, options)
    compute = choose(device, dtype)
    work = output / WORK
    _open_output(output, _identity(main, learn, measure, options, initial, compute), resume=resume)

    segmentation = models.resolve(models.diarization_parts("default").segmentation, "segmentation", **resolving)
    makers = _Makers(checkpoint, compute, segmentation)
    material = _material(work, makers, learn, measure, options, report)
    del makers  # the main model's memory is the student's now

    trainer = Trainer(checkpoint, initial, compute, options.training)
    state = work / "state.safetensors"
    if state.exists():
        trainer.load(state)
    if not trainer.step and trainer.done(material.spent_s) >= 1:
        raise DiaristError("the time was over before training began: allow more --minutes, or give fewer recordings")

    def tell(done: float, latest: Measurement) -> None:
        report(Progress("training", done, latest))

    trainer.run(material.examples, material.held_out, state, material.spent_s, tell)
    write_assistant(output, main, checkpoint, trainer.best_tensors, initial, trainer.best, material.speech_s)
    return Distilled(
        output,
        initial,
        trainer.best,
        tuple(trainer.measurements),
        len(material.examples),
        material.speech_s,
        material.warnings,
    )


def split(recordings: Sequence[Path], options: DistillOptions) -> tuple[list[Path], list[Path]]:
    """The recordings to learn from and those to measure by; no recording is in both.

    Raises:
        OptionError: One side would be empty, or a file to be held out does not exist.
    """
    paths = list(dict.fromkeys(recordings))
    missing = [path for path in (*paths, *options.held_out_files) if not path.is_file()]
    if missing:
        raise OptionError("AUDIO", f"{missing[0]} is not a file")
    if options.held_out_files:
        kept = {path.resolve() for path in options.held_out_files}
        learn, measure = [path for path in paths if path.resolve() not in kept], list(options.held_out_files)
    else:
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(options.training.seed)).tolist()
        count = max(1, round(options.held_out * len(paths)))
        measure, learn = [paths[at] for at in sorted(order[:count])], [paths[at] for at in sorted(order[count:])]
    if not learn:
        raise OptionError("AUDIO", "at least one recording to learn from and one to measure by are needed")
    return learn, measure


def _initial_layers(checkpoint: WhisperCheckpoint, options: DistillOptions) -> tuple[int, ...]:
    depth = checkpoint.dims.n_text_layer
    if not 1 <= options.layers <= min(2, depth):
        raise OptionError("layers", f"{options.layers} is not 1 or 2")
    if options.initial_layers is None:
        return tuple(min(depth - 1, round(share * depth)) for share in _FIRST_LAYERS[options.layers])
    if not all(0 <= layer < depth for layer in options.initial_layers):
        raise OptionError("initial_layers", f"{options.initial_layers} are not all below {depth}")
    return options.initial_layers


# --- the folder ---


def _identity(
    main: LocalModel,
    learn: Sequence[Path],
    measure: Sequence[Path],
    options: DistillOptions,
    initial: tuple[int, ...],
    compute: Compute,
) -> dict[str, Any]:
    """What must be the same for work to go on: all but how long it takes and how much more is made of the sound."""
    training = {name: value for name, value in asdict(options.training).items() if name not in ("steps", "minutes")}
    files = [[str(path.resolve()), path.stat().st_size] for path in (*learn, *measure)]
    return {
        "model": main.sha256,
        "recordings": hashlib.sha256(json.dumps([files, len(measure)]).encode()).hexdigest(),
        "initial_layers": list(initial),
        "language": options.language,
        "compute": compute.name,
        "training": training,
    }


def _open_output(output: Path, identity: dict[str, Any], *, resume: bool) -> None:
    """Make the folder, or see that it holds the same work, begun.

    Raises:
        OptionError: It does not.
    """
    named = output / WORK / "distill.json"
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        named.parent.mkdir(parents=True)
        named.write_text(json.dumps(identity, indent=2), encoding="utf-8")
        return
    if not resume:
        raise OptionError("--output", f"{output} exists: add --resume to go on with it, or name another folder")
    if not named.is_file():
        raise OptionError("--resume", f"{output} holds no work to go on with: name another folder")
    before = json.loads(named.read_text(encoding="utf-8"))
    changed = [key for key, value in identity.items() if before.get(key) != value]
    if changed:
        raise OptionError("--resume", f"{output} was begun with other {', '.join(changed)}: name another folder")


# --- material ---


@dataclass(frozen=True, slots=True)
class _Material:
    examples: Sequence[Example]
    held_out: list[Example]
    speech_s: float
    warnings: tuple[str, ...]
    spent_s: float
    """Time that making it took, in seconds."""


class _Examples(Sequence[Example]):
    """Several sets as one."""

    def __init__(self, sets: Sequence[ExampleSet]) -> None:
        self._places = [(each, index) for each in sets for index in range(len(each))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        chosen, place = self._places[index]
        return chosen[place]


def _examples(work: Path, names: Sequence[str]) -> _Examples:
    """What to learn from: short windows only where there are no mixes, which hold the same sound in fuller ones.

    A window costs a step nearly the same whatever is said in it, for the encoder's states are as many.
    """
    own, *mixes = names
    least = _SHORT_TOKENS if mixes else 0
    sets = [ExampleSet(work / own, least), *(ExampleSet(work / mix) for mix in mixes)]
    return _Examples(sets if any(map(len, sets)) else [ExampleSet(work / own)])


class _Makers:
    """The models that make examples, loaded when they are first needed: a resumed training may not need them."""

    def __init__(self, checkpoint: WhisperCheckpoint, compute: Compute, segmentation: LocalModel) -> None:
        self._checkpoint, self._compute, self._segmentation = checkpoint, compute, segmentation
        self._loaded: tuple[Teacher, Diarizer] | None = None

    def load(self) -> tuple[Teacher, Diarizer]:
        if self._loaded is None:
            diarizer = Diarizer(models.load_segmentation(self._segmentation), None, None, self._compute)
            self._loaded = Teacher(self._checkpoint, self._compute, _ROWS), diarizer
        return self._loaded


class _Ledger:
    """Which sets of examples are whole, and what is known of them; in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def enter(self, name: str, recordings: Sequence[Recording], warnings: Sequence[str], seconds: float) -> None:
        """Note that a set is whole, and what it took, on top of what it took before if it was made twice."""
        self._entries[name] = {
            "speech_s": sum(recording.speech_s for recording in recordings),
            "warnings": list(warnings),
            "seconds": seconds + self._entries.get(name, {}).get("seconds", 0.0),
        }
        write_text(self._path, json.dumps(self._entries, indent=2))

    @property
    def speech_s(self) -> dict[str, float]:
        """Of each set, the seconds of speech in the recordings that it was made from."""
        return {name: entry["speech_s"] for name, entry in self._entries.items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(warning for entry in self._entries.values() for warning in entry["warnings"])

    @property
    def spent_s(self) -> float:
        return float(sum(entry["seconds"] for entry in self._entries.values()))


def _mix(
    folder: Path, teacher: Teacher, recordings: Sequence[Recording], seed: tuple[int, int], report: Report
) -> None:
    windows = mixed_windows(recordings, np.random.default_rng(seed))
    writer = ExampleWriter(folder)
    writer.write(teacher.label(windows, lambda share: report(Progress(f"labelling mix {seed[1]}", share))))
    writer.finish()


def _material(
    work: Path,
    makers: _Makers,
    learn: Sequence[Path],
    measure: Sequence[Path],
    options: DistillOptions,
    report: Report,
) -> _Material:
    """All examples; what an earlier start has made of them is used again.

    Raises:
        DiaristError: There is too little speech.
    """
    ledger = _Ledger(work / "material.json")

    def own(name: str, stage: str, paths: Sequence[Path]) -> list[Recording]:
        begun = time.monotonic()
        teacher, diarizer = makers.load()
        writer = ExampleWriter(work / name)
        heard, warnings = own_windows(
            paths, teacher, diarizer, options.language, writer, lambda share: report(Progress(stage, share))
        )
        writer.finish()
        ledger.enter(name, heard, warnings, time.monotonic() - begun)
        return heard

    if "held-out" not in ledger.speech_s:
        own("held-out", "labelling held-out recordings", measure)
    recordings = None if "own" in ledger.speech_s else own("own", "labelling recordings", learn)
    if ledger.speech_s["own"] < MIN_SPEECH_S or not ledger.speech_s["held-out"]:
        reasons = "".join(f"; {warning}" for warning in ledger.warnings[:3])
        raise DiaristError(
            f"{ledger.speech_s['own']:.0f} s of speech to learn from and {ledger.speech_s['held-out']:.0f} s to measure "
            f"by is too little: at least {MIN_SPEECH_S:.0f} s to learn from are needed, an hour or more is better{reasons}"
        )
    names = ["own"]
    for mix in range(1, options.mixes + 1):
        name = f"mix-{mix:02d}"
        if name not in ledger.speech_s:
            if ledger.spent_s > 60 * options.training.minutes * _MATERIAL_SHARE:
                break
            if recordings is None:  # an earlier start was interrupted here: hear them again
                recordings = own("own", "labelling recordings", learn)
            begun = time.monotonic()
            _mix(work / name, makers.load()[0], recordings, (options.training.seed, mix), report)
            ledger.enter(name, recordings, [], time.monotonic() - begun)
        names.append(name)
    every = ExampleSet(work / "held-out")
    return _Material(
        examples=_examples(work, names),
        held_out=[every[index] for index in range(min(len(every), _HELD_OUT_WINDOWS))],
        speech_s=ledger.speech_s["own"],
        warnings=ledger.warnings,
        spent_s=ledger.spent_s,
    )
