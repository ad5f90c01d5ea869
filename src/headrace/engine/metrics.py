"""What every command that moves bytes measures; read when somebody asks. See observe.metrics."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.engine.buffers import BufferPool, Buffers
from headrace.observe.metrics import BACKENDS, IO_WANTED, RING_PROBLEMS, Sample
from headrace.observe.times import Spent
from headrace.storage import platform
from headrace.transport import adaptive, zerocopy
from headrace.transport.traffic import TRAFFIC


def process_samples() -> Iterator[Sample]:
    """Of the whole process: the network, and what could not be had."""
    yield from TRAFFIC.samples()
    for reason, count in adaptive.FALLBACKS.copy().items():
        yield Sample("quic_fallbacks", count, (reason,))
    yield Sample("io_wanted", IO_WANTED.total())
    for reason, count in platform.FALLBACKS.counts().items():
        if reason in RING_PROBLEMS:  # other things than io_uring are counted there, too
            yield Sample("io_fallbacks", count, (reason,))
    yield Sample("zero_copy_fallbacks", sum(zerocopy.FALLBACKS.counts().values()))


def buffer_samples(buffers: Buffers) -> Iterator[Sample]:
    """Of a pool; the debug mode has none."""
    if not isinstance(buffers, BufferPool):
        return
    figures = buffers.figures()
    yield Sample("buffer_limit_bytes", figures.limit)
    yield Sample("buffer_in_use_bytes", figures.in_use)
    yield Sample("buffer_high_water_bytes", figures.high_water)
    yield Sample("buffer_waiting", figures.waiting)
    yield Sample("buffer_waits", figures.waits)
    yield Sample("buffer_wait_seconds", figures.wait_seconds)
    yield Sample("spilled_bytes", figures.spilled_ever)


def backend_samples(name: str) -> Iterator[Sample]:
    """How files are read and written."""
    for backend in BACKENDS:
        yield Sample("io_backend", float(backend == name), (backend,))


def stage_samples(spent: Spent) -> Iterator[Sample]:
    """Where the time of streams went."""
    for stage, seconds in zip(Spent._fields, spent, strict=True):
        yield Sample("stage_seconds", seconds, (stage,))
