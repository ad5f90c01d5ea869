"""The reader behind a mount with a real share: killed, started again, stopped, changed; and with the disk alone."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from headrace.client.blocks import BlockFile, BlockReader
from headrace.client.link import Link
from headrace.client.session import Session
from headrace.client.target import Target
from headrace.errors import HostAwayError, SourceChangedError
from headrace.protocol.messages import Entry
from headrace.protocol.paths import RelPath
from headrace.storage.blockcache import BlockCache

from .support import CODE, MIB, Host, wait_until

pytestmark = pytest.mark.slow

NOISE: Final = random.Random(5).randbytes(24 * MIB)
PATH: Final = RelPath((b"film.mov",))
READ: Final = 128 * 1024


class Scene:
    """A share of one file, and a link to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.share = folder / "share"
        self.share.mkdir()
        (self.share / "film.mov").write_bytes(NOISE)
        self.host = Host(self.share, home=folder / "host")
        self.link = Link(self.connect)

    def connect(self) -> Session:
        target = Target.parse(f"{CODE}@{self.host.address}")
        return Session.connect(target, home=self.folder / "client", transport="tcp")

    def entry(self) -> Entry:
        return self.link.run(lambda session, lane: session.stat(PATH), soon())

    def restart(self) -> None:
        self.host = Host(self.share, home=self.folder / "host", port=self.host.port)

    def close(self) -> None:
        self.link.close()
        self.host.__exit__()


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def content(file: BlockFile) -> bytes:
    return b"".join(bytes(file.read(at, READ, soon())) for at in range(0, file.size, READ))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def test_open_handles_go_on_when_the_host_was_killed_and_is_back(scene: Scene) -> None:
    reader = BlockReader(scene.link)
    file = reader.open(PATH, scene.entry())
    assert file.read(0, READ, soon()) == NOISE[:READ]
    scene.host.kill()
    scene.host.wait()
    assert file.read(0, READ, soon()) == NOISE[:READ], "that is cached"
    began = time.monotonic()
    with pytest.raises(HostAwayError):
        file.read(20 * MIB, 4096, soon(0.5))
    assert time.monotonic() - began < 1.0
    assert not scene.link.up
    with ThreadPoolExecutor(1) as waiting:
        patient = waiting.submit(file.read, 20 * MIB, 4096, soon())
        scene.restart()
        assert patient.result() == NOISE[20 * MIB : 20 * MIB + 4096]
    assert content(file) == NOISE
    reader.close()


def test_a_host_that_is_stopped_costs_the_deadline_and_no_more(scene: Scene) -> None:
    reader = BlockReader(scene.link)
    file = reader.open(PATH, scene.entry())
    for at in range(0, 2 * MIB, READ):
        file.read(at, READ, soon())
    scene.host.kill(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(12) as readers:
            began = time.monotonic()
            calls = [readers.submit(file.read, 12 * MIB + number * READ, 4096, soon(1.0)) for number in range(12)]
            assert all(isinstance(call.exception(), HostAwayError) for call in calls)
            assert time.monotonic() - began < 1.6
        assert file.read(MIB, 4096, soon()) == NOISE[MIB : MIB + 4096]
    finally:
        scene.host.kill(signal.SIGCONT)
    assert content(file) == NOISE
    reader.close()


def test_a_file_that_changes_while_it_is_read_is_never_mixed(scene: Scene) -> None:
    reader = BlockReader(scene.link)
    old = reader.open(PATH, scene.entry())
    assert old.read(0, READ, soon()) == NOISE[:READ]
    other = NOISE[::-1]
    (scene.share / "film.mov").write_bytes(other)
    for at in range(0, len(NOISE), MIB):
        try:
            assert old.read(at, 4096, soon()) == NOISE[at : at + 4096]
        except SourceChangedError:
            continue
    new = reader.open(PATH, scene.entry())
    assert content(new) == other
    with pytest.raises(SourceChangedError):
        old.read(20 * MIB, 4096, soon())
    reader.close()


def test_what_was_read_once_is_there_with_the_host_gone(scene: Scene) -> None:
    disk = BlockCache(scene.folder / "blocks")
    reader = BlockReader(scene.link, disk=disk, share="h3ad")
    entry = scene.entry()
    assert content(reader.open(PATH, entry)) == NOISE
    assert disk.flush()
    reader.close()
    disk.close()
    scene.host.kill()
    disk = BlockCache(scene.folder / "blocks")
    reader = BlockReader(None, disk=disk, share="h3ad", offline=True)
    assert content(reader.open(PATH, entry)) == NOISE
    assert reader.open(PATH, entry).read(5_000_000, 10_000, soon()) == NOISE[5_000_000:5_010_000]
    assert reader.figures().fetched == 0
    reader.close()
    disk.close()


def test_reads_end_when_the_link_is_closed(scene: Scene) -> None:
    reader = BlockReader(scene.link)
    file = reader.open(PATH, scene.entry())
    scene.host.kill(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as waiting:
        call = waiting.submit(file.read, 20 * MIB, 4096, soon(600))
        wait_until(lambda: reader.figures().reads, "the read")
        time.sleep(0.05)
        began = time.monotonic()
        scene.link.close()
        assert isinstance(call.exception(10), HostAwayError)
        assert time.monotonic() - began < 3
    scene.host.kill(signal.SIGCONT)
