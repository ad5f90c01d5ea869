"""Chunks: how a file is cut, and how a piece of it is hashed. Sizes and offsets are in bytes. Thread-safe."""

from __future__ import annotations

import functools
from typing import Final

import blake3

from headrace.protocol.messages import CHUNK_SIZE

Hasher = blake3.blake3  # update(), digest(); 32 bytes

SINGLY: Final = 4096  # bytes; so many are hashed as quickly as their hash is looked up
# Zeros are fed to the hasher from here, so that no caller needs a buffer of them.
_ZEROS: Final = bytes(256 * 1024)


def new_hasher() -> Hasher:
    """A hasher for bytes that arrive in pieces. One owner thread."""
    return Hasher()


def hash_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of `data`, HASH_SIZE bytes. Releases the interpreter lock while hashing."""
    return Hasher(data).digest()


def should_hash(offset: int, length: int) -> bool:
    """Whether a chunk is worth a hash that is kept: it is larger than SINGLY bytes, or the last piece of a file of
    several chunks, without which something of that file would still have to be fetched or read."""
    return length > SINGLY or offset > 0


def chunk_count(size: int) -> int:
    """How many chunks a file of `size` bytes has; an empty file has none."""
    return -(-size // CHUNK_SIZE)


def chunk_range(size: int, index: int) -> tuple[int, int]:
    """(offset, length) of chunk `index` in a file of `size` bytes. ValueError when there is no such chunk."""
    offset = index * CHUNK_SIZE
    if index < 0 or offset >= size:
        raise ValueError(f"no chunk {index} in a file of {size} bytes")
    return offset, min(CHUNK_SIZE, size - offset)


def ZERO_HASH(length: int) -> bytes:  # reads as the constant it nearly always is
    """The hash of `length` zero bytes. That of a whole chunk is computed once; no other is kept."""
    return _whole_chunk() if length == CHUNK_SIZE else _hash_zeros(length)


@functools.cache
def _whole_chunk() -> bytes:
    return _hash_zeros(CHUNK_SIZE)


def _hash_zeros(length: int) -> bytes:
    hasher = new_hasher()
    zeros = memoryview(_ZEROS)
    while length > 0:
        hasher.update(zeros[:length])
        length -= len(zeros)
    return hasher.digest()
