"""OpenTelemetry: sends finished spans to a collector, by OTLP over HTTP. Needs the extra `otel`.

Spans are queued (bounded) and sent by a thread of the exporter's, so a slow or absent collector costs spans and nothing
else. Headers for the collector (an API key, say) come from `OTEL_EXPORTER_OTLP_HEADERS`, as everywhere.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING

from scaivaultd import __version__
from scaivaultd.model import tracing
from scaivaultd.model.errors import StartupError
from scaivaultd.settings_files import NO_TELEMETRY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AsyncExitStack

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock

QUEUE_MAX = 4_096
BATCH_MAX = 512
BATCH_SECONDS = 2.0
SEND_SECONDS = 5.0
FLUSH_SECONDS = 2.0
WARN_EVERY_SECONDS = 600.0


def open_telemetry(
    endpoint: str, sample_ratio: float, instance: str, stack: AsyncExitStack, *, clock: Clock, log: FilteringBoundLogger
) -> None:
    """Send spans to `endpoint` until `stack` closes; closing takes `FLUSH_SECONDS` at most.

    Raises `StartupError` if the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartupError(f"tracing.otlp_endpoint {NO_TELEMETRY}") from error

    # The libraries' own words repeat with every batch; ours come now and then.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = _telling(OTLPSpanExporter(endpoint=endpoint, timeout=SEND_SECONDS), endpoint, clock, log)
    processor = BatchSpanProcessor(
        exporter,
        max_queue_size=QUEUE_MAX,
        schedule_delay_millis=BATCH_SECONDS * 1000,
        max_export_batch_size=BATCH_MAX,
    )
    resource = Resource.create(
        {"service.name": "scaivaultd", "service.version": __version__, "service.instance.id": instance}
    )
    end = tracing.collect(lambda span: processor.on_end(_readable(span, resource)), sample_ratio)

    async def close() -> None:
        end()
        await asyncio.to_thread(_within, FLUSH_SECONDS, processor.shutdown)

    stack.push_async_callback(close)


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Do it in a thread that the end of the process does not wait for."""
    thread = threading.Thread(target=action, name="telemetry-flush", daemon=True)
    thread.start()
    thread.join(seconds)


def _telling(exporter: SpanExporter, endpoint: str, clock: Clock, log: FilteringBoundLogger) -> SpanExporter:
    """The exporter, which tells of failures and of their end."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Telling(SpanExporter):
        def __init__(self) -> None:
            self._lost = 0
            self._told_at: float | None = None

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            try:
                result = exporter.export(spans)
            except Exception as error:  # noqa: BLE001 - a collector's answer may be anything; spans are not worth more
                log.debug("telemetry.failed", error=type(error).__name__)
                result = SpanExportResult.FAILURE
            if result is SpanExportResult.SUCCESS:
                if self._told_at is not None:
                    log.info("telemetry.works_again", endpoint=endpoint, spans_lost=self._lost)
                self._lost, self._told_at = 0, None
                return result
            self._lost += len(spans)
            now = clock.monotonic()
            if self._told_at is None or now - self._told_at >= WARN_EVERY_SECONDS:
                self._told_at = now
                log.warning("telemetry.not_sent", endpoint=endpoint, spans_lost=self._lost)
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Telling()


def _readable(span: tracing.Span, resource: Resource) -> ReadableSpan:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

    kinds = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
    trace_id = int(span.trace.trace_id, 16)
    flags = TraceFlags(TraceFlags.SAMPLED)
    state = TraceState.from_header([span.trace.state] if span.trace.state else [])
    parent = span.parent_id and SpanContext(trace_id, int(span.parent_id, 16), is_remote=False, trace_flags=flags)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(
            trace_id, int(span.trace.span_id, 16), is_remote=False, trace_flags=flags, trace_state=state
        ),
        parent=parent or None,
        resource=resource,
        attributes=dict(span.attributes),
        kind=kinds[span.kind],
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
        start_time=span.began_ns,
        end_time=span.ended_ns,
        instrumentation_scope=InstrumentationScope("scaivaultd", __version__),
    )
