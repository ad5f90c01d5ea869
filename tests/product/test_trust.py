"""Codes, pins and people in between."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from headrace.errors import CertificateChangedError, WrongCodeError
from headrace.transport.identity import Identity

from .scripted import Eavesdropper
from .support import CODE, MIB, WRONG_CODE, Gate, Host, call, call_get, make_file, noise, run_get, start_get

SECRET = "race-7e57"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    make_file(folder / "file", b"content" * 100)
    return folder


@pytest.fixture(scope="module")
def host(place: Path) -> Iterator[Host]:
    with Host(place / "file", home=place / "host") as host:
        yield host


def test_a_wrong_code_is_refused(host: Host, tmp_path: Path) -> None:
    result = call_get(host.address, tmp_path / "dest", home=tmp_path / "home", code=WRONG_CODE).check_failed(4)
    assert result.of("error")[0]["code"] == "wrong_code"
    assert "Check the code" in result.stderr
    assert not (tmp_path / "dest").exists()
    # It leaves nothing behind that would stand in the way of the right one.
    call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_ok()
    other_share = call_get(host.address, tmp_path / "dest", home=tmp_path / "home", code="0000-race-7e57")
    other_share.check_failed(4)


def test_a_code_may_be_typed_in_any_way_and_handed_over_in_several(host: Host, tmp_path: Path) -> None:
    for number, code in enumerate((CODE.upper(), CODE.replace("-", ""), f" {CODE.replace('-', ' ')} ")):
        headrace.connect(host.address, code=code, home=tmp_path / f"home {number}").close()
    (tmp_path / "code").write_text(f"{CODE}\n")
    options = ("--code-file", str(tmp_path / "code"))
    call_get(host.address, tmp_path / "dest", *options, home=tmp_path / "a", code=None).check_ok()
    call_get(f"{CODE}@{host.address}", tmp_path / "dest", home=tmp_path / "b", code=None).check_ok()
    # Without any there is nobody to ask here.
    call_get(host.address, tmp_path / "dest", home=tmp_path / "d", code=None).check_failed(2)


@pytest.mark.slow
def test_ten_wrong_codes_lock_the_share_for_newcomers(place: Path, tmp_path: Path) -> None:
    with Host(place / "file", home=tmp_path / "host") as host:
        call_get(host.address, tmp_path / "first", home=tmp_path / "known").check_ok()
        for number in range(10):
            with pytest.raises(WrongCodeError):
                headrace.connect(f"{WRONG_CODE}@{host.address}", home=tmp_path / f"home {number}")
        refused = run_get(host.address, tmp_path / "dest", home=tmp_path / "new").check_failed(4)
        assert refused.of("error")[0]["code"] == "locked"
        assert "too many wrong codes" in refused.stderr
        assert "Wait" in refused.stderr
        assert not (tmp_path / "dest").exists()

        call_get(host.address, tmp_path / "again", home=tmp_path / "known").check_ok()
        locked = host.wait_event("error", code="locked")
        assert locked["retry_after"] > 0
        host.wait_for("a word on stderr", lambda: "too many wrong codes" in host.stderr)
        assert len(host.of("error")) >= 11
        assert SECRET not in host.stderr


def test_another_certificate_is_refused_until_the_old_one_is_forgotten(place: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Host(place / "file", home=tmp_path / "host") as host:
        port = host.port
        call_get(host.address, tmp_path / "dest", home=home).check_ok()
    Identity.load_or_create(tmp_path / "other host")
    with Host(place / "file", home=tmp_path / "other host", port=port) as host:
        refused = call_get(host.address, tmp_path / "dest", home=home).check_failed(4)
        assert refused.of("error")[0]["code"] == "certificate_changed"
        assert "headrace peers forget h3ad" in refused.stderr
        call("peers", "forget", "h3ad", home=home).check_ok()
        call_get(host.address, tmp_path / "dest", home=home).check_ok()


@pytest.mark.slow
def test_a_host_that_forgot_its_peers_pairs_again(place: Path, tmp_path: Path) -> None:
    """The identity stayed, the list of peers is gone: the code mends it, unasked."""
    with Host(place / "file", home=tmp_path / "host") as host:
        port = host.port
        call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_ok()
    (tmp_path / "host" / "peers.json").unlink()
    with Host(place / "file", home=tmp_path / "host", port=port) as host:
        call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_ok()


@pytest.mark.slow
def test_another_code_of_the_same_share_does_not_ride_on_the_old_pairing(place: Path, tmp_path: Path) -> None:
    with Host(place / "file", home=tmp_path / "host") as host:
        port = host.port
        call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_ok()
        call_get(host.address, tmp_path / "dest", home=tmp_path / "home", code=WRONG_CODE).check_failed(4)
    with Host(place / "file", home=tmp_path / "host", port=port, code=WRONG_CODE) as host:
        call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_failed(4)
        call_get(host.address, tmp_path / "dest", home=tmp_path / "home", code=WRONG_CODE).check_ok()


def test_the_code_shows_nowhere(place: Path, tmp_path: Path) -> None:
    make_file(tmp_path / "big", noise(8 * MIB))
    spellings = [SECRET, SECRET.replace("-", ""), SECRET.upper(), SECRET.replace("-", "").upper()]
    with Host(tmp_path / "big", home=tmp_path / "host", options=["-vv"]) as host, Gate(host.port, 3 * MIB) as gate:
        with start_get(gate.address, tmp_path / "dest", "-vv", home=tmp_path / "home") as process:
            gate.wait_reached(process)
            shown = Path(f"/proc/{process.pid}/cmdline").read_bytes() + Path(f"/proc/{host.pid}/cmdline").read_bytes()
            gate.open()
            process.wait()
        with start_get(gate.address, tmp_path / "dest", "-vv", home=tmp_path / "x", code=WRONG_CODE) as wrong:
            assert wrong.wait() == 4
        said = [process.stdout, process.stderr.encode(), host.stderr.encode(), wrong.stderr.encode(), shown]
        kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".json", "")]
        for text in said + [found for found in kept if len(found) < MIB]:
            assert not [spelling for spelling in spellings if spelling.encode() in text]
        wrong_secret = WRONG_CODE.partition("-")[2]
        assert wrong_secret not in wrong.stderr + host.stderr


def test_secrets_on_disk_are_for_their_owner_alone(host: Host, place: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    call_get(host.address, tmp_path / "dest", home=home).check_ok()
    for folder in (home, place / "host"):
        assert folder.stat().st_mode & 0o077 == 0
        assert not [path for path in folder.iterdir() if path.stat().st_mode & 0o077]
    (home / "pins.json").chmod(0o644)
    refused = call_get(host.address, tmp_path / "dest", home=home).check_failed(8)
    assert "chmod 600" in refused.stderr


def test_somebody_in_between_ends_as_a_refusal(place: Path, tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path / "between")
    with Host(place / "file", home=tmp_path / "host") as host, Eavesdropper(host.port, tmp_path / "between") as spy:
        refused = call_get(spy.address, tmp_path / "dest", home=tmp_path / "home").check_failed(4)
        assert spy.heard
        assert not (tmp_path / "dest").exists()
        assert "wrong_code" in {event["code"] for event in refused.of("error")}
        host.wait_event("error", code="wrong_code")  # a guess was spent: the host cannot tell one from the other

        call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_ok()
        spy.heard.clear()
        pinned = call_get(spy.address, tmp_path / "dest", home=tmp_path / "home").check_failed(4)
        assert pinned.of("error")[0]["code"] == "certificate_changed"
        assert not spy.heard  # it was turned away before anything was said
        with pytest.raises(CertificateChangedError):
            headrace.connect(f"{CODE}@{spy.address}", home=tmp_path / "home")


@pytest.mark.slow
def test_a_copied_home_is_the_same_peer(host: Host, tmp_path: Path) -> None:
    known = {event["peer"] for event in host.of("peer")}

    def connected() -> list[str]:
        return [e["peer"] for e in host.of("peer") if e["state"] == "connected" and e["peer"] not in known]

    call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_ok()
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    call_get(host.address, tmp_path / "dest", home=tmp_path / "copy").check_ok()
    host.wait_for("both to be told", lambda: len(connected()) == 2)
    assert len(set(connected())) == 1
