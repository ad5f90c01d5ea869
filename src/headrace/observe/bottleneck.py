"""Where the time of a transfer went, and what held it up: from what both sides' streams spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from headrace.observe.times import Spent

SOURCE: Final = "source disk"
HASH: Final = "hash"
NETWORK: Final = "network"
PEER: Final = "waiting for the peer"
DESTINATION: Final = "destination disk"
REST: Final = "the rest"
UNTOLD: Final = "network and host"  # where the host cannot say what it did

_SENTENCES: Final = {
    SOURCE: "The bottleneck is the source disk: the host reads its files no faster",
    HASH: "The bottleneck is hashing",
    NETWORK: "The bottleneck is the network, encryption included",
    PEER: "The bottleneck is the host itself: it waits for buffers, for its other peers, or for a processor",
    DESTINATION: "The bottleneck is the destination disk: this machine writes no faster",
    REST: "The bottleneck is this program: listing, finding work, many small files",
    UNTOLD: "The bottleneck is the network or the host, which is too old to say more",
}
_OF_WHO_SENDS: Final = {
    SOURCE: "The bottleneck is the source disk: this machine reads its files no faster",
    DESTINATION: "The bottleneck is the destination disk: the host writes no faster",
}


class Row(NamedTuple):
    """share: of the time, 0 to 1. seconds: that share of the time that passed."""

    name: str
    share: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """rows: in the order in which bytes travel; the shares are 1 together. bottleneck: the largest one's name."""

    rows: tuple[Row, ...]
    bottleneck: str
    sentence: str


def explain(
    here: Spent,
    there: Spent | None,
    seconds: float,
    *,
    limit: float = 0.0,
    their_limit: float = 0.0,
    sends: bool = False,
) -> Breakdown | None:
    """here: what this side's streams spent. there: what the host's spent for them meanwhile; None: it does not say.
    seconds: what passed. limit: bytes a second that this side set, their_limit: the host; 0: none. sends: files went to
    the host, and not from it.

    None where nothing was done. A stream of ours that waits or receives waits for what the host does: so that time is
    given to what the host's streams did. They also wait, in `sending`, for us while we hash and write; that is no
    network's, and is taken off first. What our waiting has left then was on the way: it is the network's.
    """
    total = here.total
    if total <= 0:
        return None
    waited = here.sending + here.waiting + here.receiving
    ours, theirs = (SOURCE, DESTINATION) if sends else (DESTINATION, SOURCE)
    parts = {ours: here.disk, HASH: here.hash, REST: here.rest}
    if there is None:
        parts[UNTOLD] = waited
    else:
        sending = max(0.0, there.sending + there.receiving - (total - waited))
        did = {theirs: there.disk, HASH: there.hash, NETWORK: sending, PEER: there.rest}
        busy = sum(did.values())
        fits = min(1.0, waited / busy) if busy > 0 else 0.0
        for name, spent in did.items():
            parts[name] = parts.get(name, 0.0) + spent * fits
        parts[NETWORK] += max(0.0, waited - busy)
    order = (SOURCE, HASH, NETWORK, PEER, DESTINATION, REST) if there else (UNTOLD, HASH, ours, REST)
    rows = tuple(Row(name, parts[name] / total, parts[name] / total * seconds) for name in order)
    largest = max(rows, key=lambda row: row.share)
    return Breakdown(rows, largest.name, _sentence(largest, limit, their_limit, sends=sends))


def _sentence(largest: Row, limit: float, their_limit: float, *, sends: bool) -> str:
    text = (_SENTENCES | _OF_WHO_SENDS if sends else _SENTENCES)[largest.name]
    lowest = min((one for one in (limit, their_limit) if one), default=0.0)
    if largest.name in (NETWORK, UNTOLD) and lowest:
        whose = "this side's" if lowest == limit else "the host's"
        text = f"The bottleneck is the network, or {whose} limit of {lowest / 1e6:.1f} MB/s"
    return f"{text} ({largest.share:.0%} of the time)."
