"""Several chunks on one lane, each asked for before the one ahead of it has come: a long path never stands idle."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from headrace.client.link import Link
from headrace.client.session import Session
from headrace.engine.exchange import EXCHANGES
from headrace.engine.lane import Lane
from headrace.engine.ramcache import Span, new_buffer
from headrace.errors import ConnectionLostError, HeadraceError, ProtocolError
from headrace.protocol.paths import RelPath

SPELL: Final = 10.0  # seconds after which a run asks for nothing more and ends, so that its lane is free for others


class Source(Protocol):
    """The file of a span."""

    path: RelPath
    version: bytes


def stream[Owner: Source](
    link: Link,
    deadline: float,
    depth: Callable[[], int],
    first: tuple[Owner, Span],
    more: Callable[[], tuple[Owner, Span] | None],
    arrived: Callable[[Owner, Span, memoryview, bytes], None],
    failed: Callable[[Owner, Span, HeadraceError], None],
) -> None:
    """Fetches the first span, and what `more` gives, in that order. On the caller's thread, by one bulk lane.

    depth: how many requests may be on their way now. more: the next span and its owner, asked for each time that
    another request may leave; None: not now. It ends when nothing is on its way and nothing more is to be. Each is
    given to `arrived`, with its bytes and their verified hash, or to `failed`, whatever happens. deadline: by the
    link's clock, for all. Waits for no host that is away. Raises nothing that the host can cause.
    """
    asked = deque([first])
    until = link.clock() + SPELL

    def run(session: Session, lane: Lane) -> None:
        exchange = EXCHANGES[session.agreed.version]

        def ask(owner: Owner, span: Span) -> None:
            exchange.request(lane, owner.path, owner.version, span.offset, span.length)
            lane.flush()

        for one in asked:  # once more, where a connection broke
            ask(*one)
        while True:
            while len(asked) < depth() and link.clock() < until and not link.crowded and (wanted := more()):
                asked.append(wanted)
                ask(*wanted)
            if not asked:
                return
            owner, span = asked[0]
            buffer = new_buffer(span.length)
            try:
                digest, _ = exchange.receive(lane, span.length, buffer, None)
            except (ConnectionLostError, ProtocolError):
                raise
            except HeadraceError as why:  # of this span alone; the lane is as it should be
                asked.popleft()
                failed(owner, span, why)
                continue
            asked.popleft()
            arrived(owner, span, buffer, digest)

    try:
        link.run(run, deadline, bulk=True, wait=False)
    except HeadraceError as why:
        _fail(asked, failed, why)
    except BaseException:
        _fail(asked, failed, HeadraceError("reading was interrupted"))
        raise


def _fail[Owner](
    asked: deque[tuple[Owner, Span]], failed: Callable[[Owner, Span, HeadraceError], None], why: HeadraceError
) -> None:
    while asked:
        failed(*asked.popleft(), why)
