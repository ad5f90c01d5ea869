"""What all streams of this process carried, for the metrics: read from the streams themselves when somebody asks."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Final

from headrace.observe.metrics import TRANSPORTS, Sample
from headrace.transport.base import Stream


class Traffic:
    """The streams that got through their handshake. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._over: Counter[str] = Counter()  # by `_key`, of streams that are closed

    def opened(self, stream: Stream) -> None:
        """It counts from here on, with what it carried before."""
        with self._lock:
            self._open.add(stream)

    def closed(self, stream: Stream) -> None:
        """Just before it is closed. May be called again, and for one that never counted."""
        with self._lock:
            if stream in self._open:
                self._open.discard(stream)
                self._over.update(_figures(stream))

    def samples(self) -> Iterator[Sample]:
        """For the metrics. Asks the kernel once for each open TCP connection."""
        with self._lock:
            streams = list(self._open)
            totals = self._over.copy()
            for stream in streams:
                totals.update(_figures(stream))
        for transport in TRANSPORTS:
            yield Sample("streams", sum(stream.transport == transport for stream in streams), (transport,))
            for direction in ("sent", "received"):
                yield Sample("bytes", totals[f"{direction} {transport}"], (direction, transport))
        yield Sample("tcp_segments_sent", totals["segments"])
        yield Sample("tcp_retransmits", totals["retransmits"])
        if rtts := [rtt for stream in streams if (rtt := stream.rtt())]:
            yield Sample("rtt_seconds", min(rtts))


def _figures(stream: Stream) -> dict[str, int]:
    """What it carried so far."""
    found = {f"sent {stream.transport}": stream.bytes_out, f"received {stream.transport}": stream.bytes_in}
    if losses := stream.losses():
        found["segments"], found["retransmits"] = losses
    return found


TRAFFIC: Final = Traffic()
