"""What files in flight are called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.paths import MAX_NAME, check_name
from headrace.storage.partial import is_inflight_name, part_names

names = st.one_of(
    st.binary(min_size=1, max_size=MAX_NAME).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_")),
    st.integers(225, MAX_NAME).map(lambda length: b"x" * length),
).filter(lambda name: name not in (b".", b".."))


def test_the_usual_case() -> None:
    assert part_names(b"a.mkv") == (b".a.mkv.headrace-part", b".a.mkv.headrace-journal")


@given(names)
def test_they_are_names_and_known_as_ours(name: bytes) -> None:
    part, journal = part_names(name)
    assert part != journal and part_names(name) == (part, journal)
    assert check_name(part) and check_name(journal)
    assert is_inflight_name(part) and is_inflight_name(journal)


def test_long_names_that_differ_at_the_end_stay_apart() -> None:
    assert part_names(b"x" * 254 + b"a") != part_names(b"x" * 254 + b"b")


def test_shortening_does_not_halve_a_character() -> None:
    part_names(("ä" * 127).encode())[0].decode("utf-8")


@pytest.mark.parametrize(
    "name", [b"a", b"a.headrace-part", b".headrace-part", b"..headrace-part", b".a.headrace-parts"]
)
def test_what_is_not_ours(name: bytes) -> None:
    assert not is_inflight_name(name)
