"""What a link does to packets, as arithmetic: which are lost and when the others arrive. No device, no clock."""

from __future__ import annotations

import heapq
import math
import random
import struct
from dataclasses import dataclass, field
from typing import Final

CHANGEABLE: Final = frozenset(
    {"rate", "delay", "loss", "queue", "queue_bytes", "reorder", "reorder_delay", "udp_blocked", "down"}
)
LATE: Final = 0.005  # seconds
# Who carries the packets looks for them a little late, and late in bursts on a busy machine. Without this much credit
# the line would stand idle meanwhile, although packets waited for it.
CREDIT: Final = 0.002  # seconds of the line
_UDP: Final = 17
_TCP_LUMPS: Final = frozenset({1, 4})  # gso_type: TCP over IPv4, over IPv6
_TCP_LENGTH_AT: Final = 12  # in a TCP header: its own length
_PROTOCOL_AT: Final = {4: 9, 6: 6}  # IP version: where the protocol number is; extension headers are not followed


@dataclass(frozen=True, slots=True)
class Profile:
    """A link, the same in both directions. Raises ValueError for what no link is like."""

    rate: float = 0.0  # bit/s, of whole IP packets; 0: no limit
    delay: float = 0.0  # seconds one way
    loss: float = 0.0  # the share of packets that vanish, from 0 to 1
    queue: float = 0.1  # seconds: a packet that had to wait longer for the line is dropped
    queue_bytes: int = 0  # the same in bytes; it counts where it is not 0
    reorder: float = 0.0  # the share of packets that come later by `reorder_delay`, so that others overtake them
    reorder_delay: float = 0.01
    udp_blocked: bool = False  # as by a firewall that says nothing
    down: bool = False  # a cut cable: what is on its way is lost as well
    seed: int = 1  # of loss and reordering
    mtu: int = 1500
    offload: bool = False  # packets of one TCP stream cross in lumps of up to 64 KiB; so do loss and reordering
    veth: bool = False  # the kernel's own link and its TBF: fast, but with a rate and a queue only
    congestion: str = "bbr"  # what TCP uses on both hosts

    def __post_init__(self) -> None:
        if min(self.rate, self.delay, self.queue, self.queue_bytes, self.reorder_delay) < 0:
            raise ValueError("a rate, a time or a length below 0")
        if not (0 <= self.loss <= 1 and 0 <= self.reorder <= 1):
            raise ValueError("a share that is not from 0 to 1")
        if self.veth and (self.delay or self.loss or self.reorder or self.udp_blocked or self.offload):
            raise ValueError("a veth link has a rate, a queue and an MTU, nothing else")

    @property
    def longest_wait(self) -> float:
        """Seconds that the queue can hold a packet."""
        return self.queue_bytes * 8 / self.rate if self.queue_bytes and self.rate else self.queue


@dataclass(slots=True)
class Counts:
    """What became of the packets of one direction.

    late: how many were delivered more than LATE after their time, because this machine had other things to do.
    latest: the most seconds. Many late ones make the figures worthless.
    """

    carried: int = 0
    carried_bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    blocked: int = 0
    cut: int = 0
    late: int = 0
    latest: float = 0.0


@dataclass(slots=True)
class Direction:
    """One direction of a link. header: 0, or the bytes of struct virtio_net_hdr before each packet.

    A changed profile counts for packets offered from then on; those on their way arrive as they would have.
    """

    profile: Profile
    random: random.Random
    header: int = 0
    counts: Counts = field(default_factory=Counts)
    _free_at: float = 0.0  # when the line has sent all that was offered
    _number: int = 0  # packets that are due at once stay in order
    _flying: list[tuple[float, int, bytes]] = field(default_factory=list)

    def change(self, profile: Profile) -> None:
        """Another profile from now on."""
        if profile.down:
            self.counts.cut += len(self._flying)
            self._flying.clear()
            self._free_at = 0.0
        self.profile = profile

    def offer(self, packet: bytes, now: float) -> None:
        """A packet that a host sends."""
        profile = self.profile
        if profile.down:
            self.counts.cut += 1
            return
        if profile.udp_blocked and is_udp(packet, self.header):
            self.counts.blocked += 1
            return
        due = now
        if profile.rate:
            if self._free_at < now - CREDIT:
                self._free_at = now - CREDIT
            elif self._free_at - now > profile.longest_wait:
                self.counts.overflowed += 1
                return
            length = line_length(packet, self.header) if self.header else len(packet)
            self._free_at += length * 8 / profile.rate
            due = max(now, self._free_at)  # credit makes nothing arrive before its delay
        if profile.loss and self.random.random() < profile.loss:  # on the line: it took its time there
            self.counts.lost += 1
            return
        due += profile.delay
        if profile.reorder and self.random.random() < profile.reorder:
            due += profile.reorder_delay
        self._number += 1
        heapq.heappush(self._flying, (due, self._number, packet))

    def take(self, now: float) -> list[bytes]:
        """The packets that have arrived by now, in order of arrival."""
        flying, counts, arrived = self._flying, self.counts, []
        while flying and flying[0][0] <= now:
            due, _, packet = heapq.heappop(flying)
            arrived.append(packet)
            counts.carried_bytes += len(packet) - self.header
            if now - due > LATE:
                counts.late += 1
            counts.latest = max(counts.latest, now - due)
        counts.carried += len(arrived)
        return arrived

    @property
    def next_due(self) -> float:
        """When the next packet arrives; infinity where none is on its way."""
        return self._flying[0][0] if self._flying else float("inf")


def line_length(lump: bytes, header: int) -> int:
    """Bytes of the packets that a lump would be on a line, behind a struct virtio_net_hdr of `header` bytes."""
    fields: tuple[int, ...] = struct.unpack_from("=BBHHHH", lump)
    _, kind, _, segment, transport, _ = fields
    flat = len(lump) - header
    if kind not in _TCP_LUMPS or flat <= transport + _TCP_LENGTH_AT or not segment:
        return flat
    headers = transport + (lump[header + transport + _TCP_LENGTH_AT] >> 4) * 4
    packets = math.ceil((flat - headers) / segment)
    return flat + max(0, packets - 1) * headers


def is_udp(packet: bytes, header: int = 0) -> bool:
    """Of an IPv4 or IPv6 packet that starts after `header` bytes."""
    if len(packet) <= header:
        return False
    at = _PROTOCOL_AT.get(packet[header] >> 4)
    return at is not None and packet[header + at : header + at + 1] == bytes([_UDP])
