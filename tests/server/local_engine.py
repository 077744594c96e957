"""Temporary: an engine in this process over `diarist.Pipeline`, one request after the other, until the real one is there."""

import asyncio
import secrets
import threading

from diarist import errors
from diarist.asr.languages import LANGUAGES
from diarist.engine.engine import Engine, Ticket
from diarist.engine.messages import EngineInfo, PartialText, Status


class LocalTicket(Ticket):
    def __init__(self, engine, work):
        self.id = secrets.token_hex(16)
        self._status = Status("queued")
        self.cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        self.queue = asyncio.Queue()
        self.task = loop.run_in_executor(None, self._run, engine, work, loop)

    @property
    def status(self):
        return self._status

    def _run(self, engine, work, loop):
        def look(progress):
            if self.cancelled.is_set():
                raise errors.CancelledError("cancelled")
            self._status = Status("running", progress.stage, progress.fraction, 1.0)
            loop.call_soon_threadsafe(self.queue.put_nowait, self._status)

        from diarist.audio import open_audio

        pipeline = engine.pipeline
        with pipeline.recognizer.lock, open_audio(work.recording, block_s=30.0) as audio:
            session = pipeline.session(audio, work.request, look)
            try:
                while True:
                    next(session)
                    pipeline.recognizer.loop.step()
            except StopIteration as stop:
                transcript = stop.value
            finally:
                session.close()
        for place, utterance in enumerate(transcript.utterances):
            text = f"{' ' if place else ''}{utterance.text}"
            loop.call_soon_threadsafe(self.queue.put_nowait, PartialText(text, utterance.start, utterance.end))
        self._status = Status("done")
        return transcript

    async def events(self):
        yield self.status
        while not self.task.done() or not self.queue.empty():
            getting = asyncio.ensure_future(self.queue.get())
            await asyncio.wait({getting, self.task}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                yield getting.result()
            else:
                getting.cancel()
        yield await self.task

    async def result(self):
        return await asyncio.shield(self.task)

    def cancel(self):
        self.cancelled.set()


class LocalEngine(Engine):
    pipeline = None

    async def start(self):
        from diarist.pipeline import Pipeline

        self.pipeline = await asyncio.to_thread(lambda: Pipeline(**self.options.pipeline))

    async def stop(self, drain_s=30.0):
        pass

    @property
    def ready(self):
        return self.pipeline is not None

    @property
    def info(self):
        return EngineInfo(
            models=self.pipeline.models if self.pipeline else {},
            languages=tuple(LANGUAGES),
            diarizes=True,
            device="cpu",
        )

    def submit(self, work, *, key="", deadline_s=None):
        return LocalTicket(self, work)

    def metrics(self):
        return {}
