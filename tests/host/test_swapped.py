"""Directories of a share are swapped for symlinks while a client reads: nothing from outside ever comes back."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from fuzz.wire import SaidStream
from headrace.host.requests import RequestHandler
from headrace.protocol.messages import (
    ROLE_CONTROL,
    GetBatch,
    GetBlocks,
    GetChunk,
    GetManifest,
    GetRanges,
    List,
    Message,
    Read,
    Stat,
    StatFs,
    Walk,
)
from headrace.protocol.session import FEATURES, WATCH, Agreed
from headrace.storage.manifest import HashCache
from headrace.storage.tree import SharedTree, version_of
from headrace.transport.framed import MessageStream

SWAPS: Final = int(os.environ.get("HEADRACE_TEST_SWAPS", "100000"))
SECRET: Final = b"outside of the share"  # in names, contents and targets there
INSIDE: Final = b"inside"


@pytest.fixture
def place() -> Iterator[Path]:
    """share/a/b/file; and outside, the same names with other contents. In memory, where a swap takes least."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield made(Path(folder))


def made(tmp_path: Path) -> Path:
    for root, content in (("share", INSIDE), ("outside", SECRET)):
        (tmp_path / root / "a" / "b").mkdir(parents=True)
        (tmp_path / root / "a" / "b" / "file").write_bytes(content)
    (tmp_path / "outside" / "a" / "b" / SECRET.decode()).touch()
    (tmp_path / "outside" / "a" / SECRET.decode()).mkdir()
    (tmp_path / "outside" / "a" / "b" / "link").symlink_to(SECRET.decode())
    return tmp_path


# a, a/b and a/b/file in turn become links to their namesakes outside, and themselves again. In a process of its own:
# beside this one's interpreter lock it would be a hundred times slower.
SWAPPER: Final = """
import os, sys
share, outside, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
aside = os.path.join(share, ".aside")
turns = [(os.path.join(share, path), os.path.join(outside, path)) for path in ("a", "a/b", "a/b/file")]
for number in range(count):
    here, there = turns[number % 3]
    os.rename(here, aside)
    os.symlink(there, here)
    os.unlink(here)
    os.rename(aside, here)
"""


@contextlib.contextmanager
def swapping(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [str(place / "share"), str(place / "outside"), str(SWAPS)]
    with subprocess.Popen([sys.executable, "-c", SWAPPER, *arguments]) as process:
        try:
            yield process
            assert process.wait(10) == 0
        finally:
            process.kill()


def requests(version: bytes) -> list[Message]:
    """Everything that names a path. version: of the file outside, which a client might know from elsewhere."""
    path = b"a/b/file"
    return [
        *(Stat(1, path), Stat(2, b"a/b"), List(3, b"a/b"), Walk(4, b""), StatFs(5, b"a/b")),
        *(Read(6, path, 0, 100), Read(7, path, 0, 100, version), GetManifest(8, path, b"")),
        *(GetChunk(9, path, b"", 0, len(INSIDE)), GetChunk(10, path, version, 0, len(SECRET))),
        *(GetBatch(11, [(path, version)]), GetRanges(12, path, version, [(0, 5)]), GetBlocks(13, path, version, 0)),
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_from_outside_comes_back(place: Path) -> None:
    version = version_of(os.stat(place / "outside" / "a" / "b" / "file"))
    asked, agreed = requests(version), Agreed(8, frozenset(FEATURES) - {WATCH}, "", "h3ad", ROLE_CONTROL, bytes(16))
    hits, rounds = 0, 0
    with SharedTree.open([place / "share"]) as tree, swapping(place) as swapper:
        while swapper.poll() is None:
            stream = SaidStream(b"")
            messages = MessageStream(stream)
            messages.enter_session()
            handler = RequestHandler(tree, HashCache(), messages, agreed)
            for request in asked:
                handler.handle(request)
            handler.close()
            assert SECRET not in stream.sent and version not in stream.sent
            hits += stream.sent.count(INSIDE)
            rounds += 1
    assert hits > 10 and rounds > 10, "the client got what is inside, again and again"
