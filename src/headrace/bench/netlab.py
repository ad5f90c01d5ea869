"""Two hosts in network namespaces of this machine, and a link between them that is as slow and as bad as one wants.

    with Lab(Profile(rate=100e6, delay=0.025, queue=0.2)) as lab:
        server = lab.b.popen(["headrace", "share", "folder", "--bind", lab.b.address])
        lab.set(loss=0.01)
        lab.a.run(["headrace", "get", f"{lab.b.address}:7420"])

It needs root and Linux. Not every kernel has netem: the link is a process that carries packets between two TUN devices
(`tunnel`, `link`). It carries some hundred Mbit/s; a larger `mtu` or `offload` carries more, and
docs/performance.md says how much. A profile with `veth` takes the kernel's own link: a rate and a queue, nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Protocol, Self

from headrace.bench import procfs
from headrace.bench.link import CHANGEABLE, Counts, Profile
from headrace.bench.process import BenchError, NotInstalledError, environment
from headrace.bench.sshd import program
from headrace.bench.tunnel import DEVICE

__all__ = ["Host", "Lab", "LabError", "Profile", "why_not"]

NAMESPACES: Final = Path("/run/netns")
PREFIX: Final = "headrace-lab-"
ANSWER_TIMEOUT: Final = 10.0  # seconds
STOP_TIMEOUT: Final = 5.0
TUN_QUEUE: Final = 10_000  # packets: the profile's queue shall be the one that drops
TBF_BURST: Final = 128 * 1024  # bytes: two of the largest lumps that TCP hands to the device
_numbers = itertools.count(1)


class LabError(BenchError):
    """The lab cannot do this; the message says why."""


def why_not() -> str:
    """Why there can be no lab here, or nothing."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "no /dev/net/tun"
    try:
        program("ip")
        program("tc")
    except NotInstalledError as why:
        return f"no program {why}"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return "" if made.returncode == 0 else "no network namespaces may be made here"


class Host:
    """One of the two. address, address6: where the other one finds it; its loopback is its own."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"10.77.0.{number}"
        self.address6 = f"fd77::{number}"
        self._started: list[subprocess.Popen[Any]] = []

    @property
    def path(self) -> str:
        """Of the namespace."""
        return str(NAMESPACES / self.name)

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The same command, on this host. Its process is the command itself from then on."""
        return [program("ip"), "netns", "exec", self.name, *argv]

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """As subprocess.run, on this host."""
        return subprocess.run(self.argv(argv), **options)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """As subprocess.Popen, on this host, in a session of its own. It ends with the lab at the latest."""
        process = subprocess.Popen(self.argv(argv), **{"start_new_session": True} | options)
        self._started.append(process)
        return process

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is on this host: so are the sockets that it makes and the programs that it starts."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            here = os.open(self.path, os.O_RDONLY)
            try:
                os.setns(here, os.CLONE_NEWNET)
            finally:
                os.close(here)
            try:
                yield
            finally:
                os.setns(outside, os.CLONE_NEWNET)
        finally:
            os.close(outside)

    def make(self, congestion: str) -> None:
        """The namespace, with its loopback up."""
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        settings = {
            "net.ipv4.tcp_congestion_control": congestion,
            "net.ipv4.tcp_no_metrics_save": "1",  # a run must not profit from the one before
            "net.ipv6.conf.default.accept_dad": "0",
            "net.ipv6.conf.default.addr_gen_mode": "1",  # and so nothing is sent that nobody asked for
            "net.ipv6.conf.all.keep_addr_on_down": "1",
        }
        with self.inside():
            for name, value in settings.items():
                try:
                    Path("/proc/sys", *name.split(".")).write_text(value)
                except OSError as why:
                    raise LabError(f"{name} cannot be {value}: {why}") from why

    def plug(self, mtu: int) -> None:
        """Addresses for the device of the link, which is there."""
        _ip("-n", self.name, "link", "set", "dev", DEVICE, "mtu", str(mtu), "txqueuelen", str(TUN_QUEUE), "up")
        _ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", DEVICE)
        _ip("-n", self.name, "address", "add", f"{self.address6}/64", "dev", DEVICE, "nodad")

    def remove(self) -> None:
        """Ends what runs on this host, which nobody but the lab's user can have started, and removes the namespace."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
        if not (NAMESPACES / self.name).exists():
            return
        deadline = time.monotonic() + STOP_TIMEOUT
        while left := [pid for pid in map(int, _ip("netns", "pids", self.name).split()) if pid != os.getpid()]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)  # again: one may have started another meanwhile
        _ip("netns", "delete", self.name)


class _Wire(Protocol):
    """What joins the hosts. `stop` always follows `start`, also when that failed."""

    def start(self) -> None: ...
    def apply(self, profile: Profile) -> tuple[Counts, Counts]: ...
    def stop(self) -> None: ...


class Lab:
    """The hosts `a` and `b` and their link, from entering the block to leaving it, however it is left."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        # The name says whose it is, so that another lab can remove it if this process is killed.
        name = f"{PREFIX}{os.getpid()}-{procfs.started(os.getpid())}-{next(_numbers)}"
        self.a, self.b = Host(f"{name}-a", 1), Host(f"{name}-b", 2)
        self._wire: _Wire = (_Veth if profile.veth else _Tunnel)(self.a, self.b, profile)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        remove_orphans()
        with ExitStack() as stack:
            for host in (self.a, self.b):
                stack.callback(host.remove)
                host.make(self.profile.congestion)
            stack.callback(self._wire.stop)
            self._wire.start()
            for host in (self.a, self.b):
                host.plug(self.profile.mtu)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def set(self, **changes: Any) -> None:
        """Changes the link; it is done on return. changes: fields of Profile. Raises LabError, ValueError."""
        if fixed := sorted(changes.keys() - CHANGEABLE):
            raise LabError(f"this cannot change while the link is there: {', '.join(fixed)}")
        profile = replace(self.profile, **changes)
        self._wire.apply(profile)
        self.profile = profile

    def cut(self) -> None:
        """Nothing arrives any more, and no host is told."""
        self.set(down=True)

    def restore(self) -> None:
        """After `cut`."""
        self.set(down=False)

    def block_udp(self, block: bool) -> None:
        """UDP vanishes, in both directions."""
        self.set(udp_blocked=block)

    def counts(self) -> tuple[Counts, Counts]:
        """What became of the packets so far, of a and of b. A veth link counts nothing."""
        return self._wire.apply(self.profile)


class _Tunnel:
    """The link in a process of its own."""

    def __init__(self, a: Host, b: Host, profile: Profile) -> None:
        self._hosts = (a, b)
        self._profile = profile
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = (json.dumps(asdict(self._profile)), *(host.path for host in self._hosts))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "headrace.bench.tunnel", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for who started it
            env=environment(),
        )
        self._answer()

    def apply(self, profile: Profile) -> tuple[Counts, Counts]:
        if not self._process or not self._process.stdin:
            raise LabError("there is no link")
        settings = {name: getattr(profile, name) for name in CHANGEABLE}
        try:
            os.write(self._process.stdin.fileno(), json.dumps(settings).encode() + b"\n")
        except BrokenPipeError as why:
            raise LabError("the link has ended") from why
        there, back = self._answer()
        return Counts(**there), Counts(**back)

    def stop(self) -> None:
        if not self._process:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> Any:
        assert self._process and self._process.stdout
        readable, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            raise LabError(f"the link {'has ended' if readable else 'does not answer'}")
        return json.loads(line)


class _Veth:
    """The kernel's own link."""

    def __init__(self, a: Host, b: Host, profile: Profile) -> None:
        self._hosts = (a, b)
        self._profile = profile

    def start(self) -> None:
        ends = [("name", DEVICE, "netns", host.name) for host in self._hosts]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        self.apply(self._profile)

    def apply(self, profile: Profile) -> tuple[Counts, Counts]:
        for host in self._hosts:
            kind = ["noqueue"]
            if profile.rate:
                latency = f"{profile.longest_wait * 1e6:.0f}us"
                kind = ["tbf", "rate", f"{profile.rate:.0f}bit", "burst", str(TBF_BURST), "latency", latency]
            _tool("tc", "-n", host.name, "qdisc", "replace", "dev", DEVICE, "root", *kind)
        if profile.down != self._profile.down:
            _ip("-n", self._hosts[0].name, "link", "set", "dev", DEVICE, "down" if profile.down else "up")
        self._profile = profile
        return Counts(), Counts()

    def stop(self) -> None:
        """It goes with the namespaces."""


def remove_orphans() -> None:
    """Removes the namespaces of labs whose process was killed."""
    for path in NAMESPACES.glob(f"{PREFIX}*"):
        pid, when = map(int, path.name.removeprefix(PREFIX).split("-")[:2])
        if not procfs.is_running(pid, when):
            with contextlib.suppress(LabError):  # another lab is about to remove it
                Host(path.name, 0).remove()


def _ip(*arguments: str) -> str:
    return _tool("ip", *arguments)


def _tool(name: str, *arguments: str) -> str:
    # A session of its own: Ctrl-C must not end the command that cleans up.
    said = subprocess.run([program(name), *arguments], capture_output=True, text=True, start_new_session=True)
    if said.returncode:
        raise LabError(f"{name} {' '.join(arguments)}: {said.stderr.strip() or said.returncode}")
    return said.stdout
