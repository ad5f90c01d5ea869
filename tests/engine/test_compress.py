"""What is worth compressing, and at which level."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.compress import (
    AT_ONCE,
    LEVELS,
    MAX_PAUSE,
    MIN_LENGTH,
    MIN_SAVED,
    WORTH,
    Compressors,
    FileCompressor,
    check_level,
    entropy,
    is_compressed_format,
    parse_level,
)
from headrace.engine.unpack import decompress_into
from headrace.errors import UsageError
from headrace.protocol.messages import HOST_DECIDES, MAX_PART, MIB, NOT_PACKED

SLOW = 1e6  # bytes a second: a link on which everything is worth it
TEXT = b"".join(b"%d green bottles hanging on the wall\n" % number for number in range(3000))


def pack(
    compressor: FileCompressor, data: bytes, asked: int = HOST_DECIDES, link: float | None = SLOW
) -> tuple[bytes, str]:
    payload, reason = compressor.pack(memoryview(data), memoryview(bytearray(len(data))), asked, link)
    return bytes(payload), reason


def unpack(packed: bytes, length: int) -> bytes:
    buffer = bytearray(length)
    decompress_into(packed, memoryview(buffer))
    return bytes(buffer)


def ticks(seconds: float) -> Callable[[], float]:
    """A clock by which everything takes so long."""
    return itertools.count(0.0, seconds).__next__


# ---- levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "level"),
    [("auto", HOST_DECIDES), ("off", NOT_PACKED), (" AUTO ", HOST_DECIDES), ("1", 1), ("19", 19), ("07", 7)],
)
def test_a_level(text: str, level: int) -> None:
    assert parse_level(text) == check_level(level) == level


@pytest.mark.parametrize("text", ["", "0", "20", "-1", "fast", "1.5", "٣", "1 2"])
def test_no_level(text: str) -> None:
    with pytest.raises(UsageError, match="no compression level"):
        parse_level(text)


@pytest.mark.parametrize("level", [20, -2])
def test_a_level_that_a_program_made_up(level: int) -> None:
    with pytest.raises(UsageError, match="no compression level"):
        check_level(level)
    with pytest.raises(ValueError, match="level"):
        Compressors(level)


# ---- what is worth it ------------------------------------------------------------------------------------------------


def test_text_over_a_slow_link_is_compressed_and_comes_back() -> None:
    file = FileCompressor(Compressors())
    assert file.declines(len(TEXT), HOST_DECIDES, SLOW) is None
    packed, word = pack(file, TEXT)
    assert word == "zstd"
    assert len(packed) < len(TEXT) / 4
    assert unpack(packed, len(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("asked", "data", "link", "reason"),
    [
        (3, TEXT[: MIN_LENGTH - 1], SLOW, "small"),
        (3, b"", SLOW, "small"),
        (3, os.urandom(MAX_PART), SLOW, "entropy"),
        (3, os.urandom(MIN_LENGTH), SLOW, "entropy"),
        (HOST_DECIDES, TEXT, None, "link"),
        (HOST_DECIDES, TEXT, 0.0, "link"),
        (HOST_DECIDES, TEXT, 10e9, "link"),
    ],
)
def test_what_is_not_worth_it(asked: int, data: bytes, link: float | None, reason: str) -> None:
    assert pack(FileCompressor(Compressors()), data, asked, link) == (data, reason)


@pytest.mark.parametrize(
    ("asked", "length", "link", "compressed", "reason"),
    [
        (3, MIN_LENGTH - 1, SLOW, False, "small"),
        (3, MIB, SLOW, True, "format"),
        (HOST_DECIDES, MIB, None, False, "link"),
        (HOST_DECIDES, MIB, 10e9, False, "link"),
        (HOST_DECIDES, MIB, SLOW, False, None),
        (3, MIB, 10e9, False, None),
    ],
)
def test_what_is_declined_before_it_is_read(
    asked: int, length: int, link: float | None, compressed: bool, reason: str | None
) -> None:
    assert FileCompressor(Compressors(), compressed=compressed).declines(length, asked, link) == reason


def test_the_shortest_piece_that_is_tried_and_the_longest() -> None:
    assert pack(FileCompressor(Compressors()), TEXT[:MIN_LENGTH], 1)[1] == "zstd"
    assert pack(FileCompressor(Compressors()), bytes(MAX_PART), 1)[1] == "zstd"
    with pytest.raises(ValueError, match="too long"):
        pack(FileCompressor(Compressors()), bytes(MAX_PART + 1), 1)


@pytest.mark.parametrize("level", [1, 9, 19])
def test_a_level_that_was_asked_for_is_used_whatever_the_link(level: int) -> None:
    for link in (None, 1.0, 10e9):
        packed, _ = pack(FileCompressor(Compressors()), TEXT[:20_000], level, link)
        assert packed == zstandard.ZstdCompressor(level=level).compress(TEXT[:20_000])


def test_a_host_has_a_highest_level() -> None:
    compressors = Compressors(most=1)
    assert pack(FileCompressor(compressors), TEXT, 19)[0] == zstandard.ZstdCompressor(level=1).compress(TEXT)
    assert compressors.choose(1e3, 0.5) == 1


class Stub(Compressors):
    """One whose compressor makes every piece that much shorter, and notes when it was asked."""

    saved = 0.0
    asked = 0

    def pack_into(self, data: memoryview, room: memoryview, level: int) -> int | None:
        self.asked += 1
        length = round(len(data) * (1 - self.saved))
        return length if length <= len(room) else None


def test_what_saved_little_is_not_tried_again_at_once() -> None:
    """Each try in vain doubles how many pieces are left alone, up to MAX_PAUSE."""
    compressors = Stub()
    file = FileCompressor(compressors)
    attempts = []
    for number in range(130):
        before = compressors.asked
        assert pack(file, TEXT) == (TEXT, "little")
        if compressors.asked > before:
            attempts.append(number)

    assert attempts == [0, 2, 5, 10, 19, 36, 36 + 1 + MAX_PAUSE, 36 + 2 + 2 * MAX_PAUSE]


def test_a_whole_range_is_passed_over_where_all_its_pieces_would_be() -> None:
    """And it counts as so many pieces; the reason is that of the try."""
    file = FileCompressor(Compressors())
    noise = os.urandom(MIN_LENGTH)
    for _ in range(20):
        pack(file, noise)
    assert [file.declines(8 * MAX_PART, 3, None) for _ in range(3)] == ["entropy", "entropy", None]


def test_a_piece_that_is_worth_it_ends_the_pauses() -> None:
    compressors = Stub()
    file = FileCompressor(compressors)
    for _ in range(3):
        pack(file, TEXT)
    compressors.saved = 0.5
    assert [pack(file, TEXT)[1] for _ in range(4)] == ["little", "little", "zstd", "zstd"]
    compressors.saved = 0.0
    pack(file, TEXT)
    compressors.saved = 0.5
    assert [pack(file, TEXT)[1] for _ in range(2)] == ["little", "zstd"], "as after the first try in vain"


@pytest.mark.parametrize(("saved", "word"), [(MIN_SAVED - 0.01, "little"), (MIN_SAVED + 0.01, "zstd")])
def test_what_saves_less_than_a_twentieth_is_sent_as_it_is(saved: float, word: str) -> None:
    compressors = Stub()
    compressors.saved = saved
    assert pack(FileCompressor(compressors), TEXT)[1] == word


# ---- auto ------------------------------------------------------------------------------------------------------------


def test_the_slower_the_link_the_higher_the_level_and_none_for_a_fast_one() -> None:
    compressors = Compressors()
    chosen = [compressors.choose(10.0 ** (power / 4), 0.5) for power in range(12, 41)]
    assert chosen[0] == sorted(LEVELS)[-2], "what the last one gains is not worth its time"
    assert chosen[-1] is None
    known = [level or 0 for level in chosen]
    assert known == sorted(known, reverse=True)
    assert len(set(known)) >= 4


@given(link=st.floats(1e3, 1e11), ratio=st.floats(0.0, 1.0))
def test_auto_never_chooses_what_gains_little(link: float, ratio: float) -> None:
    level = Compressors().choose(link, ratio)
    costs = {each: 1 / speed + ratio * beside / link for each, (speed, beside) in LEVELS.items()}
    if level is None:
        assert min(costs.values()) > WORTH / link
    else:
        assert costs[level] <= 1.05 * min(costs.values())
        assert min(costs.values()) <= WORTH / link


def test_a_machine_that_turns_out_to_be_slow_stops_compressing_and_a_fast_one_goes_on() -> None:
    link = 20e6
    for seconds, expected in ((len(TEXT) / 1e6, "link"), (len(TEXT) / 900e6, "zstd")):
        compressors = Compressors(clock=ticks(seconds))
        words = [pack(FileCompressor(compressors), TEXT, link=link)[1] for _ in range(40)]
        assert words[-1] == expected


def test_a_machine_that_was_slow_once_is_tried_again() -> None:
    file = FileCompressor(Compressors(clock=ticks(1.0)))
    words = [pack(file, TEXT, link=20e6)[1] for _ in range(400)]
    assert "link" in words
    assert "zstd" in words[words.index("link") :]


def test_a_file_that_compresses_badly_is_sent_as_it_is_over_a_link_that_is_nearly_fast_enough() -> None:
    """And later tried again: what comes may be of another kind."""
    compressors = Stub()
    compressors.saved = 0.07
    file = FileCompressor(compressors)
    taken = [pack(file, TEXT, link=50e6)[1] == "zstd" for _ in range(200)]

    assert taken[0]
    assert False in taken
    assert True in taken[taken.index(False) :], "tried again"
    assert taken.count(False) > taken.count(True)


# ---- properties ------------------------------------------------------------------------------------------------------

pieces = st.one_of(
    st.binary(max_size=4096),
    st.builds(lambda unit, count: unit * count, st.binary(min_size=1, max_size=64), st.integers(1, 2000)),
)


@settings(deadline=None, max_examples=60)
@given(data=pieces, asked=st.sampled_from([HOST_DECIDES, 1, 3, 19]), link=st.none() | st.floats(1, 1e10))
def test_whatever_is_compressed_is_smaller_and_comes_back(data: bytes, asked: int, link: float | None) -> None:
    payload, word = pack(FileCompressor(Compressors()), data, asked, link)
    if word == "zstd":
        assert len(payload) <= len(data) * (1 - MIN_SAVED)
        assert unpack(payload, len(data)) == data
    else:
        assert payload == data


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


def test_threads_share_the_figures_and_a_few_compressors() -> None:
    compressors = Compressors()
    wrong: list[int] = []

    def work(number: int) -> None:
        file = FileCompressor(compressors)
        for turn in range(20):
            data = b"%d %d;" % (number, turn) * 1000
            packed, word = pack(file, data, 1 + number % 6)
            if word != "zstd" or unpack(packed, len(data)) != data:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(AT_ONCE + 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(compressors._idle) == AT_ONCE
