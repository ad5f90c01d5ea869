"""The process that is the link of a `netlab`: it carries packets between two TUN devices, one in each namespace.

It is a process of its own so that it shares no interpreter with what is measured. It makes both devices, and they are
gone when it ends. Commands come on standard input and answers go to standard output, one JSON object a line; it ends
when standard input does, so it cannot outlive who started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import random
import select
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from headrace.bench.link import Direction, Profile

DEVICE: Final = "wire0"
VNET_HEADER: Final = 10  # bytes of struct virtio_net_hdr
LUMP: Final = 65535  # bytes: the largest packet with offload
BATCH: Final = 64  # packets read from one host before the other one has its turn
PRIORITY: Final = -15  # it works little, but late packets would be a delay that nobody set

# From linux/if_tun.h.
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_CSUM_TSO4_TSO6: Final = 0x01 | 0x02 | 0x04


class Link:
    """Carries packets between two TUN devices, by their file descriptors, until `control` says that it is over."""

    def __init__(self, profile: Profile, devices: Sequence[int]) -> None:
        self._profile = profile
        header = VNET_HEADER if profile.offload else 0
        self._size = header + (LUMP if profile.offload else profile.mtu)
        there, back = (Direction(profile, random.Random(profile.seed + n), header) for n in range(2))
        self._ways = ((devices[0], there, devices[1]), (devices[1], back, devices[0]))
        self._said = b""

    def run(self, control: int, answers: int) -> None:
        """Returns when `control` ends."""
        sources = [control, *(source for source, _, _ in self._ways)]
        while True:
            self._deliver()
            # select and not epoll: its timeout is in microseconds.
            until = min(direction.next_due for _, direction, _ in self._ways)
            timeout = max(0.0, until - time.monotonic()) if until != float("inf") else None
            ready = select.select(sources, [], [], timeout)[0]
            for source, direction, _ in self._ways:
                if source in ready:
                    self._collect(source, direction)
            if control in ready and not self._obey(control, answers):
                return

    def _deliver(self) -> None:
        now = time.monotonic()
        for _, direction, sink in self._ways:
            for packet in direction.take(now):
                with contextlib.suppress(OSError):  # a host that takes no packets loses them
                    os.write(sink, packet)

    def _collect(self, source: int, direction: Direction) -> None:
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            for _ in range(BATCH):
                direction.offer(os.read(source, self._size), now)

    def _obey(self, control: int, answers: int) -> bool:
        """Does what the lines say that are there. False: there will be no more."""
        said = os.read(control, 65536)
        *lines, self._said = (self._said + said).split(b"\n")
        for line in lines:
            self._profile = replace(self._profile, **json.loads(line))
            for _, direction, _ in self._ways:
                direction.change(self._profile)
            answer(answers, [asdict(direction.counts) for _, direction, _ in self._ways])
        return bool(said)


def answer(where: int, what: Any) -> None:
    """One line of JSON."""
    os.write(where, json.dumps(what).encode() + b"\n")


def open_tun(namespace: str, *, offload: bool) -> int:
    """A new TUN device in a namespace, by the path of that; it is there as long as the descriptor is open.

    The calling thread stays in the namespace.
    """
    entry = os.open(namespace, os.O_RDONLY)
    try:
        os.setns(entry, os.CLONE_NEWNET)
    finally:
        os.close(entry)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if offload else 0)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), flags))
    if offload:
        fcntl.ioctl(device, _TUNSETOFFLOAD, _CSUM_TSO4_TSO6)
    return device


def main() -> None:
    """Arguments: the profile as JSON and the paths of both namespaces."""
    profile = Profile(**json.loads(sys.argv[1]))
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    devices = [open_tun(namespace, offload=profile.offload) for namespace in sys.argv[2:4]]
    gc.disable()  # nothing here makes cycles
    answer(1, "ready")
    with contextlib.suppress(KeyboardInterrupt):
        Link(profile, devices).run(0, 1)


if __name__ == "__main__":
    main()
