"""The OpenAPI document held against the application: whatever fits or breaks it, the answer is one that it announces.

A small number of cases here; `DIARIST_FUZZ_CASES=2000` (for each operation) is what the soak runs.
"""

import json
import os
import random
import string

import httpx2
import schemathesis
from fake_engine import FakeEngine
from hypothesis import HealthCheck, settings
from leaks import LEAKS
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from diarist.server.app import create_app
from diarist.settings import ServerSettings

CASES = int(os.environ.get("DIARIST_FUZZ_CASES", "12"))
NOT_HELD = [
    negative_data_rejection,  # unknown keys are ignored by contract, and numbers may be text
    positive_data_acceptance,  # what fits the schema need not be audio
    unsupported_method,  # HEAD of health routes is served and not in the document
    ignored_auth,  # every route is swept for keys elsewhere
]


schema = schemathesis.openapi.from_dict(
    create_app(ServerSettings(), FakeEngine()).openapi(), config=SchemathesisConfig()
)


@schema.parametrize()
@settings(
    max_examples=CASES, deadline=None, derandomize=CASES < 100, suppress_health_check=list(HealthCheck), database=None
)
def test_h30_answers_are_the_documents(case, fake):
    response = case.call(base_url=fake.url, timeout=20)
    assert response.status_code < 500
    case.validate_response(
        response,
        checks=[status_code_conformance, content_type_conformance, response_schema_conformance],
        excluded_checks=NOT_HELD,
    )
    assert response.headers["x-request-id"][0].startswith("req_")


def garbage(source):
    """A request that no client would send."""
    kinds = ["multipart/form-data; boundary=b", "application/json", "audio/wav", "", "multipart/form-data", "text/\x7f"]
    body = source.choice(
        [
            source.randbytes(source.randint(0, 3000)),
            b"fake: say " + source.randbytes(50),
            json.dumps({"inputs": "".join(source.choices(string.printable, k=50)), "parameters": source.random()}).encode(),
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + source.randbytes(9) + b'"\r\n\r\nfake: say Hi'
            + source.choice([b"", b"\r\n--b--", b"\r\n--b\r\n"]) + source.randbytes(source.randint(0, 20)),
        ]
    )  # fmt: skip
    path = source.choice(
        ["/", "/predict", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/models/%s", "/v1/requests"]
    )
    method = source.choice(["POST", "POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD"])
    return method, path % source.random() if "%s" in path else path, {"content-type": source.choice(kinds)}, body


def test_h16_h30_malformed_requests(fake):
    """Twenty thousand of them in the soak; nothing may fail on our side, and nothing may stay behind."""
    source = random.Random(7)
    with httpx2.Client(base_url=fake.url, timeout=20) as client:
        for _ in range(25 * CASES):
            method, path, headers, body = garbage(source)
            try:
                response = client.request(method, path, headers=headers, content=body)
            except httpx2.LocalProtocolError:
                continue  # the client refuses to send it
            assert response.status_code < 500, (method, path, headers, body, response.text)
            assert response.status_code == 200 or not LEAKS.search(response.text)
    assert fake.spooled() == []
    assert fake.service.registry.open == 0
