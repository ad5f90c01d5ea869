"""What Blocks says of a chunk: sums, marks and where they are, packed and remembered."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.messages import BLOCK_SIZE, MARK_SPAN, MAX_MARKS, MIB
from headrace.storage.blocks import (
    SAMPLE,
    SAMPLES,
    BlockCache,
    block_sums,
    check_marks,
    choose_marks,
    chunk_places,
    pack_places,
    pack_sums,
    sample_offsets,
    unpack_places,
    unpack_sums,
)

RANDOM = random.Random(4).randbytes(4 * MIB)


def samples(content: bytes) -> list[memoryview]:
    return [memoryview(content)[start : start + SAMPLE] for start in sample_offsets(len(content))]


@settings(max_examples=25)
@given(st.integers(0, 3 * BLOCK_SIZE))
def test_a_sum_for_each_block_and_the_way_over_the_wire(length: int) -> None:
    data = RANDOM[:length]
    sums = block_sums(memoryview(data))
    assert sums == [zlib.crc32(data[start : start + BLOCK_SIZE]) for start in range(0, length, BLOCK_SIZE)]
    assert list(unpack_sums(pack_sums(sums), length)) == sums
    with pytest.raises(ValueError, match="as many sums"):
        unpack_sums(pack_sums(sums) + bytes(4), length)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 1000 - MARK_SPAN), st.integers(0, 2**32 - 1)), max_size=8))
def test_places_over_the_wire(places: list[tuple[int, int]]) -> None:
    assert unpack_places(pack_places(places), 1000) == places


@pytest.mark.parametrize("raw", [b"1234567", bytes(8 * MAX_MARKS + 8), pack_places([(1000 - MARK_SPAN + 1, 0)])])
def test_places_that_no_chunk_has(raw: bytes) -> None:
    with pytest.raises(ValueError, match="place"):
        unpack_places(raw, 1000)


@pytest.mark.parametrize("marks", [[b"x"], [b"123456789"], [b"ab", b"cd", b"ef"]])
def test_marks_that_nobody_may_send(marks: list[bytes]) -> None:
    with pytest.raises(ValueError, match="marks"):
        check_marks(marks)


TEXT = b"".join(b"%d: the water runs to the mill, %d\n" % (n, n * n) for n in range(50_000))
LETTERS = bytes(random.Random(5).choices(b"ACGT", k=MIB // 2))
HALVES = RANDOM[:MIB] + TEXT[:MIB]


@pytest.mark.slow
@pytest.mark.parametrize("content", [RANDOM, TEXT, LETTERS, HALVES], ids=["random", "text", "letters", "halves"])
def test_marks_are_found_here_and_there(content: bytes) -> None:
    marks = choose_marks(samples(content))
    check_marks(marks)
    found = sum(content.count(mark) for mark in marks)
    assert 4 <= found / (len(content) / MIB) <= 2000
    if content is HALVES:
        counts = [[half.count(mark) for mark in marks] for half in (content[:MIB], content[MIB:])]
        assert all(any(half) for half in counts)


@pytest.mark.parametrize("content", [b"", b"a", bytes(MIB), b"ab" * MIB])
def test_where_nothing_is_rare_there_are_no_marks(content: bytes) -> None:
    assert choose_marks(samples(content)) == []


@settings(max_examples=25)
@given(st.integers(0, 10 * SAMPLES * SAMPLE))
def test_samples_lie_inside_and_are_few(size: int) -> None:
    offsets = sample_offsets(size)
    assert len(offsets) <= SAMPLES and all(0 <= offset < size for offset in offsets)


def test_a_place_is_where_a_mark_begins_and_its_check_is_of_what_follows() -> None:
    data = bytearray(random.Random(6).choices(b"abc", k=10_000))
    for start in (0, 5000, 10_000 - MARK_SPAN, 10_000 - MARK_SPAN + 2):
        data[start : start + 2] = b"XY"
    view = memoryview(bytes(data))
    expected = [(start, zlib.crc32(view[start : start + MARK_SPAN])) for start in (0, 5000, 10_000 - MARK_SPAN)]
    assert chunk_places(view, [b"XY"]) == expected


def test_of_too_many_places_those_are_told_that_are_the_same_elsewhere() -> None:
    data = RANDOM[: 256 * 1024]
    marks = [bytes([byte, other]) for byte, other in ((1, 2), (3, 4))]
    busy = b"".join(data[start : start + 100] + marks[start // 100 % 2] for start in range(0, len(data), 100))
    here, moved = chunk_places(memoryview(busy), marks), chunk_places(memoryview(b"12345" + busy), marks)
    assert len(here) == MAX_MARKS
    assert [(start + 5, check) for start, check in here] == moved


def test_a_mark_that_is_everywhere_costs_no_more_than_its_bound() -> None:
    assert len(chunk_places(memoryview(bytes(4 * MIB)), [b"\0\0"])) <= MAX_MARKS


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    cache = BlockCache(limit=10_000)
    cache.put_marks(b"v", [b"ab"])
    for index in range(100):
        assert cache.marks(b"v") == (b"ab",)
        cache.put_chunk(b"v", index, bytes(400), bytes(16))
    assert cache.chunk(b"v", 99) == (bytes(400), bytes(16))
    known = [index for index in range(100) if cache.chunk(b"v", index)]
    assert known == list(range(100 - len(known), 100)) and 10 <= len(known) <= 20
    assert cache.chunk(b"w", 99) is None
    for _ in range(100):
        cache.put_chunk(b"v", 99, bytes(400), bytes(16))  # the same again takes no more room
    assert all(cache.chunk(b"v", index) for index in known)
