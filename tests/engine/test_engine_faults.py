"""The engine with a worker in which everything goes wrong: real processes and pipes, a fake pipeline."""

import asyncio
import gc
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import pytest_asyncio
from engine_fakes import silence, work
from engine_helpers import fake_engine, limits, until

from diarist.engine.messages import PartialText, Status
from diarist.errors import (
    AudioFormatError,
    AudioNotFoundError,
    CancelledError,
    DeadlineError,
    EngineError,
    NotReadyError,
    OutOfMemoryError,
    PoisonError,
    QueueFullError,
    WorkerLostError,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_engine():
    """Started once, for a start costs seconds; tests that kill its worker leave another one behind."""
    async with fake_engine(pipeline={"step_s": 0.02}, max_waiting_s=1e6) as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def engine(shared_engine):
    """The shared engine, ready and with nothing to do."""
    await until(lambda: shared_engine.ready and not shared_engine._with_worker and not shared_engine._entries)
    shared_engine._strikes.clear()
    return shared_engine


class Since:
    """How the engine's counters have changed."""

    def __init__(self, engine) -> None:
        self.engine, self.before = engine, engine.metrics()

    def __getitem__(self, name: str) -> float:
        return self.engine.metrics()[name] - self.before[name]


@pytest.fixture
def since(engine):
    return Since(engine)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Short recordings that differ, by number."""
    folder = tmp_path_factory.mktemp("recordings")
    return [silence(folder / f"{n}.wav", 12.0, mark=n) for n in range(12)]


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory):
    return silence(tmp_path_factory.mktemp("recordings") / "long.wav", 1800.0)


def children(pid: int) -> set[int]:
    """Processes that a process has started."""
    return {
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text(encoding="ascii").split()
    }


def decoders(worker: int) -> set[int]:
    """Those of a worker: children of the fork server, which is the worker's only child."""
    servers = children(worker)
    assert len(servers) <= 1
    return {child for server in servers for child in children(server)}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def outcome(ticket):
    try:
        return await ticket.result()
    except (EngineError, Exception) as error:  # noqa: BLE001 - the outcome is what is asked for
        return error


async def test_requests_are_answered(engine, since, recordings):
    assert engine.why_not_ready == ""
    assert engine.info.languages == ("en", "de")
    tickets = [engine.submit(work(recording)) for recording in recordings]
    transcripts = [await ticket.result() for ticket in tickets]
    assert [transcript.text for transcript in transcripts] == ["w0 w1"] * len(recordings)
    assert {ticket.status.stage for ticket in tickets} == {"done"}
    assert len({ticket.id for ticket in tickets}) == len(tickets)
    assert {len(ticket.id) for ticket in tickets} == {32}
    await asyncio.sleep(0.2)
    assert since["requests_done"] == since["requests_admitted"] == len(recordings)
    assert since["audio_seconds"] == pytest.approx(12.0 * len(recordings))
    assert since["worker_restarts"] == 0
    figures = engine.metrics()
    assert figures["stage_seconds_recognition"] >= 0.1 * len(recordings) - 1e-6
    assert 0 < figures["batch_occupancy"] <= 1
    assert figures["worker_rss_bytes"] > 1e7
    assert figures["queue_depth"] == figures["running"] == 0


async def test_events_tell_how_it_goes_and_end_with_the_transcript(engine, long_recording):
    events = [event async for event in engine.submit(work(long_recording, partials=True)).events()]
    *told, transcript = events
    statuses = [event for event in told if isinstance(event, Status)]
    partials = [event for event in told if isinstance(event, PartialText)]
    assert [statuses[0].stage, statuses[-1].stage] == ["queued", "done"]
    fractions = [status.fraction for status in statuses if status.fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(set(fractions)) > 3
    assert all(status.seconds_left >= 0 for status in statuses)
    assert "".join(partial.text for partial in partials) == transcript.text
    assert [partial.start for partial in partials] == sorted(partial.start for partial in partials)
    assert len(partials) > 3


async def test_h01_what_does_not_fit_is_refused_at_once(engine, since, recordings):
    with limits(engine, max_waiting=3, max_running=2):
        tickets, refused, slowest = [], [], 0.0
        for number in range(30):
            begun = time.perf_counter()
            try:
                tickets.append(engine.submit(work(recordings[number % 12])))
            except QueueFullError as error:
                refused.append(error)
            slowest = max(slowest, time.perf_counter() - begun)
            assert engine.metrics()["queue_depth"] <= 3
            await asyncio.sleep(0.01)
        assert refused
        assert all(0 < error.retry_after_s <= 120 for error in refused)
        assert slowest < 0.05
        assert [type(await outcome(ticket)).__name__ for ticket in tickets] == ["Transcript"] * len(tickets)
        assert since["requests_rejected"] == len(refused)


async def test_h01_audio_that_waits_is_limited_too_but_one_may_always(engine, long_recording, recordings):
    with limits(engine, max_waiting_s=60.0, max_running=1):
        running = engine.submit(work(recordings[0]))
        await until(lambda: running.status.stage == "running")
        waiting = engine.submit(work(long_recording))  # longer than all that may wait, but alone
        with pytest.raises(QueueFullError):
            engine.submit(work(recordings[1]))
        waiting.cancel()
        assert (await engine.submit(work(recordings[1])).result()).duration == 12.0


async def test_h02_a_flood_of_one_key_does_not_delay_another(engine, recordings):
    with limits(engine, max_running=2):
        flood = [engine.submit(work(recordings[n % 12]), key="a") for n in range(60)]
        await until(lambda: flood[2].status.stage == "done")
        done = lambda: sum(ticket.status.stage == "done" for ticket in flood)  # noqa: E731
        before = done()
        other = engine.submit(work(recordings[0]), key="b")
        await until(lambda: other.status.ahead <= 1)
        await other.result()
        assert done() - before < 10
        for ticket in flood:
            ticket.cancel()


async def test_h02_who_asks_seldom_does_not_wait_for_what_a_flood_has_in_work(engine, recordings):
    flood = [engine.submit(work(recordings[n % 12]), key="a") for n in range(40)]
    await until(lambda: sum(ticket.status.stage == "running" for ticket in flood) >= engine._supervisor.rows)
    begun = sum(ticket.status.stage == "running" for ticket in flood)
    other = engine.submit(work(recordings[0]), key="b")
    await other.result()
    assert sum(ticket.status.stage == "done" for ticket in flood) < begun
    for ticket in flood:
        ticket.cancel()


async def test_h03_a_short_recording_is_answered_while_a_long_one_is_in_work(engine, long_recording, recordings):
    with limits(engine, max_running=8):
        long = [engine.submit(work(long_recording)) for _ in range(4)]
        await until(lambda: sum(ticket.status.stage == "running" for ticket in long) == 2)
        for recording in recordings[:4]:
            begun = time.monotonic()
            await engine.submit(work(recording)).result()
            assert time.monotonic() - begun < 2.0
        assert sum(ticket.status.stage == "running" for ticket in long) == 2  # and two wait, without a decoder
        assert len(decoders(engine.worker_pid)) <= 2
        for ticket in long:
            ticket.cancel()


async def test_h18_what_is_cancelled_while_it_waits_is_never_begun(engine, since, recordings):
    with limits(engine, max_running=1):
        first = engine.submit(work(recordings[0]))
        second = engine.submit(work(recordings[1], fault="crash"))
        second.cancel()
        second.cancel()
        third = engine.submit(work(recordings[2]))
        with pytest.raises(CancelledError):
            await second.result()
        assert (await first.result()).text == (await third.result()).text == "w0 w1"
        assert second.status.stage == "cancelled"
        assert since["worker_restarts"] == 0


async def test_h18_what_is_cancelled_while_it_runs_stops_soon_and_frees_its_place(engine, long_recording, recordings):
    with limits(engine, max_running=1):
        for _ in range(3):
            ticket = engine.submit(work(long_recording))
            await until(lambda t=ticket: t.status.fraction is not None)
            assert decoders(engine.worker_pid)
            ticket.cancel()
            with pytest.raises(CancelledError):
                await ticket.result()
            assert (await engine.submit(work(recordings[0])).result()).text == "w0 w1"
        await until(lambda: not decoders(engine.worker_pid), 2.0)


async def test_h19_a_deadline_passes_in_the_queue_and_under_way(engine, since, long_recording, recordings):
    with limits(engine, max_running=1):
        running = engine.submit(work(long_recording), deadline_s=1.0)
        await until(lambda: running.status.fraction is not None)
        waiting = engine.submit(work(recordings[0], fault="crash"), deadline_s=0.3)
        begun = time.monotonic()
        with pytest.raises(DeadlineError):
            await waiting.result()
        with pytest.raises(DeadlineError):
            await running.result()
        assert time.monotonic() - begun < 1.0
        assert (await engine.submit(work(recordings[1]), deadline_s=30).result()).text == "w0 w1"
        assert since["worker_restarts"] == 0
        assert since["requests_late"] == 2


async def test_h20_stopping_drains(recordings, long_recording):
    async with fake_engine(pipeline={"step_s": 0.05}, max_running=8, max_waiting_s=1e6) as engine:
        tickets = [engine.submit(work(recording)) for recording in recordings[:6]]
        slow = [engine.submit(work(long_recording)) for _ in range(8)]
        worker = engine.worker_pid
        stopping = asyncio.create_task(engine.stop(drain_s=4.0))
        await asyncio.sleep(0)
        assert not engine.ready
        assert "stopping" in engine.why_not_ready
        with pytest.raises(NotReadyError):
            engine.submit(work(recordings[0]))
        begun = time.monotonic()
        await stopping
        assert time.monotonic() - begun < 6.0
        assert [(await ticket.result()).text for ticket in tickets] == ["w0 w1"] * 6
        assert isinstance(await outcome(slow[-1]), NotReadyError)  # did not end in time, and is told so
        assert not alive(worker)


async def test_h22_a_hung_worker_is_replaced(engine, long_recording, recordings):
    worker = engine.worker_pid
    ticket = engine.submit(work(long_recording, "hang"))
    begun = time.monotonic()
    with pytest.raises(WorkerLostError):
        await ticket.result()
    assert time.monotonic() - begun < 1.5 + 2.5
    assert (await engine.submit(work(recordings[0])).result()).text == "w0 w1"
    assert not alive(worker)


async def test_h22_a_killed_worker_fails_its_requests_at_once_and_is_replaced(
    engine, since, long_recording, recordings
):
    with limits(engine, max_running=1):
        running = engine.submit(work(long_recording))
        waiting = engine.submit(work(recordings[0]))
        await until(lambda: running.status.fraction is not None)
        worker = engine.worker_pid
        family = {worker, *children(worker), *decoders(worker)}
        assert len(family) > 2
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(WorkerLostError) as lost:
            await running.result()
        assert time.monotonic() - killed < 1.0
        assert lost.value.retry_after_s > 0
        also = engine.submit(work(recordings[1]))  # admitted while there is no worker
        assert (await waiting.result()).text == (await also.result()).text == "w0 w1"
        assert engine.worker_pid != worker
        await until(lambda: not any(alive(pid) for pid in family), 2.0)
        assert since["worker_restarts"] == 1
        assert since["requests_lost"] == 1


async def test_h22_the_worker_dies_with_the_engine(tmp_path):
    """A process that holds an engine is killed; its worker goes with it, even if it is stopped."""
    program = tmp_path / "holder.py"
    program.write_text(
        "import asyncio, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from engine_helpers import FAKE\n"
        "from diarist.engine.engine import Engine, EngineOptions\n"
        "async def main():\n"
        "    engine = Engine(EngineOptions(command=FAKE))\n"
        "    await engine.start()\n"
        "    while not engine.ready: await asyncio.sleep(0.01)\n"
        "    print(engine.worker_pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    holder = await asyncio.create_subprocess_exec(sys.executable, str(program), stdout=asyncio.subprocess.PIPE)
    worker = int(await holder.stdout.readline())
    os.kill(worker, signal.SIGSTOP)
    holder.kill()
    await holder.communicate()
    await until(lambda: not alive(worker), 2.0)


async def test_h22_models_that_cannot_be_loaded_are_told_and_tried_again(tmp_path):
    flag = tmp_path / "here"
    async with fake_engine(ready=False, pipeline={"flag": str(flag)}) as engine:
        assert "loaded" in engine.why_not_ready
        with pytest.raises(NotReadyError):
            engine.submit(work(tmp_path / "any.wav"))
        await until(lambda: "no source has the model 'fake'" in engine.why_not_ready)
        assert engine.metrics()["worker_starts"] <= 2  # it does not try as fast as it can
        flag.touch()
        await until(lambda: engine.ready)
        assert engine.why_not_ready == ""


async def test_h23_a_recording_that_kills_twice_is_refused_and_nobody_else(engine, since, recordings):
    for _ in range(3):
        tickets = [engine.submit(work(recordings[0], "crash_step"))]
        tickets += [engine.submit(work(recording)) for recording in recordings[1:4]]
        found = [await outcome(ticket) for ticket in tickets]
        assert not any(isinstance(error, PoisonError) for error in found[1:])
    assert isinstance(found[0], PoisonError)
    assert since["requests_poisonous"] == 1
    for recording in recordings[1:4]:
        assert (await engine.submit(work(recording)).result()).text == "w0 w1"


async def test_h24_out_of_memory_is_halved_and_then_one_fails(engine, since, recordings):
    faults = ["", "oom:2", "", "oom:0", "", "memory"]
    tickets = [engine.submit(work(r, fault)) for r, fault in zip(recordings, faults, strict=False)]
    found = [await outcome(ticket) for ticket in tickets]
    kinds = [type(one).__name__ for one in found]
    assert kinds == ["Transcript"] * 3 + ["OutOfMemoryError", "Transcript", "OutOfMemoryError"]
    assert isinstance(found[3], OutOfMemoryError)
    await asyncio.sleep(0.2)
    assert since["oom_halvings"] > 0
    assert since["worker_restarts"] == 0


async def test_h25_a_worker_whose_device_broke_is_replaced(engine, recordings):
    worker = engine.worker_pid
    assert isinstance(await outcome(engine.submit(work(recordings[0], "broken"))), WorkerLostError)
    assert (await engine.submit(work(recordings[1])).result()).text == "w0 w1"
    assert engine.worker_pid != worker


async def test_h26_bad_recordings_fail_alone(engine, recordings, tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("this is not sound\n" * 50)
    bad = [engine.submit(work(text)), engine.submit(work(tmp_path / "missing.wav"))]
    bad += [engine.submit(work(recordings[0], "bug")), engine.submit(work(recordings[0], "bug_here"))]
    good = [engine.submit(work(recording)) for recording in recordings]
    errors = [await outcome(ticket) for ticket in bad]
    assert [type(error) for error in errors] == [AudioFormatError, AudioNotFoundError, EngineError, EngineError]
    assert not any(word in str(error) for error in errors for word in ("text.wav", "missing", "deep inside", "/"))
    assert [(await ticket.result()).text for ticket in good] == ["w0 w1"] * len(good)
    assert {ticket.status.stage for ticket in bad} == {"failed"}


async def test_h33_the_event_loop_is_never_held_up(engine, recordings, long_recording):
    stalls: list[float] = []

    async def probe() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.005)
            stalls.append(time.perf_counter() - begun - 0.005)

    probing = asyncio.create_task(probe())
    tickets = [engine.submit(work(r, partials=True)) for r in [*recordings, long_recording]]
    await asyncio.gather(*(ticket.result() for ticket in tickets))
    probing.cancel()
    assert sorted(stalls)[int(len(stalls) * 0.99)] < 0.05


async def test_h34_a_wedged_worker_is_not_ready(engine, recordings):
    os.kill(engine.worker_pid, signal.SIGSTOP)
    assert await until(lambda: not engine.ready) < 4
    assert engine.why_not_ready
    await until(lambda: engine.ready)


async def test_h39_nothing_is_left_of_many_requests(engine, recordings):
    worker = engine.worker_pid

    async def round_of_requests() -> None:
        tickets = [engine.submit(work(r, fault)) for r in recordings[:2] for fault in ("", "bug", "oom:0")]
        for ticket in tickets[::3]:
            ticket.cancel()
        await asyncio.gather(*map(outcome, tickets))

    def open_files() -> int:
        return len(list(Path(f"/proc/{worker}/fd").iterdir())) + len(list(Path("/proc/self/fd").iterdir()))

    def threads() -> int:
        return len(list(Path(f"/proc/{worker}/task").iterdir())) + len(list(Path("/proc/self/task").iterdir()))

    await round_of_requests()
    await asyncio.sleep(0.3)
    gc.collect()
    before = open_files(), threads()
    for _ in range(2):
        await round_of_requests()
    await until(lambda: not decoders(worker), 2.0)
    await asyncio.sleep(0.3)
    gc.collect()
    assert (open_files(), threads()) <= before
    assert engine._entries == engine._with_worker == {}
    assert not any(len(line) for line in engine._lines.values())
    assert engine.worker_pid == worker
