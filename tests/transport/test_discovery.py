"""What an answer on the LAN may say, whoever it comes from."""

from __future__ import annotations

import pytest
from zeroconf import ServiceInfo

from headrace.transport.discovery import MAX_ADDRESSES, SERVICE, Found, _checked


def told(group: str = "h3ad", port: int = 7420, addresses: tuple[bytes, ...] = (b"\xc0\xa8\x01\x14",)) -> Found | None:
    return _checked(ServiceInfo(SERVICE, f"{group}.{SERVICE}", addresses=list(addresses), port=port), group)


def many(count: int) -> tuple[bytes, ...]:
    return tuple(bytes([10, 0, 0, number]) for number in range(1, count + 1))


def test_an_answer_is_taken_up_to_its_limits_and_no_further() -> None:
    assert told() == Found("h3ad", ("192.168.1.20",), 7420)
    assert told("x" * 16) and not told("x" * 17)
    for count in (MAX_ADDRESSES, MAX_ADDRESSES + 1):
        found = told(addresses=many(count))
        assert found and len(found.hosts) == MAX_ADDRESSES


@pytest.mark.parametrize("address", [b"\x7f\0\0\1", b"\xe0\0\0\1", b"\0\0\0\0", bytes(15) + b"\1"], ids=str)
def test_an_address_that_is_no_other_machine_s_is_left_out(address: bytes) -> None:
    assert told(addresses=(address,)) is None


@pytest.mark.parametrize("group", ["a b", "ä", "a-b"])
def test_a_group_that_is_none(group: str) -> None:
    assert told(group) is None


def test_no_port() -> None:
    assert told(port=0) is None
