"""From files to a folder: interruptions, what is written, and what is refused."""

import json
import shutil
import wave

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from diarist import cli, models
from diarist.distillation.distill import DistillOptions, Progress, distill, split
from diarist.distillation.training import Measurement, TrainingOptions
from diarist.errors import DiaristError, ModelFormatError, OptionError
from diarist.models.types import LocalModel

TRAINING = TrainingOptions(steps=4, minutes=30, batch=2)


def at(folder):
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    return LocalModel("assistant", "asr", folder, files, None, "", "", "")


@pytest.fixture(scope="module")
def recordings(sample_recording, tmp_path_factory):
    """Two recordings; the second is the sample's first seconds."""
    folder = tmp_path_factory.mktemp("recordings")
    whole, part = folder / "whole.wav", folder / "part.wav"
    shutil.copy(sample_recording.wav, whole)
    with wave.open(str(whole)) as source, wave.open(str(part), "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(12 * source.getframerate()))
    return whole, part


@pytest.fixture(scope="module")
def options(recordings):
    return DistillOptions(held_out_files=(recordings[1],), mixes=1, language="en", training=TRAINING)


@pytest.fixture(scope="module")
def interrupted(recordings, options, tmp_path_factory):
    """A folder that Ctrl-C left after two steps, and what was reported until then."""
    folder = tmp_path_factory.mktemp("made") / "assistant"
    told: list[Progress] = []

    def report(progress):
        told.append(progress)
        if progress.stage == "training" and progress.fraction >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill("base", recordings, folder, options, device="cpu", report=report)
    return folder, told


@pytest.fixture(scope="module")
def made(interrupted, recordings, options):
    """The same, gone on with to its end."""
    folder, _ = interrupted
    assert not (folder / "model.safetensors").exists()
    told: list[Progress] = []
    done = distill("base", recordings, folder, options, device="cpu", resume=True, report=told.append)
    assert {progress.stage for progress in told} == {"training"}  # nothing is labelled twice
    assert len(told) == 2
    return done


def test_every_stage_is_reported(interrupted):
    _, told = interrupted
    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages == ["labelling held-out recordings", "labelling recordings", "labelling mix 1", "training"]
    assert all(0 <= progress.fraction <= 1 for progress in told)
    assert told[-1].latest is not None


def test_the_folder_loads_as_an_assistant(made, checkpoint, base_model):
    folder = made.folder
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "work",
    }  # fmt: skip
    stored = models.read_tensors(folder / "model.safetensors")
    fuse = {"model.decoder.fuse.weight", "model.decoder.fuse.bias"}
    assert all(name in fuse or name.startswith("model.decoder.layers.") for name in stored)
    assert stored["model.decoder.layers.1.encoder_attn.k_proj.weight"].shape == (512, 512)
    local = models.resolve(str(folder), "asr", offline=True)
    assert models.is_assistant(local)
    assert not models.is_assistant(base_model)
    assistant = models.load_assistant(local, checkpoint)
    assert assistant.dims.n_text_layer == 2
    for name, tensor in checkpoint.tensors.items():
        if ".blocks." not in name or name.startswith("encoder."):
            assert assistant.tensors[name] is tensor  # shared, not copied
    config = json.loads((folder / "config.json").read_text("utf-8"))["diarist"]
    assert config["assistant_for"] == "base"
    assert config["initialised_from_layers"] == [3, 5]
    assert config["held_out_acceptance"] == made.best.acceptance
    assert config["encoder_sha256"] == models.encoder_sha256(checkpoint)
    card = (folder / "README.md").read_text("utf-8")
    assert base_model.licence in card
    assert f"{made.best.acceptance:.1%}" in card


def test_transformers_names_every_tensor_alike(made):
    """But for what joins token and state, which it has no name for."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig.from_pretrained(str(made.folder))
    with torch.device("meta"):
        expected = WhisperForConditionalGeneration(config).state_dict()
    stored = models.read_tensors(made.folder / "model.safetensors")
    fuse = {name for name in stored if ".fuse." in name}
    assert len(fuse) == 2
    for name in stored.keys() - fuse:
        assert expected[name].shape == stored[name].shape


def test_another_encoder_is_refused(made, tiny_en_model):
    with pytest.raises(ModelFormatError, match="another encoder"):
        models.load_assistant(at(made.folder), models.load_whisper(tiny_en_model))


def test_what_is_no_assistant_is_refused(made, checkpoint, tmp_path):
    for path in made.folder.glob("*.*"):
        shutil.copy(path, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_layers": 3}))
    with pytest.raises(ModelFormatError, match=r"blocks\.2"):
        models.load_assistant(at(tmp_path), checkpoint)
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_layers": "many"}))
    with pytest.raises(ModelFormatError, match="decoder_layers"):
        models.load_assistant(at(tmp_path), checkpoint)


def test_only_the_same_work_is_gone_on_with(made, recordings, options, tmp_path):
    with pytest.raises(OptionError, match="add --resume"):
        distill("base", recordings, made.folder, options, device="cpu")
    other = DistillOptions(held_out_files=options.held_out_files, language="de", training=TRAINING)
    with pytest.raises(OptionError, match="begun with other language"):
        distill("base", recordings, made.folder, other, device="cpu", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(OptionError, match="no work to go on with"):
        distill("base", recordings, tmp_path / "mine", options, device="cpu", resume=True)


def test_a_recording_is_never_on_both_sides(recordings, tmp_path):
    many = [tmp_path / f"{index}.wav" for index in range(10)]
    for path in many:
        path.touch()
    learn, measure = split(many, DistillOptions(held_out=0.2))
    assert len(measure) == 2
    assert sorted([*learn, *measure]) == sorted(many)
    assert split(many, DistillOptions(held_out=0.2)) == (learn, measure)
    (tmp_path / "x").mkdir()
    learn, measure = split(many, DistillOptions(held_out_files=(tmp_path / "x" / ".." / "3.wav",)))
    assert len(learn) == 9
    with pytest.raises(OptionError, match="one to measure by"):
        split(many[:1], DistillOptions())
    with pytest.raises(OptionError, match="not a file"):
        split([tmp_path / "none.wav"], DistillOptions())


def test_silence_is_too_little_speech(tmp_path):
    for name in ("a", "b"):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(np.zeros(5 * 16_000, np.int16).tobytes())
    (tmp_path / "b.wav").write_text("no sound at all")
    with pytest.raises(DiaristError, match=r"too little.*no speech") as error:
        distill("base", [tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / "out", device="cpu")
    assert "b.wav" in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"held_out": 1.0}, "held_out"),
        ({"training": TrainingOptions(minutes=0)}, "minutes"),
        ({"training": TrainingOptions(steps=0)}, "steps"),
        ({"initial_layers": (1,)}, "initial_layers"),
    ],
)
def test_options_out_of_bounds_are_named(wrong, param):
    with pytest.raises(OptionError) as error:
        DistillOptions(**wrong)
    assert error.value.param == param


def test_layers_that_the_model_does_not_have(recordings, tmp_path):
    with pytest.raises(OptionError, match="below 6"):
        distill("base", recordings, tmp_path / "a", DistillOptions(initial_layers=(0, 6)), device="cpu")
    with pytest.raises(OptionError, match="not 1 or 2"):
        distill("base", recordings, tmp_path / "b", DistillOptions(layers=3), device="cpu")


def test_in_a_pipe_each_stage_and_measurement_is_a_line(capsys):
    first, second = Measurement(0, 0.0, None, 0.2, 1.25), Measurement(50, 70.0, 1.5, 0.612, 2.1)
    with cli._distilling(quiet=False) as report:
        for progress in (
            Progress("labelling recordings", 0.1),
            Progress("labelling recordings", 0.9),
            Progress("training", 0.01, first),
            Progress("training", 0.02, first),
            Progress("training", 0.05, second),
        ):
            report(progress)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "labelling recordings",
        "1%, step 0: 20.0% of held-out tokens drafted right, 1.25 tokens per pass",
        "5%, step 50: loss 1.500, 61.2% of held-out tokens drafted right, 2.10 tokens per pass",
    ]
    with cli._distilling(quiet=True) as report:
        assert report is None


def test_on_a_terminal_there_is_a_bar_with_time_left(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with cli._distilling(quiet=False) as report:
        report(Progress("labelling recordings", 0.5))
        report(Progress("training", 0.25, Measurement(50, 70.0, 1.5, 0.612, 2.1)))
    printed = capsys.readouterr().err
    assert "training: 61.2% of held-out tokens drafted right" in printed
    assert "25%" in printed


def test_the_command(made, recordings, tmp_path):
    whole, part = map(str, recordings)
    given = ["distill", whole, "--held-out-files", part, "--language", "en", "--device", "cpu"]
    runner = CliRunner()
    again = [*given, "--mixes", "1", "--output", str(made.folder)]
    refused = runner.invoke(cli.app, again)
    assert refused.exit_code == 2
    assert "add --resume" in refused.stderr
    missing = runner.invoke(cli.app, ["distill", str(tmp_path / "none.wav"), "-o", str(tmp_path / "out")])
    assert missing.exit_code == 2
    assert "no such file" in missing.stderr
    assert not (tmp_path / "out").exists()
