"""Keys, limits, leaks: what stands before every route."""

import contextlib
import gzip
import itertools
import select
import socket
import threading

import httpx2
import psutil
import pytest
from fake_engine import FakeEngine
from leaks import LEAKS
from listening import serving

from diarist.errors import OptionError
from diarist.server.serve import check_address
from diarist.settings import ServerSettings

FAKE = b"fake: say Hello there."
PUBLIC = ("/", "/health", "/livez", "/readyz")


def routes(running):
    """Every method and path of the application, those outside the document too."""
    app = running.server.config.app
    found = {("GET", path) for path in ("/docs", "/openapi.json", "/metrics", "/redoc", "/nothing")}
    for prefix in ("", "/api"):
        for path, methods in app.openapi()["paths"].items():
            found |= {(method.upper(), (prefix if path.startswith("/v1") else "") + path) for method in methods}
    return sorted(found)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("# a comment\n\nfrom-the-file\n")
    with serving(
        FakeEngine(),
        tmp_path_factory.mktemp("spool"),
        api_keys=" first-key ,second-kéy",
        api_keys_file=keys,
        cors_origins="https://a.example",
    ) as running:
        yield running


def bearer(key):
    return {"authorization": f"Bearer {key}".encode()}


def test_h14_every_route_needs_a_key(keyed):
    found = routes(keyed)
    assert len(found) > 25
    with httpx2.Client(base_url=keyed.url) as client:
        for method, path in found:
            if method == "GET" and path in PUBLIC:
                assert client.request(method, path).status_code == 200
                continue
            wrong = ("x", "nonsense", "first-key,", "FIRST-KEY", "first-key2", "first-ke", "first-key\tsecond-kéy")
            for headers in (
                {},
                *map(bearer, wrong),
                {"authorization": "Basic Zmlyc3Qta2V5"},
                {"authorization": "first-key"},
            ):
                response = client.request(method, path, headers=headers)
                assert response.status_code == 401, (method, path, headers)
                assert response.headers["www-authenticate"] == "Bearer"
            assert client.request(method, path, headers=bearer("first-key")).status_code != 401


def raw(running, head, body=b""):
    """Status of a request written by hand."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(head.encode("latin-1") + b"\r\n\r\n" + body)
        return int(connection.recv(4096).split(b" ")[1])


def test_h14_no_way_round_the_key(keyed):
    paths = ["//metrics", "/Metrics", "/metrics/", "/%6detrics", "/livez/../metrics", "/livez/%2e%2e/metrics"]
    paths += [
        "/livez;/../metrics",
        "/v1//models",
        "/V1/models",
        "/livez%00",
        "//livez",
        "/livez/",
        "/LIVEZ",
        "/./livez",
    ]
    paths += [
        "/v1/models?path=/livez",
        "/v1/models#/livez",
        "http://127.0.0.1/metrics",
        "/openapi.json/livez",
        "/docs?/livez",
    ]
    for path in paths:
        assert raw(keyed, f"GET {path} HTTP/1.1\r\nHost: x") in (400, 401), path
    for host in ("127.0.0.1/livez", "livez", "a?/livez#", "localhost:7860/livez?"):
        assert raw(keyed, f"GET /metrics HTTP/1.1\r\nHost: {host}") in (400, 401), host
    for extra in ("X-Original-URL: /livez", "X-Forwarded-Prefix: /livez", "X-HTTP-Method-Override: GET"):
        assert raw(keyed, f"GET /metrics HTTP/1.1\r\nHost: x\r\n{extra}") == 401
    assert raw(keyed, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1", b"a") == 401
    assert (
        raw(keyed, "GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer first-key\r\nAuthorization: Bearer x")
        == 401
    )
    for name in ("first-key", "from-the-file"):
        assert raw(keyed, f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: bearer {name}") == 200


def test_h14_only_hashes_are_kept(keyed):
    gate = keyed.server.config.app.build_middleware_stack()
    while not hasattr(gate, "_digests"):
        gate = getattr(gate, "app", None) or gate._app
    assert {len(digest) for digest in gate._digests} == {32}
    assert len(gate._digests) == 3


def test_h14_a_public_address_needs_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(OptionError, match="host"):
            check_address(ServerSettings(host=host))
        check_address(ServerSettings(host=host, insecure=True))
        check_address(ServerSettings(host=host, api_keys="k"))
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_address(ServerSettings(host=host))
    with pytest.raises(OptionError, match="api_keys"):
        check_address(ServerSettings(host="0.0.0.0", api_keys=" , "))
    with pytest.raises(OptionError, match="api_keys_file"):
        check_address(ServerSettings(api_keys_file="/nowhere/keys"))


def test_h15_requests_belong_to_their_key(keyed):
    sent = {**bearer("first-key"), "x-client-request-id": "mine"}

    def post():
        httpx2.post(f"{keyed.url}/", content=b"fake: slow 2", headers=sent, timeout=20)

    thread = threading.Thread(target=post)
    thread.start()
    own = httpx2.Client(base_url=keyed.url, headers=bearer("first-key"))
    other = httpx2.Client(base_url=keyed.url, headers=bearer("second-kéy"))
    with own, other:
        for _ in range(100):
            found = [entry for entry in own.get("/v1/requests").json()["data"] if entry["status"] == "running"]
            if found:
                break
        assert found[0]["client_request_id"] == "mine"
        assert (found[0]["step"], found[0]["percent"], found[0]["seconds_left"]) == ("transcribing", 50.0, 1.5)
        name = found[0]["id"]
        assert len(name) == 4 + 32
        assert other.get("/v1/requests").json()["data"] == []
        for guess in (name, name[:-1], name[:8], name.upper(), "", "*"):
            for method in ("GET", "DELETE"):
                if guess:
                    assert other.request(method, f"/v1/requests/{guess}").status_code == 404
        assert own.get(f"/v1/requests/{name}").json()["id"] == name
        assert own.delete(f"/v1/requests/{name}").status_code == 200
        thread.join(5)
        assert own.get(f"/v1/requests/{name}").json()["status"] == "cancelled"


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    limits = {"max_body_bytes": 3_000_000, "max_text_bytes": 10_000, "max_form_fields": 5}
    with serving(FakeEngine(), tmp_path_factory.mktemp("spool"), **limits) as running:
        yield running


def pieces(total, size=65_536):
    for sent in range(0, total, size):
        yield b"x" * min(size, total - sent)


@pytest.mark.parametrize("path", ["/", "/predict", "/v1/audio/transcriptions"])
def test_h04_too_long_a_body(small, path):
    """With and without a Content-Length; as raw bytes, as JSON, as a form."""
    boundary = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    for content_type in ("audio/wav", "application/json", "multipart/form-data; boundary=b"):
        start = {"application/json": b'{"inputs": "', "audio/wav": b""}.get(content_type, boundary)
        for body in (start + b"x" * 3_000_001, itertools.chain([start], pieces(3_000_001))):
            if path.startswith("/v1") and not content_type.startswith("multipart"):
                continue
            response = httpx2.post(small.url + path, content=body, headers={"content-type": content_type})
            assert response.status_code == 413, (path, content_type)
            assert response.headers["x-request-id"]
            error = response.json()["error"]
            assert (error["code"] if isinstance(error, dict) else response.json()["code"]) == "body_too_large"
    assert small.spooled() == []


def test_h04_a_huge_body_costs_no_memory(small):
    before = psutil.Process().memory_info().rss
    with contextlib.suppress(
        httpx2.TransportError
    ):  # a client that is still sending may see the closed connection only
        httpx2.post(small.url, content=pieces(400_000_000), timeout=30)
    assert psutil.Process().memory_info().rss - before < 32_000_000
    assert small.spooled() == []


def test_h04_who_is_still_sending_sees_the_refusal(small):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", small.port), timeout=10) as client:
            client.sendall(head)
            while not select.select([client], [], [], 0)[0]:
                client.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_h04_form_limits(small):
    def post(data=(), files=()):
        parts = [("file", ("a", FAKE)), *files, *[(name, (None, value)) for name, value in data]]
        return httpx2.post(f"{small.url}/predict", files=parts)

    assert post().status_code == 200
    assert post(data=[(f"f{i}", "x") for i in range(5)]).status_code == 200
    assert post(data=[(f"f{i}", "x") for i in range(6)]).status_code == 400
    assert post(files=[("other", ("b", b"x"))]).status_code == 200
    assert post(files=[("other", ("b", b"x")), ("third", ("c", b"x"))]).status_code == 400
    assert post(files=[("file", ("b", b"x"))]).status_code == 400
    assert post(data=[("f", "x" * 10_001)]).status_code == 413
    assert post(data=[("parameters", "{}")]).status_code == 200


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=", b""),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"nonsense"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nno head\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nfake: say Hi'),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n',
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: " + b"x" * 9000 + b"\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"A: b\r\n" * 3000 + b"\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=" + "b" * 300, b"--" + b"b" * 300 + b"--\r\n"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/v1/audio/transcriptions"])
def test_malformed_forms(small, path, content_type, body):
    response = httpx2.post(small.url + path, content=body, headers={"content-type": content_type})
    assert response.status_code == 400, response.text
    assert not LEAKS.search(response.text)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, gzip", "identity, gzip"])
def test_h07_compressed_bodies_are_refused(small, encoding):
    response = httpx2.post(small.url, content=gzip.compress(FAKE), headers={"content-encoding": encoding})
    assert response.status_code == 415
    assert response.json()["code"] == "unsupported_encoding"
    assert httpx2.post(small.url, content=FAKE, headers={"content-encoding": "identity"}).status_code == 200


# --- what goes out ----------------------------------------------------------------------------------------------------


def test_h16_error_bodies_do_not_leak(fake):
    hostile = ["error ZeroDivisionError", "error OSError", "error ModelNotFoundError", "error AudioNotFoundError"]
    hostile += ["error ComputeError", "error EngineError", "lost", "nonsense", "error OutOfMemoryError"]
    with httpx2.Client(base_url=fake.url) as client:
        responses = [client.post("/", content=f"fake: {text}".encode()) for text in hostile]
        responses += [
            client.post("/v1/audio/transcriptions", files={"file": f"fake: {text}".encode(), "model": (None, "m")})
            for text in hostile
        ]
        responses += [
            client.get(path) for path in ("/nothing", "/v1/nothing", "/v1/models/x", "/v1/requests/x", "/predict")
        ]
        responses += [client.request("PUT", path) for path in ("/", "/v1/models", "/health")]
    for response in responses:
        shown = response.text.replace("fake: lost", "")
        assert response.headers["x-request-id"].startswith("req_")
        if response.status_code >= 400:
            assert not LEAKS.search(shown), shown
            assert "error" in response.json()
        assert not LEAKS.search(str(dict(response.headers)))


def test_404_and_405_have_the_shape_of_their_neighbours(fake):
    assert httpx2.get(f"{fake.url}/v1/nothing").json()["error"]["code"] == "not_found"
    assert set(httpx2.get(f"{fake.url}/nothing").json()) == {"error", "detail", "code"}
    response = httpx2.get(f"{fake.url}/v1/audio/transcriptions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert httpx2.get(f"{fake.url}/predict/", follow_redirects=False).status_code == 404


def test_info_and_models_show_no_paths(fake):
    assert httpx2.get(f"{fake.url}/info").json()["models"]["asr"]["name"] == "fake-model"
    assert httpx2.get(f"{fake.url}/v1/models").json()["data"][0]["id"] == "fake-model"
    assert "/secret" not in httpx2.get(f"{fake.url}/metrics").text


def test_security_headers(fake):
    for path in ("/", "/docs", "/nothing", "/v1/models"):
        headers = httpx2.get(fake.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in headers


def test_cors_only_where_it_is_set(fake, keyed):
    asking = {"origin": "https://a.example", "access-control-request-method": "POST"}
    allowed = httpx2.options(f"{keyed.url}/v1/audio/transcriptions", headers=asking)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    other = httpx2.options(f"{keyed.url}/v1/models", headers={**asking, "origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    refused = httpx2.get(f"{keyed.url}/v1/models", headers={"origin": "https://a.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in httpx2.get(f"{fake.url}/", headers=asking).headers


def test_docs_load_nothing_from_anywhere(fake):
    page = httpx2.get(f"{fake.url}/docs").text
    assert "/v1/audio/transcriptions" in page
    assert "num_speakers" in page
    assert "://" not in page.replace("https://github.com", "")
    assert "<script" not in page
