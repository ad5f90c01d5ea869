"""What a share measures; read when somebody asks. See observe.metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from headrace.engine.metrics import backend_samples, buffer_samples, stage_samples
from headrace.host import udp
from headrace.observe.metrics import WORKER_FALLBACKS, Sample

if TYPE_CHECKING:
    from headrace.host.session import Share


def share_samples(share: Share) -> Iterator[Sample]:
    """Of one share."""
    yield Sample("peers", len(share.registry.look().peers))
    yield Sample("wrong_codes", share.guesses.wrong_total)
    yield Sample("lockouts", share.guesses.lockouts)
    yield Sample("cache_lookups", share.hashes.hits, ("host-hashes", "hit"))
    yield Sample("cache_lookups", share.hashes.misses, ("host-hashes", "miss"))
    for reason, count in udp.FALLBACKS.copy().items():
        yield Sample("quic_fallbacks", count, (reason,))
    yield Sample("written_bytes", share.incoming.received.total if share.incoming else 0)
    if share.workers:
        yield from share.workers.samples()
    else:
        yield Sample("workers", 0)
        yield Sample("loans", 0)
    for reason, count in WORKER_FALLBACKS.counts().items():
        yield Sample("worker_fallbacks", count, (reason,))
    yield from stage_samples(share.registry.spent())
    yield from buffer_samples(share.buffers)
    yield from backend_samples(share.tree.io.name)
