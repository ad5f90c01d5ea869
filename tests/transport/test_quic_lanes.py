"""Blocks and credit: what a stream says on its QUIC stream."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from headrace.errors import ProtocolError
from headrace.transport.quic.lanes import CREDIT_LIMIT, GRANT, KIB, MIB, MOST, SMALL, WORD, Inflow


def block(data: bytes) -> bytes:
    return WORD.pack(len(data)) + data


def taken(inflow: Inflow, size: int = 1 << 20) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: inflow.take(memoryview(buffer))])


@pytest.mark.parametrize("piece", range(1, 14))
def test_blocks_and_grants_arrive_in_pieces_of_any_size(piece: int) -> None:
    wire = block(b"one") + WORD.pack(GRANT | 700) + block(b"") + block(b"two") + WORD.pack(GRANT | 7)
    inflow = Inflow(100, 100)
    for start in range(0, len(wire), piece):
        inflow.feed(memoryview(wire[start : start + piece]))
    assert taken(inflow) == b"onetwo"
    assert inflow.collect() == 707
    assert inflow.collect() == 0
    assert inflow.wire == len(wire) - 2 * WORD.size  # grants are not the stream's bytes
    assert inflow.between_blocks


@pytest.mark.parametrize("cut", [1, 3, 4, 5])
def test_a_stream_that_ends_inside_a_block_was_cut(cut: int) -> None:
    inflow = Inflow(100, 100)
    inflow.feed(memoryview(block(b"xy")[:cut]))
    assert not inflow.between_blocks


def test_the_receiver_takes_what_fits() -> None:
    inflow = Inflow(100, 100)
    inflow.feed(memoryview(block(b"abc") + block(b"defg")))
    assert [taken(inflow, 2), taken(inflow, 2), taken(inflow, 9), taken(inflow, 9)] == [b"ab", b"cd", b"efg", b""]


def test_small_and_large_pieces_stay_in_order() -> None:
    source = random.Random(7)
    sent, got = bytearray(), bytearray()
    inflow = Inflow(1 << 30, 1 << 30)
    for _ in range(2000):
        data = source.randbytes(source.choice([1, 30, SMALL - 1, SMALL, 2000, 70_000 * (source.random() < 0.01)]))
        sent += data
        inflow.feed(memoryview(block(data)))
        if source.random() < 0.3:
            got += taken(inflow, source.randrange(1, 5000))
        assert inflow.waiting == len(sent) - len(got)
    got += taken(inflow, 1 << 24)
    assert got == sent


@pytest.mark.slow
def test_blocks_of_one_byte_cost_little_more_than_they_hold() -> None:
    """A client that is let in may send them, and its host may be busy meanwhile."""
    inflow, packet = Inflow(MIB, MIB), block(b"x") * 256
    tracemalloc.start()
    try:
        for _ in range(100 * KIB // 256):
            inflow.feed(memoryview(bytes(packet)))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert inflow.waiting == 100 * KIB
    assert held < 4 * inflow.waiting


def test_no_more_may_come_than_was_granted() -> None:
    inflow = Inflow(10, 10)
    inflow.feed(memoryview(block(b"x" * 10)))
    with pytest.raises(ProtocolError, match="more than it was granted"):
        inflow.feed(memoryview(WORD.pack(1)))


def test_the_length_is_checked_before_the_bytes_come() -> None:
    with pytest.raises(ProtocolError):
        Inflow(10, 10).feed(memoryview(WORD.pack(MOST)))


def test_grants_without_end_are_refused() -> None:
    inflow = Inflow(10, 10)
    with pytest.raises(ProtocolError, match="grants"):
        for _ in range(CREDIT_LIMIT // MOST + 1):
            inflow.feed(memoryview(WORD.pack(GRANT | MOST)))


def test_grants_follow_what_was_taken_and_come_in_halves_of_the_window() -> None:
    inflow = Inflow(100, 400)
    inflow.feed(memoryview(block(b"x" * 100)))
    assert inflow.due() == 0
    taken(inflow, 49)
    assert inflow.due() == 0
    taken(inflow, 1)
    assert inflow.due() == 50
    assert inflow.grant(50) == WORD.pack(GRANT | 50)
    assert inflow.due() == 0
    inflow.feed(memoryview(block(b"x" * 50)))
    with pytest.raises(ProtocolError):
        inflow.feed(memoryview(WORD.pack(1)))


def test_the_window_doubles_up_to_its_largest() -> None:
    inflow = Inflow(100, 300)
    inflow.grow()
    assert (inflow.window, inflow.due()) == (200, 100)
    inflow.grow()
    assert inflow.window == 300


def test_what_nobody_takes_any_more_is_forgotten_and_still_counted() -> None:
    inflow = Inflow(10, 10)
    inflow.feed(memoryview(block(b"12345")))
    inflow.drop()
    assert (inflow.waiting, taken(inflow)) == (0, b"")
    with pytest.raises(ProtocolError):
        inflow.feed(memoryview(block(b"x" * 6)))


def test_noise_breaks_nothing_else() -> None:
    noise = random.Random(9)
    for _ in range(300):
        inflow = Inflow(1000, 1000)
        try:
            for _ in range(5):
                inflow.feed(memoryview(noise.randbytes(noise.randrange(40))))
        except ProtocolError:
            pass
        assert inflow.waiting <= 1000
