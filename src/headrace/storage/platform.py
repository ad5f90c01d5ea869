"""Which file backend this process uses, and why."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Final

from headrace.errors import UsageError
from headrace.observe.metrics import IO_WANTED, Counts
from headrace.storage.fileio import FileIO
from headrace.storage.plain import PlainIO
from headrace.storage.posix import PosixIO

log = logging.getLogger("headrace.storage")

CHOICES: Final = ("auto", "uring", "posix", "plain")
# Measured (docs/performance.md, "File backends"): io_uring is slower at most of what is done here and faster at nothing
# that posix with read-ahead is not about as fast at. So `auto` does not try it, and nobody is warned about the lack of
# something that would not help. With True here, `auto` tries it, and falls back as `_ring_first` says.
RING_FIRST: Final = False

_DISABLED: Final = "/proc/sys/kernel/io_uring_disabled"


Fallbacks = Counts  # how often what was wanted could not be had, by reason
FALLBACKS: Final = Fallbacks()  # for the metrics


class NoRingError(Exception):
    """There is no io_uring here. Its text says why; `word` is for counting; refused: the system could, but must not."""

    def __init__(self, word: str, text: str, *, refused: bool) -> None:
        super().__init__(text)
        self.word = word
        self.refused = refused


def platform_io(
    choice: str = "auto",
    *,
    ring_first: bool = RING_FIRST,
    make_ring: Callable[[str], FileIO] | None = None,
    has_pread: bool = hasattr(os, "preadv"),
    fallbacks: Fallbacks = FALLBACKS,
) -> FileIO:
    """The backend for `choice`, one of CHOICES. The caller closes it.

    The rest is for tests: make_ring: from the reason to the backend; raises NoRingError.
    Raises UsageError: no such choice, or one that is not to be had here.
    """
    make_ring = make_ring or uring
    if choice == "uring":
        try:
            return make_ring("asked for")
        except NoRingError as why:
            raise UsageError(f"io_uring cannot be used here: {why}", hint="Leave --io out, or use --io posix.") from why
    if choice == "plain":
        return PlainIO("asked for")
    if choice not in ("auto", "posix"):
        raise UsageError(f"{choice!r} is no way to read and write files", hint=f"There are {', '.join(CHOICES)}.")
    if not has_pread:
        if choice == "posix":
            raise UsageError("this system has no preadv and pwrite", hint="Leave --io out, or use --io plain.")
        return PlainIO("this system has no preadv and pwrite")
    if choice == "posix":
        return PosixIO("asked for")
    if not ring_first:
        return PosixIO("as fast as io_uring or faster at what is done here, by measurement")
    return _ring_first(make_ring, fallbacks)


def _ring_first(make_ring: Callable[[str], FileIO], fallbacks: Fallbacks) -> FileIO:
    IO_WANTED.add()
    try:
        return make_ring("it is there and works")
    except NoRingError as why:
        first = fallbacks.add(why.word)
        # Where the system could but must not, somebody can mend it; they are told, once. A Mac without io_uring is
        # simply a Mac: a warning at every run would only teach people to overlook warnings.
        if first:
            level = logging.WARNING if why.refused else logging.INFO
            log.log(level, "no io_uring (%s); files are read and written with preadv and pwrite", why)
        return PosixIO(f"no io_uring: {why}")


def uring(reason: str) -> FileIO:
    """The io_uring backend, after a ring was set up and something was read through it. Raises NoRingError."""
    if sys.platform != "linux":
        raise NoRingError("not_linux", "it is there on Linux only", refused=False)
    try:
        # Here, so that nobody pays for it who does not use it; and some builds of Python have no ctypes.
        from headrace.storage.ring import probe
        from headrace.storage.uring import UringIO
    except ImportError as why:
        raise NoRingError("no_ctypes", f"this Python has no ctypes ({why})", refused=False) from why
    try:
        probe()
        return UringIO(reason)
    except OSError as why:
        raise no_ring(why, _disabled()) from why


def no_ring(why: OSError, disabled: str) -> NoRingError:
    """What a failed try means. disabled: the setting kernel.io_uring_disabled, empty where the kernel has none."""
    if why.errno == errno.EPERM:
        if disabled in ("1", "2"):
            return NoRingError("disabled", f"it is switched off (kernel.io_uring_disabled is {disabled})", refused=True)
        return NoRingError(
            "forbidden", "a filter of system calls (seccomp), as containers have, forbids it", refused=True
        )
    if why.errno == errno.ENOSYS:
        if disabled:  # a kernel with the setting has io_uring: somebody hides it
            return NoRingError("forbidden", "a filter of system calls (seccomp) hides it", refused=True)
        return NoRingError("kernel_too_old", "the kernel is too old; it takes Linux 5.18", refused=True)
    if why.errno == errno.ENOMEM:
        return NoRingError("no_memory", "the limit on locked memory is too low (ulimit -l)", refused=True)
    return NoRingError("failed", f"it does not work ({why.strerror or why})", refused=True)


def _disabled() -> str:
    try:
        with open(_DISABLED) as file:
            return file.read().strip()
    except OSError:
        return ""
