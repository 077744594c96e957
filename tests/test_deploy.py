"""Endpoints, against a local server that plays the platform's API and the hub's `whoami`."""

import json
import re
import shlex
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import typer.testing
from huggingface_hub import constants

from diarist import deploy
from diarist.cli import app
from diarist.errors import DeployError, OptionError

TOKEN = "hf_" + "abcdefgh" * 4
CREATE = ["create", "asr", "--repository", "me/model"]


@dataclass
class Platform:
    """What the API has, and what it was asked."""

    endpoints: dict[str, dict] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)  # the next answers to "how is it?"; the last one stays
    requests: list[tuple[str, str, dict | None]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    refusal: tuple[int, str] | None = None
    unhealthy: int = 0  # how often the health route says 503 first
    url: str = ""

    def answer(self, method, path, body):
        """Status and JSON."""
        self.requests.append((method, path, body))
        if path.endswith("/health"):
            self.unhealthy -= 1
            return (503 if self.unhealthy >= 0 else 200), {}
        if self.refusal:
            return self.refusal[0], {"error": self.refusal[1]} if self.refusal[1] else {}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me"}
        name = path.split("/")[4] if method != "POST" or path.count("/") > 3 else body["name"]
        if method == "POST" and path.count("/") == 3:
            if name in self.endpoints:
                return 409, {"error": "exists"}
            model = {key: value for key, value in body["model"].items() if key != "secrets"}
            self.endpoints[name] = {"name": name, "healthRoute": "/health", "model": model, "type": body["type"]}
            self.states = self.states or ["pending"]
        if name not in self.endpoints:
            return 404, {"error": "Endpoint not found"}
        if method == "DELETE":
            del self.endpoints[name]
            return 200, {}
        if path.endswith("/pause"):
            self.states = ["paused"]
        if path.endswith("/resume"):
            if self.states == ["running"]:
                return 400, {"error": "Endpoint is already running"}
            self.states = ["initializing", "running"]
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        times = {"createdAt": "2026-11-22T10:00:00.000Z", "updatedAt": "2026-11-22T10:00:00.000Z"}
        status = {"state": state, "message": f"it is\n{state}", **times}
        return 200, {**self.endpoints[name], "status": {**status, **({"url": self.url} if state == "running" else {})}}


class _Handler(BaseHTTPRequestHandler):
    platform: Platform

    def log_message(self, *_):
        pass

    def _serve(self):
        size = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self.platform.tokens.add(self.headers.get("authorization"))
        status, reply = self.platform.answer(self.command, self.path, body)
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _serve


@contextmanager
def serving(platform):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"platform": platform}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def platform(monkeypatch):
    playing = Platform()
    with serving(playing) as url:
        playing.url = url
        monkeypatch.setattr(constants, "INFERENCE_ENDPOINTS_ENDPOINT", f"{url}/v2")
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield playing
        huggingface_hub.close_session()


def run(*arguments, **options):
    return typer.testing.CliRunner().invoke(app, ["deploy", *arguments], **options)


def test_create_sends_what_the_platform_expects(platform, monkeypatch):
    monkeypatch.setenv("WEBHOOK_KEY", "s3cret")
    done = run(
        *CREATE, "--namespace", "team", "--revision", "main", "--image", "registry/diarist:1", "--vendor", "azure",
        "--region", "eastus", "--accelerator", "cpu", "--instance-type", "intel-spr", "--instance-size", "x4",
        "--min-replica", "0", "--max-replica", "3", "--scale-to-zero", "15", "--type", "private", "-m", "small",
        "--diarization-model", "default", "--assistant-model", "tiny", "--env", "DIARIST_DTYPE=bfloat16",
        "--secret", "HF_TOKEN", "--secret", "WEBHOOK_KEY",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert platform.requests == [
        (
            "POST",
            "/v2/endpoint/team",
            {
                "compute": {
                    "accelerator": "cpu",
                    "instanceSize": "x4",
                    "instanceType": "intel-spr",
                    "scaling": {"maxReplica": 3, "minReplica": 0, "scaleToZeroTimeout": 15},
                },
                "model": {
                    "framework": "pytorch",
                    "repository": "me/model",
                    "revision": "main",
                    "task": "custom",
                    "image": {"custom": {"url": "registry/diarist:1", "port": 7860, "healthRoute": "/health"}},
                    "env": {
                        "DIARIST_DTYPE": "bfloat16",
                        "ASR_MODEL": "small",
                        "DIARIZATION_MODEL": "default",
                        "ASSISTANT_MODEL": "tiny",
                    },
                    "secrets": {"HF_TOKEN": TOKEN, "WEBHOOK_KEY": "s3cret"},
                },
                "name": "asr",
                "provider": {"region": "eastus", "vendor": "azure"},
                "type": "private",
            },
        )
    ]
    assert platform.tokens == {f"Bearer {TOKEN}"}
    assert done.stdout == "team/asr pending - it is pending\n"


@pytest.mark.parametrize("verb", ["create", "update"])
def test_a_rehearsal_masks_secrets_and_sends_nothing(platform, monkeypatch, verb):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run(verb, "asr", "--repository", "me/model", "--secret", "HF_TOKEN", "--dry-run")
    assert done.exit_code == 0, done.output
    assert TOKEN not in done.output
    assert json.loads(done.stdout)["model"]["secrets"] == {"HF_TOKEN": "***"}
    assert platform.requests == []
    assert "/v2/endpoint/YOUR-ACCOUNT" in done.stderr


def test_after_a_rehearsal_requests_are_sent(platform):
    run(*CREATE, "--dry-run")
    assert run(*CREATE).exit_code == 0
    assert [request[:2] for request in platform.requests] == [
        ("GET", "/api/whoami-v2"),
        ("POST", "/v2/endpoint/me"),
    ]


def test_the_rehearsed_request_is_the_one_sent(platform):
    arguments = [*CREATE, "--namespace", "me", "-m", "base", "--image", "r/i:1"]
    rehearsed = json.loads(run(*arguments, "--dry-run").stdout)
    run(*arguments)
    assert platform.requests == [("POST", "/v2/endpoint/me", rehearsed)]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--env", f"{name}=anything"] for name in ("HF_TOKEN", "hf_token", "HUGGING_FACE_HUB_TOKEN")),
        ["--env", f"HARMLESS={TOKEN}"],
        ["--secret", f"HF_TOKEN={TOKEN}"],
        ["--secret", "NOT_SET_HERE"],
        ["--secret", "HF_TOKEN", "--env", "HF_TOKEN=x"],
    ],
)
def test_a_token_is_never_a_plain_variable_nor_on_the_command_line(platform, arguments):
    done = run(*CREATE, *arguments)
    assert done.exit_code == 2
    assert platform.requests == []
    assert TOKEN not in done.output
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["create", "asr"], "repository"),
        ([*CREATE, "--min-replica", "2"], "min_replica"),
        ([*CREATE, "--min-replica", "1", "--scale-to-zero", "5"], "scale_to_zero_minutes"),
        ([*CREATE, "--env", "NOVALUE"], "--env"),
        ([*CREATE, "--env", "no name=x"], "env"),
        (["update", "asr"], "update"),
        (["delete", "asr"], "--yes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(platform, arguments, named):
    done = run(*arguments)
    assert done.exit_code == 2
    assert f"diarist: {named}: " in done.stderr
    assert platform.requests == []


def test_an_endpoint_that_always_runs_is_never_scaled_to_zero(platform):
    assert run(*CREATE, "--namespace", "me", "--min-replica", "1").exit_code == 0
    scaling = platform.requests[0][2]["compute"]["scaling"]
    assert scaling == {"minReplica": 1, "maxReplica": 1, "scaleToZeroTimeout": None}


def test_a_public_endpoint_is_warned_about(platform):
    assert "at your expense" in run(*CREATE, "--type", "public").stderr
    assert "at your expense" not in run("create", "b", "--repository", "me/model").stderr


def test_the_documented_command_is_one(platform):
    text = (Path(__file__).resolve().parents[1] / "deploy" / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^\$ diarist deploy (create .*)", text.replace("\\\n", " "), re.MULTILINE)
    done = run(*shlex.split(command), "--dry-run")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"]["image"]["custom"]["url"].endswith(":endpoint")


def test_what_cannot_change_is_refused():
    with pytest.raises(OptionError, match="region: cannot be changed"):
        deploy.update(deploy.connect("x"), "asr", "me", deploy.EndpointOptions(region="eu-west-1", max_replica=2))


def test_the_life_of_an_endpoint(platform):
    assert run(*CREATE, "--namespace", "me").exit_code == 0
    platform.states = ["running"]
    assert run("status", "asr", "--namespace", "me").stdout.split()[:3] == ["me/asr", "running", platform.url]
    changed = run("update", "asr", "--namespace", "me", "--max-replica", "4", "--instance-size", "x4", "-m", "small")
    assert changed.exit_code == 0, changed.output
    assert platform.requests[-1] == (
        "PUT",
        "/v2/endpoint/me/asr",
        {"compute": {"instanceSize": "x4", "scaling": {"maxReplica": 4}}, "model": {"env": {"ASR_MODEL": "small"}}},
    )
    assert run("resume", "asr", "--namespace", "me").stdout.split()[1] == "running"  # which it did
    assert run("pause", "asr", "--namespace", "me").stdout.split()[1] == "paused"
    assert run("resume", "asr", "--namespace", "me").stdout.split()[1] == "initializing"
    assert run("delete", "asr", "--namespace", "me", "--yes").exit_code == 0
    assert platform.endpoints == {}
    assert run("status", "asr", "--namespace", "me").exit_code == 1


# --- waiting --------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(deploy.time, "sleep", lambda _: None)


def test_waiting_shows_each_status_until_the_endpoint_answers(platform, impatient):
    platform.states = ["pending", "pending", "initializing", "running"]
    platform.unhealthy = 2
    done = run(*CREATE, "--namespace", "me", "--wait")
    assert done.exit_code == 0, done.output
    assert [line.split(" after")[0] for line in done.stderr.splitlines()] == [
        "asr: pending",
        "asr: initializing",
        "asr: running",
    ]
    assert done.stdout.split()[:3] == ["me/asr", "running", platform.url]
    assert [path for _, path, _ in platform.requests].count("/health") == 3


def test_waiting_on_a_terminal_shows_the_latest_status(platform, impatient, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    platform.states = ["pending", "initializing", "running"]
    done = run(*CREATE, "--namespace", "me", "--wait")
    assert done.exit_code == 0, done.output
    assert done.stdout.split()[:2] == ["me/asr", "running"]
    assert "asr after" not in done.stderr


def test_waiting_ends_where_it_cannot_succeed(platform, impatient):
    platform.states = ["pending", "failed"]
    done = run(*CREATE, "--namespace", "me", "--wait")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("diarist: wait me/asr: Inference Endpoint asr failed to deploy")


def test_scaled_to_zero_is_as_good_as_running(platform, impatient):
    platform.states = ["pending", "scaledToZero"]
    assert run(*CREATE, "--namespace", "me", "--wait").exit_code == 0


@pytest.mark.parametrize(("failures", "status"), [(2, 0), (3, 1)])
def test_a_question_that_goes_astray_does_not_end_the_wait(platform, impatient, monkeypatch, failures, status):
    platform.states = ["pending", "running"]
    answer, left = Platform.answer, [failures]

    def flaky(self, method, path, body):
        if method == "GET" and path.endswith("/asr") and left[0]:
            left[0] -= 1
            return 502, {}
        return answer(self, method, path, body)

    monkeypatch.setattr(Platform, "answer", flaky)
    done = run(*CREATE, "--namespace", "me", "--wait")
    assert done.exit_code == status
    assert ("(502)" in done.stderr) is bool(status)


def test_waiting_gives_up(platform, impatient):
    run(*CREATE, "--namespace", "me")
    endpoint = deploy.status(deploy.connect(), "asr", "me")
    told = []
    with pytest.raises(DeployError, match="asr is still pending after 0 s"):
        deploy.wait(endpoint, lambda *said: told.append(said), timeout_s=0)
    assert told[0][0] == "pending"


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (
            (400, "instance not available in region"),
            "the API refuses the request (400: instance not available in region)",
        ),
        ((401, "Invalid credentials"), "log in with `hf auth login`, or set HF_TOKEN (401"),
        ((402, ""), "no means of payment (402)"),
        ((403, "Forbidden"), "needs write access"),
        ((403, "GPU quota exceeded:\n2 of 2"), "the quota of the account is used up"),
        ((404, "Repository not found"), "there is no such account or repository (404"),
        ((409, "exists"), "the name is taken"),
        ((418, "teapot"), "the API refuses (418: teapot)"),
        ((422, "bad name"), "(422: bad name)"),
        ((429, "slow down"), "too many requests"),
        ((503, ""), "the API failed: try again later (503)"),
    ],
)
def test_refusals_become_one_line_that_helps(platform, refusal, told):
    platform.refusal = refusal
    done = run(*CREATE, "--namespace", "me")
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("diarist: create me/asr: ")
    assert told in line
    assert TOKEN not in line


def test_every_verb_explains_itself(platform):
    for verb in ("status", "pause", "resume", "delete", "update"):
        extra = {"delete": ["--yes"], "update": ["--max-replica", "2"]}.get(verb, [])
        done = run(verb, "gone", "--namespace", "me", *extra)
        assert done.exit_code == 1
        assert f"diarist: {verb} me/gone: there is no such endpoint (404: Endpoint not found)" in done.stderr


def test_an_unreachable_api(platform, monkeypatch):
    monkeypatch.setattr(constants, "INFERENCE_ENDPOINTS_ENDPOINT", "http://127.0.0.1:9/v2")
    done = run("status", "asr", "--namespace", "me")
    assert done.exit_code == 1
    assert "the API cannot be reached" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_a_token(platform, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "none either"))
    done = run("status", "asr")
    assert done.exit_code == 1
    assert "diarist: status asr: " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_deleting_asks_first(platform, monkeypatch):
    run(*CREATE, "--namespace", "me")
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    assert run("delete", "asr", "--namespace", "me", input="n\n").exit_code == 1
    assert "asr" in platform.endpoints
    assert run("delete", "asr", "--namespace", "me", input="y\n").exit_code == 0
    assert platform.endpoints == {}
