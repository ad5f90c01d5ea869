"""Times small requests to a share, each beside a bare exchange of the same size. What `bench.regression` starts.

    HEADRACE_CODE=... python -m bench.sampler HOST:PORT [NAME=SHARE ...]

Prints one JSON object: for each request, the ratio in each block and the fastest one in microseconds. A block's ratio
is that of the fastest request to the fastest bare exchange of SAMPLES each, taken in turn: where a machine does other
things as well, whatever is slower than the fastest was also disturbed. NAME=SHARE makes a request take so much longer
than it does, 0.15 for 15 %, to prove that it is seen.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, TypedDict

from headrace.bench.pingpong import PingPong
from headrace.client.remote import RemoteShare
from headrace.client.session import Session
from headrace.client.target import Target
from headrace.engine.exchange import EXCHANGES
from headrace.protocol.messages import READ_SIZE
from headrace.protocol.paths import RelPath

NAMES: Final = ("read", "first byte", "list")
BLOCKS: Final = 3
SAMPLES: Final = 150  # of each request in a block
WARM_UP: Final = 30
FILE: Final = "large.bin"
FILE_SIZE: Final = 64 << 20
FOLDER: Final = "listed"
ENTRIES: Final = 32
PIECE: Final = 4096  # bytes of a read
LISTING: Final = 2625  # bytes of the ListPart for FOLDER; a constant, so that a longer message is a slower one

Request = Callable[[], None]


class Timed(TypedDict):
    """Of one request."""

    ratios: list[float]
    microseconds: float


def requests(session: Session) -> dict[str, tuple[Request, int]]:
    """By name: what is timed, and how many bytes its answer has."""
    where = RelPath.from_user(FILE.encode())
    version = session.stat(where).version
    exchange, lane = EXCHANGES[session.agreed.version], session.open_lane()
    buffer, chance = memoryview(bytearray(PIECE)), random.Random(1)

    def read() -> None:
        with lane.lock:
            exchange.request(lane, where, version, chance.randrange(FILE_SIZE - PIECE), PIECE)
            exchange.receive(lane, PIECE, buffer, None)

    share = RemoteShare(session)

    def first_byte() -> None:
        with share.open(FILE) as file:
            file.seek(chance.randrange(FILE_SIZE - READ_SIZE))
            file.read(1)

    def listing() -> None:
        share.ls(FOLDER)

    return dict(zip(NAMES, ((read, PIECE), (first_byte, READ_SIZE), (listing, LISTING)), strict=True))


def slowed(request: Request, share: float) -> Request:
    """The same, but it takes 1 + `share` times as long, without giving the processor away."""

    def run() -> None:
        started = time.perf_counter()
        request()
        until = started + (1 + share) * (time.perf_counter() - started)
        while time.perf_counter() < until:
            pass

    return run


def sample(made: Mapping[str, tuple[Request, int]], ping: PingPong) -> dict[str, Timed]:
    """Block after block; within a block each request and its bare exchange in turn."""
    clock = time.perf_counter
    found: dict[str, Timed] = {name: {"ratios": [], "microseconds": float("inf")} for name in made}
    for samples in (WARM_UP, *[SAMPLES] * BLOCKS):
        own, bare = dict.fromkeys(made, float("inf")), dict.fromkeys(made, float("inf"))
        gc.collect()
        for _ in range(samples):
            for name, (request, size) in made.items():
                start = clock()
                request()
                middle = clock()
                ping.exchange(size)
                end = clock()
                own[name] = min(own[name], middle - start)
                bare[name] = min(bare[name], end - middle)
        if samples != WARM_UP:
            for name, timed in found.items():
                timed["ratios"].append(own[name] / bare[name])
                timed["microseconds"] = min(timed["microseconds"], own[name] * 1e6)
    return found


def main(address: str, *slower: str) -> None:
    gc.disable()  # it comes between two blocks instead
    target = Target.parse(f"{os.environ['HEADRACE_CODE']}@{address}")
    with PingPong() as ping, Session.connect(target, transport="tcp") as session:
        made = requests(session)
        for word in slower:
            name, _, much = word.partition("=")
            made[name] = (slowed(made[name][0], float(much)), made[name][1])
        json.dump(sample(made, ping), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
