"""What operators see: one JSON line for each request and event, Prometheus metrics, traces when configured.

No line holds text that was said, audio, a key, a query string or a file name; a route is logged as its template.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from diarist.errors import OptionError
from diarist.transcript import Transcript

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_PROBE_S = 0.02
"""How often the event loop is asked whether it still turns."""


def configure_logging(log_format: str, level: str) -> None:
    """Send everything, that of libraries too, to standard error in one form."""
    steps: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: Any = (
        structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*steps, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=steps,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("httpx2", "httpcore2", "multipart", "python_multipart", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _EngineCollector(Collector):
    """The engine's own figures, under `diarist_engine_`."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, value in self._read().items():
            yield GaugeMetricFamily(f"diarist_engine_{name}", "As the engine counts it.", value=value)


class Metrics:
    """Counters of one server."""

    def __init__(self, engine: Callable[[], Mapping[str, float]], open_requests: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "diarist_http_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "diarist_http_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.uploaded = Counter("diarist_uploaded_bytes", "Bytes of request bodies.", registry=self.registry)
        self.audio = Counter("diarist_audio_seconds", "Seconds of audio transcribed.", registry=self.registry)
        self.work = Counter("diarist_work_seconds", "Seconds from admission to transcript.", registry=self.registry)
        self.stages = Counter("diarist_stage_seconds", "Seconds of work.", ["stage"], registry=self.registry)
        self.rtfx = Histogram(
            "diarist_rtfx",
            "Seconds of audio for each second from admission to transcript.",
            buckets=(0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=self.registry,
        )
        self.assisted = Counter(
            "diarist_assisted_requests", "Transcripts, by what was chosen for them.", ["chosen"], registry=self.registry
        )
        self.drafts = Counter(
            "diarist_assistant_tokens",
            "Tokens that the assistant drafted, by what the main model made of them.",
            ["outcome"],
            registry=self.registry,
        )
        self.passes = Counter(
            "diarist_decoder_passes",
            "Passes of the main decoder over one window, with and without a draft to verify; where an assistant is loaded.",
            ["assisted"],
            registry=self.registry,
        )
        self.tokens = Counter("diarist_decoder_tokens", "Tokens that these wrote.", registry=self.registry)
        self.stall = Gauge(
            "diarist_event_loop_stall_seconds", "Longest stall since this was last read.", registry=self.registry
        )
        waiting = Gauge("diarist_http_requests_open", "Transcriptions under way.", registry=self.registry)
        waiting.set_function(open_requests)
        self.registry.register(_EngineCollector(engine))
        ProcessCollector(registry=self.registry)
        self._longest_stall_s = 0.0

    def transcribed(self, transcript: Transcript, seconds: float) -> None:
        """Count one transcript and the seconds that it took."""
        self.audio.inc(transcript.duration)
        self.work.inc(seconds)
        for stage, spent in transcript.timings.items():
            self.stages.labels(stage).inc(max(0.0, spent))
        if seconds > 0:
            self.rtfx.observe(transcript.duration / seconds)
        if transcript.assistance is not None:
            self._count(transcript.assistance)

    def _count(self, assistance: Mapping[str, Any]) -> None:
        self.assisted.labels(assistance["chosen"]).inc()
        self.drafts.labels("accepted").inc(assistance["accepted"])
        self.drafts.labels("rejected").inc(assistance["drafted"] - assistance["accepted"])
        with_draft = round(assistance["assisted_passes"] * assistance["passes"])
        self.passes.labels("true").inc(with_draft)
        self.passes.labels("false").inc(assistance["passes"] - with_draft)
        self.tokens.inc(assistance["tokens"])

    def page(self) -> bytes:
        """All of it as Prometheus reads it."""
        self.stall.set(self._longest_stall_s)
        self._longest_stall_s = 0.0
        return generate_latest(self.registry)

    async def watch_loop(self) -> None:
        """Measure, until cancelled, how late the event loop wakes a sleeper."""
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_PROBE_S)
            self._longest_stall_s = max(self._longest_stall_s, time.perf_counter() - before - _PROBE_S)


def trace(app: Any) -> None:
    """Have every request traced, without its exceptions' texts.

    The provider is not made the process's own: FastAPI would send spans through it with query strings and exceptions.

    Raises:
        OptionError: The OpenTelemetry SDK is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 (optional)
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        message = "install the extra: pip install 'diarist[otel]'; or leave it off"
        raise OptionError("otel", message) from None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    app.add_middleware(_Traced, tracer=provider.get_tracer("diarist"))


class _Traced:
    """One span for each request: method, route and status, nothing else."""

    def __init__(self, app: Any, tracer: Any) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 (optional)

        self._app = app
        self._tracer = tracer
        self._error = StatusCode.ERROR

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        silent = {"record_exception": False, "set_status_on_exception": False}  # a status would quote the exception
        with self._tracer.start_as_current_span("request", **silent) as span:
            status = 500  # what `Context` says of an exception that comes this far

            async def noted(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await self._app(scope, receive, noted)
            finally:
                span.update_name(f"{scope['method']} {route_of(scope)}")
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(self._error)


def route_of(scope: Mapping[str, Any]) -> str:
    """The template of a request's route, never its path."""
    route = scope.get("route")
    return str(getattr(route, "path", "unmatched"))
