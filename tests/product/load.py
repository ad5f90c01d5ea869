"""A client that takes chunks as fast as they come and drops them, and how evenly they came."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.client.session import Session
from headrace.client.target import Target, parse_code
from headrace.engine.lane import Lane
from headrace.errors import ConnectionLostError
from headrace.protocol.messages import GetChunk
from headrace.protocol.paths import RelPath

from .support import CHUNK, CODE, MIB, wait_until

SAMPLE: Final = 0.005  # seconds
WINDOW: Final = 0.1  # seconds in which a burst is looked for
TRIES: Final = 4  # a machine that is busy with something else lets bytes pile up, and then reads them at once


@dataclass(frozen=True)
class Flow:
    """rate: bytes a second. burst: the most that came within WINDOW, as a multiple of what the rate has for it."""

    rate: float
    burst: float


class Load:
    """`lanes` threads, each on a connection of its own, that ask for the same chunk over and over."""

    def __init__(
        self,
        port: int,
        path: bytes,
        *,
        home: Path,
        lanes: int,
        limit: float | None = None,
        clear: bool = False,
        transport: str = "tcp",
    ) -> None:
        target = Target("127.0.0.1", port, code=parse_code(CODE))
        self.session = Session.connect(target, home=home, limit_rate=limit, transport=transport)
        self._path = RelPath.from_user(path)
        self._entry = self.session.stat(self._path)
        if clear:
            self.session.use_clear()
        self._stop = threading.Event()
        self._lanes = [self.session.open_lane() for _ in range(lanes)]
        self._threads = [threading.Thread(target=self._take, args=(lane,), daemon=True) for lane in self._lanes]
        for thread in self._threads:
            thread.start()

    def received(self) -> int:
        """Bytes on the wire so far."""
        return sum(lane.messages.stream.bytes_in for lane in self._lanes)

    def _take(self, lane: Lane) -> None:
        buffer = memoryview(bytearray(MIB))
        with contextlib.suppress(ConnectionLostError):
            self._ask(lane)
            while not self._stop.is_set():
                self._ask(lane)
                _, left = lane.answer()
                while left:
                    piece = buffer[: min(left, MIB)]
                    lane.messages.read_payload(piece)
                    left -= len(piece)

    def _ask(self, lane: Lane) -> None:
        length = min(CHUNK, self._entry.size)
        lane.post(GetChunk(lane.next_id(), bytes(self._path), self._entry.version, 0, length))

    def close(self) -> None:
        self._stop.set()
        self.session.abort()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self.session.close()


@contextlib.contextmanager
def load(
    port: int,
    path: bytes,
    *,
    home: Path,
    lanes: int,
    limit: float | None = None,
    clear: bool = False,
    transport: str = "tcp",
) -> Iterator[Load]:
    one = Load(port, path, home=home, lanes=lanes, limit=limit, clear=clear, transport=transport)
    try:
        yield one
    finally:
        one.close()


def measure(received: Callable[[], int], seconds: float) -> Flow:
    """Looks at a growing number of bytes for so many seconds."""
    samples = [(time.monotonic(), received())]
    while samples[-1][0] - samples[0][0] < seconds:
        time.sleep(SAMPLE)
        samples.append((time.monotonic(), received()))
    rate = (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])
    assert rate > 0, "nothing came"
    most, recent = 0, deque[tuple[float, int]]()
    for now, count in samples:
        recent.append((now, count))
        while recent[0][0] < now - WINDOW:
            recent.popleft()
        most = max(most, count - recent[0][1])
    return Flow(rate, most / (rate * WINDOW))


def check_kept(received: Callable[[], int], rate: float, seconds: float = 5.0) -> None:
    """The rate is kept to 3 %, and no WINDOW has more than twice its share."""
    flows = []
    for _ in range(TRIES):
        flow = measure(received, seconds)
        flows.append(flow)
        if abs(flow.rate / rate - 1) <= 0.03 and flow.burst <= 2:
            return
    raise AssertionError(f"wanted {rate:.0f} bytes a second without bursts, saw {flows}")


def check_runs(received: Callable[[], int], size: int, seconds: float = 5.0) -> None:
    """So many bytes come within so many seconds from now."""
    before = received()
    wait_until(lambda: received() - before >= size, f"{size} bytes", seconds)
