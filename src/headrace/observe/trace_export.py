"""Where spans go: a file with one JSON object a line, or a collector by OTLP."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Final

from headrace._version import __version__
from headrace.errors import LocalDiskError
from headrace.observe.tracing import Exporter, Span

log = logging.getLogger("headrace.trace")

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SCOPE: Final = "headrace"


class FileExporter:
    """Appends each span to a file as it ends. Two programs may write to the same one: a line is one write."""

    def __init__(self, path: Path, service: str) -> None:
        """service: who speaks, as in `headrace get`. Raises LocalDiskError."""
        self._path = path
        self._service = service
        self._lock = threading.Lock()
        try:
            self._file: FileIO | None = open(path, "ab", buffering=0)  # noqa: SIM115  # until close
        except OSError as why:
            hint = "Choose another file with --trace."
            raise LocalDiskError(f"{path} cannot be written ({why.strerror or why})", hint=hint) from why

    def export(self, span: Span) -> None:
        line = json.dumps(as_json(span, self._service)).encode("ascii") + b"\n"
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(line)
            except OSError as why:  # the transfer matters more than what is told about it
                log.warning("no further spans are written to %s: %s", self._path, why.strerror or why)
                self._file.close()
                self._file = None

    def close(self) -> None:
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None


def as_json(span: Span, service: str) -> dict[str, Any]:
    """Times in nanoseconds, ids in hex."""
    return {
        "name": span.name,
        "trace_id": span.context.trace_id,
        "span_id": span.context.span_id,
        "parent_id": span.parent,
        "start_ns": span.began,
        "duration_ns": span.ended - span.began,
        "service": service,
        "thread": span.thread,
        "error": span.error,
        "attributes": span.attributes,
    }


class OtlpExporter:
    """Gives spans to the OpenTelemetry SDK, which sends them as the standard OTEL_ variables say."""

    def __init__(self, service: str) -> None:
        """Raises ImportError without the SDK and its exporter."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        self._make_span = ReadableSpan
        self._make_context = SpanContext
        self._sampled = TraceFlags(TraceFlags.SAMPLED)
        self._kind = SpanKind.INTERNAL
        self._status = {False: Status(StatusCode.UNSET), True: Status(StatusCode.ERROR)}
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over ours.
        own = {SERVICE_NAME: service, SERVICE_VERSION: __version__}
        self._resource = Resource(own).merge(Resource.create()) if _names_service() else Resource.create(own)
        self._scope = InstrumentationScope(SCOPE, __version__)
        self._processor = BatchSpanProcessor(OTLPSpanExporter())

    def export(self, span: Span) -> None:
        context = self._context(span.context.trace_id, span.context.span_id)
        parent = self._context(span.context.trace_id, span.parent) if span.parent else None
        attributes = {f"headrace.{name}": value for name, value in span.attributes.items()}
        if span.error:
            attributes["error.type"] = span.error
        self._processor.on_end(
            self._make_span(
                name=span.name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes={**attributes, "thread.name": span.thread},
                kind=self._kind,
                status=self._status[bool(span.error)],
                start_time=span.began,
                end_time=span.ended,
                instrumentation_scope=self._scope,
            )
        )

    def _context(self, trace_id: str, span_id: str) -> Any:
        return self._make_context(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=self._sampled)

    def close(self) -> None:
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # of the SDK


def exporters(file: Path | None, service: str, environment: Mapping[str, str] = os.environ) -> list[Exporter]:
    """What is wanted: `--trace FILE`, and a collector where the environment names one. Raises LocalDiskError."""
    found: list[Exporter] = []
    if wants_otlp(environment):
        try:
            found.append(OtlpExporter(service))
        except ImportError:
            log.warning("OTEL_ variables name a collector, but the SDK is not here: pip install 'headrace[otlp]'")
    if file is not None:
        found.append(FileExporter(file, service))
    return found


def wants_otlp(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a collector, and does not switch traces off."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environment.get(name) for name in ENDPOINTS)


def _names_service() -> bool:
    return bool(os.environ.get("OTEL_SERVICE_NAME") or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
