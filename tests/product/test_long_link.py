"""Transfers between two hosts with a link between them that is slow, cut, blocked for UDP, or leads elsewhere suddenly.

Needs root: the hosts are network namespaces of this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import pytest

from headrace.bench.netlab import Lab, Profile, why_not

from .support import CODE, MIB, noise, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150), pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]

SIZE: Final = 16 * MIB
PORT: Final = 7420
PROFILE: Final = Profile(rate=50e6, delay=0.02, queue=0.1)


class Running:
    """A headrace process in one of the namespaces. events: what it said so far."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.stderr = b""
        self._readers = [
            threading.Thread(target=self._out, daemon=True),
            threading.Thread(target=self._err, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _out(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def _err(self) -> None:
        assert self.process.stderr
        self.stderr = self.process.stderr.read()

    def event(self, name: str) -> dict[str, Any] | None:
        return next((event for event in list(self.events) if event["event"] == name), None)

    def wait_event(self, name: str, seconds: float = 20) -> dict[str, Any]:
        def look() -> Any:
            assert self.process.poll() is None or self.event(name), self.stderr
            return self.event(name)

        found: dict[str, Any] = wait_until(look, name, seconds)
        return found

    def received(self) -> int:
        return max((event["bytes_received"] for event in list(self.events) if event["event"] == "progress"), default=0)

    def end(self, seconds: float = 100) -> int:
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(5)
        return code


class Link:
    """A share on one host, and gets of it on the other."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.content = noise(SIZE)
        (folder / "file").write_bytes(self.content)
        self.share = self._start(
            lab.b, "host", "share", str(folder / "file"), "--json", "--port", str(PORT), "--bind", lab.b.address
        )
        self.share.wait_event("ready")
        self.run("ls", f"{lab.b.address}:{PORT}")  # pairs

    def _start(self, host: Any, home: str, *arguments: str) -> Running:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        env = {**inherited, "HEADRACE_HOME": str(self.folder / home), "HEADRACE_CODE": CODE}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return Running(host.popen([sys.executable, "-m", "headrace", *arguments], env=env, **pipes))

    def run(self, *arguments: str) -> Running:
        running = self._start(self.lab.a, "home", *arguments, "--json")
        assert running.end(30) == 0, running.stderr
        return running

    def get(self, *options: str) -> Running:
        where = f"{self.lab.b.address}:{PORT}"
        return self._start(self.lab.a, "home", "get", "--json", *options, where, str(self.folder / "dest"))

    def assert_arrived(self, get: Running) -> dict[str, Any]:
        code = get.end()
        assert code == 0, (code, get.stderr, get.events[-3:])
        assert (self.folder / "dest").read_bytes() == self.content
        return get.wait_event("done")

    def until(self, get: Running, part: float) -> None:
        """So much of the file has come."""
        wait_until(lambda: get.received() >= SIZE * part or get.process.poll() is not None, "a part of it", 30)
        assert get.process.poll() is None, get.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.share.process.kill()
        self.share.end()


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    with Lab(PROFILE) as lab, Link(lab, tmp_path) as link:
        yield link


@pytest.mark.parametrize("transport", ["auto", "tcp", "quic"])
def test_a_file_over_a_long_link(link: Link, transport: str) -> None:
    get = link.get("--transport", transport)
    done = link.assert_arrived(get)
    connected = get.wait_event("connected")
    assert connected["fallback_reason"] is None
    assert connected["reason"]
    assert transport in ("auto", connected["transport"])
    assert transport in ("auto", done["transport"])
    assert connected["rtt_ms"] >= 40


def test_udp_that_is_dropped_costs_little_and_is_told(link: Link) -> None:
    link.lab.block_udp(True)
    started = time.monotonic()
    get = link.get()
    connected = get.wait_event("connected")
    assert time.monotonic() - started < 2
    assert connected["transport"] == "tcp"
    assert "UDP gets no answer" in connected["fallback_reason"]
    link.assert_arrived(get)


def test_forced_quic_without_udp_is_unreachable_and_says_why(link: Link) -> None:
    link.lab.block_udp(True)
    started = time.monotonic()
    get = link.get("--transport", "quic")
    assert get.end() == 5
    assert time.monotonic() - started < 5
    assert b"UDP gets no answer" in get.stderr


@pytest.mark.parametrize("transport", ["tcp", "quic"])
def test_a_link_that_is_cut_for_a_while(link: Link, transport: str) -> None:
    get = link.get("--transport", transport)
    link.until(get, 0.3)
    link.lab.cut()
    time.sleep(4)  # how long the cut lasts is what is tested
    link.lab.restore()
    link.assert_arrived(get)


def test_a_client_whose_address_changes_goes_on_by_tcp(link: Link) -> None:
    get = link.get("--transport", "tcp")
    link.until(get, 0.3)
    another_address(link)
    done = link.assert_arrived(get)
    assert done["bytes_received"] <= 2 * SIZE


def test_a_client_whose_address_changes_keeps_its_quic_connection_or_makes_a_new_one(link: Link) -> None:
    get = link.get("--transport", "quic")
    link.until(get, 0.3)
    another_address(link)
    link.assert_arrived(get)


def test_quic_that_is_blocked_in_the_middle_is_replaced_by_tcp(link: Link) -> None:
    def tcp(action: str) -> None:
        rule = ["pref", "10", "ipproto", "tcp", "dport", str(PORT), "prohibit"]
        link.lab.a.run(["ip", "rule", action, *rule], check=True)

    tcp("add")
    get = link.get()
    assert get.wait_event("connected")["transport"] == "quic"
    link.until(get, 0.2)
    tcp("del")
    link.lab.block_udp(True)
    done = link.assert_arrived(get)
    assert done["transport"] == "tcp"
    assert get.wait_event("transport")["reason"]


def another_address(link: Link) -> None:
    """The old one is gone, as when a laptop changes its network."""
    old, device = link.lab.a.address, "lab0"
    shown = link.lab.a.run(["ip", "-json", "addr"], check=True, capture_output=True, text=True).stdout
    for interface in json.loads(shown):
        for address in interface["addr_info"]:
            if address["local"] == old:
                device, length = interface["ifname"], address["prefixlen"]
    new = ".".join([*old.split(".")[:3], "77"])
    for command in (
        ["addr", "del", f"{old}/{length}", "dev", device],
        ["addr", "add", f"{new}/{length}", "dev", device],
        ["route", "replace", f"{link.lab.b.address}/32", "dev", device, "src", new],
    ):
        link.lab.a.run(["ip", *command], check=True)
