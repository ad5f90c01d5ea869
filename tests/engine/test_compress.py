"""What is worth compressing, and a decompressor that nothing makes take more than it was told."""

from __future__ import annotations

import itertools
import os
import random
import resource
import threading
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.compress import (
    LEVELS,
    MIN_LENGTH,
    MIN_SAVED,
    Compression,
    Level,
    decompress_into,
    entropy,
    is_compressed_format,
    parse_level,
)
from headrace.errors import ProtocolError, UsageError
from headrace.protocol.messages import CHUNK_SIZE, KIB, MIB

SLOW = 1e6  # bytes a second: a link on which everything is worth it
TEXT = b"".join(b"%d green bottles hanging on the wall\n" % number for number in range(3000))


def unpack(packed: bytes, length: int) -> bytes:
    buffer = bytearray(length)
    decompress_into(packed, memoryview(buffer))
    return bytes(buffer)


def ticks(seconds: float) -> Callable[[], float]:
    """A clock by which everything takes so long."""
    return itertools.count(0.0, seconds).__next__


# ---- levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "level"), [("auto", "auto"), ("off", "off"), (" AUTO ", "auto"), ("1", 1), ("19", 19), ("07", 7)]
)
def test_a_level(text: str, level: Level) -> None:
    assert parse_level(text) == level


@pytest.mark.parametrize("text", ["", "0", "20", "-1", "fast", "1.5", "٣", "1 2"])
def test_no_level(text: str) -> None:
    with pytest.raises(UsageError, match="no compression level"):
        parse_level(text)


@pytest.mark.parametrize("level", [0, 20, -3])
def test_a_level_that_a_program_made_up(level: int) -> None:
    with pytest.raises(ValueError, match="level"):
        Compression(level)


# ---- what is worth it ------------------------------------------------------------------------------------------------


def test_text_over_a_slow_link_is_compressed_and_comes_back() -> None:
    compression = Compression("auto")
    packed = compression.for_file(b"notes.txt").compress(TEXT, SLOW)

    assert packed is not None
    assert len(packed) < len(TEXT) / 4
    assert unpack(packed, len(TEXT)) == TEXT
    assert compression.counts() == {"compressed": 1}


@pytest.mark.parametrize(
    ("level", "name", "data", "link", "reason"),
    [
        ("off", b"a.txt", TEXT, SLOW, "off"),
        (3, b"a.txt", TEXT[: MIN_LENGTH - 1], SLOW, "small"),
        (3, b"a.txt", b"", SLOW, "small"),
        (3, b"a.MP4", TEXT, SLOW, "format"),
        (3, b"backup.tar.zst", TEXT, SLOW, "format"),
        (3, b"a.bin", os.urandom(MIB), SLOW, "entropy"),
        (3, b"a.bin", os.urandom(MIN_LENGTH), SLOW, "entropy"),
        ("auto", b"a.txt", TEXT, None, "link"),
        ("auto", b"a.txt", TEXT, 0.0, "link"),
        ("auto", b"a.txt", TEXT, 10e9, "link"),
    ],
)
def test_what_is_not_worth_it(level: Level, name: bytes, data: bytes, link: float | None, reason: str) -> None:
    compression = Compression(level)

    assert compression.for_file(name).compress(data, link) is None
    assert compression.counts() == {reason: 1}


def test_the_shortest_piece_that_is_tried() -> None:
    assert Compression(1).for_file(b"a").compress(TEXT[:MIN_LENGTH], SLOW)


def test_a_piece_that_is_no_chunk_of_the_protocol() -> None:
    with pytest.raises(ValueError, match="longer than a chunk"):
        Compression(1).for_file(b"a").compress(bytes(CHUNK_SIZE + 1), SLOW)


@pytest.mark.parametrize("level", [1, 9, 19])
def test_a_level_that_was_asked_for_is_used_whatever_the_link(level: int) -> None:
    for link in (None, 1.0, 10e9):
        packed = Compression(level).for_file(b"a").compress(TEXT, link)
        assert packed == zstandard.ZstdCompressor(level=level).compress(TEXT)


class Stub(Compression):
    """One whose compressor makes every piece that much shorter, and notes when it was asked."""

    saved = 0.0
    asked = 0

    def pack(self, data: bytes | bytearray | memoryview, level: int) -> bytes:
        self.asked += 1
        return bytes(round(len(data) * (1 - self.saved)))


def test_what_saved_little_is_not_tried_again_at_once() -> None:
    """Each try in vain doubles how many pieces are left alone, up to MAX_PAUSE."""
    compression = Stub(1)
    file = compression.for_file(b"a")
    attempts = []
    for number in range(100):
        before = compression.asked
        assert file.compress(TEXT, SLOW) is None
        if compression.asked > before:
            attempts.append(number)

    assert attempts == [0, 2, 5, 10, 19, 36, 53, 70, 87]
    assert compression.counts() == {"little": 100}


def test_a_piece_that_is_worth_it_ends_the_pauses() -> None:
    compression = Stub(1)
    file = compression.for_file(b"a")
    for _ in range(3):
        assert file.compress(TEXT, SLOW) is None
    compression.saved = 0.5
    assert [bool(file.compress(TEXT, SLOW)) for _ in range(4)] == [False, False, True, True]
    compression.saved = 0.0
    assert file.compress(TEXT, SLOW) is None
    compression.saved = 0.5
    assert [bool(file.compress(TEXT, SLOW)) for _ in range(2)] == [False, True], "as after the first try in vain"


def test_another_file_is_another_try() -> None:
    compression = Stub(1)
    assert compression.for_file(b"a").compress(TEXT, SLOW) is None
    compression.saved = 0.5
    assert compression.for_file(b"b").compress(TEXT, SLOW)


@pytest.mark.parametrize(("saved", "sent"), [(MIN_SAVED - 0.01, False), (MIN_SAVED + 0.01, True)])
def test_what_saves_less_than_a_twentieth_is_sent_as_it_is(saved: float, sent: bool) -> None:
    compression = Stub(1)
    compression.saved = saved

    assert bool(compression.for_file(b"a").compress(TEXT, SLOW)) == sent


# ---- auto ------------------------------------------------------------------------------------------------------------


def test_the_slower_the_link_the_higher_the_level_and_none_for_a_fast_one() -> None:
    compression = Compression("auto")
    links = [10.0**power for power in range(3, 11)]
    chosen = [compression.choose(link, 0.5) for link in links]

    assert chosen[0] == max(LEVELS)
    assert chosen[-1] is None
    known = [level if level is not None else 0 for level in chosen]
    assert known == sorted(known, reverse=True)
    assert len(set(known)) >= 4


@given(link=st.floats(1e3, 1e11), ratio=st.floats(0.0, 1.0))
def test_auto_never_chooses_what_takes_longer_than_sending_as_it_is(link: float, ratio: float) -> None:
    level = Compression("auto").choose(link, ratio)
    costs = {each: 1 / speed + ratio * beside / link for each, (speed, beside) in LEVELS.items()}
    if level is None:
        assert min(costs.values()) >= 1 / link
    else:
        assert costs[level] == min(costs.values())
        assert costs[level] < 1 / link


def test_a_machine_that_turns_out_to_be_slow_stops_compressing_and_a_fast_one_goes_on() -> None:
    link = 20e6
    for seconds, expected in ((len(TEXT) / 1e6, "link"), (len(TEXT) / 900e6, "compressed")):
        compression = Compression("auto", ticks(seconds))
        for number in range(200):
            compression.for_file(b"%d" % number).compress(TEXT, link)
        before = compression.counts()
        compression.for_file(b"last").compress(TEXT, link)
        after = compression.counts()

        assert after[expected] == before[expected] + 1


def test_a_file_that_compresses_badly_is_sent_as_it_is_over_a_link_that_is_nearly_fast_enough() -> None:
    """And later tried again: what comes may be of another kind."""
    compression = Stub("auto")
    compression.saved = 0.07
    file = compression.for_file(b"a")
    taken = [file.compress(TEXT, 60e6) is not None for _ in range(200)]

    assert taken[0]
    assert False in taken
    assert True in taken[taken.index(False) :], "tried again"
    assert taken.count(False) > taken.count(True)


# ---- properties ------------------------------------------------------------------------------------------------------

pieces = st.one_of(
    st.binary(max_size=4096),
    st.builds(lambda unit, count: unit * count, st.binary(min_size=1, max_size=64), st.integers(1, 2000)),
)


@settings(deadline=None)
@given(data=pieces, level=st.sampled_from(["auto", "off", 1, 3, 19]), link=st.none() | st.floats(1, 1e10))
def test_whatever_is_compressed_is_smaller_and_comes_back(data: bytes, level: Level, link: float | None) -> None:
    compression = Compression(level)
    packed = compression.for_file(b"a").compress(data, link)

    assert sum(compression.counts().values()) == 1
    if packed is not None:
        assert len(packed) <= len(data) * (1 - MIN_SAVED)
        assert unpack(packed, len(data)) == data


@given(data=st.binary(max_size=10_000))
def test_entropy_is_between_none_and_eight_bits_and_does_not_mind_the_order(data: bytes) -> None:
    assert 0 <= entropy(data) <= 8
    if len(data) <= 4096:
        assert entropy(data) == pytest.approx(entropy(bytes(sorted(data))))


@pytest.mark.parametrize(
    ("data", "least", "most"),
    [
        (b"", 0, 0),
        (bytes(5000), 0, 0),
        (b"ab" * 3000, 1, 1),
        (bytes(range(256)) * 16, 8, 8),
        (bytes(range(256)) * 40_000, 7.9, 8),
        (os.urandom(MIB), 7.9, 8),
        (TEXT, 3, 5),
        (bytes(random.Random(1).choices(b"0123456789", k=20_000)), 3.2, 3.33),
        (memoryview(bytearray(b"ab" * 3000)), 1, 1),
    ],
)
def test_entropy(data: bytes, least: float, most: float) -> None:
    assert least - 1e-9 <= entropy(data) <= most + 1e-9


@pytest.mark.parametrize(
    ("name", "compressed"),
    [
        (b"a.jpg", True),
        (b"A.JPEG", True),
        (b"x.tar.gz", True),
        (b".zip", True),
        (b"caf\xe9.mp4", True),
        (b"jpg", False),
        (b"a.jpg.txt", False),
        (b"a.", False),
        (b"", False),
        (b"a.wav", False),
    ],
)
def test_formats_by_name(name: bytes, compressed: bool) -> None:
    assert is_compressed_format(name) == compressed


def test_threads_share_the_figures_and_not_the_compressor() -> None:
    compression = Compression(3)
    wrong: list[int] = []

    def work(number: int) -> None:
        file = compression.for_file(b"%d" % number)
        for turn in range(50):
            data = b"%d %d;" % (number, turn) * 1000
            packed = file.compress(data, SLOW)
            if packed is None or unpack(packed, len(data)) != data:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert compression.counts() == {"compressed": 200}


# ---- what a peer sends -----------------------------------------------------------------------------------------------


def frame(data: bytes, *, size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_content_size=size).compress(data)


def with_window(length: int, exponent: int) -> bytes:
    """`length` times the letter a, at most 128 KiB, and a wish for a window of 1 KiB << exponent (RFC 8878, 3.1.1)."""
    block = (length << 3 | 0b011).to_bytes(3, "little") + b"a"  # the last one, one byte repeated
    return zstandard.FRAME_HEADER + bytes([0x80, exponent << 3]) + length.to_bytes(4, "little") + block


def lying(data: bytes, length: int) -> bytes:
    """A frame of `data` whose header says `length`, both of 256 to 65,791 bytes."""
    packed = bytearray(frame(data))
    assert packed[4] & 0xC0 == 0x40
    packed[5:7] = (length - 256).to_bytes(2, "little")
    assert zstandard.get_frame_parameters(bytes(packed)).content_size == length
    return bytes(packed)


PACKED = frame(TEXT)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: b"", id="nothing"),
        pytest.param(lambda: os.urandom(100), id="noise"),
        pytest.param(lambda: PACKED[:-1], id="cut by one"),
        pytest.param(lambda: PACKED[:20], id="cut short"),
        pytest.param(lambda: PACKED[:5], id="half a header"),
        pytest.param(lambda: PACKED + b"x", id="something after it"),
        pytest.param(lambda: PACKED + PACKED, id="another one after it"),
        pytest.param(lambda: frame(TEXT, size=False), id="of unknown length"),
        pytest.param(lambda: frame(TEXT + b"x"), id="one byte too many"),
        pytest.param(lambda: frame(TEXT[:-1]), id="one byte too few"),
        pytest.param(lambda: bytes(len(TEXT)), id="not smaller"),
    ],
)
def test_what_is_not_the_piece_it_should_be_is_refused(make: Callable[[], bytes]) -> None:
    with pytest.raises(ProtocolError):
        unpack(make(), len(TEXT))


@pytest.mark.parametrize("told", [9_000, 11_000])
def test_a_header_that_lies_about_the_length_is_found_out(told: int) -> None:
    """It passes the first check, as it says what is expected."""
    with pytest.raises(ProtocolError):
        unpack(lying(TEXT[:10_000], told), told)


@pytest.mark.slow
def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    """A gibibyte of zeros."""
    compressor = zstandard.ZstdCompressor(level=19).compressobj(size=1 << 30)
    bomb = b"".join(compressor.compress(bytes(MIB)) for _ in range(1024)) + compressor.flush()
    assert len(bomb) < 200 * KIB
    buffer = memoryview(bytearray(CHUNK_SIZE))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for hostile in (bomb, bomb * 2, bomb[:1000]):
        with pytest.raises(ProtocolError):
            decompress_into(hostile, buffer)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * KIB < 16 * MIB


def test_a_window_larger_than_a_chunk_is_refused() -> None:
    """The decompressor would have to set it aside, whatever little is in the frame."""
    assert unpack(with_window(100_000, 12), 100_000) == b"a" * 100_000
    for exponent in (13, 17, 31):
        with pytest.raises(ProtocolError):
            unpack(with_window(100_000, exponent), 100_000)


@pytest.mark.parametrize("length", [0, CHUNK_SIZE + 1])
def test_a_buffer_that_no_piece_has(length: int) -> None:
    with pytest.raises(ProtocolError, match="impossible length"):
        decompress_into(PACKED, memoryview(bytearray(length)))


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_piece_is_refused_or_gives_as_many_bytes_and_nothing_else_happens(data: st.DataObject) -> None:
    damaged = bytearray(PACKED)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    room = bytearray(len(TEXT) + 16)
    try:
        decompress_into(bytes(damaged), memoryview(room)[: len(TEXT)])
    except ProtocolError:
        pass
    assert room[len(TEXT) :] == bytes(16)


@settings(deadline=None)
@given(noise=st.binary(max_size=2000), length=st.integers(1, 5000))
def test_noise_is_refused(noise: bytes, length: int) -> None:
    with pytest.raises(ProtocolError):
        unpack(noise, length)
