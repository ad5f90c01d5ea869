"""The receiver's folder, and that nothing outside of it is ever touched."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.errors import (
    DestinationExistsError,
    HeadraceError,
    LocalDiskError,
    LocalFileError,
    NotFoundError,
    ProtocolError,
)
from headrace.protocol.messages import CHUNK_SIZE
from headrace.protocol.paths import ROOT, RelPath
from headrace.storage import dirs, libc
from headrace.storage.chunks import hash_bytes
from headrace.storage.destination import Destination

TIME = 1_234_567_890_123_456_789


def rel(path: str) -> RelPath:
    return RelPath.parse(os.fsencode(path))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dest"


@pytest.fixture
def dest(root: Path) -> Iterator[Destination]:
    with Destination.open(root, create=True) as dest:
        yield dest


def write(dest: Destination, path: str, data: bytes = b"data", *, replace: bool = False) -> None:
    dest.write_whole(rel(path), data, mode=0o644, mtime_ns=TIME, replace=replace)


def tree_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_opening(tmp_path: Path) -> None:
    Destination.open(tmp_path / "a" / "b", create=True).close()
    (tmp_path / "link").symlink_to("a")
    Destination.open(tmp_path / "link" / "b", create=False).close()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        for create in (True, False):
            with pytest.raises(DestinationExistsError):
                Destination.open(path, create=create)
    with pytest.raises(NotFoundError):
        Destination.open(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()


def test_writing_makes_the_folders_above(dest: Destination, root: Path) -> None:
    write(dest, "a/b/c/file")
    dest.make_dir(rel("a/empty/x"))
    dest.make_dir(rel("a/empty/x"))
    dest.make_dir(ROOT)
    assert tree_of(root) == {"a", "a/b", "a/b/c", "a/b/c/file", "a/empty", "a/empty/x"}
    assert (root / "a/b/c/file").read_bytes() == b"data" and (root / "a/b/c/file").stat().st_mtime_ns == TIME


def test_looking(dest: Destination, root: Path) -> None:
    for missing in ("a", "a/b", "a/b/c"):
        assert dest.lstat(rel(missing)) is None
    assert tree_of(root) == set()
    write(dest, "a/b")
    for path, kind in ((ROOT, stat.S_IFDIR), (rel("a"), stat.S_IFDIR), (rel("a/b"), stat.S_IFREG)):
        found = dest.lstat(path)
        assert found and stat.S_IFMT(found.st_mode) == kind
    (root / "link").symlink_to("a")
    found = dest.lstat(rel("link"))
    assert found and stat.S_ISLNK(found.st_mode)


def test_reading(dest: Destination, root: Path) -> None:
    write(dest, "a/b", b"content")
    with os.fdopen(dest.open_read(rel("a/b")), "rb") as file:
        assert file.read() == b"content"
    (root / "link").symlink_to("a/b")
    os.mkfifo(root / "fifo")
    for path in ("link", "fifo", "a", "missing", "missing/too"):
        with pytest.raises(LocalDiskError):
            dest.open_read(rel(path))


USES: list[Callable[[Destination, RelPath], object]] = [
    lambda dest, path: dest.lstat(path),
    lambda dest, path: dest.make_dir(path),
    lambda dest, path: dest.open_read(path),
    lambda dest, path: dest.free_name(path),
    lambda dest, path: dest.partial(path, size=5, version=b"", mtime_ns=0, sparse=False).close(),
    lambda dest, path: dest.write_whole(path, b"x", mode=0o600, mtime_ns=0, replace=True),
    lambda dest, path: dest.symlink(path, b"target", replace=True, mtime_ns=0),
    lambda dest, path: dest.set_times_and_mode(path, mode=0o777, mtime_ns=0),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("target", ["outside", "inside", "a file", "nothing"])
def test_nothing_follows_a_symlink_on_the_way(dest: Destination, root: Path, use: Callable, target: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    os.utime(outside, ns=(1, 1))
    (root / "inside").mkdir()
    if target == "a file":
        (root / "way").write_text("file")
    else:
        (root / "way").symlink_to(outside if target == "outside" else target)
    for path in ("way/file", "way/deeper/file"):
        with pytest.raises(DestinationExistsError, match="symlink or a file"):
            use(dest, rel(path))
    assert (outside / "file").read_text() == "precious" and os.listdir(outside) == ["file"]
    assert outside.stat().st_mtime_ns == 1 and os.listdir(root / "inside") == []


def test_swapping_a_symlink_in_never_leads_outside(
    dest: Destination, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dest._dirs, "_limit", 0)  # every use opens the way anew
    outside = root.parent / "outside"
    outside.mkdir()
    (root / "dir").mkdir()
    (root / "other").symlink_to(outside)
    stop = threading.Event()

    exchange = libc._renameat2
    if exchange is None or exchange(-100, bytes(root / "dir"), -100, bytes(root / "other"), 2):  # RENAME_EXCHANGE
        pytest.skip("no exchange of two names in one step here; in several, the writer would make what is missing")

    def swap() -> None:
        while not stop.is_set():
            assert not exchange(-100, bytes(root / "dir"), -100, bytes(root / "other"), 2)

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes = {True: 0, False: 0}
    end = time.monotonic() + 10
    try:
        while (sum(outcomes.values()) < 2000 or not all(outcomes.values())) and time.monotonic() < end:
            try:
                write(dest, "dir/file", replace=True)
                outcomes[True] += 1
            except HeadraceError:
                outcomes[False] += 1
    finally:
        stop.set()
        swapper.join()
    assert os.listdir(outside) == [] and all(outcomes.values())


def test_names_of_files_in_flight_are_refused(dest: Destination, root: Path) -> None:
    for path in (".a.headrace-part", ".a.headrace-journal", ".a.headrace-part/b"):
        with pytest.raises(DestinationExistsError, match="in flight"):
            write(dest, path)
        with pytest.raises(DestinationExistsError, match="in flight"):
            dest.symlink(rel(path), b"x", replace=True, mtime_ns=0)
        with pytest.raises(DestinationExistsError, match="in flight"):
            dest.make_dir(rel(path))
    assert tree_of(root) == set()


def test_the_root_is_no_place_for_a_file(dest: Destination) -> None:
    with pytest.raises(ValueError, match="destination itself"):
        dest.write_whole(ROOT, b"", mode=0o600, mtime_ns=0, replace=True)


def test_a_file_in_flight(dest: Destination, root: Path) -> None:
    content = b"x" * CHUNK_SIZE + b"y"
    for _ in range(2):
        partial = dest.partial(rel("a/b"), size=len(content), version=b"v", mtime_ns=1, sparse=False)
        partial.write(0, content[:CHUNK_SIZE])
        partial.commit(0, hash_bytes(content[:CHUNK_SIZE]))
        partial.close()
    partial = dest.partial(rel("a/b"), size=len(content), version=b"v", mtime_ns=1, sparse=False)
    assert partial.verified == {0}
    dest.forget_partial(rel("a/b"))  # somebody is writing it
    assert len(tree_of(root)) == 3
    partial.close()
    dest.forget_partial(rel("a/b"))
    dest.forget_partial(rel("missing/b"))
    assert tree_of(root) == {"a"}


def test_symlinks(dest: Destination, root: Path) -> None:
    dest.symlink(rel("a/link"), b"\xfftarget", replace=False, mtime_ns=TIME)
    dest.symlink(rel("a/link"), b"\xfftarget", replace=False, mtime_ns=TIME)
    assert os.readlink(os.fsencode(root / "a/link")) == b"\xfftarget"
    assert (root / "a/link").lstat().st_mtime_ns == TIME
    with pytest.raises(DestinationExistsError):
        dest.symlink(rel("a/link"), b"other", replace=False, mtime_ns=0)
    dest.symlink(rel("a/link"), b"other", replace=True, mtime_ns=0)
    assert os.readlink(root / "a/link") == "other"
    write(dest, "a/file")
    with pytest.raises(DestinationExistsError):
        dest.symlink(rel("a/file"), b"other", replace=False, mtime_ns=0)
    dest.symlink(rel("a/file"), b"other", replace=True, mtime_ns=0)
    dest.make_dir(rel("a/dir"))
    for replace in (True, False):
        with pytest.raises(DestinationExistsError):
            dest.symlink(rel("a/dir"), b"other", replace=replace, mtime_ns=0)
    for target in (b"", b"a\0b"):
        with pytest.raises(ProtocolError):
            dest.symlink(rel("a/new"), target, replace=True, mtime_ns=0)
    assert tree_of(root) == {"a", "a/link", "a/file", "a/dir"}


def test_times_and_modes(dest: Destination, root: Path) -> None:
    dest.make_dir(rel("a"))
    write(dest, "a/b")
    for path in (rel("a/b"), rel("a"), ROOT):
        dest.set_times_and_mode(path, mode=0o6750, mtime_ns=TIME)
        st = os.stat(root / str(path))
        assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (0o750, TIME)
    (root / "link").symlink_to("a")
    with pytest.raises(LocalDiskError):
        dest.set_times_and_mode(rel("link"), mode=0o700, mtime_ns=0)
    for missing in ("missing", "missing/x"):
        with pytest.raises(NotFoundError):
            dest.set_times_and_mode(rel(missing), mode=0o700, mtime_ns=0)


def test_free_names(dest: Destination, root: Path) -> None:
    def free(name: str) -> str:
        found = dest.free_name(RelPath((os.fsencode(name),)))
        assert len(found.name) <= 255
        write(dest, os.fsdecode(bytes(found)))
        return os.fsdecode(found.name)

    assert [free("a.txt") for _ in range(3)] == ["a.txt", "a (1).txt", "a (2).txt"]
    assert [free(".bashrc") for _ in range(2)] == [".bashrc", ".bashrc (1)"]
    assert [free("noext") for _ in range(2)] == ["noext", "noext (1)"]
    assert [free("v1.a long sentence it is") for _ in range(2)][1] == "v1.a long sentence it is (1)"
    long = "x" * 251 + ".txt"
    assert [free(long) for _ in range(2)] == [long, "x" * 247 + " (1).txt"]
    assert dest.free_name(rel("missing/a")) == rel("missing/a")


def test_non_utf8_names(dest: Destination, root: Path) -> None:
    path = RelPath((b"\xff\xfe", b"\xfd.x"))
    dest.write_whole(path, b"1", mode=0o600, mtime_ns=0, replace=False)
    assert dest.lstat(path) and dest.free_name(path).name == b"\xfd (1).x"
    assert os.listdir(os.fsencode(root)) == [b"\xff\xfe"]


def test_a_folder_that_an_earlier_run_made_read_only(dest: Destination, root: Path) -> None:
    dest.make_dir(rel("a"))
    dest.set_times_and_mode(rel("a"), mode=0o555, mtime_ns=TIME)
    with Destination.open(root, create=True) as again:
        assert again.lstat(rel("a/b")) is None
        assert stat.S_IMODE((root / "a").stat().st_mode) == 0o555  # looking changes nothing
        write(again, "a/b")
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o755


def test_a_folder_that_is_removed_meanwhile_is_made_again(dest: Destination, root: Path) -> None:
    write(dest, "a/b/c")
    shutil.rmtree(root / "a")
    assert dest.lstat(rel("a/b/c")) is None
    for _ in range(3):  # one failure at most for each folder that is gone
        try:
            write(dest, "a/b/c")
            break
        except LocalDiskError:
            continue
    assert (root / "a/b/c").read_bytes() == b"data"


def test_a_root_that_is_removed_takes_nothing_at_all(dest: Destination, root: Path) -> None:
    """Unlike a name that one file cannot have: the next file would fail as well."""
    with pytest.raises(LocalFileError):
        dest.open_read(rel("missing"))
    root.rmdir()
    for use in (lambda: write(dest, "a"), lambda: write(dest, "a/b"), lambda: dest.make_dir(rel("a"))):
        with pytest.raises(LocalDiskError) as caught:
            use()
        assert not isinstance(caught.value, LocalFileError)


def test_descriptors_are_bounded_and_all_given_back(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Destination.open(root, create=True) as dest:
        for number in range(200):
            write(dest, f"{number}/file")
            assert len(os.listdir("/proc/self/fd")) <= before + 1 + dirs.MAX_HELD
        write(dest, "/".join(["deep"] * 100))
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_share_the_folders(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    failures: list[Exception] = []
    with Destination.open(root, create=True) as dest:
        dest._dirs._limit = 3  # so that folders in use are evicted

        def work(worker: int) -> None:
            try:
                for number in range(150):
                    write(dest, f"{number % 7}/{number % 3}/{worker}-{number}", b"%d" % number)
                    assert dest.lstat(rel(f"{number % 7}/{number % 3}/{worker}-{number}"))
            except (HeadraceError, OSError, AssertionError) as why:
                failures.append(why)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures and len(os.listdir("/proc/self/fd")) == before
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) == 900 and all(path.name.endswith(f"-{path.read_text()}") for path in files)


def test_what_a_file_consists_of(tmp_path: Path) -> None:
    """Equal means equal to the last byte: not shorter, not longer, not one chunk different."""
    content = os.urandom(CHUNK_SIZE + 10)
    hashes = [hash_bytes(content[:CHUNK_SIZE]), hash_bytes(content[CHUNK_SIZE:])]
    buffer = memoryview(bytearray(CHUNK_SIZE))
    path = RelPath((b"file",))

    def equal(on_disk: bytes) -> bool:
        (tmp_path / "file").write_bytes(on_disk)
        with Destination.open(tmp_path, create=False) as destination:
            return destination.consists_of(path, len(content), hashes, buffer)

    assert equal(content)
    assert not equal(content[:-1])
    assert not equal(content + b"x")
    assert not equal(b"x" + content[1:])
    assert not equal(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_name_is_given_out_once(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    with Destination.open(tmp_path, create=False) as destination:
        given = [destination.free_name(RelPath((name,))) for name in (b"a.bin", b"a (1).bin", b"b", b"b")]
    assert [bytes(path) for path in given] == [b"a (1).bin", b"a (1) (1).bin", b"b", b"b (1)"]


def test_a_folder_that_was_there_keeps_its_special_bits(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team").chmod(0o3770)
    with Destination.open(tmp_path, create=False) as destination:
        destination.set_times_and_mode(RelPath((b"team",)), mode=0o755, mtime_ns=1)
        assert stat.S_IMODE((tmp_path / "team").stat().st_mode) == 0o3755
        tmp_path.chmod(0o1777)
        destination.set_times_and_mode(ROOT, mode=None, mtime_ns=1)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


def test_a_root_is_made_with_the_permissions_that_it_is_to_have(root: Path) -> None:
    before = os.umask(0o022)
    try:
        Destination.open(root / "private", create=True, mode=0o500).close()
        Destination.open(root / "private", create=True, mode=0o777).close()
        Destination.open(root / "open", create=True).close()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (root / "private", root / "open", root)]
    assert modes == [0o700, 0o755, 0o755]


def test_a_private_folder_is_never_open_to_others(tmp_path: Path) -> None:
    with Destination.open(tmp_path, create=False) as destination:
        destination.make_dir(RelPath((b"private",)), mode=0o500)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
