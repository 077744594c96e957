"""Settings: every one is documented, read once, and refused with its name when it is wrong."""

import inspect

import pytest
import typer

from diarist import cli
from diarist.errors import OptionError
from diarist.settings import Settings, load


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in variables():
        monkeypatch.delenv(name, raising=False)


def variables():
    found = {}
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        for variable in getattr(alias, "choices", [alias]):
            found[variable] = name
    return found


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name):
    description = Settings.model_fields[name].description
    assert description, f"{name} says nothing about itself"
    assert len(description.split()) >= 5


def test_the_variables_are_the_commands():
    """A flag and the setting behind it go by the same variable."""
    flags = {}
    for name, parameter in inspect.signature(cli.transcribe).parameters.items():
        option = parameter.annotation.__metadata__[0] if hasattr(parameter.annotation, "__metadata__") else None
        if isinstance(option, typer.models.OptionInfo) and option.envvar:
            for variable in [option.envvar] if isinstance(option.envvar, str) else option.envvar:
                flags[variable] = {"model": "asr_model"}.get(name, name)
    assert flags == {variable: name for variable, name in variables().items() if name != "hf_token"}


def test_the_originals_variables_are_read(monkeypatch):
    monkeypatch.setenv("ASR_MODEL", "small")
    monkeypatch.setenv("diarization_model", "mine")
    monkeypatch.setenv("ASSISTANT_MODEL", "")
    settings = load()
    assert (settings.asr_model, settings.diarization_model, settings.assistant_model) == ("small", "mine", None)


def test_arguments_win_and_none_is_not_given(monkeypatch):
    monkeypatch.setenv("DIARIST_DEVICE", "cuda")
    assert load(device=None).device == "cuda"
    assert load(device="cpu").device == "cpu"


@pytest.mark.parametrize("word", ["1", "true", "YES", "on"])
def test_offline_by_either_variable(monkeypatch, word):
    for name in ("DIARIST_OFFLINE", "HF_HUB_OFFLINE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, word)
            assert load().offline
    assert not load().offline


def test_a_wrong_value_is_named(monkeypatch):
    with pytest.raises(OptionError, match=r"threads: 0 is refused: .*greater than or equal to 1"):
        load(threads=0)
    monkeypatch.setenv("DIARIST_THREADS", "many")
    with pytest.raises(OptionError, match="DIARIST_THREADS: 'many' is refused"):
        load()


def test_the_token_is_not_shown():
    settings = load(hf_token="secret")
    assert "secret" not in repr(settings)
    assert settings.token == "secret"
    assert load().token is None
