"""What a transfer measures; read when somebody asks. See observe.metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from headrace.engine.metrics import backend_samples, buffer_samples, stage_samples
from headrace.observe.metrics import TARGET_REASONS, Sample

if TYPE_CHECKING:
    from headrace.client.running import Running


def transfer_samples(transfer: Running) -> Iterator[Sample]:
    """Of one transfer."""
    totals = transfer.progress.totals()
    yield Sample(transfer.moved, totals.bytes_received)
    yield Sample("reused_bytes", totals.bytes_reused)
    yield Sample("files", totals.files_done, ("done",))
    yield Sample("files", totals.files_failed, ("failed",))
    yield from stage_samples(transfer.progress.ledger.spent())
    yield from buffer_samples(transfer.buffers)
    yield from backend_samples(transfer.io)
    if pool := transfer.pool:
        yield Sample("requests_target", pool.requests)
        yield Sample("connections_target", pool.connections)
        for reason in TARGET_REASONS:
            yield Sample("target_reason", float(reason == pool.reason), (reason,))
        if baseline := pool.baseline_rtt:
            yield Sample("rtt_baseline_seconds", baseline)
