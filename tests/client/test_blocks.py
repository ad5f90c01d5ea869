"""Reading through the caches, over a host that says what the test wants."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.scripted_link import PATH, VERSION, ScriptedLink

from headrace.client.blocks import BlockFile, BlockReader
from headrace.engine.readahead import BLOCK, FRAGMENT
from headrace.errors import HostAwayError, IntegrityError, NotFoundError, SourceChangedError
from headrace.protocol.messages import KIB, MIB, READ_SIZE, Entry, GetChunk, Read

SIZE: Final = 3 * MIB + 4321
NOISE: Final = random.Random(8).randbytes(SIZE)
OTHER: Final = random.Random(9).randbytes(SIZE)


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def reader_of(link: ScriptedLink, **options: Any) -> BlockReader:
    stand_in: Any = link
    return BlockReader(stand_in, **options)


def opened(link: ScriptedLink, **options: Any) -> BlockFile:
    return reader_of(link, **options).open(PATH, link.entry)


RANGES = st.lists(
    st.tuples(st.integers(0, SIZE + 10), st.one_of(st.integers(0, 5000), st.integers(0, SIZE))), min_size=1, max_size=12
)


@settings(max_examples=15, deadline=None)
@given(ranges=RANGES, phase=st.sampled_from([7, 8]), ram=st.sampled_from([256 * KIB, MIB, 64 * MIB]))
def test_any_reads_give_the_files_bytes(ranges: list[tuple[int, int]], phase: int, ram: int) -> None:
    reader = reader_of(ScriptedLink(NOISE, phase=phase), ram=ram)
    file = reader.open(PATH, ScriptedLink(NOISE).entry)
    for offset, length in ranges:
        assert file.read(offset, length, soon()) == NOISE[offset : offset + length]
    assert reader.figures().ram.high_water <= ram
    file.close()
    reader.close()


@pytest.mark.parametrize("piece", [4 * KIB, 100_000, READ_SIZE, MIB])
def test_from_end_to_end(piece: int) -> None:
    file = opened(ScriptedLink(NOISE))
    got = b"".join(bytes(file.read(at, piece, soon())) for at in range(0, SIZE + piece, piece))
    assert got == NOISE


def test_a_random_read_fetches_a_fragment_and_a_third_one_nearby_the_block() -> None:
    link = ScriptedLink(NOISE)
    file = opened(link)
    at = 9 * BLOCK
    assert file.read(at + 20_000, 4096, soon()) == NOISE[at + 20_000 : at + 24_096]
    assert link.asked == [(at + FRAGMENT, FRAGMENT)]
    file.read(at + 3 * FRAGMENT, 4096, soon())
    assert link.asked[1:] == [(at + 3 * FRAGMENT, FRAGMENT)]
    file.read(at + 5 * FRAGMENT, 4096, soon())
    assert link.asked[2:] == [(at, BLOCK)]
    file.read(at + 7 * FRAGMENT, 4096, soon())
    assert len(link.asked) == 3


def test_what_was_read_once_is_not_asked_for_again() -> None:
    link = ScriptedLink(NOISE)
    reader = reader_of(link)
    for _ in range(2):  # a second handle, too
        file = reader.open(PATH, link.entry)
        file.read(MIB, 300_000, soon())
        file.close()
    asked = sorted(link.asked)  # what was read ahead, too, whenever that began
    assert all(start + length <= after for (start, length), (after, _) in pairwise(asked)), asked


def test_many_readers_of_one_block_make_one_fetch() -> None:
    link = ScriptedLink(NOISE)
    link.gate.clear()
    reader = reader_of(link)
    with ThreadPoolExecutor(16) as readers:
        files = [reader.open(PATH, link.entry) for _ in range(16)]
        answers = [readers.submit(file.read, 7 * BLOCK + 100, 1000, soon()) for file in files]
        while not link.asked:
            time.sleep(0.001)
        link.gate.set()
        assert {bytes(answer.result()) for answer in answers} == {NOISE[7 * BLOCK + 100 : 7 * BLOCK + 1100]}
    assert len(link.asked) == 1


def test_readers_at_once_all_get_the_files_bytes() -> None:
    link = ScriptedLink(NOISE)
    reader = reader_of(link, ram=MIB)
    wrong = []

    def read(seed: int) -> None:
        chance, file = random.Random(seed), reader.open(PATH, link.entry)
        at = 0
        for _ in range(60):
            at = at if chance.random() < 0.7 else chance.randrange(SIZE)
            size = chance.choice([1000, 4096, READ_SIZE])
            if file.read(at, size, soon()) != NOISE[at : at + size]:
                wrong.append(at)
            at += size
        file.close()

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert reader.figures().ram.high_water <= MIB


def test_a_view_stays_as_it_is_when_the_cache_lets_go_of_it() -> None:
    file = opened(ScriptedLink(NOISE), ram=256 * KIB)
    view = file.read(0, READ_SIZE, soon())
    for at in range(0, SIZE, READ_SIZE):
        file.read(at, READ_SIZE, soon())
    assert view == NOISE[:READ_SIZE]


@pytest.mark.parametrize("phase", [7, 8])
def test_a_file_that_changed_is_never_half_old_half_new(phase: int) -> None:
    link = ScriptedLink(NOISE, phase=phase)
    reader = reader_of(link)
    old = reader.open(PATH, link.entry)
    assert old.read(MIB, 1000, soon()) == NOISE[MIB : MIB + 1000]
    link.content, link.version = OTHER, b"2" * 16
    new = reader.open(PATH, link.entry)
    assert new.read(MIB, 1000, soon()) == OTHER[MIB : MIB + 1000]
    assert old.read(MIB, 1000, soon()) == NOISE[MIB : MIB + 1000]  # it has that
    asked = len(link.asked)
    for _ in range(2):
        with pytest.raises(SourceChangedError):
            old.read(2 * MIB, 1000, soon())
    assert len(link.asked) == asked + 1  # the host is asked once
    with pytest.raises(SourceChangedError):
        old.read(MIB - 100, MIB, soon())


@pytest.mark.parametrize("claimed", [SIZE + 1, 10 * SIZE, 1 << 62])
def test_a_size_that_lies_costs_what_is_not_there(claimed: int) -> None:
    reader = reader_of(ScriptedLink(NOISE), ram=MIB)
    file = reader.open(PATH, Entry(PATH.name, "f", size=claimed, version=VERSION))
    for at in range(0, 2 * MIB, READ_SIZE):
        assert file.read(at, READ_SIZE, soon()) == NOISE[at : at + READ_SIZE]
    for at in (SIZE - 10, claimed - 1):
        with pytest.raises(NotFoundError):
            file.read(at, 4096, soon())
    assert reader.figures().ram.high_water <= MIB
    file.close()
    reader.close()


def test_bytes_that_do_not_match_are_asked_for_once_more() -> None:
    link = ScriptedLink(NOISE)
    file = opened(link)
    link.spoil = 1
    assert file.read(5 * BLOCK, 100, soon()) == NOISE[5 * BLOCK : 5 * BLOCK + 100]
    link.spoil = 2
    with pytest.raises(IntegrityError):
        file.read(9 * BLOCK, 100, soon())
    assert file.read(9 * BLOCK, 100, soon()) == NOISE[9 * BLOCK : 9 * BLOCK + 100]


def test_a_host_that_is_away_costs_what_is_not_cached() -> None:
    link = ScriptedLink(NOISE)
    file = opened(link)
    file.read(5 * BLOCK, 100, soon())
    link.up = False
    assert file.read(5 * BLOCK, 200, soon()) == NOISE[5 * BLOCK : 5 * BLOCK + 200]
    with pytest.raises(HostAwayError):
        file.read(9 * BLOCK, 100, soon())
    link.up = True
    assert file.read(9 * BLOCK, 100, soon()) == NOISE[9 * BLOCK : 9 * BLOCK + 100]


def test_who_waits_for_somebody_elses_fetch_waits_until_the_own_deadline_only() -> None:
    link = ScriptedLink(NOISE)
    link.gate.clear()
    reader = reader_of(link)
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(reader.open(PATH, link.entry).read, 5 * BLOCK, 100, soon())
        while not link.asked:
            time.sleep(0.001)
        began = time.monotonic()
        with pytest.raises(HostAwayError):
            reader.open(PATH, link.entry).read(5 * BLOCK, 100, soon(0.05))
        assert time.monotonic() - began < 0.5
        link.gate.set()
        assert patient.result() == NOISE[5 * BLOCK : 5 * BLOCK + 100]


def test_plain_reads_are_requests_of_the_baseline_and_nothing_is_kept() -> None:
    link = ScriptedLink(NOISE)
    file = opened(link, plain=True)
    for _ in range(2):
        assert file.read(1000, 4096, soon()) == NOISE[1000:5096]
    assert file.read(0, 5 * MIB, soon()) == NOISE
    assert link.asked[:2] == [(1000, 4096)] * 2
    assert all(isinstance(request, Read) for request in link.requests)


def test_offline_asks_nobody() -> None:
    link = ScriptedLink(NOISE)
    with pytest.raises(HostAwayError):
        opened(link, offline=True).read(0, 10, soon())
    assert not link.asked


@pytest.mark.slow
def test_sequential_reads_are_fetched_ahead_on_bulk_lanes() -> None:
    link = ScriptedLink(random.Random(3).randbytes(24 * MIB))
    reader = reader_of(link)
    file = reader.open(PATH, link.entry)
    for at in range(0, 24 * MIB, READ_SIZE):
        assert file.read(at, READ_SIZE, soon()) == link.content[at : at + READ_SIZE]
    assert all(isinstance(request, GetChunk) for request in link.requests)
    assert max(length for _, length in link.asked) == 4 * MIB
    assert reader.figures().ahead > 20 * MIB
    reached: list[int] = []
    for offset, length in sorted(link.asked):
        assert offset >= sum(reached[-1:]), "asked for twice"
        reached.append(offset + length)


def test_memory_is_given_back() -> None:
    link = ScriptedLink(NOISE)
    reader = reader_of(link)
    file = reader.open(PATH, link.entry)
    file.read(0, SIZE, soon())
    assert reader.figures().ram.used >= SIZE
    file.close()
    file.close()
    reader.close()
    assert reader.figures().ram.used == 0
