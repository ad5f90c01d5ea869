"""The file system on names and files that a test makes up, as the kernel's requests see it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import (
    HeadraceError,
    HostAwayError,
    IntegrityError,
    NotFoundError,
    PermissionRefusedError,
    SourceChangedError,
)
from headrace.mount import wire
from headrace.mount.fs import FileSystem
from headrace.mount.server import Request
from headrace.mount.wire import Op
from headrace.protocol.messages import Entry
from headrace.protocol.paths import RelPath

TIMEOUT = 30.0


class Names:
    """Entries by path. error: what every question comes to."""

    watching = False

    def __init__(self, *entries: Entry) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self.listing: tuple[Entry, ...] | None = None
        self.error: HeadraceError | None = None
        self.deadlines: list[float] = []
        self.doubted: list[RelPath] = []

    def stat(self, path: RelPath, deadline: float) -> Entry:
        self.deadlines.append(deadline)
        if self.error:
            raise self.error
        if not path:
            return Entry(b"", "d", mode=0o750)
        if path.name not in self.entries:
            raise NotFoundError("no such path")
        return self.entries[path.name]

    def find(self, folder: RelPath, name: bytes, deadline: float) -> Entry | None:
        try:
            return self.stat(folder / name, deadline)
        except NotFoundError:
            return None

    def list(self, path: RelPath, deadline: float) -> Sequence[Entry]:
        if self.error:
            raise self.error
        if self.listing is None or set(self.listing) != set(self.entries.values()):
            self.listing = tuple(self.entries.values())
        return self.listing

    def statfs(self, deadline: float) -> None:
        return None

    def doubt(self, path: RelPath) -> None:
        self.doubted.append(path)


class File:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.closed = False
        self.error: HeadraceError | None = None
        self.deadlines: list[float] = []

    def read(self, offset: int, length: int, deadline: float) -> memoryview:
        self.deadlines.append(deadline)
        if self.error:
            raise self.error
        return memoryview(self.content)[offset : offset + length]

    def close(self) -> None:
        self.closed = True


class Kernel:
    """Asks as the kernel does. opened: the files that were opened, in order."""

    def __init__(self, names: Names, **options: bool) -> None:
        self.now = 0.0
        self.opened: list[File] = []
        self.content = b"content"
        self.fs = FileSystem(names, self._open, Entry(b"", "d"), timeout=TIMEOUT, clock=lambda: self.now, **options)
        self._handlers = self.fs.handlers()

    def _open(self, path: RelPath, entry: Entry) -> File:
        self.opened.append(File(self.content))
        return self.opened[-1]

    def ask(self, op: Op, node: int, body: bytes = b"") -> bytes:
        try:
            return bytes(self._handlers[op](Request(2, node, memoryview(body))))
        except OSError:
            raise
        except Exception as why:
            raise OSError(self.fs.unexpected(why), "as the kernel hears it") from why

    def lookup(self, name: bytes, parent: int = 1) -> tuple[int, ...]:
        """(node, generation, entry_valid, attr_valid, 0, 0, then the fields of wire.ATTR)."""
        answer = self.ask(Op.LOOKUP, parent, name + b"\0")
        head = wire.ENTRY_HEAD.unpack_from(answer)
        return *head, *wire.ATTR.unpack_from(answer, wire.ENTRY_HEAD.size)

    def open(self, node: int, op: Op = Op.OPEN) -> tuple[int, int]:
        """(handle, flags)."""
        number, flags, _ = wire.OPEN_OUT.unpack(self.ask(op, node, bytes(8)))
        return number, flags

    def read(self, handle: int, offset: int, size: int, op: Op = Op.READ) -> bytes:
        return self.ask(op, 1, wire.READ_IN.pack(handle, offset, size) + bytes(20))

    def listing(self, handle: int, size: int, op: Op = Op.READDIR) -> list[tuple[bytes, int, int]]:
        """(name, inode number, node) of everything, a piece of `size` bytes at a time. Plain listings have no node."""
        found, offset = [], 0
        while answer := self.read(handle, offset, size, op):
            assert len(answer) <= size
            position = 0
            while position < len(answer):
                node = 0
                if op == Op.READDIRPLUS:
                    node, *_ = wire.ENTRY_HEAD.unpack_from(answer, position)
                    position += wire.ENTRY_HEAD.size + wire.ATTR.size
                ino, offset, length, _ = wire.DIRENT.unpack_from(answer, position)
                position += wire.DIRENT.size
                found.append((answer[position : position + length], ino, node))
                position += -(-length // 8) * 8
        return found


def file(name: bytes, version: bytes = b"1" * 16, size: int = 7) -> Entry:
    return Entry(name, "f", size, 1_600_000_000_123_456_789, 0o640, version=version)


def error_of(call: object, *arguments: object) -> int:
    assert callable(call)
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno is not None
    return caught.value.errno


def test_attributes():
    kernel = Kernel(Names(file(b"f", size=1000), Entry(b"l", "l", target=b"over/there"), Entry(b"s", "o", mode=0o777)))
    _, _, entry_valid, attr_valid, _, _, ino, size, blocks, *rest = kernel.lookup(b"f")
    assert entry_valid == attr_valid > 0 and ino > 1
    assert (size, blocks) == (1000, 2)
    assert rest == [
        *([1_600_000_000] * 3 + [123_456_789] * 3),
        *(stat.S_IFREG | 0o640, 1, os.getuid(), os.getgid(), 0, 4096, 0),
    ]
    node, *rest = kernel.lookup(b"l")
    assert rest[6] == len(b"over/there") and rest[14] == stat.S_IFLNK | 0o777
    assert kernel.ask(Op.READLINK, node) == b"over/there"
    node, *rest = kernel.lookup(b"s")
    assert stat.S_ISSOCK(rest[14])
    assert error_of(kernel.open, node) == errno.ENXIO


def test_times_before_1970():
    kernel = Kernel(Names(replace_time(file(b"f"), -1)))
    seconds, nanoseconds = kernel.lookup(b"f")[9], kernel.lookup(b"f")[12]
    assert (seconds, nanoseconds) == (-1, 999_999_999)


def replace_time(entry: Entry, mtime_ns: int) -> Entry:
    return Entry(entry.name, entry.kind, entry.size, mtime_ns, entry.mode, entry.target, entry.version)


def test_a_name_that_is_not_there_is_remembered_as_such():
    node, _, valid, *_ = Kernel(Names()).lookup(b"nothing")
    assert node == 0 and valid > 0


def test_a_name_that_is_too_long():
    assert error_of(Kernel(Names()).lookup, b"x" * 256) == errno.ENAMETOOLONG


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (PermissionRefusedError("no"), errno.EACCES),
        (HostAwayError("gone"), errno.EIO),
        (SourceChangedError("another"), errno.ESTALE),
        (IntegrityError("wrong"), errno.EIO),
        (HeadraceError("what"), errno.EIO),
    ],
)
def test_errors_have_numbers_and_are_counted(error, number):
    names = Names(file(b"f"))
    kernel = Kernel(names)
    node, *_ = kernel.lookup(b"f")
    handle, _ = kernel.open(node)
    names.error = kernel.opened[0].error = error
    assert error_of(kernel.lookup, b"f") == number
    assert error_of(kernel.read, handle, 0, 5) == number
    assert error_of(kernel.open, 1, Op.OPENDIR) == number
    assert kernel.fs.errors == {error.code: 3}
    assert names.doubted == ([RelPath((b"f",))] if isinstance(error, SourceChangedError) else [])


def test_every_call_has_the_same_time():
    names = Names(file(b"f"))
    kernel = Kernel(names)
    kernel.now = 5.0
    kernel.lookup(b"f")
    assert names.deadlines == [5.0 + TIMEOUT]


def test_reading():
    kernel = Kernel(Names(file(b"f")))
    node, *_ = kernel.lookup(b"f")
    handle, flags = kernel.open(node)
    assert flags & wire.FOPEN_KEEP_CACHE and not flags & wire.FOPEN_DIRECT_IO
    assert kernel.read(handle, 0, 100) == b"content"
    assert kernel.read(handle, 3, 2) == b"te"
    assert kernel.read(handle, 7, 2) == b""
    assert kernel.fs.bytes_read == 9
    assert kernel.fs.handles == 1
    kernel.ask(Op.RELEASE, node, wire.RELEASE_IN.pack(handle) + bytes(16))
    assert kernel.opened[0].closed and kernel.fs.handles == 0
    assert error_of(kernel.read, handle, 0, 1) == errno.EBADF
    assert error_of(kernel.read, 77, 0, 1) == errno.EBADF


def test_the_kernel_s_second_try_does_not_wait_once_more():
    kernel = Kernel(Names(file(b"f")))
    handle, _ = kernel.open(kernel.lookup(b"f")[0])
    (opened,) = kernel.opened
    opened.error = HostAwayError("gone")
    assert error_of(kernel.read, handle, 0, 5) == errno.EIO
    kernel.now = 0.1
    assert error_of(kernel.read, handle, 0, 5) == errno.EIO
    kernel.now = 5.0
    assert error_of(kernel.read, handle, 0, 5) == errno.EIO
    assert opened.deadlines == [TIMEOUT, pytest.approx(0.1), 5.0 + TIMEOUT]


def test_debug_io_keeps_the_kernel_from_caching():
    kernel = Kernel(Names(file(b"f")), direct=True)
    _, flags = kernel.open(kernel.lookup(b"f")[0])
    assert flags & wire.FOPEN_DIRECT_IO and not flags & wire.FOPEN_KEEP_CACHE


def test_a_new_version_is_stale_for_who_opens_the_old_and_unseen_by_who_has_it():
    names = Names(file(b"f"))
    kernel = Kernel(names)
    node, *_ = kernel.lookup(b"f")
    handle, _ = kernel.open(node)
    names.entries[b"f"] = file(b"f", b"2" * 16, size=99)
    assert error_of(kernel.open, node) == errno.ESTALE, "the kernel looks the name up anew then"
    attributes = wire.ATTR.unpack_from(kernel.ask(Op.GETATTR, node, bytes(16)), wire.ATTR_HEAD.size)
    assert attributes[1] == 7, "the open one has its own size"
    kernel.ask(Op.RELEASE, node, wire.RELEASE_IN.pack(handle) + bytes(16))
    assert error_of(kernel.ask, Op.GETATTR, node, bytes(16)) == errno.ESTALE
    new, *rest = kernel.lookup(b"f")
    assert new != node and rest[6] == 99
    kernel.open(new)


def test_a_node_that_is_gone_on_the_host_is_stale():
    names = Names(file(b"f"))
    kernel = Kernel(names)
    node, *_ = kernel.lookup(b"f")
    names.entries.clear()
    assert error_of(kernel.open, node) == errno.ESTALE
    assert error_of(kernel.ask, Op.GETATTR, node, bytes(16)) == errno.ESTALE
    assert error_of(kernel.ask, Op.GETATTR, 999, bytes(16)) == errno.ESTALE


@given(
    st.lists(st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name)), unique=True),
    st.integers(600, 9000),
)
def test_a_listing_comes_in_pieces_of_any_size(names, size):
    names = [name for name in names if name not in (b".", b"..")]
    kernel = Kernel(Names(*map(file, names)))
    handle, _ = kernel.open(1, Op.OPENDIR)
    plain = kernel.listing(handle, size)
    assert [name for name, _, _ in plain] == [b".", b"..", *names]
    plus = kernel.listing(handle, size, Op.READDIRPLUS)
    assert [(name, ino) for name, ino, _ in plus] == [(name, ino) for name, ino, _ in plain]
    for name, ino, node in plus[2:]:
        assert kernel.lookup(name)[0] == node and kernel.lookup(name)[6] == ino
    assert [node for _, _, node in plus[:2]] == [0, 0], "the kernel does not count those"
    forgets = b"".join(wire.FORGET_ONE.pack(node, 3) for _, _, node in plus[2:])
    kernel.ask(Op.BATCH_FORGET, 0, wire.BATCH_FORGET_IN.pack(len(names), 0) + forgets)
    assert len(kernel.fs.nodes) == 1


def test_a_listing_stays_as_it_is_for_who_reads_it():
    names = Names(file(b"a"), file(b"b"))
    kernel = Kernel(names)
    handle, _ = kernel.open(1, Op.OPENDIR)
    names.entries[b"c"] = file(b"c")
    assert len(kernel.listing(handle, 4096)) == 4
    assert len(kernel.listing(kernel.open(1, Op.OPENDIR)[0], 4096)) == 5


def test_the_kernel_keeps_a_listing_that_is_the_same_while_its_attributes_are_good():
    names = Names(file(b"a"))
    kernel = Kernel(names)
    keep, copy = wire.FOPEN_KEEP_CACHE, wire.FOPEN_CACHE_DIR
    assert kernel.open(1, Op.OPENDIR)[1] == copy
    assert kernel.open(1, Op.OPENDIR)[1] == copy | keep
    kernel.now += 60
    last, flags = kernel.open(1, Op.OPENDIR)
    assert flags == copy
    names.entries[b"b"] = file(b"b")
    assert kernel.open(1, Op.OPENDIR)[1] == 0, "others still have the listing before it"
    for handle in range(1, last + 2):
        kernel.ask(Op.RELEASEDIR, 1, wire.RELEASE_IN.pack(handle) + bytes(16))
    assert kernel.open(1, Op.OPENDIR)[1] == copy


def test_what_the_kernel_has_to_forget():
    kernel = Kernel(Names(file(b"f"), Entry(b"d", "d")))
    folder, *_ = kernel.lookup(b"d")
    kernel.lookup(b"f")
    assert kernel.fs.outdated(RelPath((b"f",))) == ([(1, b"f")], [])
    assert kernel.fs.outdated(RelPath((b"new",))) == ([(1, b"new")], [])
    assert kernel.fs.outdated(RelPath((b"d",))) == ([(1, b"d")], [folder])
    assert kernel.fs.outdated(RelPath((b"unknown", b"x"))) == ([], [])
    assert kernel.fs.outdated(RelPath()) == ([], [1])
    assert kernel.fs.outdated(None) == ([(1, b"d"), (1, b"f")], [1, folder])


def test_statfs_of_a_host_that_does_not_say():
    answer = Kernel(Names()).ask(Op.STATFS, 1)
    assert len(answer) == 80
    assert wire.STATFS_OUT.unpack(answer)[5:] == (4096, 255, 4096)
