"""Traces through the real OpenTelemetry SDK and exporter to a collector that listens here: what a trace holds, and what not."""

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fake_engine
import httpx2
import pytest

from diarist import errors

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


@pytest.fixture
def collector():
    """Its address, and the bodies of what it was sent."""
    bodies = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


def test_h40_traces_say_what_was_asked_and_nothing_that_was_said(collector, tmp_path):
    address, bodies = collector
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(errors.__file__).parents[1]), *sys.path]),
        "OTEL_EXPORTER_OTLP_ENDPOINT": address,
    }
    command = [sys.executable, fake_engine.__file__, str(port), f"spool_dir={tmp_path}", "otel=true"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as child:
        try:
            until = time.monotonic() + 40
            while time.monotonic() < until:
                try:
                    httpx2.get(f"{url}/readyz")
                    break
                except httpx2.TransportError:
                    time.sleep(0.05)
            said = httpx2.post(f"{url}/predict?marked=query", content=b"fake: say Confidential words.")
            assert "Confidential" in said.text
            failed = httpx2.post(f"{url}/predict", content=b"fake: error ZeroDivisionError")
            lost = httpx2.post(f"{url}/predict", content=b"fake: error WorkerLostError")
            assert (said.status_code, failed.status_code, lost.status_code) == (200, 500, 503)
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0  # what is left to send is sent on the way out
        finally:
            child.kill()
    spans = []
    for body in bodies:
        for resource in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    predicted = [span for span in spans if span.name == "POST /predict"]
    told = [{pair.key: pair.value.int_value for pair in span.attributes} for span in predicted]
    assert told == [{"http.response.status_code": status} for status in (200, 500, 503)]
    assert [span.status.code for span in predicted] == [0, 2, 2]  # unset, error, error
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in predicted)
    sent = b"".join(bodies)
    for secret in (b"Confidential", b"0xdead", b"/root/secret", b"ZeroDivisionError", b"marked"):
        assert secret not in sent
