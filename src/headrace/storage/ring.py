"""One io_uring instance, straight on the kernel's system calls: no package, and nothing of ours is compiled.

Why no binding: docs/decisions/007-file-backends.md. The layouts below are the kernel's own (linux/io_uring.h). They
and the numbers of the system calls are the same on every 64-bit architecture that Linux and CPython share but Alpha.

A ring is used in lockstep: what `run` submits is complete when it returns. So no buffer is written to after its call,
no completion has to be told from another run's, and the kernel's own barrier before it wakes us orders what we read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from typing import Final

_SETUP: Final = 425
_ENTER: Final = 426
_REGISTER: Final = 427
_GETEVENTS: Final = 1
_REGISTER_FILES: Final = 2
_OFF_SQES: Final = 0x10000000
_FEATURES: Final = (
    1 << 0 | 1 << 1 | 1 << 12
)  # one mmap for both queues; no completion is lost; files of linked requests
_PARAMS: Final = struct.Struct("<10I8IQ8IQ")
_SQE: Final = struct.Struct("<BBxxiQQIIQ4xi16x")
_CQE: Final = struct.Struct("<QiI")
_U32: Final = struct.Struct("<I")
_WRAP: Final = 0xFFFFFFFF
_PROBE: Final = b"headrace"

_OPENAT: Final = 18
_CLOSE: Final = 19
_READ: Final = 22
_WRITE: Final = 23
_FIXED_FILE: Final = 1 << 0  # `fd` is a slot of the ring's own table of files, no descriptor of the process
_LINK: Final = 1 << 2  # the next request waits for this one, and is cancelled if this one fails
_HARDLINK: Final = 1 << 3  # the same, but the next one runs in any case

Request = tuple[int, int, int, int, int, int, int, int]
"""opcode, flags, fd, offset, address, length, flags of the operation, slot + 1 (0: none). See the functions below."""

Enter = Callable[[int, int, int, int], int]
"""(ring, how many to submit, how many completions to wait for, flags) -> how many were submitted; raises OSError."""


def read(fd: int, address: int, length: int, offset: int) -> Request:
    """address: of memory that stays where it is until `run` has returned."""
    return _READ, 0, fd, offset, address, length, 0, 0


def write(fd: int, address: int, length: int, offset: int) -> Request:
    return _WRITE, 0, fd, offset, address, length, 0, 0


def read_file(slot: int, dir_fd: int, name: int, flags: int, address: int, length: int) -> tuple[Request, ...]:
    """Opens the file into a slot of the ring's table, reads its start and closes it. name: address of a C string.

    Its results: 0 or why it could not be opened; the bytes read; 0. When the first fails the others are cancelled.
    """
    return (
        # A slot is no descriptor, so it takes no O_CLOEXEC.
        (_OPENAT, _LINK, dir_fd, 0, name, 0, flags & ~os.O_CLOEXEC, slot + 1),
        (_READ, _FIXED_FILE | _HARDLINK, slot, 0, address, length, 0, 0),
        (_CLOSE, 0, 0, 0, 0, 0, 0, slot + 1),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _system(number: int, *arguments: int) -> int:
    """The system call's result; OSError. ctypes gives the interpreter lock up for as long as it takes."""
    # As 64 bits each: a bare int is passed as 32, and the rest of the register is whatever was there.
    result = int(_libc.syscall(*map(ctypes.c_long, (number, *arguments))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _system_enter(fd: int, submit: int, wait: int, flags: int) -> int:
    return _system(_ENTER, fd, submit, wait, flags, 0, 0)


class Ring:
    """For one thread at a time. arena: memory for names and small files, at `arena_address`."""

    def __init__(self, entries: int, *, slots: int = 0, arena: int = 0, enter: Enter = _system_enter) -> None:
        """entries: how many requests at once, a power of two. slots: size of the ring's table of files. arena: bytes.
        enter: for tests.

        Raises OSError: ENOSYS (the kernel has no io_uring, or one that is too old), EPERM (switched off, or a filter
        forbids it), ENOMEM, EMFILE.
        """
        self.entries = entries
        self._enter = enter
        params = ctypes.create_string_buffer(_PARAMS.size)
        self.fd = _system(_SETUP, entries, ctypes.addressof(params))
        try:
            facts = _PARAMS.unpack(params.raw)
            if facts[5] & _FEATURES != _FEATURES:
                raise OSError(errno.ENOSYS, "its io_uring is older than Linux 5.18")
            self._map(facts)
            if slots:
                table = (ctypes.c_int * slots)(*[-1] * slots)
                _system(_REGISTER, self.fd, _REGISTER_FILES, ctypes.addressof(table), slots)
        except BaseException:
            os.close(self.fd)
            raise
        self.arena = memoryview(mmap.mmap(-1, arena)) if arena else memoryview(bytearray())
        self.arena_address = ctypes.addressof(ctypes.c_char.from_buffer(self.arena)) if arena else 0

    def _map(self, facts: Sequence[int]) -> None:
        completions = facts[1]
        # Offsets of head, tail, mask, number of entries, flags, dropped, array; of head, tail, mask, number, overflow,
        # completions.
        submission, completion = facts[10:19], facts[19:28]
        size = max(submission[6] + self.entries * _U32.size, completion[5] + completions * _CQE.size)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._queues = mmap.mmap(self.fd, size, flags)
        self._sqes = mmap.mmap(self.fd, self.entries * _SQE.size, flags, offset=_OFF_SQES)
        self._sq_head_at, self._sq_tail_at = submission[:2]
        self._cq_head_at, self._cq_tail_at, _, _, _, self._cqes_at = completion[:6]
        self._cq_mask = completions - 1
        for index in range(self.entries):  # place i of the queue is request i, once and for all
            _U32.pack_into(self._queues, submission[6] + index * _U32.size, index)
        self._tail = 0
        self._head = 0

    def run(self, requests: Sequence[Request]) -> list[int]:
        """Submits up to `entries` requests and waits for all: their results in order, -errno for one that failed.

        OSError: the ring is of no use any more. Whatever else is raised, by a signal handler say, is raised when
        nothing is in flight.
        """
        if len(requests) > self.entries:
            raise ValueError("more requests than the ring holds")
        pack, sqes, size, mask, tail = _SQE.pack_into, self._sqes, _SQE.size, self.entries - 1, self._tail
        for number, (op, flags, fd, offset, address, length, op_flags, slot) in enumerate(requests):
            at = (tail + number & mask) * size
            pack(sqes, at, op, flags, fd, offset, address, length, op_flags, number, slot)
        self._tail = tail + len(requests) & _WRAP
        _U32.pack_into(self._queues, self._sq_tail_at, self._tail)
        try:
            self._submit(len(requests))
        except OSError:
            raise
        except BaseException:  # Ctrl-C: the kernel would still write to buffers that are given back
            self._settle(len(requests))
            raise
        return self._results(len(requests))

    def _submit(self, count: int) -> None:
        """Until everything was submitted and is complete. May be begun again: how far it is the queues say."""
        while (pending := self._pending()) or self._ready() < count:
            try:
                self._enter(self.fd, pending, count - self._ready(), _GETEVENTS)
            except OSError as why:
                # EAGAIN and EBUSY: no memory for more just now. What is on its way frees some.
                on_its_way = self._pending() < count
                if why.errno != errno.EINTR and (why.errno not in (errno.EAGAIN, errno.EBUSY) or not on_its_way):
                    raise

    def _settle(self, count: int) -> None:
        while True:
            try:
                self._submit(count)
                self._results(count)
                return
            except OSError:
                raise
            except BaseException:  # noqa: BLE001  # the first one will be raised
                continue

    def _pending(self) -> int:
        head: int = _U32.unpack_from(self._queues, self._sq_head_at)[0]
        return self._tail - head & _WRAP

    def _ready(self) -> int:
        tail: int = _U32.unpack_from(self._queues, self._cq_tail_at)[0]
        return tail - self._head & _WRAP

    def _results(self, count: int) -> list[int]:
        found = [0] * count
        unpack, queues, first, mask, size = _CQE.unpack_from, self._queues, self._cqes_at, self._cq_mask, _CQE.size
        for number in range(self._head, self._head + count):
            which, result, _ = unpack(queues, first + (number & mask) * size)
            found[which] = result
        self._head = self._head + count & _WRAP
        _U32.pack_into(queues, self._cq_head_at, self._head)
        return found

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self._queues.close()
            self._sqes.close()
            os.close(fd)


def probe() -> None:
    """Sets up a ring and reads something through it. Raises OSError where that cannot be done."""
    ring = Ring(2, slots=1)
    try:
        fd = os.memfd_create("headrace-probe")
        try:
            os.write(fd, _PROBE)
            buffer = ctypes.create_string_buffer(len(_PROBE))
            result = ring.run([read(fd, ctypes.addressof(buffer), len(_PROBE), 0)])[0]
        finally:
            os.close(fd)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        if buffer.raw != _PROBE:
            raise OSError(errno.EIO, "io_uring read something else than what was written")
    finally:
        ring.close()
