"""The container files: linted, and held to what they promise. No container engine is needed, so none is run."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from diarist import handler

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = [DEPLOY / "Dockerfile.cpu", DEPLOY / "Dockerfile.cuda"]
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY", re.IGNORECASE)


class Stage(NamedTuple):
    base: str
    name: str
    instructions: list[tuple[str, str]]


def stages(text):
    """The stages of a Dockerfile; hadolint has checked that it is one."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = []
    for line in re.sub(r"\\\n", " ", lines).splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base.strip(), name.strip(), []))
        else:
            found[-1].instructions.append((instruction, " ".join(rest.split())))
    return found


def lineage(name, every):
    """The instructions of an image: those of its stage after those of what it is based on."""
    by_name = {stage.name: stage for stage in every}
    stage = by_name[name]
    return [*(lineage(stage.base, every) if stage.base in by_name else []), *stage.instructions]


def last(instruction, instructions):
    return [rest for name, rest in instructions if name == instruction][-1]


def lint(path):
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "hadolint comes with the test extra"
    done = subprocess.run(
        [program, "--no-color", "--format", "json", path], capture_output=True, text=True, check=False
    )
    return [finding["code"] for finding in json.loads(done.stdout)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_hadolint_finds_nothing(path):
    assert lint(path) == []


def test_hadolint_is_awake(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nADD https://example.org/x /x\nUSER root\nCMD diarist serve\n")
    assert {"DL3007", "DL3025", "DL3002"} <= set(lint(bad))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
class TestImages:
    @pytest.mark.parametrize("target", ["server", "endpoint"])
    def test_h44_nobody_is_root(self, path, target):
        image = lineage(target, stages(path.read_text("utf-8")))
        user = last("USER", image)
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # numbers: orchestrators that forbid root must be able to tell
        assert f"useradd --uid {user.split(':')[0]} " in last("RUN", image)

    @pytest.mark.parametrize("target", ["server", "endpoint"])
    def test_it_is_checked_and_gets_signals(self, path, target):
        image = lineage(target, stages(path.read_text("utf-8")))
        options, _, check = last("HEALTHCHECK", image).partition("CMD ")
        assert json.loads(check) == ["python", "/usr/local/lib/diarist/healthcheck.py"]
        assert "--start-period" in options
        for instruction in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(last(instruction, image)), list)  # exec form: no shell in between

    def test_h14_only_the_endpoint_does_without_a_key(self, path):
        every = stages(path.read_text("utf-8"))
        assert every[-1].name == "server"  # what is built when no target is named
        commands = {name: json.loads(last("CMD", lineage(name, every))) for name in ("server", "endpoint")}
        assert commands["server"] == ["diarist", "serve", "--host", "0.0.0.0"]
        assert commands["endpoint"] == [*commands["server"], "--insecure"]

    def test_what_is_shipped_is_made_in_another_stage(self, path):
        every = stages(path.read_text("utf-8"))
        pip = [stage.name for stage in every for name, rest in stage.instructions if name == "RUN" and "pip" in rest]
        assert set(pip) == {"build"}
        assert {"build", "weights"} <= {stage.name for stage in every}
        assert not any(name == "ADD" for stage in every for name, _ in stage.instructions)

    def test_no_secret_is_in_a_layer(self, path):
        for stage in stages(path.read_text("utf-8")):
            for name, rest in stage.instructions:
                if name in ("ENV", "ARG"):
                    assert not SECRET.search(rest)
        assert "--mount=type=secret,id=hf_token" in path.read_text("utf-8")

    def test_base_images_are_pinned(self, path):
        every = stages(path.read_text("utf-8"))
        for base in {stage.base for stage in every} - {stage.name for stage in every}:
            assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?", base)

    def test_it_copies_only_what_reaches_it(self, path):
        allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"]
        copied = [
            source
            for stage in stages(path.read_text("utf-8"))
            for name, rest in stage.instructions
            if name == "COPY" and "--from" not in rest
            for source in rest.split()[:-1]
        ]
        assert sorted(copied) == sorted(allowed)
        assert all((ROOT / source).exists() for source in copied)


def test_the_image_context_is_a_list_of_what_is_wanted():
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"


def test_both_images_are_alike_but_for_torch():
    cpu, cuda = (stages(path.read_text("utf-8")) for path in DOCKERFILES)
    for target in ("server", "endpoint"):
        ours, theirs = ([pair for pair in lineage(target, image) if pair[0] != "ENV"] for image in (cpu, cuda))
        assert ours == theirs


class TestCompose:
    SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]

    @pytest.mark.parametrize("name", ["cpu", "cuda"])
    def test_h14_h44_least_privilege_and_a_key(self, name):
        service = self.SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
        assert service["environment"]["DIARIST_API_KEYS_FILE"] == "/run/secrets/api_keys"
        assert service["secrets"] == ["api_keys"]
        assert service["build"]["target"] == "server"
        assert "privileged" not in service
        assert "command" not in service
        assert service["environment"]["HF_TOKEN"] is None  # taken from the shell, never written down

    def test_the_dockerfiles_are_there(self):
        for service in self.SERVICES.values():
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()

    def test_keys_are_not_committed(self):
        assert "deploy/api_keys" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


# --- what runs in the containers --------------------------------------------------------------------------------------


@pytest.fixture
def entrypoint(monkeypatch):
    monkeypatch.syspath_prepend(str(DEPLOY))
    import entrypoint

    yield entrypoint
    del sys.modules["entrypoint"]


def test_a_mounted_repository_is_used(entrypoint, tmp_path):
    given = {"ASR_MODEL": "small", "DIARIST_CACHE": "/models"}
    assert entrypoint.environment(tmp_path / "absent", given) == given
    assert entrypoint.environment(tmp_path, given) == given
    (tmp_path / handler.WEIGHTS_FOLDER).mkdir()
    assert entrypoint.environment(tmp_path, given)["DIARIST_CACHE"] == str(tmp_path / handler.WEIGHTS_FOLDER)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert entrypoint.environment(tmp_path, given)["ASR_MODEL"] == str(tmp_path)


def test_the_command_takes_the_place_of_the_entrypoint():
    process = subprocess.Popen(
        [
            sys.executable,
            DEPLOY / "entrypoint.py",
            sys.executable,
            "-c",
            "import os; print(os.getpid(), os.environ['A'])",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "A": "b c"},
    )
    assert process.communicate(timeout=30)[0].split() == [str(process.pid), "b", "c"]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (301, False), (None, False)])
def test_the_health_check(status, healthy):
    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/health"
            self.send_response(status)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.handle_request)
    thread.start() if status else server.server_close()
    environment = {**os.environ, "DIARIST_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, DEPLOY / "healthcheck.py"], env=environment, check=False, timeout=30)
    if status:
        thread.join()
        server.server_close()
    assert (done.returncode == 0) is healthy
