"""What every Stream promises (transport.base), as tests that each implementation passes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from headrace.errors import ConnectionLostError
from headrace.protocol.messages import KIB, MIB
from headrace.transport.base import Stream

from .memory import Faults

SIZES: Final = (0, 1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 5 * MIB)
NOISE: Final = random.Random(7420).randbytes(5 * MIB)
PATIENCE: Final = 10.0  # seconds that a test waits for another thread before it fails

# Makes two connected streams; the faults are those of what the first one sends.
Connect = Callable[..., tuple[Stream, Stream]]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(4)
    yield executor
    executor.shutdown(wait=False)  # a thread that still waits, in a test that failed, ends when its stream is aborted


def receive(stream: Stream, size: int, buffer_size: int = 64 * KIB) -> bytes:
    """Exactly `size` bytes, taken `buffer_size` at a time."""
    got = bytearray(size)
    view, filled = memoryview(got), 0
    while filled < size:
        count = stream.recv_into(view[filled : filled + buffer_size])
        assert count, f"the stream ended {size - filled} bytes early"
        filled += count
    return bytes(got)


def receive_all(stream: Stream) -> bytes:
    """Everything until the stream ends in order."""
    got, buffer = bytearray(), memoryview(bytearray(64 * KIB))
    while count := stream.recv_into(buffer):
        got += buffer[:count]
    return bytes(got)


class StreamContract:
    """Subclasses give the fixture `connect`. Its streams wait at most PATIENCE, unless a test tells them otherwise."""

    @pytest.mark.parametrize("size", SIZES)
    def test_bytes_arrive_as_they_were_sent(self, connect: Connect, pool: ThreadPoolExecutor, size: int) -> None:
        near, far = connect()
        arrived = pool.submit(receive, far, size)
        near.send(NOISE[:size])
        assert arrived.result(PATIENCE) == NOISE[:size]

    @pytest.mark.parametrize("buffer_size", [1, 100, 16 * KIB, 128 * KIB, MIB])
    def test_the_receiver_takes_as_much_at_a_time_as_it_likes(
        self, connect: Connect, pool: ThreadPoolExecutor, buffer_size: int
    ) -> None:
        near, far = connect()
        size = 40 * KIB + 3 if buffer_size < KIB else MIB + 3
        arrived = pool.submit(receive, far, size, buffer_size)
        near.send(NOISE[:size])
        assert arrived.result(PATIENCE) == NOISE[:size]

    def test_recv_into_writes_no_further_than_it_says(self, connect: Connect) -> None:
        near, far = connect()
        near.send(b"head")
        buffer = bytearray(b"-" * 10)
        assert far.recv_into(memoryview(buffer)[2:]) == 4
        assert buffer == b"--head----"

    def test_many_parts_are_one_flow(self, connect: Connect, pool: ThreadPoolExecutor) -> None:
        near, far = connect()
        parts: list[bytes | memoryview] = [b"", b"a", memoryview(NOISE)[: 300 * KIB], b"", memoryview(b"end")]
        wanted = b"".join(parts)
        arrived = pool.submit(receive, far, len(wanted))
        near.send(*parts)
        assert arrived.result(PATIENCE) == wanted

    def test_no_parts_and_empty_parts_send_nothing(self, connect: Connect) -> None:
        near, far = connect()
        near.send()
        near.send(b"", memoryview(b""))
        near.send(b"x")
        assert receive(far, 1) == b"x"

    def test_a_buffer_may_be_reused_after_send(self, connect: Connect) -> None:
        near, far = connect()
        buffer = bytearray(b"first")
        near.send(memoryview(buffer))
        buffer[:] = b"XXXXX"
        assert receive(far, 5) == b"first"

    def test_words_go_both_ways(self, connect: Connect) -> None:
        near, far = connect()
        for stream, other, word in [(near, far, b"there"), (far, near, b"back")] * 3:
            stream.send(word)
            assert receive(other, len(word)) == word

    @pytest.mark.parametrize("size", [0, 1, 300, 20 * KIB])
    def test_one_byte_at_a_time(self, connect: Connect, pool: ThreadPoolExecutor, size: int) -> None:
        near, far = connect(Faults(piece=1))
        arrived = pool.submit(receive_all, far)
        near.send(NOISE[:size])
        near.close()
        assert arrived.result(PATIENCE) == NOISE[:size]

    # ---- the end -------------------------------------------------------------------------------------------------

    def test_an_orderly_close_reads_as_zero_again_and_again(self, connect: Connect) -> None:
        near, far = connect()
        near.send(b"last words")
        near.close()
        assert receive_all(far) == b"last words"
        assert far.recv_into(memoryview(bytearray(1))) == 0

    def test_a_close_wakes_who_waits_for_bytes(self, connect: Connect, pool: ThreadPoolExecutor) -> None:
        near, far = connect()
        waiting = pool.submit(far.recv_into, memoryview(bytearray(1)))
        near.close()
        assert waiting.result(PATIENCE) == 0

    def test_closing_twice_and_from_both_sides(self, connect: Connect) -> None:
        near, far = connect()
        near.close()
        near.close()
        far.close()
        far.close()

    def test_the_last_words_arrive_though_the_closer_left_bytes_unread(self, connect: Connect) -> None:
        """As when a host refuses a request while others are still on their way to it."""
        near, far = connect()
        far.send(b"one")
        far.send(b"two")
        far.send(b"three")
        assert near.recv_into(memoryview(bytearray(1))) == 1
        near.send(b"no")
        near.close()
        assert receive_all(far) == b"no"

    def test_sending_to_who_has_closed_fails_soon(self, connect: Connect) -> None:
        near, far = connect()
        far.close()
        with pytest.raises(ConnectionLostError):
            for _ in range(1000):  # the first ones may still find room on the way
                near.send(NOISE[: 64 * KIB])

    @pytest.mark.parametrize("count", [0, 1, 4, 1000, 16 * KIB + 100, 90 * KIB])
    def test_a_cut_is_no_end(self, connect: Connect, pool: ThreadPoolExecutor, count: int) -> None:
        """Wherever it falls, in a record or between two: what came before it may be read, then it shows."""
        near, far = connect(Faults(cut_after=count))
        got = bytearray()

        def read() -> None:
            buffer = memoryview(bytearray(5000))
            while taken := far.recv_into(buffer):
                got.extend(buffer[:taken])

        reading = pool.submit(read)
        with pytest.raises(ConnectionLostError):
            for start in range(0, 120 * KIB, 30 * KIB):
                near.send(NOISE[start : start + 30 * KIB])
        with pytest.raises(ConnectionLostError):
            reading.result(PATIENCE)
        assert len(got) <= count
        assert got == NOISE[: len(got)]

    # ---- waiting -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("seconds", [0.02, 0.1])
    def test_a_receiver_gives_up_after_its_timeout(self, connect: Connect, seconds: float) -> None:
        _near, far = connect()
        far.set_timeout(seconds)
        started = time.monotonic()
        with pytest.raises(ConnectionLostError):
            far.recv_into(memoryview(bytearray(1)))
        assert seconds * 0.9 <= time.monotonic() - started < seconds + 2

    def test_a_sender_waits_for_a_slow_receiver_and_gives_up_after_its_timeout(self, connect: Connect) -> None:
        """Back-pressure: what nobody reads is not taken without bound, neither sent nor kept."""
        near, _far = connect()
        near.set_timeout(0.1)
        started = time.monotonic()
        with pytest.raises(ConnectionLostError):
            for _ in range(20):
                near.send(NOISE)
        assert 0.09 <= time.monotonic() - started < 5
        assert near.bytes_out < 2 * MIB

    def test_back_pressure_ends_when_the_receiver_reads(self, connect: Connect, pool: ThreadPoolExecutor) -> None:
        near, far = connect()
        sending = pool.submit(near.send, NOISE)
        got = receive(far, 1)
        assert not sending.done()
        assert got + receive(far, len(NOISE) - 1) == NOISE
        sending.result(PATIENCE)

    # ---- abort ---------------------------------------------------------------------------------------------------

    def test_abort_ends_a_receive_that_waits(self, connect: Connect, pool: ThreadPoolExecutor) -> None:
        near, far = connect()
        near.set_timeout(None)
        waiting = pool.submit(near.recv_into, memoryview(bytearray(1)))
        near.abort()
        with pytest.raises(ConnectionLostError):
            waiting.result(PATIENCE)
        near.close()
        with pytest.raises(ConnectionLostError):
            receive_all(far)

    def test_abort_ends_a_send_that_waits(self, connect: Connect, pool: ThreadPoolExecutor) -> None:
        near, far = connect()
        near.set_timeout(None)
        sending = pool.submit(near.send, *[NOISE] * 20)
        assert receive(far, 1) == NOISE[:1]
        near.abort()
        with pytest.raises(ConnectionLostError):
            sending.result(PATIENCE)
        near.close()

    def test_after_abort_every_call_fails_at_once(self, connect: Connect) -> None:
        near, far = connect()
        far.send(b"waiting to be read")
        far.send(b"and more")
        assert receive(near, 1) == b"w"
        near.abort()
        with pytest.raises(ConnectionLostError):
            near.recv_into(memoryview(bytearray(100)))
        with pytest.raises(ConnectionLostError):
            near.send(b"x")
        near.abort()
        near.close()
        near.abort()

    # ---- figures -------------------------------------------------------------------------------------------------

    def test_the_counters_count_what_crossed_the_wire(self, connect: Connect, pool: ThreadPoolExecutor) -> None:
        near, far = connect()
        before = near.bytes_out, far.bytes_in, far.bytes_out, near.bytes_in
        arrived = pool.submit(receive, far, MIB)
        near.send(NOISE[:MIB])
        arrived.result(PATIENCE)
        sent, taken = near.bytes_out - before[0], far.bytes_in - before[1]
        assert sent == taken
        assert MIB <= sent <= MIB * 1.02  # encryption costs a little
        assert (far.bytes_out, near.bytes_in) == before[2:]

    def test_the_round_trip_time_is_a_time_or_unknown(self, connect: Connect) -> None:
        near, _far = connect()
        seconds = near.rtt()
        assert seconds is None or 0 < seconds < 10
