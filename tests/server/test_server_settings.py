"""Settings of the server: each is a field, a variable and a flag."""

import inspect
import subprocess
import sys

import pytest

from diarist import cli
from diarist.settings import NO_MODEL, ServerSettings, load_server


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for variables in fields().values():
        for name in variables:
            monkeypatch.delenv(name, raising=False)


def fields():
    found = {}
    for name, field in ServerSettings.model_fields.items():
        alias = field.validation_alias
        found[name] = tuple(getattr(alias, "choices", [alias]))
    return found


def test_every_setting_has_a_flag_that_names_its_variables():
    flags = {}
    for name, parameter in inspect.signature(cli.serve).parameters.items():
        option = parameter.annotation.__metadata__[0]
        if "(env: " in (option.help or ""):
            flags[{"model": "asr_model"}.get(name, name)] = option.help.partition("(env: ")[2].rstrip(")")
    secret = {"hf_token"}
    assert flags == {name: ", ".join(variables) for name, variables in fields().items() if name not in secret}


@pytest.mark.parametrize("name", ServerSettings.model_fields)
def test_every_setting_is_documented(name):
    assert len(ServerSettings.model_fields[name].description.split()) >= 5


def test_the_defaults_that_ship():
    settings = load_server()
    shipped = {
        "host": "127.0.0.1", "port": 7860, "api_keys": None, "insecure": False, "cors_origins": "",
        "max_body_bytes": 512_000_000, "max_form_files": 2, "max_form_fields": 50, "max_text_bytes": 4_000_000,
        "max_running": 64, "max_waiting": 256, "max_waiting_s": 4 * 3600, "deadline_base_s": 60,
        "deadline_per_second": None, "header_timeout_s": 10, "min_upload_rate": 8192, "graceful_stop_s": 30,
        "diarization_model": "default", "otel": False,
    }  # fmt: skip
    assert {name: getattr(settings, name) for name in shipped} == shipped


def test_deployments_of_the_original_decide_about_diarization(monkeypatch):
    assert load_server(asr_model="small").diarization_model == "default"
    monkeypatch.setenv("ASR_MODEL", "small")
    assert load_server().diarization_model == NO_MODEL
    monkeypatch.setenv("DIARIZATION_MODEL", "")
    assert load_server().diarization_model == NO_MODEL
    assert load_server(diarization_model="default").diarization_model == "default"
    monkeypatch.setenv("DIARIZATION_MODEL", "mine")
    assert load_server().diarization_model == "mine"


def test_keys_are_not_shown():
    assert "secret" not in repr(load_server(api_keys="secret"))


def test_tracing_without_its_libraries_is_told(monkeypatch):
    from fake_engine import FakeEngine

    from diarist.errors import OptionError
    from diarist.server.app import create_app

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(OptionError, match=r"otel: install the extra: pip install 'diarist\[otel\]'"):
        create_app(load_server(otel=True), FakeEngine())


def test_the_pipeline_gets_what_was_set():
    options = load_server(diarization_model="none", asr_model="small", threads=2).pipeline_options()
    assert (options["asr_model"], options["diarization_model"], options["threads"]) == ("small", None, 2)


def test_version_and_import_leave_the_server_alone():
    program = (
        "import sys, diarist, diarist.cli; print(*{'fastapi', 'starlette', 'uvicorn', 'structlog'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_public_address_is_refused_by_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "diarist", "serve", "--host", "0.0.0.0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "set DIARIST_API_KEYS" in done.stderr
