"""A decompressor that nothing makes take more than it was told."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.unpack import check_part, decompress_into
from headrace.errors import ProtocolError
from headrace.protocol.messages import CHUNK_SIZE, KIB, MAX_PART, MIB

TEXT = b"".join(b"%d green bottles hanging on the wall\n" % number for number in range(3000))


def unpack(packed: bytes, length: int) -> bytes:
    buffer = bytearray(length)
    decompress_into(packed, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize(
    ("packed", "payload", "length", "asked"),
    [
        ("", 9, 10, True),
        ("link", 11, 10, False),
        ("zstd", 9, 10, False),
        ("zstd", 0, 10, True),
        ("zstd", 10, 10, True),
        ("zstd", 11, 10, True),
        ("zstd", 100, MAX_PART + 1, True),
        ("zstd", -1, 0, True),
    ],
)
def test_what_a_payload_cannot_be(packed: str, payload: int, length: int, asked: bool) -> None:
    with pytest.raises(ProtocolError):
        check_part(packed, payload, length, asked=asked)


def test_what_it_can_be() -> None:
    check_part("", CHUNK_SIZE, CHUNK_SIZE, asked=False)
    check_part("entropy", 0, 0, asked=True)
    check_part("zstd", 1, MAX_PART, asked=True)


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
    buffer = memoryview(bytearray(MAX_PART))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for hostile in (bomb, bomb * 2, bomb[:1000]):
        with pytest.raises(ProtocolError):
            decompress_into(hostile, buffer)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * KIB < 16 * MIB


def test_a_window_larger_than_a_chunk_is_refused() -> None:
    """The decompressor would have to set it aside, whatever little is in the frame."""
    assert unpack(with_window(100_000, 9), 100_000) == b"a" * 100_000
    for exponent in (10, 12, 17, 31):
        with pytest.raises(ProtocolError):
            unpack(with_window(100_000, exponent), 100_000)


@pytest.mark.parametrize("length", [0, MAX_PART + 1])
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
