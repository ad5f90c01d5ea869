"""The power goes in the middle of a get: under a final name there is the whole right file, or none; and the next run
ends with all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.storage.powerloss import ForgetfulDisk, PowerCutError, forgetful

import headrace
from headrace.engine.plan import OnExist
from headrace.errors import HeadraceError
from headrace.storage import partial
from headrace.storage.inflight import is_inflight_name

from .support import CHUNK, KIB, make_file, make_sparse, noise

SMALL = 300  # files; more than are flushed in one go


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every way that a file can come: in batches, alone, empty, with holes, in several chunks."""
    place = tmp_path_factory.mktemp("power")
    for number in range(SMALL):
        make_file(place / "share" / f"{number % 7}" / f"{number}", noise(number * 11, number))
    make_file(place / "share" / "alone", noise(300 * KIB))
    make_sparse(place / "share" / "holes", 2 * 1024 * KIB, {512 * KIB: noise(5 * KIB)})
    make_file(place / "share" / "chunks", noise(2 * CHUNK + 5))
    return place


@pytest.fixture(scope="module")
def remote(place: Path) -> Iterator[headrace.RemoteShare]:
    with (
        headrace.share(place / "share", bind="127.0.0.1", home=place / "host", transports={"tcp"}) as shared,
        headrace.connect(shared.target, home=place / "client") as remote,
    ):
        yield remote


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not is_inflight_name(path.name.encode()))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_no_name_comes_before_its_bytes_are_on_disk_and_done_means_all_of_it(
    remote: headrace.RemoteShare, place: Path, tmp_path: Path
) -> None:
    disk = ForgetfulDisk(tmp_path)
    with forgetful(disk):
        remote.get("", tmp_path / "dest")
    assert len(disk.named) == SMALL + 3
    assert disk.early == []
    assert disk.loose == set()
    assert disk.flushes < 60, "files are flushed together"
    disk.lose_power()
    assert contents(tmp_path / "dest") == contents(place / "share")


def test_without_fsync_it_is_up_to_the_system(remote: headrace.RemoteShare, tmp_path: Path) -> None:
    """And this is a test of the test: the disk does notice."""
    disk = ForgetfulDisk(tmp_path)
    with forgetful(disk):
        remote.get("", tmp_path / "dest", fsync=False)
    assert disk.flushes == 0 and len(disk.early) > SMALL // 2


def test_what_is_replaced_is_the_old_or_the_new(remote: headrace.RemoteShare, place: Path, tmp_path: Path) -> None:
    for name in ("1/1", "alone", "holes", "chunks"):
        make_file(tmp_path / "dest" / name, b"the old one")
    disk = ForgetfulDisk(tmp_path)
    with forgetful(disk):
        remote.get("", tmp_path / "dest", on_exist=OnExist.OVERWRITE)
    assert disk.early == []
    assert contents(tmp_path / "dest") == contents(place / "share")


@pytest.mark.parametrize("names", [1, 130, SMALL + 2])
def test_the_next_run_ends_with_everything(
    remote: headrace.RemoteShare, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: int
) -> None:
    disk = ForgetfulDisk(tmp_path, cut_after=names)
    with forgetful(disk), pytest.raises((PowerCutError, HeadraceError)):
        remote.get("", tmp_path / "dest")
    disk.lose_power()
    expected = contents(place / "share")
    left = contents(tmp_path / "dest")
    assert left == {name: expected[name] for name in left}
    monkeypatch.setattr(partial, "current_boot_id", lambda: b"the next boot")
    remote.get("", tmp_path / "dest")
    assert contents(tmp_path / "dest") == expected
