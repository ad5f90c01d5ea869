"""What a share offers, and that nothing else can be reached through it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from headrace.errors import HeadraceError, NotFoundError, PermissionRefusedError, RemoteIOError, UsageError
from headrace.protocol.messages import MAX_ENTRIES, VERSION_SIZE, Entry
from headrace.protocol.paths import MAX_DEPTH, ROOT, RelPath
from headrace.storage.tree import SharedTree, version_of


def rel(path: str | bytes) -> RelPath:
    return RelPath.parse(os.fsencode(path))


def listed(tree: SharedTree, path: RelPath = ROOT) -> dict[bytes, Entry]:
    return {entry.name: entry.check() for batch in tree.list(path) for entry in batch}


def walked(tree: SharedTree, path: RelPath = ROOT) -> dict[bytes, Entry]:
    return {bytes(above / entry.name): entry for above, entries, _ in tree.walk(path) for entry in entries}


def read(tree: SharedTree, path: RelPath) -> bytes:
    fd, _ = tree.open_file(path)
    with os.fdopen(fd, "rb") as file:
        return file.read()


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    root = tmp_path / "footage"
    (root / "day1" / "raw").mkdir(parents=True)
    (root / "readme").write_bytes(b"hello")
    (root / "day1" / "a.mov").write_bytes(b"a" * 100)
    (root / "day1" / "raw" / "b.mov").write_bytes(b"b" * 200)
    (root / "latest").symlink_to("day1")
    return root


def test_a_folder_is_the_share(footage: Path) -> None:
    with SharedTree.open([footage]) as tree:
        assert tree.name == "footage"
        top = tree.stat(ROOT).check(is_root=True)
        assert (top.name, top.kind) == (b"footage", "d")
        assert {name: entry.kind for name, entry in listed(tree).items()} == {
            b"day1": "d",
            b"readme": "f",
            b"latest": "l",
        }
        entry = tree.stat(rel("day1/a.mov"))
        st = os.stat(footage / "day1" / "a.mov")
        assert (entry.name, entry.size, entry.mtime_ns) == (b"a.mov", 100, st.st_mtime_ns)
        assert (entry.mode, entry.version, entry.sparse) == (st.st_mode & 0o7777, version_of(st), False)
        assert tree.stat(rel("latest")).target == b"day1"
        assert read(tree, rel("day1/raw/b.mov")) == b"b" * 200


def test_one_file_is_the_share(footage: Path) -> None:
    with SharedTree.open([footage / "readme"]) as tree:
        assert tree.name == "readme"
        assert (tree.stat(ROOT).name, tree.stat(ROOT).kind, tree.stat(ROOT).size) == (b"readme", "f", 5)
        assert read(tree, ROOT) == b"hello"
        (footage / "new").write_bytes(b"replaced, as editors do")
        os.replace(footage / "new", footage / "readme")
        assert read(tree, ROOT) == b"replaced, as editors do"
        for path in (rel("readme"), rel("day1")):
            with pytest.raises(NotFoundError):
                tree.stat(path)
        with pytest.raises(NotFoundError):
            next(tree.list(ROOT))
        with pytest.raises(NotFoundError):
            next(tree.walk(ROOT))


def test_several_paths_are_a_folder_of_them(footage: Path) -> None:
    with SharedTree.open([footage / "readme", footage / "day1"], name="both") as tree:
        assert (tree.name, tree.stat(ROOT).name, tree.stat(ROOT).kind) == ("both", b"both", "d")
        assert {name: entry.kind for name, entry in listed(tree).items()} == {b"readme": "f", b"day1": "d"}
        assert set(walked(tree)) == {b"readme", b"day1", b"day1/a.mov", b"day1/raw", b"day1/raw/b.mov"}
        assert read(tree, rel("readme")) == b"hello" and read(tree, rel("day1/raw/b.mov")) == b"b" * 200
        for path in (ROOT, rel("day1"), rel("other"), rel("readme/x"), rel("latest/a.mov")):
            with pytest.raises(NotFoundError):
                tree.open_file(path)
        (footage / "readme").unlink()
        assert set(listed(tree)) == {b"day1"}
    with SharedTree.open([footage / "day1", footage / "latest"]) as tree:
        assert tree.name == "share"


def test_what_cannot_be_shared(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme").touch()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotFoundError) as missing:
        SharedTree.open([tmp_path / "missing"])
    assert missing.value.exit_code == 3
    for paths, name in (
        ([], None),
        ([footage / "readme", tmp_path / "other" / "readme"], None),
        ([tmp_path / "fifo"], None),
        ([footage], "a/b"),
    ):
        with pytest.raises(UsageError):
            SharedTree.open(paths, name)


def test_what_may_not_be_read_is_refused(footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_opening(monkeypatch, "footage")
    with pytest.raises(PermissionRefusedError):
        SharedTree.open([footage])


def refuse_opening(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As root nothing is unreadable, so the error is injected."""
    real = os.open

    def fake(path, flags, mode=0o777, *, dir_fd=None):
        if os.path.basename(os.fsencode(path)) == os.fsencode(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", fake)


def test_the_given_path_may_be_a_symlink(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(footage)
    (tmp_path / "file").symlink_to(footage / "readme")
    with SharedTree.open([tmp_path / "link"]) as tree:
        assert tree.name == "link" and read(tree, rel("readme")) == b"hello"
    with SharedTree.open([tmp_path / "file"]) as tree:
        assert tree.stat(ROOT).name == b"file" and read(tree, ROOT) == b"hello"


def test_symlinks_below_are_never_followed(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (footage / "out").symlink_to(tmp_path / "secret")
    (footage / "up").symlink_to(tmp_path)
    with SharedTree.open([footage]) as tree:
        for path in ("latest/a.mov", "latest/raw", "up/secret", "up/footage/readme"):
            with pytest.raises(NotFoundError):
                tree.stat(rel(path))
            with pytest.raises(NotFoundError):
                tree.open_file(rel(path))
        for path in ("out", "latest", "up"):
            with pytest.raises(NotFoundError):
                tree.open_file(rel(path))
        with pytest.raises(NotFoundError):
            next(tree.list(rel("latest")))
        assert set(walked(tree)) >= {b"latest", b"up", b"out"}
        assert not any(path.startswith((b"up/", b"latest/")) for path in walked(tree))


def test_special_files_are_shown_and_never_opened(footage: Path) -> None:
    os.mkfifo(footage / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        home = os.getcwd()
        os.chdir(footage)  # the address has to be short
        bound.bind("socket")
        os.chdir(home)
        with SharedTree.open([footage]) as tree:
            assert listed(tree)[b"fifo"].kind == listed(tree)[b"socket"].kind == "o"
            for name in ("fifo", "socket", "day1"):
                with pytest.raises(NotFoundError):
                    tree.open_file(rel(name))


def test_names_are_bytes(footage: Path) -> None:
    odd = [b"\xff\xfe", b"new\nline", b"x" * 255, "ä".encode(), b" ", b"..."]
    for name in odd:
        Path(os.fsdecode(os.path.join(os.fsencode(footage), name))).write_bytes(name)
    with SharedTree.open([footage]) as tree:
        assert set(listed(tree)) >= set(odd)
        for name in odd:
            assert tree.stat(RelPath((name,))).name == name
            assert read(tree, RelPath((name,))) == name
    with SharedTree.open([os.fsencode(footage) + b"/\xff\xfe"]) as tree:  # type: ignore[list-item]
        assert tree.stat(ROOT).name == b"\xff\xfe"
        tree.name.encode()  # text that the wire can carry


def test_files_in_flight_are_left_out(footage: Path) -> None:
    (footage / ".a.headrace-part").write_text("half")
    (footage / ".a.headrace-journal").write_text("journal")
    (footage / ".a").write_text("whole")
    with SharedTree.open([footage]) as tree:
        assert b".a" in listed(tree) and not any(b"headrace" in path for path in walked(tree))
        for name in (".a.headrace-part", ".a.headrace-journal"):
            with pytest.raises(NotFoundError):
                tree.open_file(rel(name))
            with pytest.raises(NotFoundError):
                tree.stat(rel(name))


def test_sparse_files_are_known(footage: Path) -> None:
    with open(footage / "sparse", "wb") as file:
        file.truncate(1 << 20)
    with open(footage / "tiny", "wb") as file:
        file.truncate(100)
    with SharedTree.open([footage]) as tree:
        assert listed(tree)[b"sparse"].sparse and not listed(tree)[b"tiny"].sparse


def test_the_version_follows_the_file(footage: Path) -> None:
    path = footage / "readme"
    first = version_of(os.stat(path))
    assert len(first) == VERSION_SIZE and version_of(os.stat(path)) == first
    path.write_bytes(b"HELLO")
    os.utime(path, ns=(1, 1))
    second = version_of(os.stat(path))
    os.utime(path, ns=(1, 2))
    assert len({first, second, version_of(os.stat(path))}) == 3


def test_large_folders_come_in_batches(tmp_path: Path) -> None:
    for number in range(MAX_ENTRIES * 2 + 10):
        (tmp_path / f"{number}").touch()
    with SharedTree.open([tmp_path]) as tree:
        assert [len(batch) for batch in tree.list(ROOT)] == [MAX_ENTRIES, MAX_ENTRIES, 10]
        assert len(listed(tree)) == MAX_ENTRIES * 2 + 10


def test_a_walk_gives_folders_before_what_is_in_them(footage: Path) -> None:
    with SharedTree.open([footage]) as tree:
        seen = {b""}
        for path, entries, error in tree.walk(ROOT):
            assert bytes(path) in seen and error is None
            seen |= {bytes(path / entry.name) for entry in entries}
        assert seen == {b"", b"readme", b"latest", b"day1", b"day1/a.mov", b"day1/raw", b"day1/raw/b.mov"}
        assert set(walked(tree, rel("day1"))) == {b"day1/a.mov", b"day1/raw", b"day1/raw/b.mov"}


def test_a_walk_goes_on_after_a_folder_that_cannot_be_read(footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (footage / "zoo").mkdir()
    (footage / "zoo" / "z").touch()
    with SharedTree.open([footage]) as tree:
        refuse_opening(monkeypatch, "raw")
        parts = list(tree.walk(ROOT))
        errors = {bytes(path): error for path, _, error in parts if error}
        assert set(errors) == {b"day1/raw"} and isinstance(errors[b"day1/raw"], PermissionRefusedError)
        assert b"zoo/z" in walked(tree)
        with pytest.raises(PermissionRefusedError):
            next(tree.walk(rel("day1/raw")))


def test_a_folder_that_fails_half_way(footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __init__(self, fd: int) -> None:
            self.real = real(fd)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.real.close()

        def __iter__(self):
            yield next(self.real)
            raise OSError(errno.EIO, "Input/output error")

    real = os.scandir
    with SharedTree.open([footage]) as tree:
        monkeypatch.setattr(os, "scandir", Failing)
        errors = [error for _, _, error in tree.walk(ROOT) if error]
    assert errors and all(isinstance(error, RemoteIOError) for error in errors)


def test_a_walk_survives_what_vanishes_under_it(footage: Path) -> None:
    with SharedTree.open([footage]) as tree:
        parts = tree.walk(ROOT)
        next(parts)
        shutil.rmtree(footage / "day1")
        assert [type(error) for _, _, error in parts] == [NotFoundError]
        with pytest.raises(NotFoundError):
            next(tree.walk(rel("day1")))


def test_a_walk_does_not_run_out_of_depth_or_descriptors(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    fd = os.open(tmp_path / "top", os.O_RDONLY)
    for _ in range(MAX_DEPTH + 5):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    errors: list[HeadraceError] = []
    with SharedTree.open([tmp_path / "top"]) as tree:
        for _, _, error in tree.walk(ROOT):
            most = max(most, len(os.listdir("/proc/self/fd")))
            errors += [error] if error else []
    assert len(errors) == 1 and "deep" in errors[0].message
    assert most <= before + 4 and len(os.listdir("/proc/self/fd")) == before


def test_listing_the_same_folder_twice_at_once(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / str(number)).touch()
    with SharedTree.open([tmp_path]) as tree:
        first, second = tree.list(ROOT), tree.list(ROOT)
        one, two = next(first), next(second)
        assert len({entry.name for batch in (one, *first) for entry in batch}) == 2000
        assert len({entry.name for batch in (two, *second) for entry in batch}) == 2000


def test_after_the_end_nothing_is_served(footage: Path) -> None:
    tree = SharedTree.open([footage])
    tree.close()
    tree.close()
    with pytest.raises(NotFoundError):
        tree.open_file(rel("readme"))
    with pytest.raises(NotFoundError):
        next(tree.list(ROOT))


@pytest.mark.parametrize("swapped", ["component", "leaf"])
def test_swapping_a_symlink_in_never_leads_outside(tmp_path: Path, swapped: str) -> None:
    """Somebody with access to the shared folder exchanges a folder (or file) with a symlink as fast as they can."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "dir").mkdir(parents=True)
    outside.mkdir()
    (root / "dir" / "file").write_bytes(b"inside")
    (outside / "file").write_bytes(b"OUTSIDE")
    target = root / "dir" if swapped == "component" else root / "dir" / "file"
    other = root / "other"
    other.symlink_to(outside if swapped == "component" else outside / "file")
    swaps = 0
    stop = threading.Event()

    def swap() -> None:
        nonlocal swaps
        while not stop.is_set():
            exchange(target, other)
            swaps += 1

    swapper = threading.Thread(target=swap)
    seen = {"read": 0, "refused": 0}
    with SharedTree.open([root]) as tree:
        swapper.start()
        try:
            end = time.monotonic() + 10
            while (swaps < 4000 or not all(seen.values())) and time.monotonic() < end:
                try:
                    assert read(tree, rel("dir/file")) == b"inside"
                    seen["read"] += 1
                except NotFoundError:
                    seen["refused"] += 1
                assert all(entry.size != len(b"OUTSIDE") for entry in walked(tree).values())
        finally:
            stop.set()
            swapper.join()
    assert swaps >= 1000 and all(seen.values()), (swaps, seen)


def exchange(one: Path, two: Path) -> None:
    third = one.with_name("third")
    os.rename(one, third)
    os.rename(two, one)
    os.rename(third, two)
