"""What people get wrong on their first day. Each ends at once, in one line that says what to do; and the page
docs/start/when-it-fails.md has that line."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from headrace.transport import discovery, eyeballs

from .support import CODE, WRONG_CODE, Headrace, Host, Outcome, call, finish, make_file, noise

HELP: Final = (Path(__file__).parent.parent.parent / "docs" / "start" / "when-it-fails.md").read_text("utf-8")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("share")
    make_file(folder / "share" / "notes.txt", b"notes")
    make_file(folder / "share" / "day1" / "a.mov", noise(100_000))
    with Host(folder / "share", home=folder / "home") as host:
        yield host


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


TCP: Final = {"HEADRACE_TRANSPORT": "tcp"}


def typed(*arguments: str, home: Path, **env: str) -> Line:
    """By TCP alone: on a busy machine the answer by UDP may be late, and that is told as well."""
    return said(call(*arguments, home=home, env={**TCP, **env}))


@dataclass
class Line:
    """The one line on standard error, and the exit code."""

    exit_code: int
    text: str


def said(outcome: Outcome) -> Line:
    assert "Traceback" not in outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("headrace: ")]
    assert len(lines) == 1, outcome.stderr
    return Line(outcome.exit_code, lines[0])


def explained(words: str) -> None:
    """The page has a row for it."""
    rows = re.findall(r"(?m)^\| ([^|]+) \|", HELP)
    assert any(words in row for row in rows), f"{words!r} is in no row of when-it-fails.md"


def test_a_wrong_code(host: Host, home: Path) -> None:
    line = typed("ls", host.address, home=home, HEADRACE_CODE=WRONG_CODE)
    assert line.exit_code == 4
    assert "the code is wrong" in line.text and "started again has another one" in line.text
    assert WRONG_CODE[5:] not in line.text
    explained("the code is wrong")


def test_half_a_code(home: Path) -> None:
    line = typed("get", "7k2m@127.0.0.1:7420", home=home)
    assert line.exit_code == 2 and "8 to 64 characters, such as 7k2m-xq4c-9dht" in line.text


def test_a_code_alone_where_nobody_announces_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word to the network that this machine is in; test_discovery.py has one of its own."""
    monkeypatch.setattr(discovery, "_opened", contextlib.nullcontext)
    monkeypatch.setattr("zeroconf.ServiceInfo", lambda *names: SimpleNamespace(request=lambda *asked: False))
    line = typed("get", CODE, home=home)
    assert line.exit_code == 5
    assert f"no share {CODE[:4]} answers on this network" in line.text and "write CODE@HOST:PORT" in line.text
    explained("answers on this network")


def test_no_code_at_all(host: Host, home: Path) -> None:
    line = typed("ls", host.address, home=home)
    assert line.exit_code == 2 and "no code for" in line.text and "HEADRACE_CODE" in line.text


def test_the_share_does_not_run(home: Path) -> None:
    with socket.socket() as held:  # nobody else can listen there
        held.bind(("127.0.0.1", 0))
        line = typed("get", f"{CODE}@127.0.0.1:{held.getsockname()[1]}", home=home)
    assert line.exit_code == 5
    assert "nobody listens on 127.0.0.1:" in line.text and "still running" in line.text
    explained("nobody listens on")


def test_a_firewall_that_drops_everything(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(addresses: object, timeout: float, **more: object) -> object:
        raise TimeoutError

    monkeypatch.setattr(eyeballs, "connect", connect)
    line = typed("get", f"{CODE}@192.0.2.7:7420", home=home)
    assert line.exit_code == 5
    assert "192.0.2.7:7420 does not answer" in line.text and "firewall" in line.text
    explained("does not answer")


def test_something_else_has_that_port(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = typed("share", str(home.parent), "--port", str(port), "--bind", "127.0.0.1", home=home)
    assert line.exit_code == 2
    assert f"port {port} is in use" in line.text and "--port 0" in line.text
    explained("is in use")


def test_a_path_that_is_not_in_the_share(host: Host, home: Path) -> None:
    line = typed("get", f"{CODE}@{host.address}/day2", home=home)
    assert line.exit_code == 3
    assert "no such path in the share: day2" in line.text and "headrace ls" in line.text
    explained("no such path in the share")


def test_sharing_what_is_not_there(home: Path) -> None:
    line = typed("share", "footaje", "--port", "0", home=home)
    assert line.exit_code == 3
    assert "no file or folder footaje" in line.text


def test_a_file_that_is_there_and_differs(host: Host, home: Path, tmp_path: Path) -> None:
    make_file(tmp_path / "dest" / "notes.txt", b"mine")
    line = typed("get", f"{CODE}@{host.address}/notes.txt", str(tmp_path / "dest"), home=home)
    assert line.exit_code == 10
    assert "notes.txt exists and is different" in line.text and "--on-exist overwrite" in line.text
    assert (tmp_path / "dest" / "notes.txt").read_bytes() == b"mine"
    explained("exists and is different")


def test_a_destination_that_is_a_file(host: Host, home: Path, tmp_path: Path) -> None:
    (tmp_path / "dest").write_text("a file")
    line = typed("get", f"{CODE}@{host.address}", str(tmp_path / "dest"), home=home)
    assert line.exit_code == 11
    assert "dest, or something above it, is not a folder" in line.text


@pytest.mark.slow
def test_a_destination_where_one_may_not_write(host: Host, home: Path, tmp_path: Path) -> None:
    (tmp_path / "dest").mkdir(mode=0o555)
    with Headrace("get", f"{CODE}@{host.address}", str(tmp_path / "dest"), home=home, bound=True, env=TCP) as get:
        line = said(finish(get))
    assert line.exit_code == 8
    assert f"you may not write in {tmp_path / 'dest'}" in line.text and "Check who owns" in line.text
    explained("no permission")


@pytest.mark.slow
def test_a_folder_that_one_may_not_read(home: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o000)
    with Headrace("share", str(tmp_path / "private"), "--port", "0", home=home, bound=True, env=TCP) as share:
        line = said(finish(share))
    (tmp_path / "private").chmod(0o700)
    assert line.exit_code == 4
    assert "you may not read" in line.text and "Check its permissions" in line.text


@pytest.mark.parametrize(
    ("words", "help"),
    [
        (["shrae", "."], "Did you mean headrace share?"),
        (["copy", "x"], "Did you mean headrace get?"),
        (["list"], "Did you mean headrace ls?"),
        (["help"], "Did you mean headrace --help?"),
        (["7k2m-xq4c-9dht"], "headrace get CODE@HOST:PORT"),
        (["7k2m-xq4c-9dht@10.0.0.7:7420"], "headrace get CODE@HOST:PORT"),
        (["/"], "headrace share /"),
        (["xyzzy"], "See headrace --help."),
        (["get"], "such as 7k2m-xq4c-9dht@192.168.1.20:7420. See headrace get --help."),
        (["get", "--foo", "x"], "See headrace get --help."),
        (["get", "t", "--on-exist", "replace"], "'overwrite'"),
        (["get", "t", "--limit-rate", "fast"], "write something like 64M"),
    ],
)
def test_a_command_that_there_is_not(words: list[str], help: str, home: Path) -> None:
    line = typed(*words, home=home)
    assert line.exit_code == 2
    assert help in line.text
    assert "xq4c-9dht@10" not in line.text and "?." not in line.text


def test_an_identity_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    line = typed("share", str(tmp_path), "--port", "0", home=tmp_path / "home")
    assert line.exit_code == 8
    assert "set HEADRACE_HOME" in line.text and "[Errno" not in line.text


# Mounting without FUSE, on a folder that is not empty, or that is none: tests/mount/test_refused.py. Peers that are too
# old or too new, and what answers and is not headrace: test_unreachable.py. A full disk: test_disk.py.
@pytest.mark.parametrize(
    "words",
    ["is not empty", "fusermount3", "no protocol version", "not headrace", "no space left", "another certificate"],
)
def test_the_page_knows_the_others(words: str) -> None:
    explained(words)
