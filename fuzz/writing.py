"""A client that may write says anything: nothing outside of the share changes, and no file has bytes of no hash."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from blake3 import blake3

from fuzz.wire import session
from headrace.engine.buffers import BufferPool
from headrace.errors import HeadraceError
from headrace.host.incoming import Incoming
from headrace.host.writing import Writing
from headrace.protocol.frames import encode_frame
from headrace.protocol.messages import (
    PUTS,
    Entry,
    PutAttributes,
    PutBegin,
    PutChunk,
    PutCommit,
    PutEnd,
    PutFiles,
    PutLeave,
    PutNames,
    PutOffer,
    PutOpen,
)
from headrace.protocol.paths import RelPath, link_stays_inside
from headrace.storage.inflight import is_inflight_name

SECRET: Final = b"not shared, and not to be changed"
TRANSFER: Final = bytes(16)
TOKEN: Final = bytes(range(16))
ZEROS: Final = bytes.fromhex("28b52ffd 60e802 431f00 00")  # a thousand, as a zstd frame


def writing(data: bytes) -> None:
    """A session after the handshake, in a share with links that lead out."""
    with tempfile.TemporaryDirectory(prefix="headrace-fuzz-", dir=_fast()) as folder:
        root = Path(folder)
        share = root / "share"
        (share / "sub").mkdir(parents=True)
        (root / "secret").write_bytes(SECRET)
        (share / "file").write_bytes(b"theirs")
        (share / "out").symlink_to(root)
        (share / "leak").symlink_to(root / "secret")
        before = (root / "secret").stat()
        messages, _ = session(data)
        incoming = Incoming(os.open(share, os.O_RDONLY), os.fsencode(share), root / "home")
        handler = Writing(incoming, messages, bytes(16), BufferPool(), unpacks=True)
        with contextlib.suppress(HeadraceError):
            while received := messages.receive():
                request, payload = received
                if not isinstance(request, PUTS):
                    break
                handler.handle(request, payload)
        handler.close()
        incoming.close()
        (share / "out").unlink(missing_ok=True)  # ours, or one in its place
        (share / "leak").unlink(missing_ok=True)
        _check(root, share, before)


def _check(root: Path, share: Path, before: os.stat_result) -> None:
    after = (root / "secret").stat()
    assert (root / "secret").read_bytes() == SECRET
    assert (after.st_mode, after.st_mtime_ns, after.st_ino) == (before.st_mode, before.st_mtime_ns, before.st_ino)
    assert set(os.listdir(root)) <= {"secret", "share", "home"}
    for path in share.rglob("*"):
        mode = path.lstat().st_mode
        name = RelPath.parse(os.fsencode(path.relative_to(share)))
        if stat.S_ISLNK(mode):
            assert link_stays_inside(name, os.fsencode(os.readlink(path))), path
        elif not is_inflight_name(name.name):
            assert not mode & 0o7000, path


def _fast() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def seeds() -> Iterator[bytes]:
    """True requests, and some that ask for too much."""
    file = Entry(b"", "f", 10, 1, 0o644, version=TOKEN)
    content = b"0123456789"
    digest = blake3(content).digest()
    begin = encode_frame(PutBegin(1, TRANSFER))
    small = encode_frame(PutFiles(2, TRANSFER, [b"sub/a"], [file], digest), 10) + content
    opened = encode_frame(PutOpen(3, TRANSFER, b"new/f", file))
    chunk = encode_frame(PutChunk(4, TRANSFER, b"new/f", TOKEN, 0, digest), 10) + content
    commit = encode_frame(PutCommit(5, TRANSFER, b"new/f", TOKEN))
    end = encode_frame(PutEnd(6, TRANSFER, sync=False))
    yield begin + small + opened + chunk + commit + end
    yield opened + encode_frame(PutOffer(7, TRANSFER, b"new/f", TOKEN, 0, digest)) + commit
    yield opened + encode_frame(PutLeave(8, TRANSFER, b"new/f", TOKEN, discard=True)) + chunk
    yield encode_frame(PutOpen(9, TRANSFER, b"file", Entry(b"", "f", 6, 1, 0o600, version=TOKEN), compare=True))
    links = [Entry(b"", "l", target=b"../secret"), Entry(b"", "l", target=b"sub"), Entry(b"", "d", mode=0o4777)]
    yield encode_frame(PutNames(10, TRANSFER, [b"l", b"sub/../x", b"d"], links, replace=True))
    yield encode_frame(PutNames(10, TRANSFER, [b"l", b"out/x", b"d"], links, replace=True))
    yield encode_frame(
        PutAttributes(11, TRANSFER, [b"leak", b"file"], [file, Entry(b"", "f", mode=0o7777, version=TOKEN)])
    )
    thousand = Entry(b"", "f", 1000, 1, 0o644, version=TOKEN, sparse=True)
    zeros = blake3(bytes(1000)).digest()
    yield encode_frame(PutFiles(12, TRANSFER, [b"z"], [thousand], zeros, True, "zstd"), len(ZEROS)) + ZEROS
    part = PutChunk(14, TRANSFER, b"z", TOKEN, 0, zeros, size=1000, packed="zstd")
    yield encode_frame(PutOpen(13, TRANSFER, b"z", thousand, b"file")) + encode_frame(part, len(ZEROS)) + ZEROS
