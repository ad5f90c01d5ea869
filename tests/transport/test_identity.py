"""The host's identity: made once, kept private, refused when it is damaged or open to others."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headrace.errors import LocalDiskError
from headrace.protocol.pake import fingerprint_of
from headrace.transport.identity import FILE, Identity
from headrace.transport.tcp import server_context

as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


def test_it_is_made_at_first_use_and_then_stays(tmp_path: Path) -> None:
    home = tmp_path / "state" / "headrace"
    first = Identity.load_or_create(home)
    assert first.file == home / FILE
    assert stat.S_IMODE(first.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    before = first.file.read_bytes()
    assert Identity.load_or_create(home) == first
    assert first.file.read_bytes() == before
    assert [path.name for path in home.iterdir()] == [FILE], "nothing temporary is left"


def test_the_umask_does_not_open_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        identity = Identity.load_or_create(tmp_path / "home")
    finally:
        os.umask(old)
    assert stat.S_IMODE(identity.file.stat().st_mode) == 0o600


def test_the_fingerprint_is_that_of_the_certificate_in_it(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    identity = Identity.load_or_create(tmp_path)
    certificate = x509.load_pem_x509_certificate(identity.file.read_bytes())
    assert identity.fingerprint == certificate.fingerprint(hashes.SHA256())
    assert certificate.subject == certificate.issuer
    assert b"PRIVATE KEY" not in certificate.public_bytes(encoding=_pem())


def _pem():
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM


def test_two_homes_are_two_hosts(tmp_path: Path) -> None:
    one, other = (Identity.load_or_create(tmp_path / name) for name in ("one", "other"))
    assert one.fingerprint != other.fingerprint


def test_processes_that_make_it_at_once_end_with_the_same_one(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from headrace.transport.identity import Identity, _self_signed_pem; _self_signed_pem();"
        "print('ready', flush=True); sys.stdin.readline();"
        "print(Identity.load_or_create(pathlib.Path(sys.argv[1])).fingerprint.hex())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "home")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        said.append(out.strip())
    assert set(said) == {Identity.load_or_create(tmp_path / "home").fingerprint.hex()}
    assert [path.name for path in (tmp_path / "home").iterdir()] == [FILE]


def test_threads_that_make_it_at_once_end_with_the_same_one(tmp_path: Path) -> None:
    start = threading.Barrier(4)
    found: list[Identity | Exception] = []

    def make() -> None:
        start.wait(10)
        try:
            found.append(Identity.load_or_create(tmp_path / "home"))
        except Exception as why:  # noqa: BLE001  # the test shows it
            found.append(why)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Identity.load_or_create(tmp_path / "home")] * 4


def test_what_a_crash_left_behind_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.{os.getpid()}.tmp").write_bytes(b"half")
    identity = Identity.load_or_create(tmp_path)
    server_context(str(identity.file))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    identity = Identity.load_or_create(tmp_path)
    identity.file.chmod(mode)
    with pytest.raises(LocalDiskError, match=f"mode {mode:03o}") as refusal:
        Identity.load_or_create(tmp_path)
    assert refusal.value.hint == f"Run: chmod 600 {identity.file}"
    assert refusal.value.exit_code == 8
    identity.file.chmod(0o600)
    assert Identity.load_or_create(tmp_path) == identity


def parts(identity: Identity) -> tuple[str, str]:
    """The key and the certificate in the file."""
    key, begin, certificate = identity.file.read_text().partition("-----BEGIN CERTIFICATE-----")
    return key, begin + certificate


def damage(identity: Identity, kind: str) -> bytes:
    key, certificate = parts(identity)
    lines = certificate.splitlines(keepends=True)
    return {
        "empty": b"",
        "noise": bytes(range(256)),
        "text": b"not a certificate\n",
        "key alone": key.encode(),
        "certificate alone": certificate.encode(),
        "cut": (key + certificate)[:-40].encode(),
        "no base64": (key + lines[0] + "****\n" + lines[-1]).encode(),
        "no certificate in it": (key + lines[0] + "aGVhZHJhY2U=\n" + lines[-1]).encode(),
        "damaged key": key.replace("M", "N", 1).encode() + certificate.encode(),
    }[kind]


KINDS = (
    *("empty", "noise", "text", "key alone", "certificate alone", "cut"),
    *("no base64", "no certificate in it", "damaged key"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_said_to_be_so_and_left_alone(tmp_path: Path, kind: str) -> None:
    identity = Identity.load_or_create(tmp_path)
    content = damage(identity, kind)
    identity.file.write_bytes(content)
    with pytest.raises(LocalDiskError) as refusal:
        Identity.load_or_create(tmp_path)
    assert str(identity.file) in refusal.value.message
    assert identity.file.read_bytes() == content


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    one, other = (Identity.load_or_create(tmp_path / name) for name in ("one", "other"))
    one.file.write_text(parts(one)[0] + parts(other)[1])
    with pytest.raises(LocalDiskError):
        Identity.load_or_create(tmp_path / "one")


def test_a_folder_in_its_place_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(LocalDiskError) as refusal:
        Identity.load_or_create(tmp_path)
    assert "HEADRACE_HOME" in refusal.value.hint


def test_a_home_that_is_a_file_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(LocalDiskError) as refusal:
        Identity.load_or_create(tmp_path / "home")
    assert "HEADRACE_HOME" in refusal.value.hint


@as_root
def test_a_home_that_cannot_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LocalDiskError):
            Identity.load_or_create(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_its_fingerprint_is_what_tls_shows(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path)
    certificate = parts(identity)[1]
    assert identity.fingerprint == fingerprint_of(ssl.PEM_cert_to_DER_cert(certificate))
