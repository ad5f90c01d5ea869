"""Where a share without an address is looked for, and what is believed of the answer."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.client.lan import locate
from headrace.client.target import Target
from headrace.errors import UnreachableError
from headrace.transport import discovery
from headrace.transport.discovery import Found, is_loopback


def test_the_address_that_answers_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = Found("7k2m", ("127.0.0.77", "127.0.0.1"), port)
        located = locate(Target.parse("7k2m-xq4c-9dht/sub"), "7k2m", search=lambda group: found)
    assert (located.host, located.port) == ("127.0.0.1", port)
    assert bytes(located.path) == b"sub"
    assert located.code


def test_where_none_answers_the_first_is_taken_so_that_connecting_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = Found("7k2m", ("127.0.0.77", "127.0.0.78"), port)
    assert locate(Target.parse("7k2m-xq4c-9dht"), "7k2m", search=lambda group: found).host == "127.0.0.77"


def test_nobody_there() -> None:
    def search(group: str) -> Found:
        raise UnreachableError("no share", hint="Is it running?")

    with pytest.raises(UnreachableError) as raised:
        locate(Target.parse("7k2m-xq4c-9dht"), "7k2m", known="192.0.2.7:7420", search=search)
    assert "192.0.2.7:7420" in raised.value.hint
    assert "xq4c" not in raised.value.hint


@pytest.mark.parametrize(
    ("hosts", "port", "group", "good"),
    [
        (["192.0.2.7"], 7420, "7k2m", ["192.0.2.7"]),
        (["192.0.2.7", "127.0.0.1", "0.0.0.0", "224.0.0.1", "nonsense"], 7420, "7k2m", ["192.0.2.7"]),
        (["127.0.0.1"], 7420, "7k2m", None),
        (["192.0.2.7"], 0, "7k2m", None),
        (["192.0.2.7"], 7420, "\x1b[2J", None),
        (["192.0.2.7"], 7420, "x" * 17, None),
        ([f"192.0.2.{number}" for number in range(100)], 1, "7k2m", [f"192.0.2.{number}" for number in range(16)]),
    ],
)
def test_what_is_believed_of_an_answer(hosts: list[str], port: int, group: str, good: list[str] | None) -> None:
    pytest.importorskip("zeroconf")
    from zeroconf import IPVersion

    info = SimpleNamespace(
        port=port, parsed_scoped_addresses=lambda version: hosts if version is IPVersion.V4Only else []
    )
    found = discovery._checked(cast("Any", info), group)
    assert (list(found.hosts) if found else None) == good


@pytest.mark.parametrize(
    ("address", "loopback"), [("127.0.0.1", True), ("::1", True), ("", False), ("10.0.0.1", False)]
)
def test_a_share_on_loopback_alone_is_not_announced(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
