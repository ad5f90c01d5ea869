"""Where the time of a transfer goes, on both sides."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from headrace.client.session import Session
from headrace.errors import HeadraceError, ProtocolError
from headrace.observe.bottleneck import Breakdown, explain
from headrace.observe.times import Spent
from headrace.protocol.messages import GetTimes, Times
from headrace.protocol.session import TIMES

log = logging.getLogger("headrace.client")


@dataclass(frozen=True, slots=True)
class HostTimes:
    """What the host's streams for this peer spent so far. limit: bytes a second that it lets us have; 0: no limit."""

    spent: Spent
    limit: float


def host_times(session: Session) -> HostTimes | None:
    """Asks the host, for a round trip. None where it is too old to say. Raises ConnectionLostError, ProtocolError."""
    if TIMES not in session.agreed.features:
        return None
    with session.use() as lane:
        lane.post(GetTimes(lane.next_id()))
        answer, _ = lane.answer()
    if not isinstance(answer, Times):
        raise ProtocolError("the host answered GetTimes with something else")
    try:
        answer.check()
    except ValueError as why:
        raise ProtocolError(f"the host sent {why}") from why
    spent = Spent(answer.disk, answer.hash, answer.sending, answer.waiting, answer.receiving, answer.rest)
    return HostTimes(spent, answer.limit)


class Watch:
    """From its making on: both sides' times. Asks the host now and at the end; a host that cannot be asked is no error,
    as whoever wants more of it than that finds out for himself."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._before = self._ask()

    def breakdown(self, here: Spent, seconds: float, *, sends: bool = False) -> Breakdown | None:
        """here: what this side's streams spent meanwhile, in so many seconds. sends: files went to the host. Where the
        host cannot be asked, or came back as another one, it is this side's alone."""
        after = self._ask()
        there, limit = None, 0.0
        if self._before and after and after.spent.total >= self._before.spent.total:
            there, limit = after.spent.since(self._before.spent), after.limit
        return explain(here, there, seconds, limit=self._session.limit.rate or 0.0, their_limit=limit, sends=sends)

    def _ask(self) -> HostTimes | None:
        try:
            return host_times(self._session)
        except HeadraceError as why:
            log.info("the host does not say where its time went: %s", why.message)
            return None
