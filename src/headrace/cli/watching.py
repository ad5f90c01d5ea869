"""`--metrics` and `--trace`: what a command lets others see while it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli import output
from headrace.cli.options import Common

if TYPE_CHECKING:
    from headrace.observe.metrics import Source

_COLLECTOR = "OTEL_EXPORTER_OTLP"  # what the standard variables that name one begin with


@contextlib.contextmanager
def watched(common: Common, command: str, events: output.Events | None) -> Iterator[Callable[[Source], None]]:
    """As long as the block runs there are metrics and spans, where they are wanted. What is given takes further sources
    of metrics. Raises UsageError, LocalDiskError."""
    with contextlib.ExitStack() as at_the_end:
        if common.trace or any(name.startswith(_COLLECTOR) for name in os.environ):
            at_the_end.enter_context(_traced(common, command))
        if not common.metrics:
            yield lambda source: None
            return
        from headrace.engine.metrics import process_samples
        from headrace.observe.exporter import MetricsServer

        server = at_the_end.enter_context(MetricsServer(common.metrics))
        server.add(process_samples)
        if events:
            events.emit({"event": "metrics", "address": server.address})
        elif not common.quiet:
            output.note(f"Metrics are on http://{server.address}/metrics")
        yield server.add


def _traced(common: Common, command: str) -> contextlib.AbstractContextManager[None]:
    from headrace.observe.trace_export import exporters
    from headrace.observe.tracing import Tracer, tracing

    serves = command == "share"
    found = exporters(Path(common.trace) if common.trace else None, f"headrace {command}")
    if not found:
        return contextlib.nullcontext()
    # A share is in the traces of its clients; it has none for as long as it runs.
    return tracing(Tracer(found, serves=serves), "" if serves else command)
