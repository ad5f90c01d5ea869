"""What is kept of a first contact: pins on the client, peers on the host."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import LocalDiskError
from headrace.protocol.codes import Code
from headrace.protocol.pake import PairingKeys
from headrace.transport import trust
from headrace.transport.trust import Peers, Pins

CODE = Code.parse("7k2m-xq4c-9dht")
SAME_SHARE = Code.parse("7k2m-xq4c-9dhv")
OTHER_SHARE = Code.parse("8888-xq4c-9dht")
FINGERPRINT = bytes(range(32))
PEER = b"p" * 16
CREDENTIAL = bytes.fromhex("c5ec7e70") * 8


def keys(peer: bytes = PEER, credential: bytes = CREDENTIAL) -> PairingKeys:
    return PairingKeys(client_mac=b"c" * 32, host_mac=b"h" * 32, peer=peer, credential=credential)


def pin(home: Path, code: Code = CODE) -> Pins:
    pins = Pins(home)
    pins.add(keys(), code, FINGERPRINT, "192.168.1.20:7420")
    return pins


# ---- the client's pins ---------------------------------------------------------------------------------------------


def test_a_pin_is_there_the_next_time(tmp_path: Path) -> None:
    pin(tmp_path / "home")
    record = Pins(tmp_path / "home").get(CODE.share)
    assert record
    assert bytes.fromhex(record.peer) == PEER
    assert bytes.fromhex(record.credential) == CREDENTIAL
    assert bytes.fromhex(record.fingerprint) == FINGERPRINT
    assert (record.share, record.label) == (CODE.share, "192.168.1.20:7420")
    assert record.is_for(CODE)
    assert Pins(tmp_path / "home").all() == [record]


def test_a_pin_counts_for_the_very_code_it_came_from(tmp_path: Path) -> None:
    record = pin(tmp_path).get("7k2m")
    assert record
    assert not record.is_for(SAME_SHARE)
    assert not record.is_for(OTHER_SHARE)


def test_there_is_one_pin_for_a_share_and_the_last_one_counts(tmp_path: Path) -> None:
    pins = pin(tmp_path)
    pins.add(keys(), OTHER_SHARE, FINGERPRINT, "other")
    pins.add(keys(credential=b"n" * 32), SAME_SHARE, FINGERPRINT, "again")
    assert {record.share: record.label for record in pins.all()} == {"7k2m": "again", "8888": "other"}
    record = pins.get("7k2m")
    assert record
    assert record.is_for(SAME_SHARE)
    assert not record.is_for(CODE)


def test_a_pin_can_be_forgotten(tmp_path: Path) -> None:
    pins = pin(tmp_path)
    assert not pins.forget("8888")
    assert pins.forget("7k2m")
    assert pins.get("7k2m") is None
    assert Pins(tmp_path).all() == []
    assert not pins.forget("7k2m")


def test_without_a_file_nothing_is_known_and_nothing_is_made(tmp_path: Path) -> None:
    assert Pins(tmp_path / "home").get("7k2m") is None
    assert Peers(tmp_path / "home").credential(PEER, CODE) is None
    assert not (tmp_path / "home").exists()


# ---- the host's peers ----------------------------------------------------------------------------------------------


def test_a_peer_is_known_by_its_credential_and_only_with_the_same_code(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    peers.add(PEER, CREDENTIAL, CODE, FINGERPRINT, "headrace 1 from 10.0.0.7")
    for known in (peers, Peers(tmp_path)):
        assert known.credential(PEER, CODE) == CREDENTIAL
        assert known.credential(PEER, SAME_SHARE) is None
        assert known.credential(b"q" * 16, CODE) is None
        assert known.credential(b"", CODE) is None
        assert [record.label for record in known.all()] == ["headrace 1 from 10.0.0.7"]


def test_a_peer_that_paired_with_another_process_of_the_share_is_known(tmp_path: Path) -> None:
    running = Peers(tmp_path)
    Peers(tmp_path).add(PEER, CREDENTIAL, CODE, FINGERPRINT, "")
    assert running.credential(PEER, CODE) == CREDENTIAL


def test_a_forgotten_peer_is_no_longer_let_in_by_a_running_share(tmp_path: Path) -> None:
    running = Peers(tmp_path)
    running.add(PEER, CREDENTIAL, CODE, FINGERPRINT, "")
    assert running.credential(PEER, CODE) == CREDENTIAL
    assert Peers(tmp_path).forget(PEER.hex())
    assert running.credential(PEER, CODE) is None
    assert not running.forget(PEER.hex())


def test_a_peer_that_the_share_itself_forgets_is_gone_at_once(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    peers.add(PEER, CREDENTIAL, CODE, FINGERPRINT, "")
    peers.add(b"q" * 16, CREDENTIAL, CODE, FINGERPRINT, "")
    assert peers.forget(PEER.hex())
    assert peers.credential(PEER, CODE) is None
    assert peers.credential(b"q" * 16, CODE) == CREDENTIAL


def test_a_peer_that_pairs_anew_has_its_new_credential(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    peers.add(PEER, CREDENTIAL, CODE, FINGERPRINT, "")
    Peers(tmp_path).add(PEER, b"n" * 32, CODE, FINGERPRINT, "")
    assert peers.credential(PEER, CODE) == b"n" * 32


def test_strangers_do_not_make_the_host_read_its_file_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = Peers(tmp_path)
    peers.add(PEER, CREDENTIAL, CODE, FINGERPRINT, "")
    assert peers.credential(PEER, CODE)
    read: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", read.append)
    for number in range(20):
        assert peers.credential(number.to_bytes(16), CODE) is None
    assert read == []


# ---- several at once -----------------------------------------------------------------------------------------------


def test_threads_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    start = threading.Barrier(4)

    def add(number: int) -> None:
        start.wait(10)
        for step in range(5):
            peers.add(bytes([number, step]) * 8, CREDENTIAL, CODE, FINGERPRINT, "")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everybody = [bytes([number, step]) * 8 for number in range(4) for step in range(5)]
    assert all(peers.credential(peer, CODE) for peer in everybody)
    assert {record.peer for record in Peers(tmp_path).all()} == {peer.hex() for peer in everybody}


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    program = """
import pathlib, sys
from headrace.protocol.codes import Code
from headrace.transport.trust import Peers
peers = Peers(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for step in range(5):
    peers.add(bytes([int(sys.argv[2]), step]) * 8, bytes(32), Code.parse("7k2m-xq4c-9dht"), bytes(32), "")
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=20)
        assert process.returncode == 0
    assert len(Peers(tmp_path).all()) == 10


def test_the_number_of_records_is_bounded_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_RECORDS", 3)
    times = iter([50.0, 10.0, 40.0, 60.0, 20.0])
    monkeypatch.setattr(time, "time", lambda: next(times))
    peers = Peers(tmp_path)
    for number in range(5):
        peers.add(bytes([number]) * 16, CREDENTIAL, CODE, FINGERPRINT, str(number))
    kept = {record.label for record in Peers(tmp_path).all()}
    assert kept == {"0", "2", "3"}
    assert peers.credential(bytes([1]) * 16, CODE) is None


# ---- the files -----------------------------------------------------------------------------------------------------


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        pin(tmp_path / "home")
        Peers(tmp_path / "home").add(PEER, CREDENTIAL, CODE, FINGERPRINT, "")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    for file in (tmp_path / "home").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert {file.suffix for file in (tmp_path / "home").iterdir()} <= {".json", ".lock"}


def test_no_code_lies_in_them(tmp_path: Path) -> None:
    pin(tmp_path)
    Peers(tmp_path).add(PEER, CREDENTIAL, CODE, FINGERPRINT, "")
    for file in tmp_path.iterdir():
        assert CODE.secret.encode() not in file.read_bytes()


def test_secrets_do_not_show_in_a_repr(tmp_path: Path) -> None:
    record = pin(tmp_path).get("7k2m")
    assert record
    shown = repr(record) + repr([record]) + str(record)
    assert CREDENTIAL.hex() not in shown
    assert CREDENTIAL.hex() not in repr(keys())
    assert repr(CREDENTIAL)[2:-1] not in repr(keys())
    assert CODE.secret not in shown


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_file_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    pins = pin(tmp_path)
    file = tmp_path / "pins.json"
    file.chmod(mode)
    for use in (lambda: pins.get("7k2m"), pins.all, lambda: pins.forget("7k2m"), lambda: pin(tmp_path)):
        with pytest.raises(LocalDiskError, match=f"mode {mode:03o}") as refusal:
            use()
        assert refusal.value.hint == f"Run: chmod 600 {file}"


def with_field(**changed: Any) -> str:
    """A file of one record in which some fields are others."""
    record = {
        "peer": PEER.hex(),
        "credential": CREDENTIAL.hex(),
        "code_check": "00" * 32,
        "share": "7k2m",
        "fingerprint": FINGERPRINT.hex(),
        "label": "",
        "since": 1.0,
    }
    return json.dumps({"7k2m": record | changed})


DAMAGED = {
    "empty": "",
    "cut": with_field()[:-5],
    "noise": "\x00\x01",
    "a list": "[]",
    "a number": "1",
    "nothing in a record": '{"7k2m": {}}',
    "a record that is none": '{"7k2m": 5}',
    "a credential that is no hex": with_field(credential="zz"),
    "a peer that is no hex": with_field(peer="p"),
    "a fingerprint that is no text": with_field(fingerprint=5),
    "a code check that is no text": with_field(code_check=None),
    "a time that is none": with_field(since="yesterday"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_said_to_be_so_and_left_alone(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "pins.json"
    file.write_text(DAMAGED[kind])
    file.chmod(0o600)
    pins = Pins(tmp_path)
    for use in (lambda: pins.get("7k2m"), pins.all, lambda: pin(tmp_path), lambda: pins.forget("7k2m")):
        with pytest.raises(LocalDiskError, match="damaged") as refusal:
            use()
        assert str(file) in refusal.value.message
        assert refusal.value.hint
    assert file.read_text() == DAMAGED[kind]


def test_what_a_later_version_adds_to_a_record_is_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "pins.json"
    file.write_text(with_field(colour="blue"))
    file.chmod(0o600)
    assert Pins(tmp_path).get("7k2m")


def test_a_file_that_is_a_folder_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "pins.json").mkdir()
    with pytest.raises(LocalDiskError, match="cannot be read"):
        Pins(tmp_path).get("7k2m")


def test_a_home_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(LocalDiskError, match=r"cannot be (written|read)"):
        pin(tmp_path / "home")


def test_a_symlink_in_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "pins.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(LocalDiskError):
        pin(tmp_path)
    assert not (tmp_path / "victim").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = pin(tmp_path)
    before = (tmp_path / "pins.json").read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LocalDiskError, match="No space left"):
        pins.add(keys(), OTHER_SHARE, FINGERPRINT, "")
    assert (tmp_path / "pins.json").read_bytes() == before
