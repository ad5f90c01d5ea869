"""What each check makes of a machine, on machines made up for it; and what the checks say of this one."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.doctor import checks
from headrace.doctor.checks import CHECKS, MIB, STATUSES, Check, Found
from headrace.doctor.machine import NO_LIMIT, Machine
from headrace.storage.platform import NoRingError
from headrace.transport.ktls import KernelTls


def failing(code: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return fail


class Fake(Machine):
    """A Linux machine where everything works, but for what a test changes."""

    platform = "linux"

    def __init__(self, **changed: object) -> None:
        self.sysctls: dict[str, str] = {}
        self.modules: set[str] = set()
        self.programs = {"fusermount3"}
        for name, value in changed.items():
            setattr(self, name, value)

    def sysctl(self, name: str) -> str | None:
        return self.sysctls.get(name)

    def has_module(self, name: str) -> bool:
        return name in self.modules

    def has_program(self, name: str) -> bool:
        return name in self.programs

    def make_ring(self) -> None:
        pass

    def send_file(self) -> bool:
        return True

    def kernel_tls(self) -> KernelTls:
        return KernelTls("ok", "it is there")

    def use_bbr(self) -> None:
        pass

    def open_fuse(self) -> None:
        pass

    def udp_buffers(self, wanted: int) -> tuple[int, int]:
        return wanted, wanted

    def clone(self) -> bool:
        return True

    def file_system(self) -> str:
        return "btrfs"

    def aes_rate(self) -> float:
        return 4.2e9

    def open_files(self) -> tuple[int, int]:
        return 1024, 524288


@pytest.mark.parametrize("name", CHECKS)
def test_a_machine_that_has_everything(name):
    found = CHECKS[name](Fake())

    assert (found.status, found.mend) == ("ok", None)


def check(name: str, status: str, mend: str | None, *words: str, **changed: object) -> None:
    found = CHECKS[name](Fake(**changed))
    assert (found.status, found.mend) == (status, mend), found
    for word in words:
        assert word in found.reason
    assert not found.reason.endswith(".")


def test_io_uring():
    def lacking(word: str) -> Callable[[], None]:
        def fail() -> None:
            raise NoRingError(word, f"because {word}", refused=True)

        return fail

    switch_on = "sysctl -w kernel.io_uring_disabled=0"
    check("io_uring", "missing", switch_on, "because disabled", make_ring=lacking("disabled"))
    check("io_uring", "missing", "ulimit -l unlimited", "no_memory", make_ring=lacking("no_memory"))
    check("io_uring", "missing", None, "kernel_too_old", make_ring=lacking("kernel_too_old"))
    check("io_uring", "missing", None, "not on this system", make_ring=lacking("not_linux"), platform="darwin")


def test_sendfile():
    def lacking() -> bool:
        raise AttributeError("os has no sendfile")

    check("sendfile", "missing", None, "Invalid argument", send_file=failing(errno.EINVAL))
    check("sendfile", "missing", None, "not what was sent", send_file=lambda: False)
    check("sendfile", "missing", None, "not on this system (win32)", send_file=lacking, platform="win32")


def test_kernel_tls():
    no_module = KernelTls("missing", "not loaded", "module")
    refused = KernelTls("missing", "not allowed", "kernel")

    check("kernel-tls", "missing", "modprobe tls", "not loaded", kernel_tls=lambda: no_module, modules={"tls"})
    check("kernel-tls", "missing", None, "not loaded; there is no module tls", kernel_tls=lambda: no_module)
    check("kernel-tls", "missing", None, "not allowed", kernel_tls=lambda: refused, modules={"tls"})


def test_bbr():
    settings = {
        "net.ipv4.tcp_available_congestion_control": "reno cubic",
        "net.ipv4.tcp_allowed_congestion_control": "reno",
    }
    missing, forbidden = failing(errno.ENOENT), failing(errno.EPERM)

    check("bbr", "missing", "modprobe tcp_bbr", "reno, cubic", use_bbr=missing, sysctls=settings, modules={"tcp_bbr"})
    check("bbr", "missing", None, "no module tcp_bbr", use_bbr=missing)
    mend = 'sysctl -w net.ipv4.tcp_allowed_congestion_control="reno bbr"'
    check("bbr", "limited", mend, "only for root", use_bbr=forbidden, sysctls=settings)


def test_fuse():
    gone, forbidden = failing(errno.ENOENT), failing(errno.EACCES)

    check("fuse", "missing", "modprobe fuse", "/dev/fuse", open_fuse=gone, modules={"fuse"})
    check("fuse", "missing", None, "no module fuse", open_fuse=gone)
    check("fuse", "missing", "apt install fuse3", "fusermount3", programs=set())
    check("fuse", "missing", "apt install fuse3", "fusermount3", programs=set(), open_fuse=forbidden)
    check("fuse", "limited", "chmod 666 /dev/fuse", "Permission denied", open_fuse=forbidden)


def test_udp_buffers():
    receive = "sysctl -w net.core.rmem_max=4194304"
    both = f"{receive} net.core.wmem_max=4194304"

    check("udp-buffers", "limited", receive, "208 KiB to receive", udp_buffers=lambda wanted: (212992, wanted))
    check("udp-buffers", "limited", both, "2.0 MiB to send", udp_buffers=lambda wanted: (212992, 2 * MIB))
    check("udp-buffers", "limited", None, "only", udp_buffers=lambda wanted: (1, 1), platform="darwin")
    check("udp-buffers", "ok", None, udp_buffers=lambda wanted: (wanted, wanted), platform="darwin")


def test_reflink():
    check("reflink", "missing", None, "ext4", clone=failing(errno.EOPNOTSUPP), file_system=lambda: "ext4")
    check("reflink", "missing", None, "its file system", clone=failing(errno.EINVAL), file_system=lambda: "")
    check("reflink", "missing", None, "nothing can be written", clone=failing(errno.EROFS))
    check("reflink", "missing", None, "other bytes", clone=lambda: False)


def test_aes():
    def broken() -> float:
        raise ImportError("no module named cryptography")

    check("aes", "limited", None, "0.2 GB/s", "transfers cannot be faster", aes_rate=lambda: 2.1e8)
    check("aes", "missing", "pip install --force-reinstall cryptography", aes_rate=broken)


def test_open_files():
    def lacking() -> tuple[int, int]:
        raise ImportError("no module named resource")

    check("open-files", "limited", "ulimit -n 1024", "256 files", open_files=lambda: (256, NO_LIMIT))
    check("open-files", "limited", None, "256 files", open_files=lambda: (256, 512))
    check("open-files", "ok", None, "no limit", open_files=lambda: (NO_LIMIT, NO_LIMIT))
    check("open-files", "missing", None, "not on this system (win32)", open_files=lacking, platform="win32")


@pytest.mark.parametrize("name", ["bbr", "fuse", "reflink"])
def test_elsewhere_what_is_linux_alone_is_missing(name):
    check(name, "missing", None, "not on this system (darwin)", platform="darwin")


# ---- all of them -----------------------------------------------------------------------------------------------------


def test_a_check_that_fails_is_a_finding_and_the_others_go_on():
    def broken(machine: Machine) -> Found:
        raise RuntimeError("a surprise")

    found = list(checks.run(Fake(), {"broken": broken, "aes": checks.aes}))

    assert found[0] == Check("broken", Found("missing", "it could not be tried (a surprise)"))
    assert found[1].found.status == "ok"


def test_a_check_that_hangs_is_left_behind():
    over = threading.Event()

    def hanging(machine: Machine) -> Found:
        over.wait(20)
        return Found("ok", "too late")

    found = list(checks.run(Fake(), {"hanging": hanging, "aes": checks.aes}, seconds=0.1))
    over.set()

    assert found[0].found.status == "missing"
    assert "no answer within" in found[0].found.reason
    assert found[1].found.status == "ok"


def test_this_machine_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0

    found = list(checks.run())

    assert [one.name for one in found] == list(CHECKS)
    assert all(one.found.status in STATUSES and one.found.reason for one in found)
    assert not any("could not be tried (" in one.found.reason for one in found), found
    assert list(tmp_path.iterdir()) == []
    if opened:
        assert len(os.listdir("/proc/self/fd")) == opened


def test_nothing_is_left_behind_by_a_clone_that_fails(tmp_path, monkeypatch):
    def refuse(*arguments: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "no")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "ioctl", refuse)

    assert checks.reflink(Machine()).status == "missing"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/sys").exists(), reason="no /proc here")
def test_what_the_machine_reads_of_the_kernel():
    machine = Machine()

    assert machine.sysctl("kernel.ostype") == "Linux"
    assert machine.sysctl("kernel.nothing_of_the_kind") is None
    assert not machine.has_module("nothing_of_the_kind")
    assert machine.file_system()
