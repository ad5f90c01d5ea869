"""A target without an address: the share is looked for on the LAN."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
from collections.abc import Callable
from typing import Final

from headrace.client.target import Target
from headrace.errors import UnreachableError
from headrace.transport import discovery, eyeballs
from headrace.transport.discovery import Found

log = logging.getLogger("headrace.discovery")

KNOCK: Final = 2.0  # seconds in which one of several addresses has to answer


def locate(target: Target, group: str, known: str = "", search: Callable[[str], Found] = discovery.find) -> Target:
    """The same target with the address under which the share `group` answers now.

    known: HOST:PORT where it was last reached, for the hint. Raises UnreachableError.
    """
    try:
        found = search(group)
    except UnreachableError as why:
        if known:
            why.hint = f"It was last reached at {known}: write CODE@{known} if it is still there. {why.hint}"
        raise
    host = found.hosts[0] if len(found.hosts) == 1 else _first_to_answer(found)
    located = dataclasses.replace(target, host=host, port=found.port)
    log.info("share %s is at %s", group, located.address)
    return located


def _first_to_answer(found: Found) -> str:
    """A machine has addresses that lead nowhere from here: of containers, of a VPN. Where none answers by TCP, the
    first one, so that whoever connects to it says what is wrong."""
    addresses: list[eyeballs.Address] = []
    names: dict[eyeballs.Address, str] = {}
    for host in found.hosts:
        with contextlib.suppress(OSError):
            for address in eyeballs.resolve(host, found.port):
                addresses.append(address)
                names[address] = host
    try:
        sock, winner = eyeballs.connect(addresses, KNOCK)
    except OSError as why:
        log.debug("no address of %s answers a knock: %s", found.group, why)
        return found.hosts[0]
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    return names[winner]
