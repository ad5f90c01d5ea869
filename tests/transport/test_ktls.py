"""Kernel TLS is found by trying. This kernel may have none; the tests stand in for the calls that would tell."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import sys
import tempfile
from typing import cast

import pytest

from headrace.transport import ktls

pytestmark = pytest.mark.skipif(not hasattr(ssl, "OP_ENABLE_KTLS"), reason="an OpenSSL without the option")


class Socket:
    """Answers getsockopt as a kernel would."""

    def __init__(self, answer: bytes | OSError) -> None:
        self._answer = answer
        self.asked: tuple[int, int, int] | None = None

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        self.asked = (level, option, size)
        if isinstance(self._answer, OSError):
            raise self._answer
        return self._answer


def is_active(answer: bytes | OSError) -> bool:
    sock = Socket(answer)
    found = ktls.active(cast(socket.socket, sock))
    assert sock.asked == (282, 1, 4)
    return found


def test_active_is_read_back_from_the_socket():
    assert is_active(struct.pack("=HH", 0x0304, 51))  # TLS 1.3, AES-GCM-128
    assert not is_active(bytes(4))
    assert not is_active(b"")
    assert not is_active(OSError(errno.ENOPROTOOPT, "no such option"))
    assert not is_active(OSError(errno.EBUSY, "no keys yet"))


def test_a_plain_connection_is_not_active():
    with ktls.connected() as (near, far):
        assert not ktls.active(near)
        assert not ktls.active(far)


def nothing(sock: socket.socket) -> None:
    """The kernel says yes."""


def test_where_kernel_and_openssl_have_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked = []

    def active(sock: socket.socket) -> bool:
        assert isinstance(sock, ssl.SSLSocket)
        asked.append((sock.version(), bool(sock.context.options & ssl.OP_ENABLE_KTLS)))
        return True

    found = ktls.probe(platform="linux", attach=nothing, active=active)

    assert (found.status, found.lack) == ("ok", None)
    assert ssl.OPENSSL_VERSION in found.reason
    assert asked == [("TLSv1.3", True)]
    assert list(tmp_path.iterdir()) == []


def test_where_openssl_does_not_use_it():
    found = ktls.probe(platform="linux", attach=nothing, active=lambda sock: False)

    assert (found.status, found.lack) == ("missing", "openssl")
    assert "does not use it" in found.reason


@pytest.mark.parametrize(
    ("code", "lack", "words"), [(errno.ENOENT, "module", "has none"), (errno.EPERM, "kernel", "refuses it")]
)
def test_where_the_kernel_does_not(code, lack, words):
    def refuse(sock: socket.socket) -> None:
        raise OSError(code, os.strerror(code))

    found = ktls.probe(platform="linux", attach=refuse)

    assert (found.status, found.lack) == ("missing", lack)
    assert words in found.reason


def test_where_the_system_or_python_does_not():
    assert ktls.probe(platform="darwin").lack == "system"
    assert ktls.probe(platform="linux", option=None).lack == "python"


def test_where_not_even_loopback_works(monkeypatch):
    def refuse(*arguments: object, **more: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(socket, "create_server", refuse)
    found = ktls.probe(platform="linux")

    assert (found.status, found.lack) == ("missing", "loopback")
    assert "too many open files" in found.reason


@pytest.mark.skipif(sys.platform != "linux", reason="kernel TLS as headrace knows it is Linux's")
def test_what_this_machine_says():
    found = ktls.probe()

    assert found.status in ("ok", "missing")
    assert (found.status == "ok") == (found.lack is None)
