"""Hashes that outlive the share: found again, bounded, shared by processes, and never the reason for a failure."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import LocalDiskError
from headrace.protocol.messages import CHUNK_SIZE, HASH_SIZE, READ_SIZE
from headrace.protocol.paths import RelPath
from headrace.storage import manifest as module
from headrace.storage import manifest_store
from headrace.storage.chunks import hash_bytes
from headrace.storage.manifest import HashCache, manifest
from headrace.storage.manifest_store import LAYOUT, PART, ManifestStore
from headrace.storage.source import SourceFile
from headrace.storage.tree import SharedTree

from .test_manifest import later

V, W = b"v" * 16, b"w" * 16


def digest(number: int) -> bytes:
    return hash_bytes(b"%d" % number)


def hashes(store: ManifestStore, version: bytes) -> dict[int, bytes]:
    """By chunk; without those that are not known."""
    found = {}
    for first, part in store.load(version).items():
        for place in range(len(part) // HASH_SIZE):
            one = bytes(part[place * HASH_SIZE : (place + 1) * HASH_SIZE])
            if one != bytes(HASH_SIZE):
                found[first + place] = one
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceFile]:
    (tmp_path / "file").write_bytes(os.urandom(2 * CHUNK_SIZE + 99))
    with SharedTree.open([tmp_path / "file"]) as tree, SourceFile.open(tree, RelPath()) as found:
        yield found


def test_a_file_is_hashed_once_also_by_another_process(
    home: Path, source: SourceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = HashCache(clock=later, store=lambda: ManifestStore(home))
    parts = list(manifest(source, source.size, first))
    first.close()
    monkeypatch.setattr(module, "hash_bytes", None)
    second = HashCache(clock=later, store=lambda: ManifestStore(home))
    assert [one for _, some in manifest(source, source.size, second) for one in some] == [
        one for _, some in parts for one in some
    ]
    second.close()
    with ManifestStore(home) as store:
        stats = store.stats()
    assert stats and (stats.files, stats.hashes) == (1, 3)
    assert stats.counters == {"manifest_misses": 1, "manifest_hits": 1, "bytes_not_hashed": source.size}


def test_a_file_that_changed_is_hashed_again(home: Path, source: SourceFile, tmp_path: Path) -> None:
    cache = HashCache(clock=later, store=lambda: ManifestStore(home))
    list(manifest(source, source.size, cache))
    cache.close()
    with open(tmp_path / "file", "r+b") as file:
        file.write(b"changed")
    os.utime(tmp_path / "file", ns=(0, os.fstat(source.fileno()).st_mtime_ns + 1))
    with SharedTree.open([tmp_path / "file"]) as tree, SourceFile.open(tree, RelPath()) as changed:
        again = HashCache(clock=later, store=lambda: ManifestStore(home))
        assert again.known(changed, 0) is None
        again.close()


def test_what_comes_in_batches_or_is_too_young_is_not_kept(home: Path, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"s" * READ_SIZE)
    (tmp_path / "young").write_bytes(b"y" * (READ_SIZE + 1))
    with SharedTree.open([tmp_path / "small", tmp_path / "young"]) as tree:
        with SourceFile.open(tree, RelPath((b"small",))) as small:
            list(manifest(small, small.size, HashCache(clock=later, store=lambda: pytest.fail("opened"))))
        cache = HashCache(store=lambda: ManifestStore(home))
        with SourceFile.open(tree, RelPath((b"young",))) as young:
            list(manifest(young, young.size, cache))
            cache.close()
            with ManifestStore(home) as store:
                assert hashes(store, young.version) == {}


def test_a_chunk_of_up_to_4_kib_is_not_kept_alone(tmp_path: Path) -> None:
    cache = HashCache(clock=later)
    for size, kept in ((4096, False), (4097, True)):
        (tmp_path / "file").write_bytes(b"x" * size)
        with SharedTree.open([tmp_path / "file"]) as tree, SourceFile.open(tree, RelPath()) as file:
            list(manifest(file, file.size, cache))
            assert (cache.get(file.version, 0) is not None) == kept


def test_parts_come_back_whatever_their_order(home: Path) -> None:
    numbers = [5, 0, PART - 1, PART, 3 * PART + 7]
    with ManifestStore(home) as store:
        for number in numbers:
            store.save(V, number, digest(number))
        assert store.flush()
        store.save(V, 1, digest(1))
        store.save(V, 0, digest(-1))  # the host hashed it anew
        assert store.flush()
        assert hashes(store, V) == {number: digest(number) for number in (*numbers, 1)} | {0: digest(-1)}
        assert hashes(store, W) == {}


def test_two_shares_add_to_what_the_other_knows(home: Path) -> None:
    with ManifestStore(home) as one, ManifestStore(home) as other:
        one.save(V, 0, digest(0))
        assert one.flush()
        other.save(V, 2, digest(2))
        assert other.flush()
        assert hashes(one, V) == hashes(other, V) == {0: digest(0), 2: digest(2)}


def test_it_is_bounded_and_the_least_recently_used_goes(home: Path) -> None:
    with ManifestStore(home, max_hashes=100) as store:
        versions = [b"%016d" % number for number in range(5)]
        for version in versions:
            for number in range(20):
                store.save(version, number, digest(number))
            assert store.flush()
        store.load(versions[0])
        for number in range(20):
            store.save(V, number, digest(number))
        assert store.flush()
        stats = store.stats()
        assert stats and stats.hashes <= 100
        assert [bool(hashes(store, version)) for version in (*versions, V)] == [True, False, False, True, True, True]


@pytest.mark.parametrize("content", [b"no database" * 500, b""], ids=["other bytes", "empty"])
def test_a_damaged_one_is_set_aside_and_a_new_one_started(
    home: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    home.mkdir()
    (home / LAYOUT.file).write_bytes(content)
    with caplog.at_level(logging.WARNING), ManifestStore(home) as store:
        assert hashes(store, V) == {}
        store.save(V, 0, digest(0))
        assert store.flush()
        assert hashes(store, V) == {0: digest(0)}
    assert (home / LAYOUT.damaged).exists() == bool(content)
    assert ("manifest cache was damaged" in caplog.text) == bool(content)


def test_rows_that_nobody_wrote_are_damage(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ManifestStore(home) as store:
        store.save(V, 0, digest(0))
    with sqlite3.connect(home / LAYOUT.file) as sql:
        sql.execute("UPDATE parts SET hashes = x'00'")
    with caplog.at_level(logging.WARNING), ManifestStore(home) as store:
        assert hashes(store, V) == {}
        store.save(V, 0, digest(0))
        assert store.flush()
        assert hashes(store, V) == {0: digest(0)}
    assert caplog.text.count("damaged") >= 1


def test_a_home_that_cannot_be_written_is_told_once(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING), ManifestStore(home) as store:
        for number in range(3):
            store.save(V, number, digest(number))
            store.flush()
            assert hashes(store, V) == {}
    assert caplog.text.count("manifest cache is off") == 1


def test_clearing_forgets_everything(home: Path) -> None:
    with ManifestStore(home) as store:
        store.clear()  # there is none yet
        assert store.stats() is None
        store.save(V, 0, digest(0))
        store.load(V)
        store.clear()
        stats = store.stats()
        assert stats and (stats.hashes, stats.files, stats.counters) == (0, 0, {})


def test_more_than_can_be_written_is_dropped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_store, "MAX_PENDING", 10)
    with ManifestStore(home, linger=60) as store:
        for number in range(50):
            store.save(V, number, digest(number))
        assert store.flush()
        assert 0 < len(hashes(store, V)) <= 20


def test_many_threads_may_use_it(home: Path) -> None:
    with ManifestStore(home, linger=0.01) as store:

        def work(seed: int) -> None:
            for number in range(100):
                store.save(b"%016d" % (number % 7), number, digest(number))
                store.load(b"%016d" % (number * seed % 7))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.flush()
        for version in range(7):
            assert hashes(store, b"%016d" % version) == {n: digest(n) for n in range(100) if n % 7 == version}


KILLED = """
import sys
from pathlib import Path
from headrace.storage.manifest_store import ManifestStore
from headrace.storage.chunks import hash_bytes
store = ManifestStore(Path(sys.argv[1]), linger=0.0)
for number in range(10**9):
    store.save(b"v" * 16, number % 2000, hash_bytes(b"%d" % (number % 2000)))
    if number == 3000:
        assert store.flush()
        print("written", flush=True)
"""


def test_a_kill_while_it_writes_leaves_what_was_written(home: Path) -> None:
    argv = [sys.executable, "-c", KILLED, str(home)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    with ManifestStore(home) as store:
        assert hashes(store, V) == {number: digest(number) for number in range(2000)}
    assert not (home / LAYOUT.damaged).exists()


def test_without_a_store_a_share_hashes_as_before(source: SourceFile) -> None:
    asked: list[None] = []
    cache = HashCache(clock=later, store=lambda: asked.append(None))
    list(manifest(source, source.size, cache))
    assert cache.get(source.version, 2) is not None
    assert len(asked) == 1, "it is asked for once"
    cache.close()


def test_damage_that_is_found_when_somebody_asks_is_set_aside(home: Path) -> None:
    with ManifestStore(home) as store:
        store.save(V, 0, digest(0))
    with sqlite3.connect(home / LAYOUT.file) as sql:
        sql.execute("DROP INDEX parts_used")
        sql.execute("ALTER TABLE parts RENAME COLUMN hashes TO other")
    with ManifestStore(home) as store:
        with pytest.raises(LocalDiskError, match="damaged"):
            store.stats()
        assert (home / LAYOUT.damaged).exists()
        stats = store.stats()
        assert stats is None or stats.hashes == 0
        store.clear()
    assert not (home / LAYOUT.damaged).exists()
