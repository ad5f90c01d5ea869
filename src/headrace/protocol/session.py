"""The handshake: Hello, Welcome, Auth…, Granted, as one state machine for each side.

A machine is given messages and answers with the messages to send; when it is over, `agreed` says what holds. What may
come in which state is in the two tables `_EXPECTS`; everything else ends the handshake with an error. A machine owns
no clock and no socket; the host's policy (which peers it knows, how many wrong codes it bears) is passed in.

          client                                   host
    start   → Hello, AuthCredential                 hello, auth   → Welcome, Granted            (paired before)
    start   → Hello, AuthPake                       hello, auth   → Welcome, AuthPakeReply
    reply   → AuthPakeConfirm                       confirm       → Granted                     (first contact)

The client may send its requests right behind its last handshake message, unless it offered `sealed`: then what follows
its last handshake message is sealed, and for that it needs what Granted says.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

from headrace.errors import (
    ConnectionLostError,
    CredentialUnknownError,
    HeadraceError,
    NoCommonVersionError,
    ProtocolError,
    ShareLockedError,
    WrongCodeError,
    from_wire,
    printable,
)
from headrace.protocol import pake
from headrace.protocol.codes import Code
from headrace.protocol.messages import (
    PHASE_BASELINE,
    PHASE_BULK,
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
    Message,
    Welcome,
)

SPARSE: Final = "sparse"  # a chunk that lies in a hole may be answered without its zeros
SEALED: Final = "sealed"  # from Granted on the stream uses the records of `sealed`; only offered over TCP
BATCH: Final = "batch"  # many small files may be asked for in one request
BLOCKS: Final = "blocks"  # what a chunk has in common with an older version may be found, and the rest asked for
WATCH: Final = "watch"  # directories may be looked at, and the host says what changes in them
STATFS: Final = "statfs"  # how full the host's disk is may be asked
ZSTD: Final = "zstd"  # chunks and batches may come compressed where the client asks for it; not beside `clear`
TRACE: Final = "trace"  # the client may say to which trace its requests belong
TIMES: Final = "times"  # where the host's time went may be asked
PUT: Final = "put"  # the client may write into the share; a host offers it where its owner allows that
FEATURES: Final[tuple[str, ...]] = (SPARSE, BATCH, BLOCKS, WATCH, STATFS, ZSTD, TRACE, TIMES, PUT)
MAX_FEATURES: Final = 64
CLEAR: Final = "clear"  # chunks' bytes may come outside of those records; only together with `sealed`
SEAL_SIZE: Final = 32  # bytes of the secret that each side contributes
MAX_WORD: Final = 128  # characters in a feature, an agent or a share's name


@dataclass(frozen=True, slots=True)
class Versions:
    """The phases a side speaks, lowest and highest."""

    low: int = PHASE_BASELINE
    high: int = PHASE_BULK

    def common(self, other: Versions) -> int | None:
        """The highest phase in both ranges."""
        best = min(self.high, other.high)
        return best if best >= max(self.low, other.low) else None

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a finished handshake settled. peer: the client's id. keys: set on first contact only.

    seal: the secret for the records to come; empty where the stream stays with its transport's own.
    """

    version: int
    features: frozenset[str]
    agent: str
    share: str
    role: str
    peer: bytes
    name: str = ""
    keys: pake.PairingKeys | None = None
    seal: bytes = field(default=b"", repr=False)


class State(enum.Enum):
    HELLO = enum.auto()
    WELCOME = enum.auto()
    AUTH = enum.auto()
    PAKE_REPLY = enum.auto()
    CONFIRM = enum.auto()
    GRANTED = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class HostPolicy(Protocol):
    """What the host's handshake asks of the share. May be called from several threads."""

    def locked_for(self) -> float:
        """Seconds until a new peer may try a code again; 0 when it may now."""

    def guess_started(self) -> None:
        """A peer is about to be sent our element: from now on this counts as a wrong code until `guess_right`.

        May raise ShareLockedError, and then nothing is sent: many peers at once can all have passed `locked_for`.
        """

    def guess_right(self) -> None:
        """That peer proved that it has the code."""

    def credential(self, peer: bytes) -> bytes | None:
        """The credential of a peer that paired before."""

    def remember(self, peer: bytes, credential: bytes, agent: str) -> None:
        """A new peer paired; keep its credential."""


def error_message(error: HeadraceError, request: int = 0) -> Error:
    """The Error that reports `error` to the peer: the sentence, never the hint, which is for this side."""
    return Error(
        id=request,
        code=error.code,
        message=error.message,
        retry_after=getattr(error, "retry_after", 0.0),
        versions=getattr(error, "versions", (0, 0)),
    )


class _Handshake:
    _EXPECTS: ClassVar[dict[State, dict[type[Message], str]]]

    def __init__(self, versions: Versions, features: Iterable[str], agent: str) -> None:
        self.versions = versions
        self.features = frozenset(features)
        self.agent = agent
        self.agreed: Agreed | None = None

    def receive(self, message: Message | None) -> list[Message]:
        """What to send in answer. None (of an unknown type) is skipped. Raises a HeadraceError when it failed."""
        if message is None:
            return []
        handler = self._EXPECTS[self.state].get(type(message))
        try:
            if handler is None:
                raise ProtocolError(f"{type(message).__name__} in state {self.state.name.lower()} of the handshake")
            answer: list[Message] = getattr(self, handler)(message)
        except HeadraceError:
            self.state = State.FAILED
            raise
        return answer

    state: State = State.HELLO


class ClientHandshake(_Handshake):
    """The client's side. Give it the code, the credential of an earlier pairing, or both (the credential goes first).

    fingerprint: of the certificate that the connection shows. After `agreed`, `agreed.keys` is set when this was a
    first contact: keep peer and credential. When the host no longer knows the credential, `receive` raises
    CredentialUnknownError; connect again with the code alone.
    """

    _EXPECTS: ClassVar[dict[State, dict[type[Message], str]]] = {
        State.WELCOME: {Welcome: "_welcome", Error: "_error", Goodbye: "_goodbye"},
        State.PAKE_REPLY: {AuthPakeReply: "_pake_reply", Error: "_error", Goodbye: "_goodbye"},
        State.GRANTED: {Granted: "_granted", Error: "_error", Goodbye: "_goodbye"},
        State.DONE: {},
        State.FAILED: {},
        State.HELLO: {},
    }

    def __init__(
        self,
        *,
        fingerprint: bytes,
        entropy: pake.Entropy,
        code: Code | None = None,
        peer: bytes = b"",
        credential: bytes | None = None,
        versions: Versions = Versions(),
        features: Iterable[str] = FEATURES,
        agent: str = "headrace",
        role: str = ROLE_CONTROL,
    ) -> None:
        super().__init__(versions, features, agent)
        if code is None and credential is None:
            raise ValueError("a handshake needs a code or a credential")
        self._role = role
        self._fingerprint = fingerprint
        self._entropy = entropy
        self._peer = peer
        self._credential = credential
        self._seal = entropy(SEAL_SIZE) if SEALED in self.features else b""
        self._exchange = None if credential or code is None else pake.client_exchange(code, fingerprint, entropy)
        self._keys: pake.PairingKeys | None = None
        self._welcomed: Welcome | None = None

    @property
    def has_proved(self) -> bool:
        """Whether the last message of this side was given out: requests may follow it, unless `sealed` was offered."""
        return self.state is State.GRANTED or (self.state is State.WELCOME and not self._exchange)

    def start(self) -> list[Message]:
        """The first flight."""
        hello = Hello(
            (self.versions.low, self.versions.high), sorted(self.features), self.agent, self._role, self._seal
        )
        self.state = State.WELCOME
        if self._exchange:
            return [hello, AuthPake(self._exchange.element)]
        assert self._credential is not None
        nonce = self._entropy(16)
        proof = pake.credential_proof(self._credential, self._fingerprint, nonce)
        return [hello, AuthCredential(self._peer, nonce, proof)]

    def _welcome(self, message: Welcome) -> list[Message]:
        if not self.versions.low <= message.version <= self.versions.high:
            raise NoCommonVersionError(f"the host chose phase {message.version}; this side speaks {self.versions}")
        if len(message.features) > MAX_FEATURES:
            raise ProtocolError("the host names too many features")
        self._welcomed = message
        self.state = State.PAKE_REPLY if self._exchange else State.GRANTED
        return []

    def _pake_reply(self, message: AuthPakeReply) -> list[Message]:
        assert self._exchange is not None
        try:
            self._keys = self._exchange.finish(message.element)
        except pake.PakeFailedError as why:
            raise ProtocolError(f"the host sent {why}") from why
        self.state = State.GRANTED
        return [AuthPakeConfirm(self._keys.client_mac)]

    def _granted(self, message: Granted) -> list[Message]:
        assert self._welcomed is not None
        if self._keys and not pake.same(message.mac, self._keys.host_mac):
            raise WrongCodeError("the host does not know the code: it may be another share, or somebody in between")
        features = _in_phase(self._welcomed.version, self.features & frozenset(self._welcomed.features))
        if len(message.seal) != (SEAL_SIZE if SEALED in features else 0):
            raise ProtocolError("the host's half of the secret for the records has the wrong size")
        self.agreed = Agreed(
            version=self._welcomed.version,
            features=features,
            agent=printable(self._welcomed.agent, MAX_WORD),
            share=printable(self._welcomed.share, MAX_WORD),
            role=self._role,
            peer=self._keys.peer if self._keys else self._peer,
            name=printable(message.name, MAX_WORD),
            keys=self._keys,
            seal=self._seal + message.seal if SEALED in features else b"",
        )
        self.state = State.DONE
        return []

    def _error(self, message: Error) -> list[Message]:
        raise from_wire(message.code, message.message)

    def _goodbye(self, message: Goodbye) -> list[Message]:
        reason = printable(message.reason)
        raise ConnectionLostError(f"the host said goodbye: {reason}" if reason else "the host said goodbye")


class HostHandshake(_Handshake):
    """The host's side of one connection. fingerprint: of the host's own certificate. name: the share's, for display."""

    _EXPECTS: ClassVar[dict[State, dict[type[Message], str]]] = {
        State.HELLO: {Hello: "_hello"},
        State.AUTH: {AuthPake: "_pake", AuthCredential: "_present"},
        State.CONFIRM: {AuthPakeConfirm: "_confirm"},
        State.DONE: {},
        State.FAILED: {},
    }

    def __init__(
        self,
        *,
        code: Code,
        fingerprint: bytes,
        policy: HostPolicy,
        entropy: pake.Entropy,
        name: str = "",
        versions: Versions = Versions(),
        features: Iterable[str] = FEATURES,
        agent: str = "headrace",
    ) -> None:
        super().__init__(versions, features, agent)
        self._code = code
        self._fingerprint = fingerprint
        self._policy = policy
        self._entropy = entropy
        self._name = name
        self._hello_message: Hello | None = None
        self._keys: pake.PairingKeys | None = None
        self._version = 0

    def _hello(self, message: Hello) -> list[Message]:
        if len(message.features) > MAX_FEATURES or max(map(len, [message.agent, *message.features])) > MAX_WORD:
            raise ProtocolError("a Hello with too many or too long words")
        if message.role not in (ROLE_CONTROL, ROLE_DATA):
            raise ProtocolError("a Hello with an unknown role")
        if len(message.seal) != (SEAL_SIZE if SEALED in message.features else 0):
            raise ProtocolError("the client's half of the secret for the records has the wrong size")
        theirs = Versions(*message.versions)
        version = self.versions.common(theirs)
        if version is None:
            error = NoCommonVersionError(f"the host speaks phase {self.versions}, the client {theirs}")
            raise _with(error, versions=(self.versions.low, self.versions.high))
        self._hello_message = message
        self._version = version
        self.state = State.AUTH
        return [Welcome(version, sorted(self._shared_features()), self.agent, self._code.share)]

    def _shared_features(self) -> frozenset[str]:
        assert self._hello_message is not None
        return _in_phase(self._version, self.features & frozenset(self._hello_message.features))

    def _pake(self, message: AuthPake) -> list[Message]:
        wait = self._policy.locked_for()
        if wait > 0:
            error = ShareLockedError(f"too many wrong codes: this share takes no new peers for {wait:.0f} s")
            raise _with(error, retry_after=wait)
        exchange = pake.host_exchange(self._code, self._fingerprint, self._entropy)
        try:
            self._keys = exchange.finish(message.element)
        except pake.PakeFailedError as why:
            raise ProtocolError(f"the client sent {why}") from why
        self._policy.guess_started()
        self.state = State.CONFIRM
        return [AuthPakeReply(exchange.element)]

    def _confirm(self, message: AuthPakeConfirm) -> list[Message]:
        assert self._keys is not None
        if not pake.same(message.mac, self._keys.client_mac):
            raise WrongCodeError("the code is wrong")
        self._policy.guess_right()
        self._policy.remember(self._keys.peer, self._keys.credential, self._agent_of_peer())
        return self._grant(self._keys.peer, self._keys.host_mac)

    def _present(self, message: AuthCredential) -> list[Message]:
        credential = self._policy.credential(message.peer)
        proof = pake.credential_proof(credential or bytes(pake.KEY_SIZE), self._fingerprint, message.nonce)
        if not pake.same(proof, message.proof) or not credential:
            raise CredentialUnknownError("the host does not know this peer")
        return self._grant(message.peer, b"")

    def _grant(self, peer: bytes, mac: bytes) -> list[Message]:
        assert self._hello_message is not None
        features = self._shared_features()
        seal = self._entropy(SEAL_SIZE) if SEALED in features else b""
        self.agreed = Agreed(
            version=self._version,
            features=features,
            agent=self._agent_of_peer(),
            share=self._code.share,
            role=self._hello_message.role,
            peer=peer,
            name=self._name,
            keys=self._keys,
            seal=self._hello_message.seal + seal if seal else b"",
        )
        self.state = State.DONE
        return [Granted(mac, self._name, seal)]

    def _agent_of_peer(self) -> str:
        assert self._hello_message is not None
        return printable(self._hello_message.agent, MAX_WORD)


def _in_phase(version: int, features: frozenset[str]) -> frozenset[str]:
    """The baseline stays plain: what belongs to bulk is left out of phase 7. And what is in the clear must lie between
    records that are not."""
    if version < PHASE_BULK:
        return features - {SEALED, CLEAR, BATCH, BLOCKS, WATCH, STATFS, ZSTD, TRACE, TIMES}
    if SEALED not in features:
        features -= {CLEAR}
    return features - {ZSTD} if CLEAR in features else features


def _with(error: HeadraceError, **facts: Any) -> HeadraceError:
    """The error with facts that travel in its Error message beside the sentence."""
    for name, value in facts.items():
        setattr(error, name, value)
    return error
