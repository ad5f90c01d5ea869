"""How files are cut, and what their pieces hash to."""

from __future__ import annotations

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.messages import CHUNK_SIZE, HASH_SIZE
from headrace.storage.chunks import ZERO_HASH, chunk_count, chunk_range, hash_bytes, new_hasher


@given(st.integers(0, 20 * CHUNK_SIZE))
def test_chunks_cover_a_file_without_gap_or_overlap(size: int) -> None:
    end = 0
    for index in range(chunk_count(size)):
        offset, length = chunk_range(size, index)
        assert offset == end and 0 < length <= CHUNK_SIZE
        end = offset + length
    assert end == size


@pytest.mark.parametrize(("size", "index"), [(0, 0), (CHUNK_SIZE, 1), (1, -1)])
def test_there_are_no_other_chunks(size: int, index: int) -> None:
    with pytest.raises(ValueError, match="no chunk"):
        chunk_range(size, index)


def test_hashes_are_blake3_in_one_piece_or_many() -> None:
    hasher = new_hasher()
    hasher.update(b"head")
    hasher.update(b"race")
    assert hasher.digest() == hash_bytes(b"headrace") == blake3.blake3(b"headrace").digest()
    assert len(hash_bytes(b"")) == HASH_SIZE


@pytest.mark.parametrize("length", [0, 1, 4096, 256 * 1024 + 1, CHUNK_SIZE, CHUNK_SIZE + 1])
def test_hashes_of_zeros(length: int) -> None:
    assert ZERO_HASH(length) == ZERO_HASH(length) == hash_bytes(bytes(length))
