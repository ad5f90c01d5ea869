"""How many connections may shake hands at once, and who has to go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.host.handshakes import SAY_EVERY, Handshakes


class Connection:
    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def test_the_oldest_of_an_address_makes_room_and_others_stay() -> None:
    said: list[str] = []
    pending = Handshakes(said.append, per_address=2, in_all=10, clock=lambda: 0.0)
    other, first, second, third = (Connection() for _ in range(4))
    pending.begin(other, "b")
    for one in (first, second, third):
        pending.begin(one, "a")
    assert [one.aborted for one in (other, first, second, third)] == [False, True, False, False]
    assert pending.ended == 1
    assert len(said) == 1


def test_who_is_in_does_not_count_and_is_not_ended() -> None:
    pending = Handshakes(lambda text: None, per_address=1, in_all=1)
    first, second = Connection(), Connection()
    pending.begin(first, "a")
    pending.over(first)
    pending.over(first)
    pending.begin(second, "a")
    assert not first.aborted
    assert pending.ended == 0


def test_it_is_said_once_a_minute_with_the_number() -> None:
    now, said = 0.0, list[str]()
    pending = Handshakes(said.append, per_address=1, in_all=9, clock=lambda: now)
    for _ in range(5):
        pending.begin(Connection(), "a")
    assert len(said) == 1
    now = SAY_EVERY
    pending.begin(Connection(), "a")
    assert len(said) == 2
    assert said[1].startswith("4 connections")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60))
def test_never_more_than_the_limits(steps: list[tuple[str, bool]]) -> None:
    pending = Handshakes(lambda text: None, per_address=3, in_all=7)
    alive: dict[Connection, str] = {}
    for address, ends in steps:
        if ends and alive:
            pending.over(next(iter(alive)))
            del alive[next(iter(alive))]
        else:
            connection = Connection()
            pending.begin(connection, address)
            alive[connection] = address
        alive = {one: whose for one, whose in alive.items() if not one.aborted}
        assert len(pending) == len(alive) <= 7
        assert all(list(alive.values()).count(whose) <= 3 for whose in alive.values())
