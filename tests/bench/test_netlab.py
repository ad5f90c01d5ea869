"""Two hosts and a link: it is as slow and as bad as was asked for, and nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.bench import netlab, procfs
from headrace.bench.flow import goodput
from headrace.bench.netlab import Host, Lab, LabError, Profile

pytestmark = pytest.mark.skipif(bool(netlab.why_not()), reason=netlab.why_not() or "there is a lab")

ROOT = Path(__file__).parents[2]

# A program with a lab and a process on it, for the tests that end the program.
HOLDER = """
import time
from headrace.bench.netlab import Lab, Profile
with Lab(Profile()) as lab:
    print(lab.a.name, lab.b.popen(["sleep", "300"]).pid, flush=True)
    time.sleep(300)
"""


def udp(host: Host) -> socket.socket:
    """Bound to the host's address, with room for all that a test sends."""
    with host.inside():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE: root may have more than the limit
    made.bind((host.address, 0))
    made.settimeout(5)
    return made


@contextlib.contextmanager
def echo(lab: Lab) -> Iterator[socket.socket]:
    """A socket on a that is connected to a UDP echo on b."""
    with udp(lab.b) as far, udp(lab.a) as near:
        near.connect(far.getsockname())

        def serve() -> None:
            while True:
                said, who = far.recvfrom(2000)
                if said == b"end":
                    return
                far.sendto(said, who)

        far.settimeout(None)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield near
        finally:
            with lab.b.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"end", far.getsockname())
            thread.join()


def answers(near: socket.socket, timeout: float) -> bool:
    near.settimeout(timeout)
    near.send(b"hello")
    try:
        return near.recv(100) == b"hello"
    except TimeoutError:
        return False


def left_of(name: str) -> list[str]:
    """Namespaces, and processes with the name of one in their command line."""
    lab = name.rpartition("-")[0]
    found = [path.name for path in netlab.NAMESPACES.glob(f"{lab}-*")]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if lab.encode() in file.read_bytes():
                found.append(str(file))
    return found


@pytest.mark.slow
def test_the_round_trip_takes_twice_the_delay():
    with Lab(Profile(delay=0.020)) as lab, echo(lab) as near:
        times = []
        for _ in range(25):
            started = time.monotonic()
            near.send(b"hello")
            near.recv(100)
            times.append(time.monotonic() - started)
        assert statistics.median(times) == pytest.approx(0.040, rel=0.15)


@pytest.mark.slow
def test_tcp_gets_the_rate_less_its_headers():
    with Lab(Profile(rate=20e6, delay=0.005)) as lab:
        assert goodput(lab, 5_000_000) == pytest.approx(20e6 * 1448 / 1500, rel=0.10)


@pytest.mark.slow
def test_a_changed_rate_is_what_tcp_gets_next():
    with Lab(Profile(rate=50e6, delay=0.005)) as lab:
        lab.set(rate=10e6)
        assert goodput(lab, 2_000_000) == pytest.approx(10e6 * 1448 / 1500, rel=0.15)


@pytest.mark.slow
def test_a_veth_link_has_the_rate_as_well_and_nothing_else():
    with Lab(Profile(rate=100e6, veth=True)) as lab:
        assert goodput(lab, 10_000_000) == pytest.approx(100e6 * 1448 / 1514, rel=0.10)
        with pytest.raises(ValueError):
            lab.set(delay=0.1)


def test_tcp_survives_loss_reordering_and_lumps():
    with Lab(Profile(delay=0.002, loss=0.01, reorder=0.05, reorder_delay=0.002, offload=True)) as lab:
        assert goodput(lab, 5_000_000) > 1e6
        assert lab.counts()[1].lost > 0


def test_the_share_of_packets_that_was_asked_for_is_lost():
    with Lab(Profile(loss=0.05, seed=3)) as lab, udp(lab.a) as near, udp(lab.b) as far:
        for _ in range(1000):
            near.sendto(b"x", far.getsockname())
        far.settimeout(0.3)
        received = 0
        with contextlib.suppress(TimeoutError):
            while far.recv(10):
                received += 1
        assert 25 <= 1000 - received <= 75
        assert lab.counts()[0].lost == pytest.approx(1000 - received, abs=2)


def test_the_queue_bounds_the_delay():
    with Lab(Profile(rate=10e6, queue=0.1)) as lab, udp(lab.a) as near, udp(lab.b) as far:
        for _ in range(500):  # 0.56 s of the line
            near.sendto(repr(time.monotonic()).encode().ljust(1372), far.getsockname())
        far.settimeout(0.3)
        waits = []
        with contextlib.suppress(TimeoutError):
            while True:
                sent = float(far.recv(2000))
                waits.append(time.monotonic() - sent)
        assert len(waits) < 200
        assert 0.05 < max(waits) < 0.2
        assert lab.counts()[0].overflowed == 500 - len(waits)


def test_a_cut_link_is_silent_until_it_is_restored():
    with Lab(Profile(delay=0.001)) as lab, echo(lab) as near:
        assert answers(near, 5)
        lab.cut()
        assert not answers(near, 0.3)
        lab.restore()
        assert answers(near, 5)


def test_a_cut_veth_link_as_well():
    with Lab(Profile(veth=True)) as lab, echo(lab) as near:
        assert answers(near, 5)
        lab.cut()
        with contextlib.suppress(OSError):
            assert not answers(near, 0.3)
        lab.restore()
        assert answers(near, 5)


@pytest.mark.parametrize("offload", [False, True])
def test_blocked_udp_leaves_tcp_alone(offload: bool):
    with Lab(Profile(offload=offload)) as lab:
        with echo(lab) as near:
            assert answers(near, 5)
            lab.block_udp(True)
            assert not answers(near, 0.3)
            assert goodput(lab, 1_000_000) > 0
            lab.block_udp(False)
            assert answers(near, 5)


def test_commands_run_on_the_host_they_are_given_to():
    with Lab(Profile()) as lab:
        said = lab.a.run(["ip", "-brief", "address"], capture_output=True, text=True, check=True).stdout
        assert lab.a.address in said
        assert lab.a.address6 in said
        assert lab.b.address not in said
        with lab.b.popen([sys.executable, "-c", "print('here')"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.read() == "here\n"


def test_hosts_reach_each_other_by_ipv6():
    with Lab(Profile()) as lab:
        with lab.b.inside():
            server = socket.create_server((lab.b.address6, 0), family=socket.AF_INET6)
        with server, lab.a.inside():
            socket.create_connection(server.getsockname()[:2], timeout=5).close()


def test_nothing_is_left_after_the_block():
    before = os.readlink("/proc/thread-self/ns/net")
    with Lab(Profile()) as lab:
        child = lab.a.popen(["sleep", "300"])
        stray = lab.b.popen(["sh", "-c", "setsid sleep 300 & echo $!"], stdout=subprocess.PIPE, text=True)
        assert stray.stdout is not None
        pid = int(stray.stdout.readline())
        when = procfs.started(pid)
        stray.stdout.close()
        assert left_of(lab.a.name)
    assert child.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while procfs.is_running(pid, when) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not procfs.is_running(pid, when)
    assert left_of(lab.a.name) == []
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_nothing_is_left_when_the_body_raises():
    lab = Lab(Profile(rate=1e6))
    with pytest.raises(RuntimeError):
        with lab, lab.a.inside():
            raise RuntimeError
    assert left_of(lab.a.name) == []


def test_nothing_is_left_of_a_lab_that_cannot_start():
    lab = Lab(Profile(congestion="no-such"))
    with pytest.raises(LabError, match="no-such"), lab:
        raise AssertionError("it is not entered")
    assert left_of(lab.a.name) == []


def test_what_is_fixed_cannot_be_set():
    with Lab(Profile()) as lab:
        with pytest.raises(LabError, match="mtu"):
            lab.set(mtu=9000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_program_is_stopped(number: signal.Signals):
    argv = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as holder:
        assert holder.stdout is not None
        name, pid = holder.stdout.readline().split()
        when = procfs.started(int(pid))
        holder.send_signal(number)
    if number == signal.SIGKILL:  # then the next lab cleans up
        netlab.remove_orphans()
    deadline = time.monotonic() + 5
    while (left_of(name) or procfs.is_running(int(pid), when)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left_of(name) == []
    assert not procfs.is_running(int(pid), when)
