"""What is measured, by name; counts that have no better place; and latencies.

Most figures are read where they are when somebody asks (see `exporter`, and the `metrics` modules of `host`, `client`
and `transport`). Counts and latencies here are the process's own, since it started. No label is made from a file's name
or from what a peer sent: each has a fixed list of values, and what is not on it becomes `other`.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from headrace.observe.times import STAGES

PREFIX: Final = "headrace_"
OTHER: Final = "other"

TRANSPORTS: Final = ("tcp", "quic")
BACKENDS: Final = ("uring", "posix", "plain")
RING_PROBLEMS: Final = ("not_linux", "no_ctypes", "disabled", "forbidden", "kernel_too_old", "no_memory", "failed")
QUIC_PROBLEMS: Final = ("failed", "silent", "rejected", "missing", "name", "no_quic")
WORKER_PROBLEMS: Final = ("start", "died", "silent", "unsupported")
TARGET_REASONS: Final = (
    *("start", "forced", "bdp", "bufferbloat", "held", "recovered", "probe", "route", "no-rtt", "climb"),
)
LIMITS: Final = ("connections", "per_address", "handshakes", "allow")
TIERS: Final = ("host-hashes", "memory")

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. name: without prefix, and for a counter without `_total`. labels: each with all its values.

    where: which commands have it. Base units: seconds, bytes.
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where: tuple[str, ...] = ("share", "get", "put", "mount")

    @property
    def exported(self) -> str:
        """The name in queries; a histogram's has `_bucket`, `_sum` and `_count` behind it."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


class Sample(NamedTuple):
    """One value of a family. labels: their values, in the family's order."""

    name: str
    value: float | Figures
    labels: tuple[str, ...] = ()


class Figures(NamedTuple):
    """A histogram at one moment. buckets: how many took at most so many seconds, ascending, the last is +Inf."""

    buckets: list[tuple[str, float]]
    total: float


def plus(one: float | Figures, other: float | Figures) -> float | Figures:
    """Two values of one family and its labels together. Histograms have the same buckets then."""
    if isinstance(one, Figures) and isinstance(other, Figures):
        buckets = [(name, a + b) for (name, a), (_, b) in zip(one.buckets, other.buckets, strict=True)]
        return Figures(buckets, one.total + other.total)
    assert not isinstance(one, Figures) and not isinstance(other, Figures)
    return one + other


Source = Callable[[], Iterable[Sample]]

_DIRECTION: Final = {"direction": ("sent", "received")}
_TRANSPORT: Final = {"transport": TRANSPORTS}
_SHARE: Final = ("share",)
_MOVING: Final = ("get", "put")
_CLIENT: Final = ("get", "put", "mount")
_BULK: Final = ("share", "get", "put")

FAMILIES: Final = (
    Family("build_info", "gauge", "Always 1; the version is its label.", {"version": ()}),
    # traffic
    Family("bytes", "counter", "Bytes on the wire, encryption included.", _DIRECTION | _TRANSPORT),
    Family("streams", "gauge", "Streams that are open: over TCP connections, over QUIC streams of one.", _TRANSPORT),
    Family("handshakes", "counter", "Streams that both sides agreed on.", {"protocol": ("7", "8")}),
    Family("rtt_seconds", "gauge", "The least round-trip time of the open streams, as the transport estimates it."),
    Family("rtt_baseline_seconds", "gauge", "The least round-trip time of late, without queues.", where=_MOVING),
    Family("tcp_segments_sent", "counter", "TCP segments sent, as far as the kernel tells."),
    Family("tcp_retransmits", "counter", "TCP segments sent again: what was lost, as far as the kernel tells."),
    Family("quic_wanted", "counter", "Connections, or shares, that wanted QUIC as well as TCP."),
    Family("quic_fallbacks", "counter", "Those of them that had to do with TCP alone.", {"reason": QUIC_PROBLEMS}),
    Family("unknown_messages", "counter", "Messages of a type that this version does not know; they are skipped."),
    # a share and its peers
    Family("peers", "gauge", "Peers that are connected.", where=_SHARE),
    Family("workers", "gauge", "Worker processes that are ready for streams.", where=_SHARE),
    Family("loans", "counter", "Streams that were given to worker processes.", where=_SHARE),
    Family(
        "worker_fallbacks",
        "counter",
        "Worker processes that could not be had or were lost.",
        {"reason": WORKER_PROBLEMS},
        _SHARE,
    ),
    Family("wrong_codes", "counter", "Attempts with a wrong code.", where=_SHARE),
    Family("lockouts", "counter", "Times that the share locked itself for new peers.", where=_SHARE),
    Family("turned_away", "counter", "Connections that a limit turned away or ended.", {"limit": LIMITS}, _SHARE),
    # a transfer
    Family("requests_target", "gauge", "Chunk requests that are to be in flight.", where=_MOVING),
    Family("connections_target", "gauge", "Connections that chunks are to use.", where=_MOVING),
    Family(
        "target_reason",
        "gauge",
        "1 for why the target last changed, 0 for the others.",
        {"reason": TARGET_REASONS},
        _MOVING,
    ),
    Family("received_bytes", "counter", "Bytes of files that came from the host.", where=("get", "mount")),
    Family("sent_bytes", "counter", "Bytes of files that were sent into the share.", where=("put",)),
    Family("written_bytes", "counter", "Bytes of files that clients sent into the share.", where=_SHARE),
    Family("reused_bytes", "counter", "Bytes of files that were there already: dedup, resume.", where=_MOVING),
    Family("cached_read_bytes", "counter", "Bytes that came from the cache on this disk.", where=("mount",)),
    Family("read_ahead_bytes", "counter", "Bytes that came before anybody had asked.", where=("mount",)),
    Family("files", "counter", "Files that are over.", {"result": ("done", "failed")}, _MOVING),
    Family("outages", "counter", "Connections that broke and were tried again.", where=_CLIENT),
    Family("first_byte_seconds", "histogram", "From the start of a transfer to its first byte.", where=_MOVING),
    Family(
        "random_read_seconds",
        "histogram",
        "Reads of at most 128 KiB: on a share what the host takes for it, on a mount the whole.",
        where=("share", "mount"),
    ),
    Family("verify_failures", "counter", "Ranges that did not match their hash; they are asked for once more."),
    # where the time goes
    Family("stage_seconds", "counter", "Seconds that streams spent in each stage, added up.", {"stage": STAGES}, _BULK),
    # memory, disk, caches
    Family("buffer_limit_bytes", "gauge", "What the buffer pool may hold.", where=_BULK),
    Family("buffer_in_use_bytes", "gauge", "Of the buffer pool, in use now.", where=_BULK),
    Family("buffer_high_water_bytes", "gauge", "Of the buffer pool, in use at most so far.", where=_BULK),
    Family("buffer_waiting", "gauge", "Threads that wait for a buffer.", where=_BULK),
    Family("buffer_waits", "counter", "Times that somebody had to wait for a buffer.", where=_BULK),
    Family("buffer_wait_seconds", "counter", "How long they waited.", where=_BULK),
    Family("spilled_bytes", "counter", "Bytes of buffers that lay in a file because memory was used up.", where=_BULK),
    Family(
        "cache_lookups",
        "counter",
        "Lookups in caches: a share's hashes, a mount's memory.",
        {"tier": TIERS, "result": ("hit", "miss")},
        ("share", "mount"),
    ),
    Family(
        "io_backend", "gauge", "1 for how files are read and written, 0 for the others.", {"backend": BACKENDS}, _BULK
    ),
    Family("io_wanted", "counter", "Times that io_uring was wanted."),
    Family("io_fallbacks", "counter", "Times that io_uring could not be had.", {"reason": RING_PROBLEMS}),
    Family("zero_copy_fallbacks", "counter", "Files that were read and sent, where sendfile was wanted."),
)
BY_NAME: Final = {family.name: family for family in FAMILIES}


def checked(sample: Sample) -> Sample:
    """The sample, its labels on their lists. KeyError for an unknown name, ValueError for too few labels."""
    family = BY_NAME[sample.name]
    pairs = zip(sample.labels, family.labels.values(), strict=True)
    return sample._replace(labels=tuple(value if not known or value in known else OTHER for value, known in pairs))


class Counts:
    """How often something happened, by a word. Thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, word: str = "") -> bool:
        """Counts one; whether it is the first of this word."""
        with self._lock:
            self._counts[word] = self._counts.get(word, 0) + 1
            return self._counts[word] == 1

    def counts(self) -> dict[str, int]:
        """By word: how many so far."""
        with self._lock:
            return dict(self._counts)

    def total(self) -> int:
        """Of all words."""
        return sum(self.counts().values())


class Latencies:
    """A histogram of seconds. Thread-safe. bounds: ascending. wanted: whether what `timing` times is observed; of small
    reads it is not, where nobody could see it."""

    wanted = False

    def __init__(self, bounds: tuple[float, ...], clock: Callable[[], float] = time.perf_counter) -> None:
        self._bounds = bounds
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        """One of so many seconds."""
        place = bisect.bisect_left(self._bounds, seconds)
        with self._lock:
            self._counts[place] += 1
            self._total += seconds

    def timing(self) -> AbstractContextManager[None]:
        """For `with`: observes how long the block runs, unless it raises; once somebody wants to know."""
        return Timing(self, self._clock) if self.wanted else _UNTIMED

    def figures(self) -> Figures:
        """So far."""
        with self._lock:
            counts, total = list(self._counts), self._total
        names = [*map(repr, self._bounds), "+Inf"]
        return Figures([(name, float(sum(counts[: n + 1]))) for n, name in enumerate(names)], total)


_UNTIMED: Final = nullcontext()


class Timing:
    """One observation; by hand, as it is made for every small read: a generator would take three times as long."""

    __slots__ = ("_began", "_clock", "_latencies")

    def __init__(self, latencies: Latencies, clock: Callable[[], float]) -> None:
        self._latencies = latencies
        self._clock = clock

    def __enter__(self) -> None:
        self._began = self._clock()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._latencies.observe(self._clock() - self._began)


VERIFY_FAILURES: Final = Counts()
UNKNOWN_MESSAGES: Final = Counts()
HANDSHAKES: Final = Counts()  # by protocol version
QUIC_WANTED: Final = Counts()
OUTAGES: Final = Counts()
IO_WANTED: Final = Counts()
WORKER_FALLBACKS: Final = Counts()  # by reason
FIRST_BYTE: Final = Latencies((0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0))
RANDOM_READ: Final = Latencies((0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0))


def own_samples() -> Iterator[Sample]:
    """What is counted here."""
    for version, count in HANDSHAKES.counts().items():
        yield Sample("handshakes", count, (version,))
    yield Sample("verify_failures", VERIFY_FAILURES.total())
    yield Sample("unknown_messages", UNKNOWN_MESSAGES.total())
    yield Sample("quic_wanted", QUIC_WANTED.total())
    yield Sample("outages", OUTAGES.total())
    yield Sample("first_byte_seconds", FIRST_BYTE.figures())
    yield Sample("random_read_seconds", RANDOM_READ.figures())
