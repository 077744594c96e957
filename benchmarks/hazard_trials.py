"""Trials of single hazards at full size, as modes of `scripts/soak`: each takes a server and says whether it held.

The callers are raw connections in one event loop, so that hundreds of them cost less than the server that they press.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FAIR_KEYS = ("key-of-the-crowd", "key-of-the-one")
_ANSWER_S = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    status: int
    """0: the connection ended without one."""
    seconds: float
    body: bytes = b""


def form(content: bytes, key: str = "", parameters: str = '{"language": "en"}') -> bytes:
    """A whole request: a clip for `/predict`, as the original's clients send it."""
    body = b'--b\r\nContent-Disposition: form-data; name="parameters"\r\n\r\n' + parameters.encode()
    body += (
        b'\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + content + b"\r\n--b--\r\n"
    )
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(port: int, request: bytes) -> Answer:
    """Send a request on a connection of its own."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                return Answer(int(head.split(None, 2)[1]), time.monotonic() - begun, await reader.read())
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError):
        return Answer(0, time.monotonic() - begun)


async def get(port: int, path: str) -> Answer:
    return await ask(port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())


async def open_loop(
    port: int, rate: float, seconds: float, make: Callable[[int], bytes], answered: Callable[[Answer], None]
) -> None:
    """Send `rate` requests a second for so many seconds, however long answers take; those still under way are left.

    Args:
        make: The request of a number.
        answered: Told every answer as it comes.
    """
    begun, callers = time.monotonic(), set[asyncio.Task[None]]()

    async def one(number: int) -> None:
        answered(await ask(port, make(number)))

    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        caller = asyncio.create_task(one(number))
        callers.add(caller)
        caller.add_done_callback(callers.discard)
    await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
    for caller in list(callers):
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] if ordered else float("nan")


def statuses(answers: Sequence[Answer]) -> dict[int, int]:
    return dict(sorted(Counter(answer.status for answer in answers).items()))


async def until_idle(port: int, key: str = "") -> None:
    """Wait until no transcription is under way."""
    request = f"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    while b"diarist_http_requests_open 0.0" not in (await ask(port, request)).body:  # noqa: ASYNC110 (another process's state)
        await asyncio.sleep(0.1)


async def fair(port: int, short: bytes, crowd: Sequence[bytes], minutes: float, every_s: float) -> dict[str, object]:
    """Hazard 2: one key asks fifty times as often as another, which is alone and beside it in turns of 30 requests.

    Args:
        short: The clip that the one sends.
        crowd: Those of the crowd.
        every_s: Between two requests of the one.
    """
    turn_s, settle_s = 30 * every_s, 6 * every_s
    many, one = FAIR_KEYS
    requests = [form(clip, many) for clip in crowd]
    theirs: list[Answer] = []
    alone: list[Answer] = []
    beside: list[Answer] = []
    for _ in range(max(1, round(minutes * 60 / (2 * turn_s)))):
        await open_loop(port, 1 / every_s, turn_s, lambda _: form(short, one), alone.append)
        await until_idle(port, one)
        pressing = open_loop(
            port, 50 / every_s, turn_s + settle_s, lambda n: requests[n % len(requests)], theirs.append
        )
        pressed = asyncio.create_task(pressing)
        await asyncio.sleep(settle_s)
        await open_loop(port, 1 / every_s, turn_s, lambda _: form(short, one), beside.append)
        await pressed
        await until_idle(port, one)
    p95 = [
        percentile([answer.seconds for answer in answers if answer.status == 200], 0.95) for answers in (alone, beside)
    ]
    p50 = [
        percentile([answer.seconds for answer in answers if answer.status == 200], 0.5) for answers in (alone, beside)
    ]
    return {
        "alone": statuses(alone),
        "beside": statuses(beside),
        "the crowd": statuses(theirs),
        "p50 s alone, beside": [round(value, 3) for value in p50],
        "p95 s alone, beside": [round(value, 3) for value in p95],
        "p95 ratio": round(p95[1] / p95[0], 2),
    }
