"""What a mount measures; read when somebody asks. See observe.metrics."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.client.blocks import BlockFigures
from headrace.observe.metrics import Sample


def block_samples(figures: BlockFigures, lost: int) -> Iterator[Sample]:
    """Of the reader of a mount. lost: lanes that broke."""
    yield Sample("received_bytes", figures.fetched)
    yield Sample("cached_read_bytes", figures.from_disk)
    yield Sample("read_ahead_bytes", figures.ahead)
    yield Sample("cache_lookups", figures.hits, ("memory", "hit"))
    yield Sample("cache_lookups", max(0, figures.reads - figures.hits), ("memory", "miss"))
    yield Sample("outages", lost)
