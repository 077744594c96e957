"""Hugging Face's contract, by its own clients."""

import base64
import json

import httpx2
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own affair


@pytest.fixture(scope="module")
def client(real):
    return InferenceClient(model=real.url, token="none")


@pytest.fixture(scope="module")
def text(client, clip):
    return client.automatic_speech_recognition(str(clip)).text


def test_bytes_without_a_content_type(client, text, clip):
    answer = client.automatic_speech_recognition(clip.read_bytes())
    assert answer.text == text
    assert "hello" in text.lower()
    assert "".join(chunk.text for chunk in answer.chunks).split() == text.split()
    assert all(len(chunk.timestamp) == 2 for chunk in answer.chunks)
    assert next(part["speaker"] for part in answer.speakers) == "SPEAKER_00"


def test_a_path_and_the_other_route(real, text, clip):
    client = InferenceClient(model=f"{real.url}/predict", token="none")
    assert client.automatic_speech_recognition(clip).text == text


def test_extra_body(client, text, clip):
    answer = client.automatic_speech_recognition(
        str(clip),
        extra_body={"return_timestamps": "word", "num_speakers": 2, "generation_parameters": {"num_beams": 1}},
    )
    assert answer.text.split()[:2] == text.split()[:2]
    assert [chunk.text.strip() for chunk in answer.chunks] == answer.text.split()


async def test_the_async_client(real, text, clip):
    async with AsyncInferenceClient(model=real.url, token="none") as client:
        assert (await client.automatic_speech_recognition(clip.read_bytes())).text == text
        answer = await client.automatic_speech_recognition(clip, extra_body={"num_speakers": 2})
        assert answer.text == text


def test_errors_show_their_message(fake):
    client = InferenceClient(model=fake.url, token="none")
    with pytest.raises(BadRequestError, match="Error validating parameters: num_speakers"):
        client.automatic_speech_recognition(b"fake: say Hello.", extra_body={"num_speakers": 0})
    with pytest.raises(HfHubHTTPError, match="This is not audio") as caught:
        client.automatic_speech_recognition(b"no audio at all")
    assert caught.value.response.status_code == 415
    assert caught.value.request_id.startswith("req_")


def test_health_and_info(real):
    client = InferenceClient(provider="hf-inference", model=real.url, token="none")
    assert client.health_check()
    info = client.get_endpoint_info()
    assert info["models"]["asr"]["name"] == "base"
    assert info["ready"]


def test_generate_kwargs_is_the_same(fake):
    body = {
        "inputs": base64.b64encode(b"fake: say Hello.").decode(),
        "parameters": {"generate_kwargs": {"num_beams": 3}},
    }
    assert httpx2.post(fake.url, json=body).status_code == 200
    assert fake.engine.submitted[-1].work.request.decoding.beam_size == 3


def test_escaped_base64_and_keys_in_any_order(fake):
    inputs = base64.b64encode(b"fake: say ???>>>").decode().replace("/", "\\/")
    assert "\\/" in inputs
    text = f'{{"parameters": {{"inputs": "no", "a": ["inputs", {{"inputs": 1}}]}}, "inputs" : "{inputs}"}}'
    answer = httpx2.post(fake.url, content=text, headers={"content-type": "Application/JSON; charset=UTF-8"})
    assert answer.json()["text"] == "???>>>"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"", 422),
        (b"[]", 400),
        (b'"inputs"', 400),
        (b"null", 400),
        (b"{}", 400),
        (b'{"inputs": 3}', 400),
        (b'{"inputs": null}', 400),
        (b'{"inputs": "%%%%"}', 400),
        (b'{"inputs": "YWI"}', 400),
        (b'{"inputs": "YWI=YWI="}', 400),
        (b'{"inputs": "/etc/passwd"}', 400),
        (b'{"inputs": "http://127.0.0.1:1/a"}', 400),
        (b'{"inputs": "YWI=", "inputs": "YWI="}', 400),
        (b'{"inputs": "ZmFrZTogc2F5IEhp", "parameters": [1]}', 400),
        (b'{"inputs": "ZmFrZTogc2F5IEhp", "parameters": 3}', 400),
        (b'{"inputs": "ZmFrZTogc2F5IEhp", "parameters": {"num_speakers": NaN}}', 422),
        (b'{"inputs": "ZmFrZTogc2F5IEhp", "parameters": {"temperature": 1e999}}', 400),
        (b'{"inputs": "ZmFrZTogc2F5IEhp", "parameters": null}', 200),
        (b'{"inputs": ""}', 422),
        (b"[" * 100_000, 422),
        (b'{"a": ' * 100_000, 422),
        (b'{"a": ' + b"9" * 10_000 + b"}", 422),
        (b'{"a": "' + b"x" * 1_200_000 + b'"}', 413),
        ('{"inputs": "Ã"}'.encode("latin-1"), 400),
        (b'{"a": "\xff"}', 422),
    ],
)
def test_json_bodies(fake, body, status):
    answer = httpx2.post(fake.url, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["error"] == answer.json()["detail"]


def test_h04_base64_goes_to_the_spool_in_pieces(fake):
    """Twelve megabytes of base64 through a document that may be one megabyte long."""
    recording = b"fake: say Hello. " + b"x" * 9_000_000
    body = json.dumps({"inputs": base64.b64encode(recording).decode()})
    assert (
        httpx2.post(fake.url, content=body, headers={"content-type": "application/json"}, timeout=60).status_code == 200
    )
    assert fake.spooled() == []
