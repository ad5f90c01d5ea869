"""The first question of a command leaves with its handshake: one round trip less."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.client.session import LONGEST_EARLY, Session
from headrace.client.target import Target
from headrace.errors import ConnectionLostError, HeadraceError, NotFoundError
from headrace.protocol.messages import AuthPake, Stat
from headrace.protocol.paths import RelPath
from headrace.protocol.session import HostHandshake
from headrace.transport.framed import MessageStream

from .scripted import ScriptedHost, file_entry

FILE = RelPath((b"a.bin",))


class PatientHost(ScriptedHost):
    """Says nothing that ends the handshake before it has heard what follows the client's last message of it."""

    def shake(self, handshake: HostHandshake, messages: MessageStream) -> None:
        answers = handshake.receive(messages.expect()[0])
        last = messages.expect()[0]
        if isinstance(last, AuthPake):
            messages.send_all([*answers, *handshake.receive(last)])
            answers, last = [], messages.expect()[0]
        answers += handshake.receive(last)
        early = messages.expect()[0]
        messages.send_all(answers)
        messages.enter_session()
        self.asked.append(early)
        self.answer(messages, early)


@pytest.fixture
def host(tmp_path: Path) -> PatientHost:
    return PatientHost(tmp_path / "host", [(b"", [file_entry(b"a.bin", b"x" * 10)])], {b"a.bin": b"x" * 10})


def connect(host: ScriptedHost, home: Path, ask: RelPath | None) -> Session:
    return Session.connect(Target.parse(host.target), home=home, transport="tcp", ask=ask)


def test_it_is_heard_before_the_handshake_is_over_at_first_contact_and_later(host: PatientHost, tmp_path: Path) -> None:
    for _ in range(2):
        with connect(host, tmp_path / "home", FILE) as session:
            host.asked.clear()
            session.connection.abort()  # no further word can be said
            assert session.stat(FILE).size == 10
            with pytest.raises(HeadraceError):
                session.stat(FILE)
    assert host.failures == []


def test_what_the_host_has_not_is_told_when_it_is_asked_for(host: PatientHost, tmp_path: Path) -> None:
    with connect(host, tmp_path / "home", RelPath((b"none",))) as session, pytest.raises(NotFoundError):
        session.stat(RelPath((b"none",)))


def test_another_path_is_asked_for_anew(host: PatientHost, tmp_path: Path) -> None:
    with connect(host, tmp_path / "home", RelPath((b"none",))) as session:
        assert session.stat(FILE).size == 10
        with pytest.raises(NotFoundError):
            session.stat(RelPath((b"none",)))
    assert [request.path for request in host.asked if isinstance(request, Stat)] == [b"none", b"a.bin", b"none"]


def test_a_host_that_hangs_up_instead(tmp_path: Path) -> None:
    host = ScriptedHost(tmp_path / "host", answers={Stat: lambda host, stream, request: stream.close()})
    with connect(host, tmp_path / "home", FILE) as session, pytest.raises(ConnectionLostError):
        session.stat(FILE)  # which whoever fetches something bears for a while


def test_a_path_that_is_too_long_for_that_is_asked_for_later(tmp_path: Path) -> None:
    host = ScriptedHost(tmp_path / "host")
    long = RelPath(tuple(b"x" * 200 for _ in range(LONGEST_EARLY // 200 + 1)))
    with connect(host, tmp_path / "home", long) as session:
        assert host.asked == []
        with pytest.raises(NotFoundError):
            session.stat(long)
