"""What is fast on this machine, what is not, why, and the one command that would mend it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from headrace.doctor.deadline import within
from headrace.doctor.machine import NO_LIMIT, Machine
from headrace.storage.platform import NoRingError

Status = Literal["ok", "limited", "missing"]
STATUSES: Final[tuple[Status, ...]] = ("ok", "limited", "missing")

MIB: Final = 1024 * 1024
TIME_LIMIT: Final = 10.0  # seconds for one check; none should take one
UDP_WANTED: Final = 4 * MIB  # bytes; about 30 ms of a gigabit, so that a burst does not find the buffer full
AES_WANTED: Final = 1e9  # bytes a second; processors with AES instructions do several times that
FILES_WANTED: Final = 1024

# What FICLONE answers where the file system cannot do it (ioctl_ficlonerange(2)).
_NO_CLONES: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV})
# Why there is no ring (storage.platform), where a command would mend it.
_RING_MENDS: Final = {"disabled": "sysctl -w kernel.io_uring_disabled=0", "no_memory": "ulimit -l unlimited"}
_NOT_ALLOWED: Final = frozenset({errno.EPERM, errno.EACCES})


@dataclass(frozen=True, slots=True)
class Found:
    """ok: it works. limited: it works, but not as well as it could. missing: headrace has to do without it.

    mend: one command, for a shell, mostly of root. None where nothing needs it, and where no command would do.
    """

    status: Status
    reason: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """What was found under a name that stays."""

    name: str
    found: Found


def run(
    machine: Machine | None = None,
    checks: Mapping[str, Callable[[Machine], Found]] | None = None,
    *,
    seconds: float = TIME_LIMIT,
) -> Iterator[Check]:
    """Each check as it is done. Never raises, and no check takes longer than `seconds`."""
    where = machine or Machine()
    for name, check in (CHECKS if checks is None else checks).items():
        yield Check(name, _guarded(check, where, seconds))


def _guarded(check: Callable[[Machine], Found], machine: Machine, seconds: float) -> Found:
    try:
        return within(seconds, lambda: check(machine))
    except Exception as why:  # noqa: BLE001  # a check that fails is a finding, and the others still count
        return Found("missing", f"it could not be tried ({_words(why)})")


def io_uring(machine: Machine) -> Found:
    """Many file operations for one system call."""
    try:
        machine.make_ring()
    except NoRingError as why:
        if why.word == "not_linux":
            return _not_here(machine)
        return Found("missing", str(why), _RING_MENDS.get(why.word))
    return Found("ok", "a ring was set up and read through; --io uring takes it")


def sendfile(machine: Machine) -> Found:
    """From the disk to the network without a copy in between."""
    try:
        whole = machine.send_file()
    except AttributeError:
        return _not_here(machine)
    except OSError as why:
        return Found("missing", f"a file could not be sent over loopback ({_words(why)})")
    if not whole:
        return Found("missing", "what arrived over loopback is not what was sent")
    return Found("ok", "a file was sent over loopback")


def kernel_tls(machine: Machine) -> Found:
    """Encryption in the kernel."""
    found = machine.kernel_tls()
    if found.lack == "module":
        return _module(machine, found.reason, "tls")
    return Found(found.status, found.reason)


def bbr(machine: Machine) -> Found:
    """Congestion control that keeps its rate where packets are lost."""
    if machine.platform != "linux":
        return _not_here(machine)
    available = (machine.sysctl("net.ipv4.tcp_available_congestion_control") or "").split()
    try:
        machine.use_bbr()
    except OSError as why:
        if why.errno in _NOT_ALLOWED:
            allowed = machine.sysctl("net.ipv4.tcp_allowed_congestion_control") or "reno cubic"
            return Found(
                "limited",
                "the kernel has it, but only for root",
                f'sysctl -w net.ipv4.tcp_allowed_congestion_control="{allowed} bbr"',
            )
        others = f"; TCP goes by one of {', '.join(available)}" if available else ""
        return _module(machine, f"the kernel has not loaded it{others}", "tcp_bbr")
    return Found("ok", "the kernel takes it for a connection")


def fuse(machine: Machine) -> Found:
    """Mounting a share."""
    if machine.platform != "linux":
        return _not_here(machine)
    refused: OSError | None = None
    try:
        machine.open_fuse()
    except OSError as why:
        if why.errno not in _NOT_ALLOWED:
            return _module(machine, f"/dev/fuse cannot be opened ({_words(why)})", "fuse")
        refused = why
    if not machine.has_program("fusermount3"):
        return Found("missing", "fusermount3 is not in PATH", "apt install fuse3")
    if refused:
        return Found("limited", f"this user may not open /dev/fuse ({_words(refused)})", "chmod 666 /dev/fuse")
    return Found("ok", "/dev/fuse opens, and fusermount3 is there")


def udp_buffers(machine: Machine) -> Found:
    """Room for bursts of datagrams."""
    receive, send = machine.udp_buffers(UDP_WANTED)
    sizes = f"{_size(receive)} to receive and {_size(send)} to send"
    if min(receive, send) >= UDP_WANTED:
        return Found("ok", f"a UDP socket gets {sizes}")
    names = [f"net.core.{name}" for name, got in (("rmem_max", receive), ("wmem_max", send)) if got < UDP_WANTED]
    mend = "sysctl -w " + " ".join(f"{name}={UDP_WANTED}" for name in names) if machine.platform == "linux" else None
    return Found("limited", f"a UDP socket gets only {sizes}; bursts above that are lost", mend)


def reflink(machine: Machine) -> Found:
    """Copies within a disk that take neither time nor space."""
    if machine.platform != "linux":
        return _not_here(machine)
    kind = machine.file_system() or "its file system"
    try:
        cloned = machine.clone()
    except OSError as why:
        if why.errno in _NO_CLONES:
            return Found("missing", f"{kind} in the current folder cannot share blocks; Btrfs and XFS can")
        return Found("missing", f"nothing can be written in the current folder to try it ({_words(why)})")
    if not cloned:
        return Found("missing", f"{kind} in the current folder made a clone with other bytes")
    return Found("ok", f"{kind} in the current folder shares blocks")


def aes(machine: Machine) -> Found:
    """The cipher that everything goes through."""
    try:
        rate = machine.aes_rate()
    except ImportError as why:
        return Found("missing", f"cryptography is broken here ({why})", "pip install --force-reinstall cryptography")
    figure = f"AES-128-GCM runs at {rate / 1e9:.1f} GB/s on one core"
    if rate >= AES_WANTED:
        return Found("ok", figure)
    return Found("limited", f"{figure}, as without AES instructions; transfers cannot be faster")


def open_files(machine: Machine) -> Found:
    """How many peers and files at once."""
    try:
        soft, hard = machine.open_files()
    except ImportError:
        return _not_here(machine)
    if soft >= NO_LIMIT:
        return Found("ok", "no limit on open files")
    reason = f"a process may have {soft} files and sockets open"
    if soft >= FILES_WANTED:
        return Found("ok", reason)
    mend = f"ulimit -n {FILES_WANTED}" if hard >= FILES_WANTED else None
    return Found("limited", f"{reason}; a share with many peers wants {FILES_WANTED}", mend)


def _not_here(machine: Machine) -> Found:
    return Found("missing", f"not on this system ({machine.platform})")


def _module(machine: Machine, reason: str, name: str) -> Found:
    """missing: the kernel lacks a module. Only one that lies on this disk can be loaded."""
    if machine.has_module(name):
        return Found("missing", reason, f"modprobe {name}")
    return Found("missing", f"{reason}; there is no module {name} on this disk")


def _words(why: BaseException) -> str:
    return str(getattr(why, "strerror", None) or str(why) or type(why).__name__)


def _size(count: int) -> str:
    return f"{count / MIB:.1f} MiB" if count >= MIB else f"{count / 1024:.0f} KiB"


# In the order of the report. The names are those of `--json`: they stay.
CHECKS: Final[Mapping[str, Callable[[Machine], Found]]] = {
    "io_uring": io_uring,
    "sendfile": sendfile,
    "kernel-tls": kernel_tls,
    "bbr": bbr,
    "fuse": fuse,
    "udp-buffers": udp_buffers,
    "reflink": reflink,
    "aes": aes,
    "open-files": open_files,
}
