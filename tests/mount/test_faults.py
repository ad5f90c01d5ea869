"""Faults under a mount: a read gives the file's own bytes or an error, never others, and nothing hangs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.product.faults import CLOCK_SET_BACK, failing_reads, few_descriptors
from tests.product.support import CHUNK, MIB, Gate, Headrace, Host, noise

from .support import clearing, needs_fuse, run, start

pytestmark = [needs_fuse, pytest.mark.slow]

GOOD, BAD = noise(6 * MIB, "good"), noise(2 * CHUNK, "bad")


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    with clearing(tmp_path / "mnt") as folder:
        yield folder


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """`bad` cannot be read from its second chunk on."""
    tree = tmp_path_factory.mktemp("faults")
    (tree / "good").write_bytes(GOOD)
    (tree / "bad").write_bytes(BAD)
    with Host(tree, home=tmp_path_factory.mktemp("host"), fault=failing_reads(CHUNK, "bad")) as host:
        yield host
        assert "Traceback" not in host.stderr


def mounted(address: str, point: Path, home: Path, **more: str) -> Headrace:
    mount = start("mount", "--json", "--foreground", "--timeout", "10s", address, point, home=home, **more)
    mount.wait_event("ready")
    return mount


def test_a_source_that_cannot_be_read_is_an_error_and_the_rest_is_right(
    host: Host, tmp_path: Path, point: Path
) -> None:
    with mounted(host.address, point, tmp_path / "home", fault=CLOCK_SET_BACK) as mount:
        handle = os.open(point / "bad", os.O_RDONLY)
        assert os.pread(handle, 100_000, 5) == BAD[5:100_005]
        with pytest.raises(OSError) as caught:
            os.pread(handle, 1000, CHUNK + 9)
        assert caught.value.errno == errno.EIO
        os.close(handle)
        assert (point / "good").read_bytes() == GOOD
        run("unmount", point, home=tmp_path / "home").check_ok()
        assert mount.wait() == 0
        assert "Traceback" not in mount.stderr


def test_a_connection_that_is_reset_again_and_again(host: Host, tmp_path: Path, point: Path) -> None:
    with Gate(host.port) as gate, mounted(gate.address, point, tmp_path / "home"):
        handle = os.open(point / "good", os.O_RDONLY)
        for number in range(12):
            gate.drop()
            offset = number * 500_003
            assert os.pread(handle, 4096, offset) == GOOD[offset : offset + 4096]
        os.close(handle)
        run("unmount", point, home=tmp_path / "home").check_ok()


def test_a_mount_with_few_descriptors(host: Host, tmp_path: Path, point: Path) -> None:
    """What cannot be had is an error; what comes is right; and it can be unmounted."""
    with mounted(host.address, point, tmp_path / "home", fault=few_descriptors(40)):
        handles: list[int] = []
        try:
            for number in range(60):
                try:
                    handles.append(os.open(point / "good", os.O_RDONLY))
                    offset = number * 90_001
                    assert os.pread(handles[-1], 4096, offset) == GOOD[offset : offset + 4096]
                except OSError as why:
                    assert why.errno in (errno.EIO, errno.EMFILE, errno.ENFILE)
        finally:
            for handle in handles:
                os.close(handle)
        assert handles
        run("unmount", point, home=tmp_path / "home").check_ok()
