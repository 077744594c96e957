"""The endpoint handler, run the way the platform's container runs it (R12, R13, R16, R18-R23 are faults of another)."""

import base64
import importlib.util
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest
import typer.testing
from packaging.requirements import Requirement

from diarist import __version__, handler, original, settings
from diarist.cli import app
from diarist.errors import AudioCorruptError, DiaristError, OptionError
from diarist.timeline import Segment, Turn, Word
from diarist.transcript import build

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = [
    *("ASR_MODEL", "DIARIZATION_MODEL", "ASSISTANT_MODEL", "HF_TOKEN", "HF_HUB_OFFLINE"),
    *("DIARIST_OFFLINE", "DIARIST_DEVICE", "DIARIST_DTYPE", "DIARIST_THREADS", "DIARIST_BATCH_SIZE"),
]


class FakePipeline:
    """Notes what it was made of and asked, and says two words."""

    def __init__(self, **options):
        self.made = options
        self.called = []
        self.models = {"asr": {}, "assistant": {"name": "x"} if options["assistant_model"] else None}

    def __call__(self, source, **options):
        self.called.append((source, options))
        if source == b"corrupt":
            raise AudioCorruptError("nothing in it can be decoded")
        if source == b"crash":
            raise ZeroDivisionError("secret detail")
        if self.made["diarization_model"] is None:
            return build([Word("Hello.", 0, 1, 0.9)], duration=2.0, language="en")
        words = [Word("Hello.", 0, 1, 0.9, "SPEAKER_00")]
        return build(words, duration=2.0, language="en", turns=[Turn(Segment(0, 1), "SPEAKER_00")])


@pytest.fixture
def bare_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def unplugged(base_model, tiny_en_model, segmentation_model, embedding_model, sample_recording, monkeypatch):
    """No network from here on; what was called nevertheless."""
    calls = []

    def refuse(*arguments, **_):
        calls.append(arguments)
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return calls


@pytest.fixture
def faked(bare_environment, monkeypatch):
    monkeypatch.setattr("diarist.pipeline.Pipeline", FakePipeline)


@pytest.fixture
def endpoint(faked, monkeypatch):
    monkeypatch.setenv("ASR_MODEL", "base")
    return handler.EndpointHandler("/repository")


class Toolkit:
    """What the platform's container does with a model directory and a request's body."""

    def __init__(self, model_dir, monkeypatch):
        monkeypatch.syspath_prepend(str(model_dir))
        spec = importlib.util.spec_from_file_location("handler", model_dir / "handler.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "handler", module)
        spec.loader.exec_module(module)
        self.handler = module.EndpointHandler(str(model_dir))

    def predict(self, data):
        """Status and body: in a thread, and every exception becomes a 400."""
        try:
            with ThreadPoolExecutor(1) as thread:
                prediction = thread.submit(self.handler, data).result()
            body = orjson.dumps(prediction, option=orjson.OPT_SERIALIZE_NUMPY)
        except Exception as error:  # noqa: BLE001 (so does the container)
            return 400, {"error": str(error)}
        return 200, json.loads(body)


def exported(folder, **options):
    handler.export(folder, handler.repository_files(**options))
    return folder


# --- for real -------------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_r22_the_platform_runs_it_without_a_network(
    bare_environment,
    monkeypatch,
    tmp_path,
    base_model,
    segmentation_model,
    embedding_model,
    sample_recording,
    unplugged,
):
    repository = exported(tmp_path / "repository")
    for name, file in base_model.files.items():
        (repository / name).symlink_to(file)
    diarization = tmp_path / "diarization"
    diarization.mkdir()
    (diarization / "segmentation").symlink_to(segmentation_model.directory)
    (diarization / "embedding").symlink_to(embedding_model.directory)
    monkeypatch.setenv("DIARIZATION_MODEL", str(diarization))
    monkeypatch.setenv("DIARIST_CACHE", str(tmp_path / "empty"))
    toolkit = Toolkit(repository, monkeypatch)
    body = {
        "inputs": base64.b64encode(sample_recording.wav.read_bytes()).decode(),
        "parameters": {"num_speakers": "2", "language": "en", "unheard_of": 1},
    }
    status, reply = toolkit.predict(orjson.loads(orjson.dumps(body)))

    assert status == 200, reply
    assert unplugged == []
    assert "I didn't know you were there" in reply["text"]
    assert {part["speaker"] for part in reply["speakers"]} == {"SPEAKER_00", "SPEAKER_01"}
    for name in ("speakers", "chunks"):
        assert "".join(part["text"] for part in reply[name]).strip() == reply["text"]
        assert all(0 <= start <= end <= 30 for start, end in (part["timestamp"] for part in reply[name]))
    assert any("'unheard_of'" in warning for warning in reply["warnings"])
    assert toolkit.predict({"inputs": b"not audio at all"})[1]["error"].startswith("audio_format: ")


@pytest.mark.weights
def test_r22_models_brought_along_are_enough(
    bare_environment, monkeypatch, tmp_path, tiny_en_model, segmentation_model, unplugged
):
    """Telling speech from silence takes a model even where speakers are not told apart."""
    repository = exported(tmp_path / "repository", model="tiny.en")
    monkeypatch.setenv("DIARIST_CACHE", str(tmp_path / "empty"))
    for model in (tiny_en_model, segmentation_model):
        place = repository / handler.WEIGHTS_FOLDER / "models" / model.kind / model.directory.name
        shutil.copytree(model.directory, place)
    Toolkit(repository, monkeypatch)
    assert unplugged == []


@pytest.mark.weights
def test_r16_a_model_that_knows_english_only(bare_environment, monkeypatch, tiny_en_model, sample_recording):
    monkeypatch.setenv("ASR_MODEL", "tiny.en")
    endpoint = handler.EndpointHandler("")
    reply = endpoint({"inputs": sample_recording.wav.read_bytes(), "parameters": {"batch_size": 24}})
    assert reply["speakers"] == []
    assert "hello" in reply["text"].lower()
    for parameters in ({"language": "de"}, {"task": "translate"}):
        with pytest.raises(DiaristError, match=rf"invalid_option: {next(iter(parameters))}: .*English"):
            endpoint({"inputs": sample_recording.wav.read_bytes(), "parameters": parameters})


# --- what it is made of ---------------------------------------------------------------------------------------------


def test_r23_only_the_recognition_model_is_needed(endpoint):
    made = endpoint.pipeline.made
    assert (made["asr_model"], made["diarization_model"], made["assistant_model"]) == ("base", None, None)
    assert (made["token"], made["offline"], made["device"]) == (None, False, "auto")
    assert endpoint({"inputs": b"RIFF"})["speakers"] == []


@pytest.mark.parametrize(("value", "diarization"), [("default", "default"), ("none", None), ("", None), ("/d", "/d")])
def test_diarization_is_asked_for(faked, monkeypatch, value, diarization):
    monkeypatch.setenv("ASR_MODEL", "base")
    monkeypatch.setenv("DIARIZATION_MODEL", value)
    assert handler.EndpointHandler("").pipeline.made["diarization_model"] == diarization


def test_weights_in_the_repository_are_used(faked, monkeypatch, tmp_path):
    monkeypatch.setenv("ASR_MODEL", "base")
    (tmp_path / "README.md").write_text("no weights")
    assert handler.EndpointHandler(str(tmp_path)).pipeline.made["asr_model"] == "base"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert handler.EndpointHandler(str(tmp_path)).pipeline.made["asr_model"] == str(tmp_path)


def test_models_brought_along_are_the_cache(faked, monkeypatch, tmp_path):
    monkeypatch.setenv("ASR_MODEL", "base")
    monkeypatch.setenv("DIARIST_CACHE", "/elsewhere")
    assert handler.EndpointHandler(str(tmp_path)).pipeline.made["cache_dir"] == Path("/elsewhere")
    (tmp_path / handler.WEIGHTS_FOLDER).mkdir()
    assert handler.EndpointHandler(str(tmp_path)).pipeline.made["cache_dir"] == tmp_path / handler.WEIGHTS_FOLDER


def test_without_any_model_it_does_not_start(faked):
    with pytest.raises(DiaristError, match=r"^invalid_option: ASR_MODEL: is not set"):
        handler.EndpointHandler("")


def test_wrong_settings_are_named(faked, monkeypatch):
    monkeypatch.setenv("ASR_MODEL", "base")
    monkeypatch.setenv("DIARIST_THREADS", "many")
    with pytest.raises(DiaristError, match=r"^invalid_option: DIARIST_THREADS: 'many'"):
        handler.EndpointHandler("")


# --- requests -------------------------------------------------------------------------------------------------------

RECORDING = bytes(range(256))


@pytest.mark.parametrize(
    "inputs",
    [
        RECORDING,
        bytearray(RECORDING),
        memoryview(RECORDING),
        base64.b64encode(RECORDING).decode(),
        base64.encodebytes(RECORDING).decode(),
        "data:audio/wav;base64," + base64.b64encode(RECORDING).decode(),
    ],
    ids=["bytes", "bytearray", "memoryview", "base64", "base64 in lines", "data URL"],
)
@pytest.mark.parametrize("parameters", [{}, {"parameters": None}, {"parameters": {}}], ids=["absent", "null", "empty"])
def test_r20_r21_every_form_of_input(endpoint, inputs, parameters):
    endpoint({"inputs": inputs, **parameters})
    assert endpoint.pipeline.called[0][0] == RECORDING


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "inputs: is missing"),
        ({"inputs": None}, "inputs: is missing"),
        ({"inputs": [0.1, 0.2]}, "inputs: must be bytes or base64 text, not list"),
        ({"inputs": "RIFF!"}, "inputs: is not base64"),
        ({"inputs": "größe"}, "inputs: is not base64"),
        ({"inputs": "QUJ"}, "inputs: is not base64"),
    ],
)
def test_inputs_that_are_none(endpoint, data, message):
    with pytest.raises(DiaristError, match=f"^invalid_option: {message}"):
        endpoint(data)


def test_the_parameters_reach_the_pipeline(endpoint):
    endpoint(
        {"inputs": b"x", "parameters": {"language": "de", "num_speakers": "2", "generate_kwargs": {"num_beams": 3}}}
    )
    options = endpoint.pipeline.called[0][1]
    assert (options["language"], options["num_speakers"], options["beam_size"]) == ("de", 2, 3)
    assert options["limits"].max_input_bytes == handler.MAX_INPUT_BYTES


@pytest.mark.parametrize(
    ("parameters", "param"),
    [([], "parameters"), ("x", "parameters"), ({"batch_size": 0}, "batch_size"), ({"num_speakers": 0}, "num_speakers")],
)
def test_r18_r19_parameters_are_checked_before_anything_is_decoded(endpoint, parameters, param):
    with pytest.raises(DiaristError, match=f"^invalid_option: {param}: "):
        endpoint({"inputs": "not base64!", "parameters": parameters})
    assert endpoint.pipeline.called == []


def test_r13_assisted_without_an_assistant(endpoint):
    with pytest.raises(DiaristError, match=r"^invalid_option: assisted: .* no assistant model"):
        endpoint({"inputs": b"x", "parameters": {"assisted": True}})


def test_r12_assisted_with_an_assistant(faked, monkeypatch):
    monkeypatch.setenv("ASR_MODEL", "base")
    monkeypatch.setenv("ASSISTANT_MODEL", "tiny")
    endpoint = handler.EndpointHandler("")
    assert endpoint({"inputs": b"x", "parameters": {"assisted": True}})["text"] == "Hello."
    with pytest.raises(DiaristError, match=r"^invalid_option: batch_size: "):
        endpoint({"inputs": b"x", "parameters": {"assisted": True, "batch_size": 2}})


def test_unknown_parameters_are_logged_and_answered(endpoint, caplog):
    with caplog.at_level(logging.WARNING, "diarist"):
        reply = endpoint({"inputs": b"x", "parameters": {"a\nb": 1}})
    assert reply["warnings"] == [r"unknown parameters were ignored: 'a\nb'"]
    assert [record.getMessage() for record in caplog.records] == reply["warnings"]


def test_errors_begin_with_their_code(endpoint):
    with pytest.raises(DiaristError, match=r"^audio_corrupt: nothing in it can be decoded$"):
        endpoint({"inputs": b"corrupt"})


def test_what_was_not_foreseen_is_logged_not_told(endpoint, caplog):
    with pytest.raises(DiaristError, match=r"^error: internal error") as caught:
        endpoint({"inputs": b"crash"})
    assert "secret detail" not in str(caught.value)
    assert "secret detail" in caplog.text


def test_threads_do_not_meet_in_it(endpoint):
    threads = [threading.Thread(target=endpoint, args=({"inputs": str(i) * 4},)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(endpoint.pipeline.called) == 8


# --- the model repository -------------------------------------------------------------------------------------------


def test_the_exported_folder_serves_where_only_it_names_a_model(faked, monkeypatch, tmp_path):
    toolkit = Toolkit(exported(tmp_path, model="openai/whisper-small"), monkeypatch)
    assert toolkit.handler.pipeline.made["asr_model"] == "openai/whisper-small"
    assert toolkit.predict({"inputs": b"RIFF"}) == (
        200,
        original.answer(toolkit.handler.pipeline(b""), original.parse({})),
    )
    monkeypatch.setenv("ASR_MODEL", "base")
    assert Toolkit(tmp_path, monkeypatch).handler.pipeline.made["asr_model"] == "base"


def test_the_requirements_are_those_of_this_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert handler.TORCH in project["dependencies"]
    lines = handler.repository_files()["requirements.txt"].splitlines()
    named = [line.partition("  #")[0] for line in lines]
    assert named == [f"diarist=={__version__}", handler.TORCH]
    assert "2.13.0" in Requirement(named[1]).specifier
    assert handler.repository_files(package="diarist @ file:///w.whl")["requirements.txt"].startswith("diarist @ file")


def test_the_card_tells_every_setting_and_has_metadata():
    import yaml

    card = handler.repository_files(model="small")["README.md"]
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["pipeline_tag"] == "automatic-speech-recognition"
    for name in ("ASR_MODEL", "DIARIZATION_MODEL", "ASSISTANT_MODEL", "HF_TOKEN"):
        assert f"`{name}`" in text
        assert name in [field.validation_alias for field in settings.Settings.model_fields.values()]
    assert "unset: `small`" in text
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(example, "README.md", "exec")


def test_export_writes_over_nothing_unless_told(tmp_path):
    exported(tmp_path)
    exported(tmp_path)  # the same again is nothing
    (tmp_path / "handler.py").write_text("mine")
    with pytest.raises(OptionError, match=r"another handler\.py"):
        exported(tmp_path, model="small")
    assert (tmp_path / "handler.py").read_text() == "mine"
    assert "unset: `small`" not in (tmp_path / "README.md").read_text()
    handler.export(tmp_path, handler.repository_files(model="small"), replace=True)
    assert '"small"' in (tmp_path / "handler.py").read_text()


def test_the_command_exports(tmp_path):
    run = typer.testing.CliRunner()
    folder = tmp_path / "new" / "repository"
    done = run.invoke(app, ["handler", "export", str(folder), "--model", "small"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "handler.py", "requirements.txt"]
    assert done.stdout.split() == [str(folder / name) for name in ("handler.py", "requirements.txt", "README.md")]
    assert run.invoke(app, ["handler", "export", str(folder)]).exit_code == 2
    assert run.invoke(app, ["handler", "export", str(folder), "--force"]).exit_code == 0
    assert run.invoke(app, ["handler", "export", str(folder), "--force", "--model", 'x"\n']).exit_code == 2


def test_the_command_brings_models_along(tmp_path, monkeypatch):
    pulled = []

    def pull(name, *, kind, cache_dir, **_):
        pulled.append((name, kind, cache_dir))
        return types.SimpleNamespace(directory=cache_dir / name)

    monkeypatch.setattr("diarist.models.pull", pull)
    done = typer.testing.CliRunner().invoke(app, ["handler", "export", str(tmp_path), "--with-models"])
    assert done.exit_code == 0, done.output
    place = tmp_path / handler.WEIGHTS_FOLDER
    kinds = {"asr", "segmentation", "embedding"}
    assert kinds <= {kind or "asr" for _, kind, _ in pulled}
    assert {cache_dir for *_, cache_dir in pulled} == {place}
    assert pulled[0][0] == "base"
    assert '"base"' in (tmp_path / "handler.py").read_text("utf-8")


def test_importing_it_imports_nothing_large():
    program = "import sys, diarist.handler; print(*sorted({'torch', 'av', 'scipy', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_orjson_knows_numpy():
    """The container dumps with numpy support; the answer needs none, and this shows that the test would see it."""
    assert orjson.dumps({"a": np.float32(1)}, option=orjson.OPT_SERIALIZE_NUMPY) == b'{"a":1.0}'
    assert json.dumps(original.answer(build([], duration=1.0, language=None), original.parse({})))
