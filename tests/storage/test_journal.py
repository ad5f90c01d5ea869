"""The journal: whatever is in the file, what is read from it was written to it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.messages import CHUNK_SIZE, HASH_SIZE
from headrace.storage.chunks import hash_bytes
from headrace.storage.journal import NO_BOOT, Header, Journal, Record, boot_mark
from headrace.storage.partial import Partial, part_names

HEADER = Header(10 * CHUNK_SIZE, b"v" * 16, -5, boot_mark(b"boot"))
RECORDS = {index: Record(hash_bytes(b"%d" % index), stale=index == 2) for index in (3, 0, 2, 9)}


@pytest.fixture
def journal(tmp_path: Path):
    """Opens the journal in tmp_path anew, as the next run would."""
    folder = os.open(tmp_path, os.O_RDONLY)
    yield lambda: Journal.open(folder, b"journal")
    os.close(folder)


def written(open_it: Callable[[], Journal]) -> None:
    journal = open_it()
    journal.start(HEADER, {})
    for index, record in RECORDS.items():
        journal.append(index, record)
    journal.close()


def test_what_was_written_is_read(journal: Callable[[], Journal], tmp_path: Path) -> None:
    written(journal)
    again = journal()
    assert again.header == HEADER and again.records == RECORDS
    again.append(5, Record(bytes(HASH_SIZE)))
    again.start(HEADER, {1: RECORDS[3]})
    again.close()
    again.close()
    last = journal()
    assert last.header == HEADER and last.records == {1: RECORDS[3]}
    last.close()
    assert oct((tmp_path / "journal").stat().st_mode)[-3:] == "600"


def test_a_new_one_is_empty(journal: Callable[[], Journal]) -> None:
    new = journal()
    assert new.header is None and not new.records
    new.close()


def test_a_torn_tail_is_cut_off(journal: Callable[[], Journal], tmp_path: Path) -> None:
    written(journal)
    whole = (tmp_path / "journal").read_bytes()
    record = len(whole) - len(torn(whole, 4))
    for cut in range(1, record):
        (tmp_path / "journal").write_bytes(whole[:-cut])
        again = journal()
        assert list(again.records) == [3, 0, 2] and (tmp_path / "journal").stat().st_size == len(whole) - record
        again.append(9, RECORDS[9])
        again.close()
        assert (tmp_path / "journal").read_bytes() == whole


def torn(whole: bytes, records: int) -> bytes:
    """`whole` without its last record; every record is as long as the others."""
    empty = len(whole) - records * ((len(whole) - 61) // records)
    return whole[: len(whole) - (len(whole) - empty) // records]


def test_records_of_an_older_journal_do_not_count(journal: Callable[[], Journal], tmp_path: Path) -> None:
    written(journal)
    old = (tmp_path / "journal").read_bytes()
    again = journal()
    again.start(Header(10 * CHUNK_SIZE, b"w" * 16, -5, NO_BOOT), {})
    again.close()
    head = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(head + old[len(head) :])  # as a kill between writing and cutting leaves it
    again = journal()
    assert again.header and again.header.version == b"w" * 16 and not again.records
    again.close()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_loses_records_but_makes_none_up(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = os.open(place, os.O_RDONLY)
        path = Path(place) / "journal"
        written(lambda: Journal.open(folder, b"journal"))
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, len(raw)))
            kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
            if kind == "flip" and position < len(raw):
                raw[position] ^= data.draw(st.integers(1, 255))
            elif kind == "cut":
                del raw[position : position + data.draw(st.integers(1, 50))]
            else:
                raw[position:position] = data.draw(st.binary(min_size=1, max_size=50))
        path.write_bytes(raw)
        journal = Journal.open(folder, b"journal")
        assert journal.header in (None, HEADER)
        assert journal.records.items() <= RECORDS.items()
        journal.close()
        os.close(folder)


@settings(max_examples=150, deadline=None)
@given(garbage=st.one_of(st.binary(max_size=500), st.binary(max_size=200).map(lambda raw: b"HRJRNL01" + raw)))
@pytest.mark.slow
def test_garbage_means_starting_anew(garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        part, journal = (Path(place) / os.fsdecode(name) for name in part_names(b"a"))
        part.write_bytes(b"part")
        journal.write_bytes(garbage)
        folder = os.open(place, os.O_RDONLY)
        partial = Partial.open(folder, b"a", size=2 * CHUNK_SIZE, version=b"", mtime_ns=0, sparse=True)
        assert not partial.verified and not partial.stale
        partial.write(0, b"x" * CHUNK_SIZE)
        partial.commit(0, hash_bytes(b"x" * CHUNK_SIZE))
        partial.close()
        partial = Partial.open(folder, b"a", size=2 * CHUNK_SIZE, version=b"", mtime_ns=0, sparse=True)
        assert partial.verified == {0}
        partial.discard()
        os.close(folder)


def test_more_records_than_are_read_at_once(journal: Callable[[], Journal]) -> None:
    many = {index: Record(hash_bytes(b"%d" % index)) for index in range(10_000)}
    first = journal()
    first.start(Header(10_000 * CHUNK_SIZE, b"", 0, NO_BOOT), many)
    first.close()
    again = journal()
    assert again.records == many
    again.close()
