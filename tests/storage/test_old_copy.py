"""What is found of a new file in an old one. Whatever is found is really there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.protocol.messages import BLOCK_SIZE, CHUNK_SIZE, KIB, MIB
from headrace.storage import old_copy
from headrace.storage.blocks import SAMPLE, block_sums, choose_marks, chunk_places, sample_offsets
from headrace.storage.chunks import chunk_count, chunk_range
from headrace.storage.old_copy import OldCopy, Run, missing

OLD: Final = random.Random(9).randbytes(MIB + 777)


def search(tmp_path: Path, old: bytes, new: bytes) -> tuple[int, OldCopy]:
    """Bytes of `new` that were not found in `old`; every piece that was found is compared."""
    path = tmp_path / "old"
    path.write_bytes(old)
    copy = OldCopy(os.open(path, os.O_RDONLY))
    marks = choose_marks([memoryview(new)[start : start + SAMPLE] for start in sample_offsets(len(new))])
    lacking = 0
    for index in range(chunk_count(len(new))):
        offset, length = chunk_range(len(new), index)
        view = memoryview(new)[offset : offset + length]
        runs = copy.search(offset, length, block_sums(view), marks, chunk_places(view, marks))
        gaps = missing(runs, offset, length)
        pieces = sorted([(start, size) for start, size, _ in runs] + gaps)
        assert [start for start, _ in pieces] == [offset, *(start + size for start, size in pieces)][: len(pieces)]
        assert sum(size for _, size in pieces) == length
        for start, size, came in runs:
            found = bytes(size) if came is None else old[came : came + size]
            assert found == new[start : start + size]
        lacking += sum(size for _, size in gaps)
    copy.close()
    return lacking, copy


EDITS: Final[dict[str, tuple[Callable[[bytes], bytes], int]]] = {
    "nothing": (lambda old: old, 0),
    "a byte more at the front": (lambda old: b"!" + old, 2 * BLOCK_SIZE),
    "1 KiB more at the front": (lambda old: bytes(range(256)) * 4 + old, 2 * BLOCK_SIZE),
    "a byte less at the front": (lambda old: old[1:], 2 * BLOCK_SIZE),
    "something more in the middle": (lambda old: old[:500_000] + b"abc" * 1000 + old[500_000:], 3 * BLOCK_SIZE),
    "something less in the middle": (lambda old: old[:500_005] + old[570_000:], 2 * BLOCK_SIZE),
    "more at the end": (lambda old: old + old[::-1][: 50 * KIB], 52 * KIB),
    "one block": (lambda old: old[:8192] + bytes(range(256)) * 16 + old[12288:], BLOCK_SIZE),
    "swapped halves": (lambda old: old[500_000:] + old[:500_000], 4 * BLOCK_SIZE),
    "twice": (lambda old: old + old, 4 * BLOCK_SIZE),
    "zeros in it": (lambda old: old[:500_000] + bytes(300_000) + old[500_000:], 2 * BLOCK_SIZE),
}


QUICK: Final = ("1 KiB more at the front", "something less in the middle", "one block")


@pytest.mark.parametrize(
    "edit", [pytest.param(edit, marks=() if edit in QUICK else pytest.mark.slow) for edit in EDITS]
)
def test_what_an_edit_left_is_found(tmp_path: Path, edit: str) -> None:
    change, most = EDITS[edit]
    assert search(tmp_path, OLD, change(OLD))[0] <= most


@pytest.mark.slow
def test_text_that_moved_is_found(tmp_path: Path) -> None:
    text = b"".join(b"%d: the water runs to the mill, %d\n" % (n, n * n) for n in range(30_000))
    assert search(tmp_path, text, b"a line more\n" + text)[0] <= 2 * BLOCK_SIZE


def test_nothing_is_found_of_another_file(tmp_path: Path) -> None:
    new = random.Random(10).randbytes(300_000)
    assert search(tmp_path, OLD, new)[0] == len(new)


pieces = st.one_of(
    st.tuples(st.integers(0, len(OLD)), st.integers(0, 300_000)).map(lambda cut: OLD[cut[0] : sum(cut)]),
    st.binary(max_size=100),
    st.integers(0, 20_000).map(bytes),
)


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(pieces, min_size=1, max_size=6))
def test_what_is_found_is_there_whatever_was_done_to_the_file(tmp_path: Path, parts: list[bytes]) -> None:
    search(tmp_path, OLD, b"".join(parts))


@pytest.mark.slow
def test_what_moved_further_than_is_looked_at_first_is_found_a_few_chunks_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_copy, "AHEAD", MIB)
    old = random.Random(11).randbytes(8 * CHUNK_SIZE)
    new = old[5 * CHUNK_SIZE + 3 :] + old[: 5 * CHUNK_SIZE]
    assert search(tmp_path, old, new)[0] <= 3 * CHUNK_SIZE


def test_places_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_copy, "MAX_KNOWN", 10)
    _, copy = search(tmp_path, OLD, OLD[::-1])
    assert len(copy._known) <= 10


def test_hints_that_lie_find_nothing_that_is_not_inside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(OLD[: 64 * KIB])
    copy = OldCopy(os.open(path, os.O_RDONLY))
    everywhere = chunk_places(memoryview(OLD[: 64 * KIB]), [OLD[:2]])
    lies = [(start, check) for start in (0, MIB, CHUNK_SIZE - 32) for _, check in everywhere]
    sums = block_sums(memoryview(OLD[: 64 * KIB])) * (CHUNK_SIZE // (64 * KIB))
    for offset in (0, CHUNK_SIZE, 1 << 61):
        for start, size, came in copy.search(offset, CHUNK_SIZE, sums, [OLD[:2]], lies):
            assert came is not None and 0 <= came <= came + size <= 64 * KIB
            assert offset <= start <= start + size <= offset + CHUNK_SIZE
    copy.close()


def test_a_search_ends_when_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(OLD)
    copy = OldCopy(os.open(path, os.O_RDONLY), stop=lambda: True)
    assert copy.search(0, BLOCK_SIZE, [1], [b"ab"], []) == []
    assert copy._scanned == 0
    copy.close()


def test_gaps() -> None:
    runs: list[Run] = [(110, 10, 5), (130, 20, None)]
    assert missing(runs, 100, 60) == [(100, 10), (120, 10), (150, 10)]
    assert missing([(100, 60, 0)], 100, 60) == []
    assert missing([], 100, 60) == [(100, 60)]
