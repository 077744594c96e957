"""`diarist serve` as people start it: a process of its own, the real engine and model, no network."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave

import httpx2
import openai
import psutil
import pytest

GUARD = """
import os, socket
def note(what):
    with open(os.environ["GUARD_LOG"], "a") as log:
        log.write(what + chr(10))
note("guarded")
def guarded(name):
    original = getattr(socket.socket, name)
    def call(self, address, *rest):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1")):
            note(f"{name} {address}")
        return original(self, address, *rest)
    setattr(socket.socket, name, call)
for name in ("connect", "connect_ex", "sendto"):
    guarded(name)
resolve = socket.getaddrinfo
def looked_up(host, *rest, **options):
    if host not in ("127.0.0.1", "localhost", None, b"127.0.0.1"):
        note(f"getaddrinfo {host}")
    return resolve(host, *rest, **options)
socket.getaddrinfo = looked_up
"""


@pytest.fixture(scope="module")
def served(base_model, segmentation_model, embedding_model, tmp_path_factory):
    """The command on a free port, offline, with every connection that it opens noted."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder / "guard"), *sys.path]),
        "GUARD_LOG": str(folder / "log"),
        "HF_HUB_OFFLINE": "1",
        "DIARIST_SPOOL_DIR": str(folder / "spool"),
        "DIARIST_API_KEYS": "the-key",
        "DIARIST_THREADS": "1",
    }
    command = [sys.executable, "-m", "diarist", "serve", "--port", str(port), "--graceful-stop-s", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as child:
        try:
            yield child, f"http://127.0.0.1:{port}", folder
        finally:
            child.kill()


def wait_until_ready(url, seconds=60.0):
    """The statuses that `/readyz` had on the way."""
    seen = []
    until = time.monotonic() + seconds
    while 200 not in seen:
        assert time.monotonic() < until
        with contextlib.suppress(httpx2.TransportError):
            seen.append(httpx2.get(f"{url}/readyz").status_code)
        time.sleep(0.05)
    return set(seen)


def cut(recording, start, end):
    """A part of a recording, in seconds, as the bytes of a wav file."""
    out = io.BytesIO()
    with wave.open(str(recording)) as source, wave.open(out, "wb") as target:
        target.setparams(source.getparams())
        source.setpos(round(start * source.getframerate()))
        target.writeframes(source.readframes(round((end - start) * source.getframerate())))
    return out.getvalue()


def turns(rttm):
    for line in rttm.read_text().splitlines():
        fields = line.split()
        yield fields[7], float(fields[3]), float(fields[3]) + float(fields[4])


def test_h20_h34_h41_the_whole_life_of_a_server(served, sample_recording):
    child, url, folder = served
    assert wait_until_ready(url) >= {200, 503}  # listening before its models are loaded
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="the-key", max_retries=0)
    with client:
        speaker, start, end = max(turns(sample_recording.rttm), key=lambda turn: turn[2] - turn[1])
        voice = base64.b64encode(cut(sample_recording.wav, start, min(end, start + 8))).decode()
        answer = client.audio.transcriptions.create(
            file=sample_recording.wav,
            model="gpt-4o-transcribe-diarize",
            response_format="diarized_json",
            extra_body={"known_speaker_names": ["Ann"], "known_speaker_references": [f"data:audio/wav;base64,{voice}"]},
        )
    spoken = {name: sum(s.end - s.start for s in answer.segments if s.speaker == name) for name in ("Ann", "A")}
    assert {segment.speaker for segment in answer.segments} == {"Ann", "A"}
    assert min(spoken.values()) > 2
    inside = [s.speaker for s in answer.segments if start + 0.5 < (s.start + s.end) / 2 < end - 0.5]
    assert set(inside) == {"Ann"}, speaker

    mapped = {mapping.path for mapping in psutil.Process(child.pid).memory_maps()}
    assert not [path for path in mapped if "torch" in path]  # only its worker computes
    assert psutil.Process(child.pid).memory_info().rss < 160e6

    figures = httpx2.get(f"{url}/metrics", headers={"authorization": "Bearer the-key"}).text
    assert "diarist_engine_worker_rss_bytes" in figures
    assert 'diarist_http_requests_total{method="POST",route="/v1/audio/transcriptions",status="200"} 1.0' in figures

    answers = []
    recording = sample_recording.wav.read_bytes()
    sent = {"authorization": "Bearer the-key"}
    posting = threading.Thread(
        target=lambda: answers.append(httpx2.post(url, content=recording, headers=sent, timeout=60))
    )
    posting.start()
    until = time.monotonic() + 20
    while not any(
        entry["status"] == "running" for entry in httpx2.get(f"{url}/v1/requests", headers=sent).json()["data"]
    ):
        assert time.monotonic() < until
        time.sleep(0.05)
    workers = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGTERM)
    posting.join(60)
    assert answers[0].status_code == 200
    assert answers[0].json()["speakers"]
    assert child.wait(60) == 0
    psutil.wait_procs(workers, timeout=5)
    assert not any(worker.is_running() for worker in workers)
    assert [path for path in (folder / "spool").rglob("*") if path.is_file()] == []
    written = child.stderr.read().decode()
    assert all(json.loads(line) for line in written.splitlines())
    assert "Traceback" not in written
    noted = (folder / "log").read_text().splitlines()
    assert set(noted) == {"guarded"}
    assert len(noted) >= 2  # the server and its worker
