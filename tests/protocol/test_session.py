"""The handshake: who may say what when, what is agreed, and what a wrong code costs."""

from __future__ import annotations

import copy
import itertools
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import (
    ConnectionLostError,
    CredentialUnknownError,
    HeadraceError,
    NoCommonVersionError,
    ProtocolError,
    ShareLockedError,
    WrongCodeError,
)
from headrace.protocol import pake
from headrace.protocol.frames import SESSION_LIMITS, FrameDecoder, Head, encode_frame
from headrace.protocol.messages import (
    BY_TYPE,
    ROLE_CONTROL,
    ROLE_DATA,
    AuthCredential,
    AuthPake,
    AuthPakeConfirm,
    AuthPakeReply,
    Error,
    Goodbye,
    Granted,
    Hello,
    List,
    Message,
    Ping,
    Welcome,
)
from headrace.protocol.session import (
    FEATURES,
    MAX_FEATURES,
    MAX_WORD,
    SEAL_SIZE,
    SEALED,
    ClientHandshake,
    HostHandshake,
    State,
    Versions,
    error_message,
)

from . import strategies
from .handshakes import (
    CODE,
    FINGERPRINT,
    OTHER_CODE,
    OTHER_FINGERPRINT,
    Policy,
    Talk,
    Tamper,
    make_client,
    make_host,
    talk,
)

PEER = b"p" * 16
CREDENTIAL = b"c" * 32
KNOWN: dict[str, Any] = {"code": None, "peer": PEER, "credential": CREDENTIAL}


def known_policy() -> Policy:
    return Policy(peers={PEER: CREDENTIAL})


# ---- what comes of it --------------------------------------------------------------------------------------------


def test_first_contact() -> None:
    policy = Policy()
    client, host = make_client(agent="c 1"), make_host(policy, agent="h 2")
    said = talk(client, host)
    assert said.client_error is said.host_error is None
    assert [type(message) for message in said.of("client")] == [Hello, AuthPake, AuthPakeConfirm]
    assert [type(message) for message in said.of("host")] == [Welcome, AuthPakeReply, Granted]
    assert client.state is host.state is State.DONE
    ours, theirs = client.agreed, host.agreed
    assert ours and theirs and ours.keys
    assert ours.keys == theirs.keys
    assert ours.peer == theirs.peer == ours.keys.peer
    assert (ours.version, ours.features, ours.role) == (theirs.version, theirs.features, theirs.role)
    assert (ours.version, ours.features, ours.role) == (8, frozenset(FEATURES), ROLE_CONTROL)
    assert ours.share == theirs.share == CODE.share
    assert ours.name == theirs.name == "footage"
    assert (ours.agent, theirs.agent) == ("h 2", "c 1")
    assert policy.peers == {ours.peer: ours.keys.credential}
    assert policy.calls == ["locked_for", "guess_started", "guess_right", "remember"]


def test_a_paired_peer_gets_in_without_the_code() -> None:
    policy = Policy()
    first = make_client()
    talk(first, make_host(policy))
    assert first.agreed and first.agreed.keys
    policy.calls.clear()
    client = make_client(code=None, peer=first.agreed.peer, credential=first.agreed.keys.credential, role=ROLE_DATA)
    host = make_host(policy)
    said = talk(client, host)
    assert [type(message) for message in said.of("client")] == [Hello, AuthCredential]
    assert [type(message) for message in said.of("host")] == [Welcome, Granted]
    assert client.agreed and host.agreed
    assert client.agreed.peer == host.agreed.peer == first.agreed.peer
    assert client.agreed.role == host.agreed.role == ROLE_DATA
    assert client.agreed.keys is host.agreed.keys is None
    assert policy.calls == ["credential"]


def test_the_credential_goes_before_the_code() -> None:
    said = talk(make_client(peer=PEER, credential=CREDENTIAL), make_host(known_policy()))
    assert AuthPake not in map(type, said.of("client"))
    assert said.client_error is None


@pytest.mark.parametrize(
    ("client", "policy"),
    [
        (KNOWN, Policy()),
        (KNOWN | {"peer": b""}, known_policy()),
        (KNOWN | {"credential": b"d" * 32}, known_policy()),
        (KNOWN | {"fingerprint": OTHER_FINGERPRINT}, known_policy()),
        (KNOWN | {"credential": bytes(32)}, Policy()),  # what the host computes with for want of a credential
        (KNOWN | {"credential": bytes(32)}, Policy(peers={PEER: b""})),
    ],
    ids=["unknown", "no id", "another credential", "another certificate", "zeros", "an empty credential on file"],
)
def test_a_credential_that_does_not_fit(client: dict[str, Any], policy: Policy) -> None:
    machine, host = make_client(**client), make_host(policy)
    said = talk(machine, host)
    assert isinstance(said.host_error, CredentialUnknownError)
    assert isinstance(said.client_error, CredentialUnknownError)
    assert machine.agreed is host.agreed is None
    assert policy.calls == ["credential"]


@pytest.mark.parametrize(
    "client",
    [{"code": OTHER_CODE}, {"fingerprint": OTHER_FINGERPRINT}],
    ids=["another code", "somebody in between"],
)
def test_a_wrong_guess(client: dict[str, Any]) -> None:
    policy = Policy()
    machine, host = make_client(**client), make_host(policy)
    said = talk(machine, host)
    assert isinstance(said.host_error, WrongCodeError)
    assert isinstance(said.client_error, WrongCodeError)
    assert Granted not in map(type, said.of("host")), "a wrong guess learns nothing from the host's MAC"
    assert machine.agreed is host.agreed is None
    assert policy.calls == ["locked_for", "guess_started"]
    assert policy.peers == {}


@pytest.mark.parametrize("mac", [b"", bytes(32), b"m" * 32, b"m" * 33])
def test_a_host_that_does_not_know_the_code(mac: bytes) -> None:
    def forge(side: str, message: Message) -> Message:
        return Granted(mac, "footage") if isinstance(message, Granted) else message

    client = make_client()
    said = talk(client, make_host(), forge)
    assert isinstance(said.client_error, WrongCodeError)
    assert client.agreed is None
    assert client.state is State.FAILED


def test_a_host_cannot_send_the_clients_mac_back() -> None:
    client, host = make_client(), make_host()
    hello, start = client.start()
    welcome, reply = host.receive(hello) + host.receive(start)
    client.receive(welcome)
    (confirm,) = client.receive(reply)
    assert isinstance(confirm, AuthPakeConfirm)
    with pytest.raises(WrongCodeError):
        client.receive(Granted(confirm.mac, ""))


# ---- guesses and locks -------------------------------------------------------------------------------------------


def test_a_locked_share_sends_no_element() -> None:
    policy = Policy(locked=89.6)
    said = talk(make_client(), make_host(policy))
    assert isinstance(said.host_error, ShareLockedError)
    assert isinstance(said.client_error, ShareLockedError)
    assert [type(message) for message in said.of("host")] == [Welcome, Error]
    error = said.of("host")[-1]
    assert isinstance(error, Error)
    assert (error.id, error.code, error.retry_after) == (0, "locked", 89.6)
    assert "90 s" in error.message
    assert policy.calls == ["locked_for"]


def test_a_locked_share_takes_those_that_paired_before() -> None:
    policy = Policy(locked=90.0, peers={PEER: CREDENTIAL})
    client = make_client(**KNOWN)
    talk(client, make_host(policy))
    assert client.agreed


def test_a_lock_that_sets_in_between_sends_no_element_either() -> None:
    said = talk(make_client(), make_host(Policy(race=True)))
    assert isinstance(said.client_error, ShareLockedError)
    assert AuthPakeReply not in map(type, said.of("host"))


@pytest.mark.parametrize("element", [b"", b"A", b"A" + bytes(32), b"A" + b"\x02" + bytes(31), b"B" * 33, b"A" * 34])
def test_a_bad_element_costs_no_guess_and_gets_none(element: bytes) -> None:
    policy = Policy()
    host = make_host(policy)
    host.receive(Hello((7, 8), [], ""))
    with pytest.raises(ProtocolError):
        host.receive(AuthPake(element))
    assert policy.calls == ["locked_for"]


@pytest.mark.parametrize("mac", [b"", b"m" * 32, bytes(31)])
def test_a_guess_counts_once_for_each_element_sent(mac: bytes) -> None:
    policy = Policy()
    sent = 0
    for _ in range(3):
        host = make_host(policy)
        for message in [Hello((7, 8), [], ""), make_client().start()[1]]:
            sent += sum(isinstance(answer, AuthPakeReply) for answer in host.receive(message))
        with pytest.raises(WrongCodeError):
            host.receive(AuthPakeConfirm(mac))
        for message in [AuthPakeConfirm(mac), make_client().start()[1]]:  # no second try on this connection
            with pytest.raises(ProtocolError):
                host.receive(message)
    assert policy.calls.count("guess_started") == sent == 3
    assert "guess_right" not in policy.calls


def test_a_peer_that_leaves_after_the_element_has_spent_its_guess() -> None:
    policy = Policy()
    host = make_host(policy)
    host.receive(Hello((7, 8), [], ""))
    host.receive(make_client().start()[1])
    with pytest.raises(ProtocolError):
        host.receive(Goodbye())
    assert policy.calls == ["locked_for", "guess_started"]


# ---- the state table ---------------------------------------------------------------------------------------------


def client_at(state: State, *, paired: bool = False) -> ClientHandshake:
    """A client that an honest host brought to `state`."""
    policy = known_policy()
    client, host = make_client(**KNOWN if paired else {}), make_host(policy)
    if state is State.HELLO:
        return client
    to_host = client.start()
    if state is State.FAILED:
        with pytest.raises(ProtocolError):
            client.receive(Ping(1))
        return client
    while client.state is not state:
        to_client = [answer for message in to_host for answer in host.receive(message)]
        to_host = []
        for message in to_client:
            if client.state is not state:
                to_host += client.receive(message)
    return client


def host_at(state: State) -> HostHandshake:
    """A host that an honest client brought to `state`."""
    client, host = make_client(), make_host()
    if state is State.FAILED:
        with pytest.raises(ProtocolError):
            host.receive(Ping(1))
        return host
    to_host = client.start()
    while host.state is not state:
        to_host += [answer for reply in host.receive(to_host.pop(0)) for answer in client.receive(reply)]
    return host


@dataclass(frozen=True)
class Place:
    """A state of one side and what may come in it; anything else is a ProtocolError."""

    name: str
    make: Callable[[], ClientHandshake | HostHandshake]
    expects: frozenset[type[Message]] = frozenset()


FAREWELLS: frozenset[type[Message]] = frozenset({Error, Goodbye})
PLACES = [
    Place("client before start", lambda: client_at(State.HELLO)),
    Place("client waits for Welcome", lambda: client_at(State.WELCOME), FAREWELLS | {Welcome}),
    Place("paired client waits for Welcome", lambda: client_at(State.WELCOME, paired=True), FAREWELLS | {Welcome}),
    Place("client waits for the element", lambda: client_at(State.PAKE_REPLY), FAREWELLS | {AuthPakeReply}),
    Place("client waits for Granted", lambda: client_at(State.GRANTED), FAREWELLS | {Granted}),
    Place("paired client waits for Granted", lambda: client_at(State.GRANTED, paired=True), FAREWELLS | {Granted}),
    Place("client is done", lambda: client_at(State.DONE)),
    Place("client failed", lambda: client_at(State.FAILED)),
    Place("host waits for Hello", lambda: host_at(State.HELLO), frozenset({Hello})),
    Place("host waits for Auth", lambda: host_at(State.AUTH), frozenset({AuthPake, AuthCredential})),
    Place("host waits for the confirmation", lambda: host_at(State.CONFIRM), frozenset({AuthPakeConfirm})),
    Place("host is done", lambda: host_at(State.DONE)),
    Place("host failed", lambda: host_at(State.FAILED)),
]
SAMPLES: dict[type[Message], list[Message]] = {
    Hello: [Hello((7, 8), [], ""), Hello((8, 7), [], ""), Hello((1, 2), [], ""), Hello((7, 8), [], "", "other")],
    Welcome: [Welcome(8, [], "", ""), Welcome(7, [], "", ""), Welcome(0, [], "", ""), Welcome(9, [], "", "")],
    AuthPake: [AuthPake(b"A" * 33), make_client().start()[1]],
    AuthPakeReply: [AuthPakeReply(b""), AuthPakeReply(pake.host_exchange(CODE, FINGERPRINT, os.urandom).element)],
    AuthPakeConfirm: [AuthPakeConfirm(b"")],
    AuthCredential: [AuthCredential(b"", b"", b""), make_client(**KNOWN).start()[1]],
    Granted: [Granted(b"", "")],
    Error: [Error(0, "wrong_code", "no"), Error(0, "no such code", "\x1b[0m")],
    Goodbye: [Goodbye(), Goodbye("stopped")],
}


def samples(cls: type[Message]) -> list[Message]:
    """Messages of this type: well chosen ones where the handshake knows it, any at all elsewhere."""
    if cls in SAMPLES:
        return SAMPLES[cls]
    return [cls(**dict.fromkeys(cls.__struct_fields__, 0))]


def test_the_places_cover_both_tables() -> None:
    for side, table in (("client", ClientHandshake._EXPECTS), ("host", HostHandshake._EXPECTS)):
        here = [place for place in PLACES if side in place.name]
        assert {place.make().state for place in here} == set(table)
        for place in here:
            assert place.expects == set(table[place.make().state])


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_every_message_in_every_state(place: Place) -> None:
    before = place.make()
    for cls in BY_TYPE.values():
        for message in samples(cls):
            machine = copy.deepcopy(before)
            had = machine.agreed
            if cls not in place.expects:
                with pytest.raises(ProtocolError):
                    machine.receive(message)
            else:
                try:
                    machine.receive(message)
                except HeadraceError as why:
                    assert error_message(why).code == why.code
                else:
                    assert machine.state is not State.FAILED
                    continue
            assert machine.state is State.FAILED
            assert machine.agreed is had
            with pytest.raises(ProtocolError):
                machine.receive(Ping(1))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_messages_of_unknown_type_change_nothing(place: Place) -> None:
    machine = place.make()
    state = machine.state
    assert machine.receive(None) == []
    assert machine.state is state


def test_an_error_names_the_message_and_the_state() -> None:
    with pytest.raises(ProtocolError, match="Granted in state welcome"):
        client_at(State.WELCOME).receive(Granted(b"", ""))


handshake_messages = st.one_of(*(st.sampled_from(found) for found in SAMPLES.values()), strategies.messages)


@settings(max_examples=80, deadline=None)
@given(st.lists(handshake_messages, max_size=6), st.booleans())
def test_any_conversation_ends_well_or_with_one_of_our_errors(messages: list[Message], known: bool) -> None:
    client = make_client(**KNOWN if known else {})
    client.start()
    for machine in (client, make_host(known_policy())):
        for message in messages:
            try:
                machine.receive(message)
            except HeadraceError:
                assert machine.state is State.FAILED
                break
            assert machine.state is not State.FAILED


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_wrong_field_is_refused(data: st.DataObject) -> None:
    """Somebody in between changes one message for another of its type: nobody gets in with other keys."""
    types: list[type[Message]] = [AuthPake, AuthPakeReply, AuthPakeConfirm, Granted, AuthCredential]
    change = data.draw(st.sampled_from(types))

    def tamper(side: str, message: Message) -> Message:
        return data.draw(strategies.MESSAGES[change].filter(message.__ne__)) if type(message) is change else message

    client = make_client(**KNOWN if change is AuthCredential else {})
    host = make_host(known_policy())
    said = talk(client, host, tamper)
    assert isinstance(said.client_error or said.host_error, (WrongCodeError, ProtocolError, CredentialUnknownError))
    assert client.agreed is None


# ---- versions, features and words --------------------------------------------------------------------------------

RANGES = [Versions(low, high) for low in (7, 8, 9) for high in range(low, 10)]


@pytest.mark.parametrize("ours", RANGES, ids=str)
def test_every_pair_of_version_ranges(ours: Versions) -> None:
    for theirs in RANGES:
        common = set(range(ours.low, ours.high + 1)) & set(range(theirs.low, theirs.high + 1))
        client = make_client(**KNOWN, versions=theirs)
        host = make_host(known_policy(), versions=ours)
        said = talk(client, host)
        assert ours.common(theirs) == theirs.common(ours) == max(common, default=None)
        if common:
            assert client.agreed and host.agreed
            assert client.agreed.version == host.agreed.version == max(common)
            continue
        for error in (said.host_error, said.client_error):
            assert isinstance(error, NoCommonVersionError)
            assert error.exit_code == 7
            assert f"host speaks phase {ours}" in error.message
            assert f"client {theirs}" in error.message
        sent = said.of("host")
        assert [type(message) for message in sent] == [Error]
        assert isinstance(sent[0], Error)
        assert sent[0].versions == (ours.low, ours.high)


@pytest.mark.parametrize("versions", [(8, 7), (9, 7), (0, 0), (-5, 6), (9, 2**64 - 1), (2**64 - 1, -(2**63))])
def test_ranges_that_share_nothing(versions: tuple[int, int]) -> None:
    with pytest.raises(NoCommonVersionError):
        make_host().receive(Hello(versions, [], ""))


def test_a_range_may_reach_far_beyond_ours() -> None:
    (welcome,) = make_host().receive(Hello((-(2**63), 2**64 - 1), [], ""))
    assert isinstance(welcome, Welcome)
    assert welcome.version == 8


@pytest.mark.parametrize("version", [6, 9, -1, 2**64 - 1])
def test_a_host_may_not_choose_outside_of_the_clients_range(version: int) -> None:
    client = make_client(**KNOWN)
    client.start()
    with pytest.raises(NoCommonVersionError, match=f"phase {version}; this side speaks 7 to 8"):
        client.receive(Welcome(version, [], "", ""))


def test_a_version_range_reads_like_one() -> None:
    assert (str(Versions(7, 8)), str(Versions(8, 8))) == ("7 to 8", "8")


words = st.sets(st.sampled_from(["sparse", "zstd", "delta", "é", ""]), max_size=5)


@settings(max_examples=40, deadline=None)
@given(ours=words, theirs=words)
def test_features_are_those_of_both(ours: set[str], theirs: set[str]) -> None:
    client = make_client(**KNOWN, features=theirs)
    host = make_host(known_policy(), features=ours)
    talk(client, host)
    assert client.agreed and host.agreed
    assert client.agreed.features == host.agreed.features == ours & theirs


def test_a_host_cannot_add_features() -> None:
    client = make_client(**KNOWN, features=["sparse"])
    talk(client, make_host(known_policy()), lambda side, message: add_feature(message))
    assert client.agreed
    assert client.agreed.features == {"sparse"}


def add_feature(message: Message) -> Message:
    if isinstance(message, Welcome):
        return Welcome(message.version, [*message.features, "telepathy"], message.agent, message.share)
    return message


@pytest.mark.parametrize(
    "hello",
    [
        Hello((7, 8), ["f"] * (MAX_FEATURES + 1), ""),
        Hello((7, 8), ["f" * (MAX_WORD + 1)], ""),
        Hello((7, 8), [], "a" * (MAX_WORD + 1)),
        Hello((7, 8), [], "", ""),
        Hello((7, 8), [], "", "admin"),
    ],
    ids=["many features", "a long feature", "a long agent", "no role", "an unknown role"],
)
def test_a_hello_that_goes_too_far(hello: Hello) -> None:
    with pytest.raises(ProtocolError):
        make_host().receive(hello)


def test_a_hello_at_its_limits() -> None:
    host = make_host()
    host.receive(Hello((7, 8), ["f" * MAX_WORD] * MAX_FEATURES, "a" * MAX_WORD))
    assert host.state is State.AUTH


def test_a_welcome_with_too_many_features() -> None:
    client = make_client(**KNOWN)
    client.start()
    with pytest.raises(ProtocolError):
        client.receive(Welcome(8, ["f"] * (MAX_FEATURES + 1), "", ""))


def test_words_from_the_other_side_are_made_printable() -> None:
    nasty = "\x1b]0;pwned\x07\n" + "x" * 500
    client = make_client(**KNOWN)
    client.start()
    client.receive(Welcome(8, [], nasty, nasty))
    client.receive(Granted(b"", nasty))
    assert client.agreed
    for word in (client.agreed.agent, client.agreed.share, client.agreed.name):
        assert word.isprintable()
        assert len(word) <= MAX_WORD
    host = make_host(known_policy())
    talk(make_client(**KNOWN, agent=nasty[:MAX_WORD]), host)
    assert host.agreed
    assert host.agreed.agent.isprintable()


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        (Error(0, "wrong_code", "the code is wrong"), WrongCodeError, "the code is wrong"),
        (Error(0, "nonsense", "\x1b[2J"), HeadraceError, r"\x1b[2J"),
        (Error(0, "locked", ""), ShareLockedError, "the other side reported an error"),
        (Goodbye(), ConnectionLostError, "the host said goodbye"),
        (Goodbye("stopped\n"), ConnectionLostError, r"the host said goodbye: stopped\n"),
    ],
    ids=repr,
)
def test_what_the_host_says_instead_of_going_on(message: Message, error: type[HeadraceError], text: str) -> None:
    client = make_client()
    client.start()
    with pytest.raises(error) as caught:
        client.receive(message)
    assert type(caught.value) is error
    assert caught.value.message == text


def test_a_client_needs_something_to_show() -> None:
    with pytest.raises(ValueError, match="code or a credential"):
        make_client(code=None)


# ---- over frames -------------------------------------------------------------------------------------------------


def test_requests_may_follow_the_last_handshake_message_at_once() -> None:
    """The host stops asking the handshake once it is agreed; what came along is a request, under the larger limits."""
    client, host = make_client(**KNOWN), make_host(known_policy())
    request = List(1, b"d" * 255)
    decoder = FrameDecoder()
    decoder.feed(b"".join(map(encode_frame, [*client.start(), request, Ping(2)])))
    while host.agreed is None:
        head = decoder.next_head()
        assert head
        host.receive(head.message)
    decoder.limits = SESSION_LIMITS
    assert decoder.next_head() == Head(request, 0)
    assert decoder.next_head() == Head(Ping(2), 0)
    assert decoder.idle


# ---- secrets -----------------------------------------------------------------------------------------------------


def shown(thing: object) -> str:
    """All the ways in which something could end up in a log or on a terminal."""
    text = f"{thing!r} {thing!s} {[thing]}"
    if isinstance(thing, BaseException):
        text += "".join(traceback.format_exception(thing)) + repr(vars(thing)) + repr(thing.args)
    return text


def assert_nothing_shown(secrets: list[bytes], things: list[object]) -> None:
    for thing, secret in itertools.product(things, secrets):
        text = shown(thing)
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text


SCENES: dict[str, tuple[dict[str, Any], dict[str, Any], Tamper]] = {
    "right": ({}, {}, lambda side, message: message),
    "paired": (KNOWN, {"policy": Policy(peers={PEER: CREDENTIAL})}, lambda side, message: message),
    "unknown": (KNOWN, {}, lambda side, message: message),
    "wrong": ({"code": OTHER_CODE}, {}, lambda side, message: message),
    "locked": ({}, {"policy": Policy(locked=9.0)}, lambda side, message: message),
    "bad element": ({}, {}, lambda side, message: AuthPake(b"A") if isinstance(message, AuthPake) else message),
    "bad reply": ({}, {}, lambda side, message: AuthPakeReply(b"") if isinstance(message, AuthPakeReply) else message),
    "bad host": ({}, {}, lambda side, message: Granted(b"", "") if isinstance(message, Granted) else message),
    "out of turn": ({}, {}, lambda side, message: Ping(1) if isinstance(message, AuthPakeConfirm) else message),
    "version": ({"versions": Versions(9, 9)}, {}, lambda side, message: message),
}


@pytest.mark.parametrize(("ours", "theirs", "tamper"), SCENES.values(), ids=SCENES.keys())
def test_secrets_are_never_shown(ours: dict[str, Any], theirs: dict[str, Any], tamper: Tamper) -> None:
    client, host = make_client(**ours), make_host(**theirs)
    said: Talk = talk(client, host, tamper)
    secrets = [CODE.secret.encode(), OTHER_CODE.secret.encode(), CREDENTIAL]
    for machine in (client, host):
        if keys := machine._keys:
            secrets += [keys.credential]
    secrets += [message.proof for message in said.of("client") if isinstance(message, AuthCredential)]
    things: list[object] = [client, host, client.agreed, host.agreed, client._keys, host._keys]
    things += [client._exchange, said.client_error, said.host_error, CODE, *(message for _, message in said.said)]
    assert_nothing_shown(secrets, things)


# ---- the secret for sealed records ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way_in", ["code", "credential"])
def test_both_sides_hold_the_same_fresh_secret(way_in: str) -> None:
    seen = set()
    for _ in range(3):
        offer: dict[str, Any] = {"features": (*FEATURES, SEALED)}
        client = make_client(**offer, **(KNOWN if way_in == "credential" else {}))
        host = make_host(known_policy(), **offer)
        assert talk(client, host).host_error is None
        assert client.agreed and host.agreed
        assert len(client.agreed.seal) == 2 * SEAL_SIZE
        assert client.agreed.seal == host.agreed.seal
        assert SEALED in client.agreed.features & host.agreed.features
        seen.add(client.agreed.seal)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("ours", "theirs", "versions"),
    [
        ((SEALED,), (), Versions()),
        ((), (SEALED,), Versions()),
        ((), (), Versions()),
        ((SEALED,), (SEALED,), Versions(7, 7)),
    ],
)
def test_no_secret_where_one_side_or_the_phase_has_none(
    ours: tuple[str, ...], theirs: tuple[str, ...], versions: Versions
) -> None:
    client, host = make_client(features=ours, versions=versions), make_host(features=theirs)
    said = talk(client, host)
    assert client.agreed and host.agreed
    assert client.agreed.seal == host.agreed.seal == b""
    assert SEALED not in client.agreed.features | host.agreed.features
    assert not [message for message in said.of("host") if isinstance(message, Granted) and message.seal]


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_of_the_wrong_size_is_refused(size: int) -> None:
    def tamper(side: str, message: Message) -> Message:
        spoilt = side == whose and isinstance(message, (Hello, Granted))
        return msgspec.structs.replace(message, seal=bytes(size)) if spoilt else message

    for whose in ("client", "host"):
        client, host = make_client(features=(SEALED,)), make_host(features=(SEALED,))
        said = talk(client, host, tamper)
        assert isinstance(said.host_error if whose == "client" else said.client_error, ProtocolError)


def test_the_secret_is_in_no_repr() -> None:
    client, host = make_client(features=(SEALED,)), make_host(features=(SEALED,))
    said = talk(client, host)
    assert client.agreed and len(client.agreed.seal) == 64
    shown = repr((said, client.agreed, host.agreed))
    for half in (client.agreed.seal[:32], client.agreed.seal[32:]):
        assert repr(half)[2:-1] not in shown
        assert half.hex() not in shown
