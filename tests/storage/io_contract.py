"""What every FileIO promises (storage.fileio), as tests that each backend passes."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.storage.fileio import FileIO, NewFile, Range, Wanted

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
NOISE: Final = random.Random(7420).randbytes(4 * MIB)
SIZES: Final = (0, 1, 4095, 4096, 64 * KIB, 64 * KIB + 1, 4 * MIB)


class Faults:
    """What the system does to reads and writes of file bytes from now on. most: bytes at once. error: the errno.
    after: called when bytes were moved."""

    def __init__(self) -> None:
        self.most: int | None = None
        self.error = 0
        self.after: Callable[[], None] | None = None

    def cap(self, length: int) -> int:
        return length if self.most is None else min(length, self.most)

    def moved(self) -> None:
        if self.after:
            self.after()


class FaultyOs:
    """The module os, for one module of headrace, with the faults."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _do[T](self, call: Callable[..., T], *arguments: Any) -> T:
        if self._faults.error:
            raise OSError(self._faults.error, os.strerror(self._faults.error))
        result = call(*arguments)
        self._faults.moved()
        return result

    def preadv(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        return self._do(os.preadv, fd, [buffers[0][: self._faults.cap(len(buffers[0]))]], offset)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return self._do(os.pread, fd, self._faults.cap(length), offset)

    def read(self, fd: int, length: int) -> bytes:
        return self._do(os.read, fd, self._faults.cap(length))

    def pwrite(self, fd: int, data: memoryview | bytes, offset: int) -> int:
        return self._do(os.pwrite, fd, data[: self._faults.cap(len(data))], offset)

    def write(self, fd: int, data: memoryview | bytes) -> int:
        return self._do(os.write, fd, data[: self._faults.cap(len(data))])


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def room(size: int) -> memoryview:
    return memoryview(bytearray(size))


def errno_of(result: object) -> int | None:
    assert isinstance(result, OSError), result
    return result.errno


class FileIOContract:
    """Subclasses give the fixture `io`, a backend under the faults of the fixture `faults`."""

    @pytest.mark.parametrize("size", SIZES)
    def test_what_is_written_is_read(self, io: FileIO, fd: int, size: int) -> None:
        io.write(fd, memoryview(NOISE)[:size], 7)
        buffer = room(size)
        assert io.read_into(fd, buffer, 7) == size
        assert buffer == NOISE[:size]
        assert os.fstat(fd).st_size == (size + 7 if size else 0)

    def test_bytes_and_writable_memory_can_be_written(self, io: FileIO, fd: int) -> None:
        for data in (b"bytes", memoryview(b"read-only"), memoryview(bytearray(b"a slice of it"))[2:7]):
            io.write(fd, data, 0)
            assert os.pread(fd, len(data), 0) == bytes(data)

    def test_a_read_is_short_only_at_the_end(self, io: FileIO, fd: int) -> None:
        io.write(fd, b"12345", 0)
        buffer = room(10)
        assert [io.read_into(fd, buffer, offset) for offset in (0, 3, 5, 100)] == [5, 2, 0, 0]

    @pytest.mark.parametrize("most", [1, 4096, 100_000])
    def test_short_results_are_continued(self, io: FileIO, fd: int, faults: Faults, most: int) -> None:
        size = 300 * most if most == 1 else len(NOISE)
        faults.most = most
        io.write(fd, memoryview(NOISE)[:size], 0)
        buffer = room(size)
        assert io.read_into(fd, buffer, 0) == size
        assert buffer == NOISE[:size]

    # SIGPROF: the time limit of the tests themselves is an alarm.

    def test_signals_in_between_change_nothing(self, io: FileIO, fd: int) -> None:
        came = 0

        def count(*_: object) -> None:
            nonlocal came
            came += 1

        before = signal.signal(signal.SIGPROF, count)
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
        try:
            buffer = room(len(NOISE))
            while came < 20:
                io.write(fd, NOISE, 0)
                assert io.read_into(fd, buffer, 0) == len(NOISE)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
        assert buffer == NOISE

    def test_a_signal_handler_may_raise(self, io: FileIO, fd: int) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGPROF, stop)
        try:
            for number in range(20):
                with pytest.raises(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_PROF, 0.001 * number + 0.001)
                    while True:
                        io.write(fd, NOISE, 0)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
        io.write(fd, NOISE, 0)  # and all is well afterwards
        assert io.read_into(fd, room(len(NOISE)), 0) == len(NOISE)

    def test_a_full_disk(self, io: FileIO, small_disk: Path) -> None:
        fd = os.open(small_disk / "file", os.O_RDWR | os.O_CREAT)
        try:
            with pytest.raises(OSError) as caught:
                for number in range(10):
                    io.write(fd, NOISE, number * len(NOISE))
            assert caught.value.errno == errno.ENOSPC
            buffer = room(len(NOISE))
            assert io.read_into(fd, buffer, 0) == len(NOISE)
            assert buffer == NOISE  # what was written stays
        finally:
            os.close(fd)

    @pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
    def test_a_failing_disk(self, io: FileIO, fd: int, faults: Faults, code: int) -> None:
        io.write(fd, b"12345", 0)
        faults.error = code
        with pytest.raises(OSError) as reading:
            io.read_into(fd, room(5), 0)
        with pytest.raises(OSError) as writing:
            io.write(fd, b"12345", 0)
        assert (reading.value.errno, writing.value.errno) == (code, code)

    def test_a_descriptor_that_cannot(self, io: FileIO, tmp_path: Path) -> None:
        fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
        try:
            with pytest.raises(OSError) as caught:
                io.read_into(fd, room(5), 0)
            assert caught.value.errno == errno.EBADF
        finally:
            os.close(fd)

    def test_a_file_that_shrinks_while_it_is_read(self, io: FileIO, fd: int, faults: Faults) -> None:
        io.write(fd, NOISE, 0)
        faults.most = 64 * KIB
        faults.after = lambda: os.ftruncate(fd, 100_000)
        assert io.read_into(fd, room(len(NOISE)), 0) == 100_000

    def test_offsets_beyond_4_gib(self, io: FileIO, fd: int) -> None:
        at = 8 * GIB + 3
        io.write(fd, b"far out", at)
        buffer = room(20)
        assert io.read_into(fd, buffer, at - 5) == 12
        assert bytes(buffer[:12]) == bytes(5) + b"far out"
        assert os.fstat(fd).st_size == at + 7

    def test_threads_share_a_descriptor(self, io: FileIO, fd: int) -> None:
        piece = 256 * KIB

        def work(number: int) -> bool:
            data = memoryview(NOISE)[number * piece : (number + 1) * piece]
            buffer = room(piece)
            for _ in range(5):
                io.write(fd, data, number * piece)
                assert io.read_into(fd, buffer, number * piece) == piece
                assert buffer == data
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(16)))
        assert os.pread(fd, len(NOISE), 0) == NOISE

    def test_other_threads_run_meanwhile(self, io: FileIO, fd: int) -> None:
        """Neither the interpreter lock nor one of ours is held for good."""
        io.write(fd, NOISE, 0)
        steps, over = 0, threading.Event()

        def count() -> None:
            nonlocal steps
            while not over.is_set():
                steps += 1

        thread = threading.Thread(target=count)
        thread.start()
        try:
            for _ in range(20):
                io.read_into(fd, room(len(NOISE)), 0)
        finally:
            over.set()
            thread.join()
        assert steps

    # ---- many at once ----------------------------------------------------------------------------------------------

    def test_many_ranges(self, io: FileIO, fd: int) -> None:
        io.write(fd, NOISE, 0)
        buffers = [room(1000) for _ in range(200)]
        results = io.read_ranges([Range(fd, buffer, 500 * n) for n, buffer in enumerate(buffers)])
        assert results == [1000] * 200
        assert all(buffer == NOISE[500 * n : 500 * n + 1000] for n, buffer in enumerate(buffers))

    def test_a_range_that_fails_does_so_alone(self, io: FileIO, fd: int) -> None:
        io.write(fd, b"12345", 0)
        first, closed, end, nothing = io.read_ranges(
            [Range(fd, room(5), 0), Range(10_000, room(5), 0), Range(fd, room(5), 3), Range(fd, room(0), 0)]
        )
        assert (first, end, nothing) == (5, 2, 0)
        assert errno_of(closed) == errno.EBADF

    def test_many_files(self, io: FileIO, folder: int) -> None:
        sizes = [0, 1, 100, 10 * KIB, 64 * KIB, 64 * KIB + 1, 300 * KIB] * 30
        files = [NewFile(b"%d" % n, NOISE[n : n + size], 0o640, 10**18 + n) for n, size in enumerate(sizes)]
        assert io.create_files(folder, files) == [None] * len(files)
        assert io.read_files(folder, [Wanted(file.name, len(file.data)) for file in files]) == [
            file.data for file in files
        ]
        for file in files:
            found = os.stat(file.name, dir_fd=folder)
            assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (file.mode, file.mtime_ns)

    def test_files_that_cannot_be_read_do_not_hurt_the_others(self, io: FileIO, folder: int, tmp_path: Path) -> None:
        for name in ("first", "target", "last"):
            (tmp_path / name).write_bytes(name.encode())
        (tmp_path / "link").symlink_to("target")
        (tmp_path / "folder").mkdir()
        names = [b"first", b"missing", b"link", b"folder", b"x" * 300, b"first/below", b"last"]
        first, *bad, last = io.read_files(folder, [Wanted(name, 5) for name in names])
        assert (first, last) == (b"first", b"last")
        assert [errno_of(one) for one in bad] == [
            errno.ENOENT,
            errno.ELOOP,
            errno.EISDIR,
            errno.ENAMETOOLONG,
            errno.ENOTDIR,
        ]

    def test_a_file_that_shrank_is_given_as_it_is_now(self, io: FileIO, folder: int, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"123")
        assert io.read_files(folder, [Wanted(b"file", size) for size in (100, 3, 2, 0)]) == [b"123", b"123", b"12", b""]

    def test_files_read_in_short_pieces(self, io: FileIO, folder: int, faults: Faults, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(NOISE[:5000])
        faults.most = 999
        assert io.read_files(folder, [Wanted(b"file", 5000), Wanted(b"file", 6000)]) == [NOISE[:5000]] * 2

    def test_a_failing_disk_fails_each_file(self, io: FileIO, folder: int, faults: Faults, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"123")
        faults.error = errno.EIO
        assert [errno_of(one) for one in io.read_files(folder, [Wanted(b"file", 3)] * 3)] == [errno.EIO] * 3
        made = io.create_files(folder, [NewFile(b"new", b"123", 0o600, 0)])
        assert [errno_of(one) for one in made] == [errno.EIO]
        assert not (tmp_path / "new").exists()

    def test_no_file_is_left_open(self, io: FileIO, folder: int, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"123")
        before = len(os.listdir("/proc/self/fd"))
        io.read_files(folder, [Wanted(b"file", 3), Wanted(b"missing", 3)] * 200)
        io.create_files(folder, [NewFile(b"file", b"", 0o600, 0), NewFile(b"other", b"", 0o600, 0)])
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_name_that_is_taken_stays_as_it_is(self, io: FileIO, folder: int, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"old")
        (tmp_path / "link").symlink_to("elsewhere")
        names = [b"before", b"file", b"link", b"missing/below", b"after"]
        before, *bad, after = io.create_files(folder, [NewFile(name, b"new", 0o600, 0) for name in names])
        assert (before, after) == (None, None)
        assert [errno_of(one) for one in bad] == [errno.EEXIST, errno.EEXIST, errno.ENOENT]
        assert (tmp_path / "file").read_bytes() == b"old"
        assert not (tmp_path / "elsewhere").exists()

    def test_a_full_disk_leaves_no_half_files(self, io: FileIO, small_disk: Path) -> None:
        folder = os.open(small_disk, os.O_RDONLY)
        try:
            results = io.create_files(folder, [NewFile(b"%d" % n, NOISE, 0o600, 0) for n in range(8)])
        finally:
            os.close(folder)
        assert results[:4] == [None] * 4
        assert {errno_of(one) for one in results[5:]} == {errno.ENOSPC}
        left = [path.stat().st_size for path in small_disk.iterdir()]
        assert left == [len(NOISE)] * results.count(None)

    def test_nothing_is_asked(self, io: FileIO, folder: int) -> None:
        assert (io.read_files(folder, []), io.create_files(folder, []), io.read_ranges([])) == ([], [], [])

    def test_batches_from_several_threads(self, io: FileIO, folder: int) -> None:
        files = [NewFile(b"%d" % n, NOISE[n : n + 10_000], 0o600, 0) for n in range(100)]
        io.create_files(folder, files)
        wanted = [Wanted(file.name, 10_000) for file in files]
        with ThreadPoolExecutor(4) as pool:
            for results in pool.map(lambda _: io.read_files(folder, wanted), range(12)):
                assert results == [file.data for file in files]
