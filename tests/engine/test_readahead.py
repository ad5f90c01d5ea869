"""What is read ahead, by traces of reads."""

from __future__ import annotations

import random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.readahead import (
    BLOCK,
    FAR_DEPTH,
    FRAGMENT,
    LANES,
    LARGEST_WINDOW,
    LEAST_CHUNK,
    Extent,
    Path,
    RateMeter,
    ReadAhead,
)
from headrace.protocol.messages import CHUNK_SIZE, KIB, MIB

GIB: Final = 1024 * MIB
NEAR: Final = Path(rtt=0.0001)
LONG: Final = Path(rtt=0.05, rate=12.5e6)


def sequential(ahead: ReadAhead, start: int, end: int, piece: int = BLOCK, path: Path = NEAR) -> list[Extent]:
    return [extent for at in range(start, end, piece) for extent in ahead.advance(at, min(piece, end - at), path)]


def total(extents: list[Extent]) -> int:
    return sum(length for _, length in extents)


def test_a_sequential_reader_is_kept_ahead_of_in_growing_chunks() -> None:
    ahead = ReadAhead(GIB)
    extents = sequential(ahead, 0, 128 * MIB)
    position = BLOCK
    for offset, length in extents:
        assert offset == position, "no gap and no overlap"
        assert offset % length == 0, "as a copy would ask for it"
        position += length
    lengths = [length for _, length in extents]
    assert lengths == sorted(lengths)
    assert lengths[0] == BLOCK
    assert lengths[-1] == CHUNK_SIZE
    assert ahead.window == LARGEST_WINDOW
    assert position >= 128 * MIB + LARGEST_WINDOW // 2


def test_nothing_is_asked_for_beyond_the_end() -> None:
    size = 5 * MIB + 1000
    extents = sequential(ReadAhead(size), 0, size)
    assert extents[-1][0] + extents[-1][1] == size
    assert total(extents) == size - BLOCK


@pytest.mark.parametrize("size", [0, 1, FRAGMENT, BLOCK])
def test_a_file_of_one_block_needs_nothing_ahead(size: int) -> None:
    ahead = ReadAhead(size)
    assert ahead.advance(0, size) == []
    assert ahead.unit(0, 4096) == BLOCK


def test_random_reads_are_given_fragments_and_nothing_ahead() -> None:
    ahead, chance = ReadAhead(10 * GIB), random.Random(1)
    places = [at * 16 * MIB + chance.randrange(1000) * 4096 for at in chance.sample(range(640), 500)]
    assert {ahead.unit(at, 4096, NEAR) for at in places} == {FRAGMENT}
    assert [ahead.advance(at, 4096, NEAR) for at in places] == [[]] * 500


def test_a_third_read_in_a_block_is_given_the_block() -> None:
    ahead = ReadAhead(GIB)
    assert ahead.unit(MIB, 4096, NEAR) == FRAGMENT
    assert ahead.unit(MIB + 64 * KIB, 4096, NEAR) == FRAGMENT, "in a file of 1 GiB an eighth of all reads hit twice"
    assert ahead.unit(MIB + 32 * KIB, 4096, NEAR) == BLOCK


def test_where_round_trips_are_long_the_second_read_in_a_block_is_given_it() -> None:
    ahead = ReadAhead(GIB)
    assert ahead.unit(500 * MIB, 4096, LONG) == FRAGMENT
    assert ahead.unit(500 * MIB + 64 * KIB, 4096, LONG) == BLOCK


def test_a_seek_begins_anew() -> None:
    ahead = ReadAhead(10 * GIB)
    sequential(ahead, 0, 16 * MIB)
    runs = ahead.runs
    assert ahead.advance(5 * GIB, 4096, NEAR) == []
    assert (ahead.window, ahead.runs) == (0, runs + 1)
    extents = sequential(ahead, 5 * GIB, 5 * GIB + MIB)
    assert extents[0] == (5 * GIB + BLOCK, BLOCK)


@pytest.mark.parametrize("habit", [MIB, 3 * MIB, 3 * MIB + 12 * KIB, 4 * MIB])
@pytest.mark.parametrize("path", [NEAR, LONG, Path()])
def test_who_reads_so_much_at_each_place_is_given_that_at_the_next(path: Path, habit: int) -> None:
    ahead = ReadAhead(10 * GIB)
    sequential(ahead, GIB, GIB + habit, path=path)
    first = ahead.advance(2 * GIB, BLOCK, path)
    rest = sequential(ahead, 2 * GIB + BLOCK, 2 * GIB + habit, path=path)
    own = 0 if path.far else BLOCK  # nearby the reader itself fetches what it reads
    assert first[0][0] == 2 * GIB + own
    assert total(first) == -(-habit // BLOCK) * BLOCK - own, "at the first read"
    assert rest == [], "and no more"
    then = ahead.advance(2 * GIB + habit, BLOCK, path)
    assert 0 < total(then) <= 4 * MIB, "until it goes on"
    assert all(length & (length - 1) == 0 for _, length in first + then), "as a copy would ask for it"


def test_who_goes_on_longer_than_before_is_read_ahead_of_again() -> None:
    ahead = ReadAhead(10 * GIB)
    for at in (GIB, 2 * GIB, 3 * GIB):
        sequential(ahead, at, at + 4 * MIB)
    extents = sequential(ahead, 4 * GIB, 4 * GIB + 64 * MIB)
    position = 4 * GIB + BLOCK
    for offset, length in extents:
        assert offset - position in (0, BLOCK), "no overlap, and no gap but what was read before it was asked for"
        position = offset + length
    assert extents[-1][1] == CHUNK_SIZE


def test_single_small_reads_are_no_habit() -> None:
    ahead = ReadAhead(10 * GIB)
    for at in (GIB, 2 * GIB, 3 * GIB):
        ahead.advance(at, 4096, NEAR)
    assert total(sequential(ahead, 4 * GIB, 4 * GIB + 16 * MIB)) > 16 * MIB


def test_large_random_reads_are_read_ahead_of_less_and_less() -> None:
    ahead, chance = ReadAhead(10 * GIB), random.Random(2)

    def cost(reads: int) -> float:
        return total([x for _ in range(reads) for x in ahead.advance(chance.randrange(10 * GIB), BLOCK, NEAR)]) / reads

    first = cost(1)
    cost(20)
    assert cost(50) == 0
    assert first > 0


def test_after_random_reads_a_sequential_reader_is_believed_again() -> None:
    ahead, chance = ReadAhead(10 * GIB), random.Random(2)
    for _ in range(50):
        ahead.advance(chance.randrange(10 * GIB), BLOCK, NEAR)
    extents = sequential(ahead, 0, 64 * MIB)
    assert total(extents) > 48 * MIB
    assert extents[-1][1] == CHUNK_SIZE


def test_reads_that_the_kernel_sends_out_of_order_are_one_run() -> None:
    ahead, chance = ReadAhead(GIB), random.Random(3)
    pieces = list(range(0, 64 * MIB, BLOCK))
    for first in range(0, len(pieces), 4):
        four = pieces[first : first + 4]
        chance.shuffle(four)
        pieces[first : first + 4] = four
    extents = [extent for at in pieces for extent in ahead.advance(at, BLOCK, NEAR)]
    assert ahead.runs == 0
    assert total(extents) >= 64 * MIB


def test_what_had_to_go_unread_makes_the_window_smaller() -> None:
    ahead = ReadAhead(GIB)
    sequential(ahead, 0, 128 * MIB)
    for _ in range(3):
        ahead.wasted(CHUNK_SIZE)
    assert ahead.window == LARGEST_WINDOW // 8
    sequential(ahead, 128 * MIB, 256 * MIB)
    assert ahead.window <= LARGEST_WINDOW // 8


def test_what_did_not_come_is_asked_for_again() -> None:
    ahead = ReadAhead(GIB)
    sequential(ahead, 0, 8 * MIB)
    ahead.retreat(8 * MIB + BLOCK)
    assert sequential(ahead, 8 * MIB, 9 * MIB)[0][0] == 8 * MIB + BLOCK


def test_the_window_is_bounded_by_what_the_reader_may_have() -> None:
    ahead = ReadAhead(GIB, most=MIB)
    asked = BLOCK
    for at in range(0, 64 * MIB, BLOCK):
        asked += total(ahead.advance(at, BLOCK, NEAR))
        assert asked - at <= 2 * MIB


def test_a_slow_path_has_smaller_chunks() -> None:
    assert Path(0.0001, 12.5e6).chunk == 2 * MIB
    assert Path(0.0001, 125e3).chunk == LEAST_CHUNK
    assert Path(0.0001, 600e6).chunk == CHUNK_SIZE
    assert Path().chunk == CHUNK_SIZE
    assert Path(0.05, 125e3).window == 2 * LEAST_CHUNK
    assert (Path(0.0001, 600e6).lanes, Path(0.0001, 600e6).depth) == (LANES, 1)
    assert (Path(0.05).lanes, Path(0.05).depth, Path(0.05, 125e3).depth) == (1, FAR_DEPTH, 2)


@pytest.mark.parametrize("rtt", [0.002, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("rate", [12.5e6, 125e6, 600e6])
def test_what_is_on_its_way_fills_a_long_path_and_not_much_more(rtt: float, rate: float) -> None:
    path = Path(rtt, rate)
    flying = path.depth * path.chunk
    assert flying >= min(rate * rtt, FAR_DEPTH * CHUNK_SIZE)
    assert flying <= max(rate * rtt * 3, rate * 0.17, 2 * LEAST_CHUNK)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 64 * MIB),
    reads=st.lists(st.tuples(st.integers(0, 64 * MIB), st.integers(1, 2 * MIB)), max_size=30),
    path=st.sampled_from([NEAR, LONG, Path()]),
)
def test_every_extent_is_one_that_can_be_asked_for(size: int, reads: list[tuple[int, int]], path: Path) -> None:
    ahead = ReadAhead(size)
    for offset, length in reads:
        length = min(length, size - offset)
        if length <= 0:
            continue
        assert ahead.unit(offset, length, path) in (FRAGMENT, BLOCK)
        for start, extent in ahead.advance(offset, length, path):
            assert start % BLOCK == 0
            assert 0 < extent <= CHUNK_SIZE
            assert start + extent <= size


def test_the_rate_is_that_of_times_in_which_something_came() -> None:
    meter = RateMeter()
    meter.began(10.0)
    meter.began(10.0)
    meter.ended(10.4, 4 * MIB)
    assert meter.rate is None
    meter.ended(10.8, 4 * MIB)
    assert meter.rate == pytest.approx(10 * MIB)
    meter.began(500.0)  # nothing was asked for meanwhile
    meter.ended(501.0, 20 * MIB)
    assert meter.rate == pytest.approx(20 * MIB)
    meter.began(600.0)
    meter.ended(601.0, MIB)
    assert meter.rate == pytest.approx(18 * MIB)
