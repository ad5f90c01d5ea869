"""Chunks that follow each other on one lane."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client.link import Link
from headrace.client.pipeline import SPELL, stream
from headrace.engine.ramcache import CachedFile, Span
from headrace.errors import ConnectionLostError, HeadraceError, HostAwayError, IntegrityError, SourceChangedError
from headrace.protocol.messages import KIB
from headrace.protocol.paths import RelPath

from .scripted_link import PATH, VERSION, ScriptedLink

DEPTH: Final = 3
PIECE: Final = 16 * KIB
CONTENT: Final = random.Random(5).randbytes(64 * PIECE)


@dataclass
class File:
    path: RelPath = PATH
    version: bytes = VERSION


class Order:
    """Spans to fetch, and what became of each."""

    def __init__(self, count: int, versions: Callable[[int], bytes] = lambda number: VERSION) -> None:
        file = CachedFile((VERSION, len(CONTENT)), len(CONTENT))
        spans = [Span(file, number * PIECE, (number + 1) * PIECE) for number in range(count)]
        self.left = [(File(version=versions(number)), span) for number, span in enumerate(spans)]
        self.came: list[int] = []
        self.then: Callable[[], None] = lambda: None  # after each that came
        self.failed: dict[int, HeadraceError] = {}

    def run(self, link: Any) -> None:
        first = self.left.pop(0)
        stream(cast("Link", link), link.clock() + 10, lambda: DEPTH, first, self._more, self._arrived, self._fail)

    def _more(self) -> tuple[File, Span] | None:
        return self.left.pop(0) if self.left else None

    def _arrived(self, _file: File, span: Span, view: memoryview, digest: bytes) -> None:
        assert view == CONTENT[span.offset : span.end] and len(digest) == 32
        self.came.append(span.offset // PIECE)
        self.then()

    def _fail(self, _file: File, span: Span, why: HeadraceError) -> None:
        self.failed[span.offset // PIECE] = why


class BreakingLink(ScriptedLink):
    """breaks: before which of its answers, counted over all, the connection breaks; then another one is used."""

    def __init__(self, breaks: set[int], attempts: int = 99) -> None:
        super().__init__(CONTENT)
        self._breaks = breaks
        self._attempts = attempts
        self._answers = 0

    def run(self, do: Callable[..., Any], deadline: float, *, bulk: bool = False, wait: bool = True) -> Any:
        for _ in range(self._attempts):
            try:
                return do(*self._fresh())
            except ConnectionLostError:
                continue
        raise HostAwayError("the host is away")

    def _fresh(self) -> tuple[Any, Any]:
        host = self._new()
        usual = host.answering
        assert usual

        def answering(request: Any) -> None:
            self._answers += 1
            if self._answers in self._breaks:
                raise ConnectionLostError("it broke")
            usual(request)

        host.answering = answering
        session: Any = type("Session", (), {"agreed": type("Agreed", (), {"version": 8})})
        return session, host.lane


def test_all_come_in_order_and_the_next_is_asked_for_before_the_last_has_come() -> None:
    link, order = ScriptedLink(CONTENT), Order(20)
    flying: list[int] = []
    usual = link._answer

    def answer(host: Any, request: Any) -> None:
        flying.append(len(host.lane._pending))
        usual(host, request)

    link._answer = answer  # type: ignore[method-assign]
    order.run(link)
    assert order.came == list(range(20)) and not order.failed
    assert set(flying[DEPTH:-DEPTH]) == {DEPTH}
    assert link.bulk == [True], "one run on one lane"


@given(breaks=st.sets(st.integers(1, 40), max_size=8), count=st.integers(1, 20))
def test_each_comes_once_however_often_the_connection_breaks(breaks: set[int], count: int) -> None:
    order = Order(count)
    order.run(BreakingLink(breaks))
    assert order.came == list(range(count)) and not order.failed


@given(breaks=st.sets(st.integers(1, 20)), attempts=st.integers(0, 3), count=st.integers(1, 12))
def test_each_comes_or_fails_where_the_host_goes_away(breaks: set[int], attempts: int, count: int) -> None:
    order = Order(count)
    order.run(BreakingLink(breaks, attempts))
    begun = count - len(order.left)
    assert sorted([*order.came, *order.failed]) == list(range(begun)), "none is forgotten"
    assert all(isinstance(why, HostAwayError) for why in order.failed.values())


def test_one_that_cannot_come_is_no_harm_to_the_others() -> None:
    order = Order(9, lambda number: b"2" * 16 if number == 3 else VERSION)
    order.run(ScriptedLink(CONTENT))
    assert order.came == [0, 1, 2, 4, 5, 6, 7, 8]
    assert isinstance(order.failed[3], SourceChangedError)


def test_bytes_that_do_not_match_their_hash_do_not_come() -> None:
    link, order = ScriptedLink(CONTENT), Order(5)
    link.spoil = 1
    order.run(link)
    assert order.came == [1, 2, 3, 4]
    assert isinstance(order.failed[0], IntegrityError)


def test_after_a_while_the_lane_is_free_for_others() -> None:
    now = [100.0]
    link, order = ScriptedLink(CONTENT, clock=lambda: now[0]), Order(30)

    def later() -> None:
        now[0] += SPELL / 4

    order.then = later
    order.run(link)
    assert order.came == list(range(4 + DEPTH - 1)) and not order.failed


def test_an_error_of_ours_is_raised_and_what_was_on_its_way_has_failed() -> None:
    order = Order(5)

    def broken() -> None:
        raise ValueError("a bug")

    order.then = broken
    with pytest.raises(ValueError, match="a bug"):
        order.run(ScriptedLink(CONTENT))
    assert list(order.failed) == list(range(1, DEPTH))
