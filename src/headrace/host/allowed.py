"""From which networks a share takes connections."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable

from headrace.errors import UsageError

log = logging.getLogger("headrace.host")


class Allowed:
    """Addresses in one of the networks; every address where there are none. Thread-safe."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """networks: addresses or networks, IPv4 and IPv6. UsageError names one that is neither."""
        self.turned_away = 0  # so far
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for text in networks:
            try:
                self._networks.append(ipaddress.ip_network(text.strip(), strict=False))
            except ValueError as why:
                hint = "Write something like 192.168.1.0/24, 10.0.0.7 or fd00::/8."
                raise UsageError(f"{text!r} is no network", hint=hint) from why

    def __contains__(self, address: str) -> bool:
        """Whether a connection from `address` is taken. An IPv6 address may have a zone."""
        if not self._networks:
            return True
        one = ipaddress.ip_address(address.partition("%")[0].removeprefix("::ffff:"))
        if any(one.version == network.version and one in network for network in self._networks):
            return True
        self.turned_away += 1
        log.debug("turned %s away: it is in no allowed network", address)
        return False
