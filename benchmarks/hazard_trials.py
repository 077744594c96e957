"""Trials of single hazards at full size, as modes of `scripts/soak`: each takes a server and says whether it held.

The callers are raw connections in one event loop, so that hundreds of them cost less than the server that they press.
"""

import asyncio
import itertools
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

FAIR_KEYS = ("key-of-the-crowd", "key-of-the-one")
_ANSWER_S = 300.0
_FILLED_S = 15.0  # from the first request of a press until as many are answered as come in
_ESTABLISHED = b"\x01"  # as the kernel counts the states of a connection


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


async def fair(port: int, short: bytes, crowd: Sequence[bytes], minutes: float) -> dict[str, Any]:
    """Hazard 2: one key asks fifty times as often as another, which is alone and beside it in turns of 30 requests.

    The one asks once a second, or seldomer where that were more than a quarter of what this machine can do: more than
    its share is not what it is promised.

    Args:
        short: The clip that the one sends.
        crowd: Those of the crowd.
    """
    many, one = FAIR_KEYS
    takes_s = statistics.median([(await ask(port, form(short, one))).seconds for _ in range(5)])
    every_s = max(1.0, 4 * takes_s)
    turn_s, settle_s = 30 * every_s, 6 * every_s
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
        "one request every s": round(every_s, 2),
        "alone": statuses(alone),
        "beside": statuses(beside),
        "the crowd": statuses(theirs),
        "p50 s alone, beside": [round(value, 3) for value in p50],
        "p95 s alone, beside": [round(value, 3) for value in p95],
        "p95 ratio": round(p95[1] / p95[0], 2),
    }


# --- hazard 1: three times what it can do -----------------------------------------------------------------------------


async def overload(port: int, clips: Sequence[bytes], minutes: float) -> dict[str, Any]:
    """Hazard 1: three times as many requests as the peak, which as many callers as fill the batches have before and after.

    Machines that are shared are faster at one minute than at another, so the peak is the mean of both.
    """
    requests = [form(clip) for clip in clips]
    before = await closed_loop(port, requests, callers=20, rounds=5)
    answers: list[Answer] = []
    came: list[float] = []  # when a transcript did
    deepest = 0.0

    def answered(answer: Answer) -> None:
        answers.append(answer)
        if answer.status == 200:
            came.append(time.monotonic())

    begun = time.monotonic()
    pressing = open_loop(port, 3 * before, 60 * minutes, lambda n: requests[n % len(requests)], answered)
    pressed = asyncio.create_task(pressing)
    while not pressed.done():
        await asyncio.sleep(1)
        deepest = max(deepest, figure(await get(port, "/metrics"), "diarist_engine_queue_depth"))
    await until_idle(port)
    after = await closed_loop(port, requests, callers=20, rounds=5)
    peak = (before + after) / 2
    refused = [answer.seconds for answer in answers if answer.status == 429]
    full = begun + _FILLED_S  # before, the batches fill up
    goodput = sum(at > full for at in came) / (60 * minutes - _FILLED_S)
    return {
        "answers": statuses(answers),
        "peak before, after, goodput per s": [round(rate, 2) for rate in (before, after, goodput)],
        "goodput / peak": round(goodput / peak, 3),
        "429 after ms p50, p99": [round(1000 * percentile(refused, share), 1) for share in (0.5, 0.99)],
        "queue deepest": deepest,
    }


async def closed_loop(port: int, requests: Sequence[bytes], callers: int, rounds: int) -> float:
    """So many callers, each with `rounds` requests one after the other: answers a second, from the first request to the last answer."""

    async def call(place: int) -> int:
        answers = [await ask(port, requests[(place + number) % len(requests)]) for number in range(rounds)]
        return sum(answer.status == 200 for answer in answers)

    begun = time.monotonic()
    answered = sum(await asyncio.gather(*(call(place) for place in range(callers))))
    return answered / (time.monotonic() - begun)


def figure(page: Answer, name: str) -> float:
    """One gauge of a Prometheus page; 0 where it is not."""
    rows = [line for line in page.body.decode().splitlines() if line.startswith(f"{name} ")]
    return float(rows[0].split()[1]) if rows else 0.0


# --- hazard 4: bodies without an end ----------------------------------------------------------------------------------

HUGE_BYTES = 10_000_000_000
_PIECE = b"10000\r\n" + b"QUJD" * 16_384 + b"\r\n"  # a chunk of 64 KB that is base64, too


async def huge(port: int, count: int, resident: Callable[[], float], spooled: Callable[[], int]) -> dict[str, Any]:
    """Hazard 4: 10 GB in chunks, `count` times, then 10 GB of base64; what the server took of it, and its memory.

    Args:
        resident: The server's resident memory now, in bytes.
        spooled: Bytes in its spool now.
    """
    before_taken = figure(await get(port, "/metrics"), "diarist_uploaded_bytes_total")
    before, most_memory, most_spooled, sent = resident(), 0.0, 0, list[int]()
    answers: list[Answer] = []
    for number in range(count + 1):
        base64 = number == count
        task = asyncio.create_task(_endless(port, base64=base64, sent=sent))
        while not task.done():
            most_memory, most_spooled = max(most_memory, resident()), max(most_spooled, spooled())
            await asyncio.sleep(0.02)
        answers.append(task.result())
    taken = figure(await get(port, "/metrics"), "diarist_uploaded_bytes_total") - before_taken
    return {
        "answers": statuses(answers),
        "MB taken of each": round(taken / len(answers) / 1e6, 3),
        "MB sent of each at most": round(max(sent) / 1e6, 1),
        "MB spooled at most": round(most_spooled / 1e6, 3),
        "memory MB before, most": [round(before / 1e6, 1), round(most_memory / 1e6, 1)],
        "seconds each": round(sum(answer.seconds for answer in answers) / len(answers), 2),
    }


async def _endless(port: int, *, base64: bool, sent: list[int]) -> Answer:
    """A body of `HUGE_BYTES`, as far as the server lets it come; appends how far that was."""
    kind = "application/json" if base64 else "application/octet-stream"
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answering = asyncio.ensure_future(reader.readline())
    bytes_sent = 0
    try:
        writer.write(head + (b'b\r\n{"inputs":"\r\n' if base64 else b""))
        while not answering.done() and bytes_sent < HUGE_BYTES:
            writer.write(_PIECE)
            bytes_sent += len(_PIECE)
            await writer.drain()
    except OSError:
        pass  # cut off; what the server said before may still be there
    finally:
        sent.append(bytes_sent)
    try:
        status = int((await asyncio.wait_for(answering, 30)).split()[1])
    except (OSError, TimeoutError, IndexError):
        status = 0
    writer.close()
    return Answer(status, time.monotonic() - begun)


# --- hazard 31: five hundred who dawdle -------------------------------------------------------------------------------


async def slow(port: int, clip: bytes, minutes: float, every_s: float) -> dict[str, Any]:
    """Hazard 31: 500 sockets at a byte a second and 20 that never read, beside somebody who asks now and then."""
    request = form(clip)
    health = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    seen: dict[str, list[Answer]] = {name: [] for name in ("alone", "beside", "health alone", "health beside")}
    cut: dict[str, list[float]] = {"head": [], "body": [], "reader": []}
    turn_s = 60.0
    for _ in range(max(1, round(minutes * 60 / (2 * turn_s)))):
        for name in ("alone", "beside"):
            kinds = [] if name == "alone" else ["head"] * 250 + ["body"] * 250 + ["reader"] * 20
            dawdlers = [asyncio.create_task(_dawdle(port, kind, cut[kind])) for kind in kinds]
            await asyncio.gather(
                open_loop(port, 1 / every_s, turn_s, lambda _: request, seen[name].append),
                open_loop(port, 10, turn_s, lambda _: health, seen[f"health {name}"].append),
            )
            for dawdler in dawdlers:
                dawdler.cancel()
            await asyncio.gather(*dawdlers, return_exceptions=True)
            await until_idle(port)
    waits = {name: [answer.seconds for answer in answers if answer.status == 200] for name, answers in seen.items()}
    return {
        "answers": {name: statuses(answers) for name, answers in seen.items()},
        "cut off": {kind: len(times) for kind, times in cut.items()},
        "cut off after s at most": {kind: round(max(times, default=float("nan")), 1) for kind, times in cut.items()},
        "p50 s alone, beside": [round(percentile(waits[name], 0.5), 3) for name in ("alone", "beside")],
        "p95 s alone, beside": [round(percentile(waits[name], 0.95), 3) for name in ("alone", "beside")],
        "health p95 ms": [round(1000 * percentile(waits[name], 0.95), 1) for name in ("health alone", "health beside")],
    }


async def _dawdle(port: int, kind: str, cut: list[float]) -> None:
    """Be slow in one way until the server has had enough; appends after how many seconds that was."""
    begun = time.monotonic()
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.setblocking(False)
    with opened:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(opened, ("127.0.0.1", port))
        try:
            if kind == "reader":
                await loop.sock_sendall(opened, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 400)
            if kind == "body":
                await loop.sock_sendall(opened, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
            while kind == "reader":
                await asyncio.sleep(0.5)
                if is_cut(opened):
                    raise ConnectionResetError
            for byte in itertools.cycle(b"POST / HTTP/1.1"):
                await asyncio.sleep(1)
                await loop.sock_sendall(opened, bytes([byte]))
        except OSError:
            cut.append(time.monotonic() - begun)


def is_cut(opened: socket.socket) -> bool:
    """Whether the other side has ended a connection that nobody reads from."""
    return opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != _ESTABLISHED
