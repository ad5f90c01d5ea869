"""Hashes: computed once, in order, the first ones early."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from headrace.errors import SourceChangedError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.protocol.paths import RelPath
from headrace.storage import manifest as module
from headrace.storage.chunks import ZERO_HASH, chunk_count, chunk_range, hash_bytes
from headrace.storage.manifest import SETTLED, HashCache, manifest
from headrace.storage.source import SourceFile
from headrace.storage.tree import SharedTree

V, W = b"v" * 16, b"w" * 16
HASH = hash_bytes(b"")


def later() -> int:
    """A clock by which the files of these tests have not changed for a while."""
    return time.time_ns() + SETTLED


def source_of(path: Path) -> SourceFile:
    with SharedTree.open([path]) as tree:
        return SourceFile.open(tree, RelPath())


def test_a_manifest_is_the_hashes_of_all_chunks(tmp_path: Path) -> None:
    content = os.urandom(CHUNK_SIZE * 6 + 1000)
    (tmp_path / "a").write_bytes(content)
    cache = HashCache(clock=later)
    with source_of(tmp_path / "a") as source:
        parts = list(manifest(source, source.size, cache))
        assert [(first, len(hashes)) for first, hashes in parts] == [(0, 4), (4, 3)]
        expected = []
        for index in range(chunk_count(len(content))):
            offset, length = chunk_range(len(content), index)
            expected.append(hash_bytes(content[offset : offset + length]))
        assert [digest for _, hashes in parts for digest in hashes] == expected
        assert [cache.get(source.version, index) for index in range(7)] == expected


def test_nothing_is_hashed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(os.urandom(CHUNK_SIZE * 5))
    cache = HashCache(clock=later)
    with source_of(tmp_path / "a") as source:
        first = [digest for _, hashes in manifest(source, source.size, cache) for digest in hashes]
        monkeypatch.setattr(module, "hash_bytes", None)
        assert list(manifest(source, source.size, cache)) == [(0, first)]


@pytest.mark.parametrize(
    ("mtime", "age", "remembered"),
    [(0, 0, False), (0, SETTLED - 10**9, False), (0, SETTLED, True), (-(10**18), 0, False), (10**18, SETTLED, True)],
    ids=["just written", "a second ago", "a while ago", "an old time just set", "a time in the future"],
)
def test_a_file_that_changed_a_moment_ago_is_not_known_by_its_version(
    tmp_path: Path, mtime: int, age: int, remembered: bool
) -> None:
    """Within one tick of the clock it may change again and keep all its times."""
    (tmp_path / "a").write_bytes(b"content" * 1000)
    now = (tmp_path / "a").stat().st_mtime_ns
    if mtime:
        os.utime(tmp_path / "a", ns=(now + mtime, now + mtime))
    changed = (tmp_path / "a").stat().st_ctime_ns
    cache = HashCache(clock=lambda: changed + age)
    with source_of(tmp_path / "a") as source:
        assert list(manifest(source, source.size, cache)) == [(0, [hash_bytes(b"content" * 1000)])]
        assert (cache.get(source.version, 0) is not None) == remembered


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.truncate(200 * CHUNK_SIZE + 5)
    with source_of(tmp_path / "a") as source:
        monkeypatch.setattr(source, "read_into", None)
        parts = list(manifest(source, source.size, HashCache()))
    assert [first for first, _ in parts] == [0, *range(4, 201, 16)]
    hashes = [digest for _, part in parts for digest in part]
    assert hashes == [ZERO_HASH(CHUNK_SIZE)] * 200 + [ZERO_HASH(5)]


def test_an_empty_file_has_none(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with source_of(tmp_path / "a") as source:
        assert list(manifest(source, 0, HashCache())) == []


def test_a_change_ends_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * (CHUNK_SIZE // 256) * 6)
    with source_of(tmp_path / "a") as source:
        parts = manifest(source, source.size, HashCache())
        next(parts)
        with open(tmp_path / "a", "ab") as file:
            file.write(b"more")
        with pytest.raises(SourceChangedError):
            next(parts)


def test_the_cache_gives_what_was_put() -> None:
    cache = HashCache()
    assert cache.get(V, 0) is None
    cache.put(V, 10 * CHUNK_SIZE, 3, HASH)
    assert cache.get(V, 3) == HASH
    for index in (0, 2, 4, 9, 1000):
        assert cache.get(V, index) is None
    assert cache.get(W, 3) is None
    for index, digest in ((10, HASH), (-1, HASH), (0, b"short")):
        with pytest.raises(ValueError, match="no such chunk"):
            cache.put(V, 10 * CHUNK_SIZE, index, digest)


def test_the_cache_forgets_the_least_recently_used_file() -> None:
    cache = HashCache(max_hashes=30)
    versions = [b"%016d" % number for number in range(4)]
    for version in versions[:3]:
        cache.put(version, CHUNK_SIZE, 0, HASH)
    assert cache.get(versions[0], 0) == HASH  # used: now the second is the oldest
    cache.put(versions[3], CHUNK_SIZE, 0, HASH)
    assert [cache.get(version, 0) for version in versions] == [HASH, None, HASH, HASH]
    cache.put(V, 1000 * CHUNK_SIZE, 999, HASH)  # too far out to be kept at all
    assert cache.get(V, 999) is None and cache.get(versions[3], 0) == HASH
    cache.put(V, 1000 * CHUNK_SIZE, 20, HASH)
    assert cache.get(V, 20) == HASH and cache.get(versions[3], 0) is None


def test_the_cache_may_be_used_by_many_threads() -> None:
    cache = HashCache(max_hashes=100)
    wrong: list[object] = []

    def work(seed: int) -> None:
        for number in range(2000):
            version, index = b"%016d" % ((number * seed) % 13), number % 7
            digest = hash_bytes(version + bytes([index]))
            cache.put(version, 7 * CHUNK_SIZE, index, digest)
            if cache.get(version, index) not in (digest, None):
                wrong.append((version, index))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
