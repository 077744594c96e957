"""An engine without models: what a recording holds decides what happens to it.

`fake: error QueueFullError`, `fake: slow 5`, `fake: stream 3`, `fake: say Hello there.`; anything else is not audio.
As a program (`python fake_engine.py PORT [SETTING=VALUE ...]`) it is a server over such an engine.
"""

import asyncio
import secrets
import sys

from diarist import errors
from diarist.engine.engine import Engine, EngineOptions
from diarist.engine.messages import EngineInfo, PartialText, Status
from diarist.timeline import DecodedSegment, Segment, Turn, Word
from diarist.transcript import build

INFO = EngineInfo(
    models={"asr": {"name": "/secret/place/fake-model"}, "assistant": None, "diarization": {"name": "default"}},
    languages=("en", "de", "fr"),
    multilingual=True,
    diarizes=True,
    assists=False,
    device="cpu",
    sandbox=("rlimits", "seccomp"),
)


def say(text, request, speakers=("SPEAKER_00", "SPEAKER_01")):
    """A transcript of a text, a second for each word, the speaker changing at each sentence."""
    words, turn = [], 0
    for i, word in enumerate(text.split()):
        speaker = speakers[turn % len(speakers)] if request.diarize else None
        words.append(Word(word, i * 1.0, i + 0.8, 0.9, speaker))
        turn += word.endswith(".")
    turns = [Turn(Segment(w.start, w.end), w.speaker) for w in words if w.speaker]
    segment = DecodedSegment(0.0, float(len(words)), f" {text}", (1, 2, 3), 0.0, -0.2, 1.1, 0.01)
    return build(
        words,
        duration=float(len(words) or 1),
        language="en" if words else None,
        turns=turns,
        segments=[segment] if words else [],
        timings={"decode": 0.1, "total": 0.2},
        warnings=["a warning"] if words else [],
    )


class FakeTicket:
    def __init__(self, engine, work, key, deadline_s):
        self.id = secrets.token_hex(16)
        self.engine, self.work, self.key, self.deadline_s = engine, work, key, deadline_s
        self._status = Status("queued")
        self.partials = asyncio.Queue()
        self.cancelled = False
        self.task = asyncio.ensure_future(self._run())
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    @property
    def status(self):
        return self._status

    async def _run(self):
        command = self.work.recording.read_bytes().decode("latin-1")
        self._status = Status("running", "transcribing", 0.5, 1.5, 0)
        name, _, rest = command.removeprefix("fake: ").partition(" ")
        if not command.startswith("fake: "):
            raise errors.AudioFormatError(f"{self.work.recording} is not audio")
        if name == "slow":
            await asyncio.sleep(float(rest))
        elif name == "error":
            kind = getattr(errors, rest, None) or {"ZeroDivisionError": ZeroDivisionError, "OSError": OSError}[rest]
            raise kind("num_speakers", "0 is not enough") if kind is errors.OptionError else kind("0xdead /root/secret")
        elif name == "stream":
            for step in range(int(rest)):
                await asyncio.sleep(0.1)
                self.partials.put_nowait(PartialText(f"{' ' if step else ''}part{step}", step, step + 1.0))
            return say(" ".join(f"part{step}" for step in range(int(rest))), self.work.request)
        elif name == "lost":
            self.partials.put_nowait(PartialText("half", 0.0, 1.0))
            await asyncio.sleep(0.2)
            raise errors.WorkerLostError("worker 17 died", 3.0)
        names = [speaker.name for speaker in self.work.known_speakers]
        speakers = (*names, "SPEAKER_00", "SPEAKER_01") if names else ("SPEAKER_00", "SPEAKER_01")
        return say(rest if name == "say" else "", self.work.request, speakers)

    async def events(self):
        yield self.status
        while not self.task.done() or not self.partials.empty():
            getting = asyncio.ensure_future(self.partials.get())
            await asyncio.wait({getting, self.task}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                yield getting.result()
            else:
                getting.cancel()
        yield await self.result()

    async def result(self):
        try:
            return await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if self.cancelled:
                raise errors.CancelledError("cancelled") from None
            raise
        finally:
            if self.task.done():
                self._status = Status("cancelled" if self.cancelled else "done")
                self.engine.running.discard(self)

    def cancel(self):
        if not self.task.done():
            self.cancelled = True
            self.engine.cancelled += 1
            self.task.cancel()
            self.engine.running.discard(self)


class FakeEngine(Engine):
    def __init__(self, options=None):
        self.options = options or EngineOptions()
        self.up = False
        self.stopping = False
        self.refuse = None
        self.running = set()
        self.submitted = []
        self.cancelled = 0
        self._info = INFO

    async def start(self):
        self.up = True

    async def stop(self, drain_s=30.0):
        self.stopping = True
        tickets = [ticket.task for ticket in self.running]
        if tickets:
            await asyncio.wait(tickets, timeout=drain_s)
        self.up = False

    @property
    def ready(self):
        return self.up

    @property
    def why_not_ready(self):
        return "" if self.up else "loading /secret/place"

    @property
    def info(self):
        return self._info

    def check(self, key, seconds=0.0):
        pass

    def submit(self, work, *, key="", deadline_s=None):
        if self.stopping or not self.up:
            raise errors.NotReadyError("stopping", 2.0)
        if self.refuse is not None:
            raise self.refuse
        ticket = FakeTicket(self, work, key, deadline_s)
        self.running.add(ticket)
        self.submitted.append(ticket)
        return ticket

    def metrics(self):
        return {"running": float(len(self.running)), "waiting": 0.0}


if __name__ == "__main__":
    from diarist.server.serve import run
    from diarist.settings import load_server

    port, *assignments = sys.argv[1:]
    run(load_server(port=port, **dict(part.split("=", 1) for part in assignments)), FakeEngine())
