"""Reading through a mount while the host changes things: the bytes of one version, whoever asks for which."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from pathlib import Path

import pytest
from tests.product.support import KIB, MIB, Host, noise, wait_until

from .support import clearing, needs_fuse, run

pytestmark = [needs_fuse, pytest.mark.slow]

SIZE = 9 * MIB + 123


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory):
    """(the folder on the host, the mount)."""
    top = tmp_path_factory.mktemp("reading")
    tree = top / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(noise(SIZE, 1))
    with clearing(top / "mnt") as point, Host(tree, home=top / "host") as host:
        run("mount", host.address, point, home=top / "home").check_ok()
        yield tree, point
        run("unmount", point, home=top / "home").check_ok()


def test_random_reads_of_many_readers_are_the_file_s_bytes(mounted):
    _, point = mounted
    content = noise(SIZE, 1)
    wrong: list[tuple[int, int]] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        with open(point / "large", "rb", buffering=0) as file:
            for _ in range(60):
                offset, length = rng.randrange(SIZE + 10), rng.choice([1, 4096, 70_000, 400 * KIB])
                if os.pread(file.fileno(), length, offset) != content[offset : offset + length]:
                    wrong.append((offset, length))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_a_mapped_file(mounted):
    _, point = mounted
    with open(point / "large", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[-1000:] == noise(SIZE, 1)[-1000:]
        assert mapped[5 * MIB : 5 * MIB + 10] == noise(SIZE, 1)[5 * MIB : 5 * MIB + 10]


def now(path: Path) -> bytes:
    """What somebody reads who opens it now; nothing where that was a moment too early."""
    try:
        return path.read_bytes()
    except OSError as why:
        assert why.errno == errno.ESTALE
        return b""


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_an_open_file_keeps_its_version_or_is_stale(mounted, how):
    tree, point = mounted
    name = f"changing {how}"
    old, new = noise(3 * MIB, "old"), noise(3 * MIB, "new")
    (tree / name).write_bytes(old)
    wait_until(lambda: (point / name).exists(), "the new file")
    with open(point / name, "rb", buffering=0) as file:
        assert file.read(4096) == old[:4096]
        if how == "replaced":
            (tree / "new").write_bytes(new)
            os.replace(tree / "new", tree / name)
        else:
            (tree / name).write_bytes(new)
        wait_until(lambda: now(point / name) == new, "the new version for who opens it now")
        stale = 0
        for offset in range(0, 3 * MIB, 256 * KIB):
            try:
                data = os.pread(file.fileno(), 64 * KIB, offset)
            except OSError as why:
                assert why.errno == errno.ESTALE
                stale += 1
            else:
                assert data and data == old[offset : offset + len(data)], "fewer where the rest is not cached"
                stale += len(data) < 64 * KIB
        assert stale, "not all of it was cached, and the host has no old version"
        assert os.fstat(file.fileno()).st_size == len(old)


def test_what_comes_and_goes_on_the_host_does_so_here(mounted):
    tree, point = mounted
    folder = Path("folder")
    assert not (point / folder).exists()
    (tree / folder).mkdir()
    wait_until(lambda: (point / folder).exists(), "the new folder")
    assert os.listdir(point / folder) == []
    (tree / folder / "a").write_bytes(b"a")
    wait_until(lambda: os.listdir(point / folder) == ["a"], "the new file")
    (tree / folder / "a").rename(tree / folder / "b")
    wait_until(lambda: os.listdir(point / folder) == ["b"] and not (point / folder / "a").exists(), "its new name")
    (tree / folder / "b").chmod(0o600)
    wait_until(lambda: (point / folder / "b").stat().st_mode & 0o777 == 0o600, "its new mode")
    (tree / folder / "b").unlink()
    (tree / folder).rmdir()
    wait_until(lambda: not (point / folder).exists(), "the end of the folder")


def test_debug_io_and_the_baseline_read_the_same(mounted, tmp_path):
    tree, _ = mounted
    with Host(tree, home=tmp_path / "host") as host, clearing(tmp_path / "mnt") as point:
        for options in (["--debug-io"], ["--protocol", "7"]):
            run("mount", *options, host.address, point, home=tmp_path / "home").check_ok()
            assert (point / "large").read_bytes() == noise(SIZE, 1)
            run("unmount", point, home=tmp_path / "home").check_ok()
