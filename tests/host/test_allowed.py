"""From where a share takes connections."""

from __future__ import annotations

import pytest

from headrace.errors import UsageError
from headrace.host.allowed import Allowed


@pytest.mark.parametrize(
    ("networks", "address", "taken"),
    [
        ([], "203.0.113.9", True),
        (["192.168.1.0/24"], "192.168.1.255", True),
        (["192.168.1.0/24"], "192.168.2.0", False),
        (["192.168.1.7/24"], "192.168.1.1", True),
        (["10.0.0.7"], "10.0.0.7", True),
        (["10.0.0.7"], "10.0.0.8", False),
        (["10.0.0.0/8", "fd00::/8"], "fd00::1", True),
        (["10.0.0.0/8"], "fd00::1", False),
        (["0.0.0.0/0"], "::1", False),
        (["192.168.1.0/24"], "::ffff:192.168.1.7", True),
        (["fe80::/10"], "fe80::1%eth0", True),
    ],
)
def test_where_it_may_come_from(networks: list[str], address: str, taken: bool) -> None:
    allowed = Allowed(networks)
    assert (address in allowed) is taken
    assert allowed.turned_away == (not taken)


@pytest.mark.parametrize("text", ["", "lan", "192.168.1.0/33", "192.168.1", "::/129"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is no network"):
        Allowed([text])
