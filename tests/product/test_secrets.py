"""What everything that runs writes is searched for the code: logs, events, metrics, traces, status, messages,
arguments, files. Its secret part is in none of it, in no spelling, and neither are credentials made from it."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from .support import CODE, MIB, WRONG_CODE, Gate, Host, call, finish, free_port, make_file, noise, run, start_get

pytestmark = pytest.mark.slow

PUBLIC: Final = CODE.partition("-")[0]
# What is meant to hold the code: the line to paste, and the event for programs.
TOLD: Final = re.compile(rb'"(code|target)": ?"[^"]*"')


def spellings(code: str) -> list[bytes]:
    secret = code.partition("-")[2]
    plain = secret.replace("-", "")
    return [text.encode() for text in (secret, plain, secret.upper(), plain.upper(), plain[:6], plain[-6:])]


def credentials(*homes: Path) -> list[bytes]:
    """Of every pairing, as hex and as it is."""
    found = []
    for home in homes:
        for file in home.glob("*.json"):
            for record in json.loads(file.read_text()).values():
                if isinstance(record, dict) and "credential" in record:
                    found += [record["credential"].encode(), bytes.fromhex(record["credential"])]
    assert found
    return found


class Said:
    """All that was written, by where."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}

    def note(self, where: str, text: bytes | str) -> None:
        self.texts[where] = self.texts.get(where, b"") + (text.encode() if isinstance(text, str) else text)

    def note_process(self, where: str, pid: int) -> None:
        self.note(f"arguments of {where}", Path(f"/proc/{pid}/cmdline").read_bytes())
        for thread in Path(f"/proc/{pid}/task").iterdir():
            self.note(f"threads of {where}", (thread / "comm").read_bytes())

    def note_files(self, where: str, *folders: Path, but: frozenset[str] = frozenset()) -> None:
        for folder in folders:
            for path in folder.rglob("*"):
                if path.is_file() and path.name not in but and path.stat().st_size < 2 * MIB:
                    self.note(f"{where}: {path.name}", path.name.encode() + path.read_bytes())

    def check(self, *secrets: bytes) -> None:
        found = [f"{secret!r} in {where}" for where, text in self.texts.items() for secret in secrets if secret in text]
        assert found == []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    make_file(tmp_path / "share" / "big", noise(8 * MIB))
    for number in range(20):
        make_file(tmp_path / "share" / "sub" / f"{number}", noise(1000, number))
    yield tmp_path


def look(said: Said, where: str, port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        said.note(f"metrics of {where}", answer.read())


def test_the_code_is_in_nothing_that_is_written(place: Path) -> None:
    said, ports = Said(), (free_port(), free_port())
    traces = [place / f"{name}.trace" for name in ("host", "client", "wrong")]
    watched = [("-vv", "--log-json", "--metrics", f"127.0.0.1:{port}") for port in ports]
    home, other = place / "client", place / "other"
    options = [*watched[0], "--trace", str(traces[0])]
    with Host(place / "share", home=place / "host", options=options) as host, Gate(host.port, 3 * MIB) as gate:
        more = (*watched[1], "--trace", str(traces[1]))
        with start_get(gate.address, place / "dest", *more, home=home) as process:
            gate.wait_reached(process)
            for where, pid, port in (("share", host.pid, ports[0]), ("get", process.pid, ports[1])):
                said.note_process(where, pid)
                look(said, where, port)
            for arguments in (("status",), ("status", "--json"), ("status", "-vv")):
                for one in (home, place / "host"):
                    ran = call(*arguments, home=one)
                    said.note("status", ran.stdout + ran.stderr.encode())
            gate.open()
            ended = finish(process).check_ok()
            said.note("get", ended.stdout + ended.stderr.encode())
        failures: list[dict[str, Any]] = [
            {"code": WRONG_CODE, "home": other},
            {"code": CODE, "home": home, "path": "nothing/here"},
            {"code": "7k2m", "home": home},
            {"code": None, "home": home},
        ]
        for failure in failures:
            with start_get(host.address, place / "no", "-vv", "--trace", str(traces[2]), **failure) as process:
                wrong = finish(process)
            assert wrong.exit_code
            said.note("get that fails", wrong.stdout + wrong.stderr.encode())
        target = f"{CODE}@127.0.0.1:1/x"
        (place / "mnt").mkdir()
        for command, *rest in (["ls"], ["cat"], ["mount", str(place / "mnt")], ["doctor"]):
            ran = run(command, target, *rest, "-vv", home=place / "third")
            assert ran.exit_code or command == "doctor"
            said.note(f"{command} that fails", ran.stdout + ran.stderr.encode())
        for one in (home, place / "host"):
            ran = call("peers", "-vv", home=one)
            said.note("peers", ran.stdout + ran.stderr.encode())
        said.note("share", TOLD.sub(b"", host.stdout) + host.stderr.encode())
    for trace in traces:
        said.note("traces", trace.read_bytes() if trace.exists() else b"")
    assert said.texts["traces"] and b"headrace_" in said.texts["metrics of share"]
    assert PUBLIC.encode() in said.texts["share"], "the public group may be there: so a code would be found"
    said.note_files("files", home, other, place / "host", place / "dest")
    said.check(*spellings(CODE), *spellings(WRONG_CODE))
    kept = {name: text for name, text in said.texts.items() if not name.startswith("files: p")}  # pins, peers
    said.texts = kept
    said.check(*credentials(home, place / "host"))


def test_keys_and_credentials_are_their_owners_alone_or_are_refused(place: Path) -> None:
    """0600 for each of them, whatever the umask; and what others can read is not used."""
    before = os.umask(0)
    try:
        with Host(place / "share", home=place / "host") as host:
            with start_get(host.address, place / "dest", home=place / "client") as process:
                finish(process).check_ok()
    finally:
        os.umask(before)
    files = [path for home in ("host", "client") for path in (place / home).rglob("*") if path.is_file()]
    assert {"identity.pem", "peers.json", "pins.json"} <= {path.name for path in files}
    assert [path for path in files if path.stat().st_mode & 0o077] == []
    share = ["share", str(place / "share"), "--port", "0"]
    for name, arguments in (("identity.pem", share), ("peers.json", share), ("pins.json", ["ls", "127.0.0.1:1"])):
        home = place / ("client" if name == "pins.json" else "host")
        (home / name).chmod(0o640)
        ran = run(*arguments, home=home, env={"HEADRACE_CODE": CODE})
        (home / name).chmod(0o600)
        assert ran.exit_code == 8 and "chmod 600" in ran.stderr, (name, ran.exit_code, ran.stderr)
