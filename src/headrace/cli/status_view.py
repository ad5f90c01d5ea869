"""What the answers of running programs look like: rates from counters, and lines for people.

The answers come from programs of this user, but names in them come from their peers; a version that is older or newer
may leave fields out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from headrace.cli.text import clock, counted, human_limit, human_rate, human_seconds, human_size
from headrace.errors import printable

Snapshot = dict[str, Any]

WINDOW: Final = 5.0  # seconds over which rates are averaged
COUNTERS: Final = {"rate_sent": "bytes_sent", "rate_received": "bytes_received", "rate_read": "bytes_read"}


class Rates:
    """Adds rates to the snapshots of shares, which hold counters and a clock. One owner thread."""

    def __init__(self) -> None:
        self._earlier: dict[float, deque[Snapshot]] = {}  # by pid

    def add(self, snapshot: Snapshot) -> Snapshot:
        """`snapshot`, with `rate_sent` and `rate_received` in bytes a second, of the share and of each peer; None where
        there is no earlier one to compare with. The clock is left out."""
        now = snapshot.get("clock")
        if not isinstance(now, int | float):
            return snapshot
        earlier = self._earlier.setdefault(_number(snapshot, "pid"), deque())
        while len(earlier) > 1 and _number(earlier[1], "clock") <= now - WINDOW:
            earlier.popleft()
        before = earlier[0] if earlier else None
        earlier.append(snapshot)
        span = None if before is None else now - _number(before, "clock")
        peers_before = {peer.get("peer"): peer for peer in _peers(before or {})}
        shown = {name: value for name, value in snapshot.items() if name not in ("clock", "peers")}
        if "peers" not in snapshot:
            return {**shown, **_rates(snapshot, before, span)}
        peers = [{**peer, **_rates(peer, peers_before.get(peer.get("peer")), span)} for peer in _peers(snapshot)]
        return {**shown, **_rates(snapshot, before, span), "peers": peers}


def _rates(now: Snapshot, before: Snapshot | None, span: float | None) -> dict[str, float | None]:
    """span: seconds between the two."""
    if span is None or span <= 0:
        return {rate: None for rate, counter in COUNTERS.items() if counter in now}
    if before is None or _number(before, "seconds") > _number(now, "seconds"):  # a peer that came in between, or again
        before, span = {}, min(span, max(_number(now, "seconds"), 0.001))
    return {
        rate: round(max(0.0, _number(now, counter) - _number(before, counter)) / span)
        for rate, counter in COUNTERS.items()
        if counter in now
    }


def lines(snapshots: list[Snapshot]) -> list[str]:
    """A few lines for each program, shares first."""
    found: list[str] = []
    for snapshot in snapshots:
        found += _VIEWS.get(_text(snapshot.get("kind")), _transfer)(snapshot)
    return found


def _share(share: Snapshot) -> list[str]:
    found = share.get("transports")
    transports = ", ".join(map(_text, found)) if isinstance(found, list) else "?"
    head = [
        f"share {_text(share.get('name'))}",
        f"code {_text(share.get('share'))}-…",
        f"port {_text(share.get('port'))} ({transports})",
        f"pid {_text(share.get('pid'))}",
        f"up {human_seconds(_number(share, 'seconds'))}",
        *(["clients may write"] if share.get("write") else []),
    ]
    peers = _peers(share)
    traffic = [counted(len(peers), "peer"), *_traffic(share)]
    for name, whom in (("limit_rate", "in all"), ("limit_peer", "each peer")):
        if share.get(name) is not None:
            traffic.append(f"limit {human_limit(_number(share, name))} {whom}")
    return ["  ".join(head), f"  {'  '.join(traffic)}", *(f"    {_peer(peer)}" for peer in peers)]


def _peer(peer: Snapshot) -> str:
    parts = [
        _text(peer.get("address")),
        f"protocol {_text(peer.get('protocol'))}",
        _text(peer.get("transport")),
        counted(round(_number(peer, "connections")), "connection"),
        *_traffic(peer),
        f"for {human_seconds(_number(peer, 'seconds'))}",
        _text(peer.get("agent")),
    ]
    return "  ".join(parts)


def _traffic(counters: Snapshot) -> list[str]:
    """What went out and how fast; what came in only where it is more than requests."""
    sent, received = _number(counters, "bytes_sent"), _number(counters, "bytes_received")
    parts = [f"{human_size(round(sent))} sent"]
    if counters.get("rate_sent") is not None:
        parts.append(human_rate(_number(counters, "rate_sent")))
    if received > sent:
        parts.append(f"{human_size(round(received))} received")
        if counters.get("rate_received") is not None:
            parts.append(human_rate(_number(counters, "rate_received")))
    return parts


def _transfer(get: Snapshot) -> list[str]:
    dest = get.get("dest")
    arrow = "" if dest is None else f" -> {_text(dest)}"
    head = [
        f"{_text(get.get('kind'))} {_text(get.get('target'))}{arrow}",
        f"code {_text(get.get('share'))}-…",
        f"pid {_text(get.get('pid'))}",
        f"up {human_seconds(_number(get, 'seconds'))}",
    ]
    done, size = round(_number(get, "bytes_done")), round(_number(get, "bytes"))
    files, files_done = round(_number(get, "files")), round(_number(get, "files_done"))
    progress = [f"{human_size(done)} of {human_size(size)}{'' if get.get('planned') else ' so far'}"]
    if get.get("planned") and size:
        progress.insert(0, f"{min(99, 100 * done // size)} %")
    progress += [f"{files_done:,} of {counted(files, 'file')}", human_rate(_number(get, "rate"))]
    if get.get("seconds_left") is not None:
        progress.append(f"{clock(_number(get, 'seconds_left'))} left")
    streams = counted(round(_number(get, "streams")), "stream")
    progress.append(f"{_text(get.get('transport'))}, protocol {_text(get.get('protocol'))}, {streams}")
    if get.get("limit_rate") is not None:
        progress.append(f"limit {human_limit(_number(get, 'limit_rate'))}")
    return ["  ".join(head), f"  {'  '.join(progress)}"]


def _mount(mount: Snapshot) -> list[str]:
    head = [
        f"mount {_text(mount.get('target'))} on {_text(mount.get('dir'))}",
        f"code {_text(mount.get('share'))}-…",
        f"pid {_text(mount.get('pid'))}",
        f"up {human_seconds(_number(mount, 'seconds'))}",
    ]
    how = f"{_text(mount.get('transport'))}, protocol {_text(mount.get('protocol'))}"
    traffic = ["offline" if mount.get("offline") else how if mount.get("up") else "the host is away"]
    traffic.append(f"{human_size(round(_number(mount, 'bytes_read')))} read")
    if mount.get("rate_read") is not None:
        traffic.append(human_rate(_number(mount, "rate_read")))
    traffic.append(f"{round(_number(mount, 'open')):,} open")
    if mount.get("limit_rate") is not None:
        traffic.append(f"limit {human_limit(_number(mount, 'limit_rate'))}")
    traffic += _caches(mount.get("cache"))
    errors = mount.get("errors")
    if isinstance(errors, dict) and errors:
        traffic.append("errors: " + ", ".join(f"{_text(word)} {_text(count)}" for word, count in errors.items()))
    return ["  ".join(head), f"  {'  '.join(traffic)}"]


def _caches(cache: object) -> list[str]:
    """What came from where, and how full the caches are."""
    if not isinstance(cache, dict):
        return []
    found = [f"{human_size(round(_number(cache, 'fetched')))} fetched"]
    for name, holder, key in (("memory", cache.get("ram"), "used"), ("disk", cache.get("disk"), "size")):
        if isinstance(holder, dict):
            used, limit = (human_size(round(_number(holder, which))) for which in (key, "limit"))
            found.append(f"{name} {used} of {limit}")
    return found


_VIEWS: Final = {"share": _share, "mount": _mount}


def _peers(share: Mapping[str, Any]) -> list[Snapshot]:
    peers = share.get("peers")
    return [peer for peer in peers if isinstance(peer, dict)] if isinstance(peers, list) else []


def _number(snapshot: Mapping[str, Any], name: str) -> float:
    value = snapshot.get(name)
    return value if isinstance(value, int | float) else 0


def _text(value: object) -> str:
    """Made safe to show: much of it is what peers call themselves."""
    return printable(str(value), 100)
