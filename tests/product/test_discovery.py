"""Two machines on one network, and a code without an address. Needs root: the machines are network namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.bench.netlab import Host, Lab, Profile, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]

CODE: Final = "7k2m-xq4c-9dht"
GROUP, *SECRET = CODE.split("-")
ETH_P_ALL: Final = 3


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(Profile(rate=1e9, veth=True)) as lab:
        yield lab


class Machine:
    """One of the two, with a home of its own."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        env = {**inherited, "HEADRACE_HOME": str(self.folder / self.host.address)}
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return self.host.popen([sys.executable, "-m", "headrace", *map(str, arguments)], env=env, **pipes)

    def run(self, *arguments: str | Path) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=30)
        return process.returncode, out.decode(), err.decode()


@contextlib.contextmanager
def sharing(machine: Machine, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A share that is ready. On a port of its own, so that nobody finds it by the default one."""
    place = machine.folder / "share"
    place.mkdir(exist_ok=True)
    (place / "file").write_bytes(b"found")
    share = machine.start("share", place, "--code", CODE, "--port", "0", "--json", *options)
    try:
        assert share.stdout
        assert json.loads(share.stdout.readline())["event"] == "ready"
        yield share
    finally:
        share.send_signal(signal.SIGINT)
        assert share.wait(10) == 130


@pytest.fixture
def here(lab: Lab, tmp_path: Path) -> Machine:
    return Machine(lab.a, tmp_path)


@pytest.fixture
def there(lab: Lab, tmp_path: Path) -> Machine:
    return Machine(lab.b, tmp_path)


def mounts(machine: Machine, point: Path) -> None:
    """By the code alone, too. The mount is seen by the machine's own processes only."""
    if not os.path.exists("/dev/fuse") or not shutil.which("fusermount3"):
        return
    point.mkdir()
    mount = machine.start("mount", CODE, point, "--foreground", "--json")
    try:
        assert mount.stdout
        ready = json.loads(mount.stdout.readline())
        assert (ready["event"], ready["share"]) == ("ready", GROUP)
    finally:
        mount.send_signal(signal.SIGINT)
        mount.communicate(timeout=20)
    assert mount.returncode == 130


def test_the_code_alone_finds_the_share_as_long_as_it_runs(here: Machine, there: Machine) -> None:
    with sharing(there):
        code, _, err = here.run("get", CODE, here.folder / "dest")
        assert code == 0, err
        assert (here.folder / "dest" / "file").read_bytes() == b"found"
        code, out, err = here.run("cat", f"{CODE}/file")
        assert (code, out) == (0, "found"), err
        mounts(here, here.folder / "mnt")
        code, out, err = here.run("status", "--lan", "--json")
        assert code == 0, err
        (found,) = [json.loads(line) for line in out.splitlines()]
        assert found["event"] == "found"
        assert found["share"] == GROUP
        assert found["paired"] is True
        assert there.host.address in found["addresses"]
    code, _, err = here.run("ls", CODE)  # it took its announcement back
    assert code == 5
    assert f"last reached at {there.host.address}:" in err


def test_one_that_is_not_announced_is_not_found_and_the_hint_says_what_to_write(here: Machine, there: Machine) -> None:
    with sharing(there, "--no-discovery"):
        code, out, err = here.run("ls", CODE)
        assert code == 5
        assert out == ""
        assert f"no share {GROUP} answers" in err
        assert "CODE@HOST:PORT" in err


def test_only_the_public_group_is_announced(here: Machine, there: Machine) -> None:
    """Everything that crosses the network while a share is announced and looked for: the secret is not in it."""
    crossed = bytearray()
    with here.host.inside():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with sock, sharing(there):
        looking = here.start("status", "--lan")
        end = time.monotonic() + 20
        while looking.poll() is None:
            assert time.monotonic() < end
            if select.select([sock], [], [], 0.1)[0]:
                crossed += sock.recv(65536)
        assert looking.returncode == 0
    seen = bytes(crossed).lower()
    assert GROUP.encode() in seen
    for secret in SECRET:
        assert secret.encode() not in seen
