"""The backends under the contract, and how one is picked."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from headrace.errors import UsageError
from headrace.storage import plain, posix, rawio
from headrace.storage.fileio import FileIO, NewFile, Wanted
from headrace.storage.plain import PlainIO
from headrace.storage.platform import CHOICES, Fallbacks, NoRingError, no_ring, platform_io, uring
from headrace.storage.posix import PosixIO
from headrace.storage.ring import Request, Ring, probe, read, write
from headrace.storage.uring import UringIO

from .io_contract import Faults, FaultyOs, FileIOContract
from .io_contract import fd as fd  # a fixture


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    found = Faults()
    for module in (plain, posix, rawio):
        monkeypatch.setattr(module, "os", FaultyOs(found))
    return found


@pytest.fixture(scope="module")
def ring_works() -> bool:
    try:
        probe()
    except OSError:
        return False
    return True


class TestPosix(FileIOContract):
    @pytest.fixture
    def io(self, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> FileIO:
        return PosixIO()

    def test_more_files_than_may_be_open(self, io: FileIO, folder: int) -> None:
        import resource

        files = [NewFile(b"%d" % n, b"x", 0o600, 0) for n in range(50)]
        io.create_files(folder, files)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = max(map(int, os.listdir("/proc/self/fd"))) + 10
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
        try:
            assert io.read_files(folder, [Wanted(file.name, 1) for file in files]) == [b"x"] * 50
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def test_no_advice_to_give(self, io: FileIO, folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """macOS has no posix_fadvise."""
        monkeypatch.delattr(os, "posix_fadvise")
        io.create_files(folder, [NewFile(b"a", b"123", 0o600, 0)])
        assert io.read_files(folder, [Wanted(b"a", 3)]) == [b"123"]


class TestPlain(FileIOContract):
    @pytest.fixture
    def io(self, faults: Faults) -> FileIO:
        return PlainIO()


class FaultyRing(Ring):
    """What the kernel would answer, under the faults."""

    faults: Faults

    def run(self, requests: Sequence[Request]) -> list[int]:
        moves = [(op in (22, 23)) for op, *_ in requests]
        if self.faults.error:
            return [-self.faults.error if move else 0 for move in moves]
        capped = [
            (*one[:5], self.faults.cap(one[5]), *one[6:]) if move else one
            for one, move in zip(requests, moves, strict=True)
        ]
        results = super().run(capped)
        self.faults.moved()
        return results


class TestUring(FileIOContract):
    @pytest.fixture
    def io(self, faults: Faults, ring_works: bool) -> Iterator[FileIO]:
        if not ring_works:
            pytest.skip("no io_uring here")

        def make() -> Ring:
            ring = FaultyRing(256, slots=64, arena=64 * (64 * 1024 + 256))
            ring.faults = faults
            return ring

        backend = UringIO(make_ring=make)
        yield backend
        backend.close()

    @pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINTR, errno.ECANCELED, errno.EOPNOTSUPP])
    def test_what_the_ring_cannot_do_is_done_otherwise(self, folder: int, fd: int, code: int) -> None:
        class Refusing(Ring):
            def run(self, requests: Sequence[Request]) -> list[int]:
                return [-code] * len(requests)

        io = UringIO(make_ring=lambda: Refusing(256, slots=64, arena=64 * (64 * 1024 + 256)))
        io.write(fd, b"12345", 0)
        buffer = bytearray(5)
        assert io.read_into(fd, memoryview(buffer), 0) == 5
        assert buffer == b"12345"
        assert io.read_files(folder, [Wanted(b"file", 5)]) == [b"12345"]
        io.close()

    def test_read_only_memory_is_no_buffer(self, io: FileIO, fd: int) -> None:
        with pytest.raises(TypeError):
            io.read_into(fd, memoryview(b"12345"), 0)


# ---- the ring itself -------------------------------------------------------------------------------------------------


def address_of(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@pytest.fixture
def need_ring(ring_works: bool) -> None:
    if not ring_works:
        pytest.skip("no io_uring here")


@pytest.mark.usefixtures("need_ring")
class TestRing:
    def test_the_queues_wrap_around(self, fd: int) -> None:
        ring = Ring(4)
        buffer = bytearray(1)
        for number in range(50):
            count = number % 4 + 1
            os.pwrite(fd, bytes([number]), 0)
            assert ring.run([read(fd, address_of(buffer), 1, 0)] * count) == [1] * count
            assert buffer == bytes([number])
        ring.close()

    def test_results_come_in_the_order_of_the_requests(self, fd: int) -> None:
        ring = Ring(8)
        buffer = bytearray(b"12345678")
        at = address_of(buffer)
        assert ring.run([write(fd, at, 8, 0)]) == [8]
        assert ring.run([read(fd, at, length, 0) for length in (3, 8, 1)]) == [3, 8, 1]
        assert ring.run([read(fd, at, 1, 0), read(9999, at, 1, 0), read(fd, at, 8, 6)]) == [1, -errno.EBADF, 2]
        with pytest.raises(ValueError):
            ring.run([read(fd, at, 1, 0)] * 9)
        ring.close()

    def test_the_kernel_is_asked_again(self, fd: int) -> None:
        """After a signal, and while it has no memory for all of it."""
        answers: list[int | OSError] = [
            InterruptedError(errno.EINTR, ""), 1, BlockingIOError(errno.EAGAIN, ""), OSError(errno.EBUSY, ""),
        ]  # fmt: skip

        def enter(ring: int, submit: int, wait: int, flags: int) -> int:
            if answers:
                answer = answers.pop(0)
                if isinstance(answer, OSError):
                    raise answer
                return real(ring, answer, 0, flags)
            return real(ring, submit, wait, flags)

        ring = Ring(8)
        real = ring._enter
        ring._enter = enter
        os.pwrite(fd, b"12345", 0)
        buffer = bytearray(5)
        assert ring.run([read(fd, address_of(buffer), n, 0) for n in (1, 2, 3)]) == [1, 2, 3]
        assert not answers
        ring.close()

    def test_nothing_is_in_flight_after_an_interruption(self, fd: int) -> None:
        ring = Ring(8)
        real = ring._enter
        calls = 0

        def enter(number: int, submit: int, wait: int, flags: int) -> int:
            nonlocal calls
            calls += 1
            if calls == 1:
                real(number, 1, 0, flags)
                calls += 1
                return 1
            if calls == 3:
                raise KeyboardInterrupt
            return real(number, submit, wait, flags)

        ring._enter = enter
        os.pwrite(fd, b"12345", 0)
        buffer = bytearray(5)
        with pytest.raises(KeyboardInterrupt):
            ring.run([read(fd, address_of(buffer), 5, 0)] * 3)
        assert buffer == b"12345"
        assert ring.run([read(fd, address_of(buffer), 2, 0)]) == [2]
        ring.close()

    def test_a_ring_that_fails_is_not_used_again(self, fd: int) -> None:
        made: list[Ring] = []

        def make() -> Ring:
            made.append(Ring(256, slots=64))
            return made[-1]

        def enter(*_: int) -> int:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

        io = UringIO(make_ring=make)
        made[0]._enter = enter
        with pytest.raises(OSError):
            io.write(fd, b"12345", 0)
        io.write(fd, b"12345", 0)
        assert len(made) == 2
        assert made[0].fd == -1
        io.close()


# ---- which one -------------------------------------------------------------------------------------------------------


def no_ring_here(reason: str) -> FileIO:
    raise NoRingError("forbidden", "a filter forbids it", refused=True)


def no_ring_on_a_mac(reason: str) -> FileIO:
    raise NoRingError("not_linux", "it is there on Linux only", refused=False)


def test_auto_takes_what_is_fastest_and_says_why() -> None:
    io = platform_io()
    assert io.name == "posix"
    assert "by measurement" in io.reason


@pytest.mark.parametrize("choice", ["posix", "plain"])
def test_a_choice_is_a_choice(choice: str) -> None:
    assert (platform_io(choice).name, platform_io(choice).reason) == (choice, "asked for")


@pytest.mark.usefixtures("need_ring")
@pytest.mark.parametrize(("choice", "first"), [("uring", False), ("auto", True)])
def test_uring_where_it_is_wanted(choice: str, first: bool) -> None:
    io = platform_io(choice, ring_first=first)
    assert io.name == "uring"
    io.close()


def test_uring_where_it_is_not_there() -> None:
    with pytest.raises(UsageError, match="io_uring cannot be used here: a filter forbids it"):
        platform_io("uring", make_ring=no_ring_here)


def test_a_refused_ring_is_counted_each_time_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    fallbacks = Fallbacks()
    with caplog.at_level(logging.INFO, "headrace.storage"):
        for _ in range(3):
            io = platform_io(ring_first=True, make_ring=no_ring_here, fallbacks=fallbacks)
            assert (io.name, io.reason) == ("posix", "no io_uring: a filter forbids it")
    assert fallbacks.counts() == {"forbidden": 3}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a filter forbids it" in caplog.text


def test_a_system_without_one_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    fallbacks = Fallbacks()
    with caplog.at_level(logging.INFO, "headrace.storage"):
        platform_io(ring_first=True, make_ring=no_ring_on_a_mac, fallbacks=fallbacks)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert fallbacks.counts() == {"not_linux": 1}


def test_windows_has_no_pread() -> None:
    io = platform_io(has_pread=False)
    assert (io.name, io.reason) == ("plain", "this system has no preadv and pwrite")
    with pytest.raises(UsageError, match="no preadv"):
        platform_io("posix", has_pread=False)


def test_a_word_that_is_no_backend() -> None:
    with pytest.raises(UsageError, match="'fast' is no way") as caught:
        platform_io("fast")
    assert all(choice in caught.value.hint for choice in CHOICES)


@pytest.mark.parametrize(
    ("code", "disabled", "word", "text"),
    [
        (errno.ENOSYS, "", "kernel_too_old", "Linux 5.18"),
        (errno.ENOSYS, "0", "forbidden", "seccomp"),
        (errno.EPERM, "2", "disabled", "kernel.io_uring_disabled is 2"),
        (errno.EPERM, "1", "disabled", "kernel.io_uring_disabled is 1"),
        (errno.EPERM, "0", "forbidden", "seccomp"),
        (errno.ENOMEM, "0", "no_memory", "locked memory"),
        (errno.EMFILE, "0", "failed", "Too many open files"),
    ],
)
def test_why_there_is_no_ring(code: int, disabled: str, word: str, text: str) -> None:
    found = no_ring(OSError(code, os.strerror(code)), disabled)
    assert (found.word, found.refused) == (word, True)
    assert text in str(found)


def test_a_kernel_whose_ring_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.storage.ring._FEATURES", 1 << 31)
    monkeypatch.setattr("headrace.storage.platform._DISABLED", os.fspath(Path("/nonexistent")))
    with pytest.raises(NoRingError) as caught:
        uring("asked for")
    assert caught.value.word in ("kernel_too_old", "forbidden", "not_linux")


def test_other_systems_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(NoRingError) as caught:
        uring("asked for")
    assert (caught.value.word, caught.value.refused) == ("not_linux", False)
