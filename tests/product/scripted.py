"""Peers that say what a test wants: a host that lies, a client that misbehaves, somebody in between.

They speak real TLS and real frames over loopback, with headrace's own codec, and break the rules above that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from headrace.errors import ConnectionLostError, HeadraceError, ProtocolError
from headrace.protocol.codes import Code
from headrace.protocol.messages import (
    CHUNK_SIZE,
    Batch,
    Chunk,
    Data,
    Entry,
    Error,
    GetBatch,
    GetChunk,
    GetManifest,
    Goodbye,
    List,
    ListPart,
    ManifestPart,
    Message,
    Ping,
    Pong,
    Read,
    Stat,
    StatReply,
    Walk,
)
from headrace.protocol.pake import PairingKeys
from headrace.protocol.session import SPARSE, Agreed, ClientHandshake, HostHandshake, Versions, error_message
from headrace.storage.chunks import hash_bytes
from headrace.transport.framed import MessageStream
from headrace.transport.identity import Identity
from headrace.transport.tcp import ALPN, TcpStream, client_context, server_context, tune

from .support import CODE, give_identity

MTIME: Final = 1_700_000_000_000_000_000


def file_entry(name: bytes, content: bytes, **other: Any) -> Entry:
    """A file's entry, true to `content` unless told otherwise."""
    facts: dict[str, Any] = {
        "size": len(content),
        "mtime_ns": MTIME,
        "mode": 0o644,
        "version": version_of(name, content),
    }
    return Entry(name, "f", **(facts | other))


def version_of(name: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(name + b"\0" + content, digest_size=16).digest()


def folder_entry(name: bytes) -> Entry:
    return Entry(name, "d", mtime_ns=MTIME, mode=0o755)


def link_entry(name: bytes, target: bytes) -> Entry:
    return Entry(name, "l", mtime_ns=MTIME, mode=0o777, target=target)


class _Policy:
    """Knows every peer that paired with any of these hosts, which spares most tests a pairing, and counts nothing."""

    peers: ClassVar[dict[bytes, bytes]] = {}

    def locked_for(self) -> float:
        return 0.0

    def guess_started(self) -> None:
        pass

    def guess_right(self) -> None:
        pass

    def credential(self, peer: bytes) -> bytes | None:
        return self.peers.get(peer)

    def remember(self, peer: bytes, credential: bytes, agent: str) -> None:
        self.peers[peer] = credential


class ScriptedHost:
    """A host on a free port of 127.0.0.1 whose share is `listing`, and whose every answer can be another one.

    listing: (directory, its entries), as Walk tells them. content: of the files, by path. answers: by request, what
    is sent instead of the honest answer; `host.honest(stream, request)` gives that. asked: every request so far.
    features: what it offers; without `batch`, as here, it is a host from before there was that.
    """

    def __init__(
        self,
        home: Path,
        listing: Iterable[tuple[bytes, list[Entry]]] = (),
        content: Mapping[bytes, bytes] | None = None,
        answers: Mapping[type[Message], Answer] | None = None,
        *,
        root: Entry | None = None,
        versions: Versions = Versions(),
        code: str = CODE,
        features: tuple[str, ...] = (SPARSE,),
    ) -> None:
        give_identity(home)
        identity = Identity.load_or_create(home)
        self.fingerprint = identity.fingerprint
        self._context = server_context(str(identity.file))
        self._code = Code.parse(code)
        self._versions = versions
        self._features = features
        self._policy = _Policy()
        self.listing = list(listing)
        self.content = dict(content or {})
        self.answers = dict(answers or {})
        self.root = root or Entry(b"hostile", "d", mtime_ns=MTIME, mode=0o755)
        self.asked: list[Message] = []
        self.failures: list[BaseException] = []
        self._streams: list[TcpStream] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.target = f"{code}@{self.address}"
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            tune(sock, loopback=True)
            stream = TcpStream(sock, self._context, server=True)
            self._streams.append(stream)
            self._start(self._serve, stream)

    def _serve(self, stream: TcpStream) -> None:
        messages = MessageStream(stream)
        try:
            stream.handshake()
            self.let_in(messages)
            while received := messages.receive():
                if isinstance(received[0], Goodbye):
                    break
                self.asked.append(received[0])
                self.answer(messages, received[0])
        except (ConnectionLostError, ProtocolError, OSError):
            pass  # the client went away, as many of these tests want it to
        except BaseException as why:  # noqa: BLE001  # shown by the test that owns this host
            self.failures.append(why)
        finally:
            stream.close()

    def let_in(self, messages: MessageStream) -> None:
        """The handshake, honest."""
        handshake = HostHandshake(
            code=self._code,
            fingerprint=self.fingerprint,
            policy=self._policy,
            entropy=os.urandom,
            name="hostile",
            versions=self._versions,
            features=self._features,
        )
        try:
            self.shake(handshake, messages)
        except HeadraceError as why:
            messages.send(error_message(why))
            raise ConnectionLostError("refused") from why

    def shake(self, handshake: HostHandshake, messages: MessageStream) -> None:
        """Message by message."""
        while handshake.agreed is None:
            messages.send_all(handshake.receive(messages.expect()[0]))
        messages.enter_session()

    def answer(self, messages: MessageStream, request: Message) -> None:
        scripted = self.answers.get(type(request))
        if scripted:
            scripted(self, messages, request)
        else:
            self.honest(messages, request)

    def honest(self, messages: MessageStream, request: Any) -> None:
        """The answer of a host that follows the protocol."""
        if isinstance(request, Stat):
            entry = self._entry(request.path)
            messages.send(StatReply(request.id, entry) if entry else Error(request.id, "not_found", "no such path"))
        elif isinstance(request, Walk):
            for directory, entries in self.listing:
                messages.send(ListPart(request.id, directory, entries))
            messages.send(ListPart(request.id, request.path, [], last=True))
        elif isinstance(request, List):
            for directory, entries in self.listing:
                if directory == request.path:
                    messages.send(ListPart(request.id, directory, entries))
            messages.send(ListPart(request.id, request.path, [], last=True))
        elif isinstance(request, GetChunk):
            data = self.content[request.path][request.offset : request.offset + request.length]
            messages.send(Chunk(request.id, hash_bytes(data)), data)
        elif isinstance(request, GetBatch):
            whole = [self.content[path] for path, _ in request.items]
            data = b"".join(whole)
            messages.send(Batch(request.id, 0, [len(one) for one in whole], [], [], [], hash_bytes(data)), data)
        elif isinstance(request, Read):
            messages.send(Data(request.id), self.content[request.path][request.offset :][: request.length])
        elif isinstance(request, GetManifest):
            hashes = self.hashes(self.content[request.path])
            messages.send(ManifestPart(request.id, 0, b"".join(hashes)))
            messages.send(ManifestPart(request.id, len(hashes), b"", last=True))
        elif isinstance(request, Ping):
            messages.send(Pong(request.id))
        else:
            raise AssertionError(f"no answer to {request}")

    def _entry(self, path: bytes) -> Entry | None:
        if not path:
            return self.root
        above, _, name = path.rpartition(b"/")
        found = (e for directory, entries in self.listing if directory == above for e in entries)
        return next((entry for entry in found if entry.name == name), None)

    @staticmethod
    def hashes(content: bytes) -> list[bytes]:
        return [hash_bytes(content[start : start + CHUNK_SIZE]) for start in range(0, len(content), CHUNK_SIZE)]

    def count(self, kind: type[Message]) -> int:
        """How many requests of that kind came so far."""
        return sum(isinstance(request, kind) for request in list(self.asked))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for stream in list(self._streams):
            stream.abort()
        for thread in list(self._threads):
            thread.join(5)
        assert kind is not None or not self.failures, self.failures


Answer = Callable[[ScriptedHost, MessageStream, Any], None]


@dataclass
class Paired:
    """What a client keeps of a first contact."""

    fingerprint: bytes
    keys: PairingKeys = field(repr=False)


class ScriptedClient:
    """A client that has made a TLS connection, and then does what the test says. A context manager."""

    def __init__(self, port: int, *, timeout: float = 10.0) -> None:
        sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        tune(sock, loopback=True)
        self.stream = TcpStream(sock, client_context(), server=False, timeout=timeout)
        self.stream.handshake(timeout)
        self.messages = MessageStream(self.stream)
        self._id = 0

    def pair(self, code: str = CODE, versions: Versions = Versions(), **more: Any) -> Paired:
        """First contact with the code; the session is open when it returns."""
        agreed = self._shake(code=Code.parse(code), versions=versions, **more)
        assert agreed.keys
        return Paired(self.stream.fingerprint, agreed.keys)

    def come_back(self, paired: Paired, **more: Any) -> Agreed:
        """With the credential of an earlier pairing."""
        return self._shake(peer=paired.keys.peer, credential=paired.keys.credential, **more)

    def _shake(self, **more: Any) -> Agreed:
        handshake = ClientHandshake(fingerprint=self.stream.fingerprint, entropy=os.urandom, **more)
        self.messages.send_all(handshake.start())
        while handshake.agreed is None:
            self.messages.send_all(handshake.receive(self.messages.expect()[0]))
        self.messages.enter_session()
        return handshake.agreed

    def next_id(self) -> int:
        self._id += 1
        return self._id

    def raw(self, data: bytes) -> None:
        """Bytes as they are, inside TLS. A host that hung up already is fine: the test looks at what came back."""
        with contextlib.suppress(ConnectionLostError):
            self.stream.send(data)

    def send(self, *messages: Message) -> None:
        with contextlib.suppress(ConnectionLostError):
            self.messages.send_all(list(messages))

    def ask(self, request: Message) -> tuple[Message, bytes]:
        """Sends a request and gives the first message of the answer with its payload."""
        self.messages.send(request)
        return self.receive()

    def receive(self) -> tuple[Message, bytes]:
        message, length = self.messages.expect()
        payload = bytearray(length)
        self.messages.read_payload(memoryview(payload))
        return message, bytes(payload)

    def until_closed(self) -> list[Message]:
        """What the host still says before it hangs up; AssertionError when it does not hang up."""
        said: list[Message] = []
        started = time.monotonic()
        try:
            while received := self.messages.receive():
                said.append(received[0])
                if received[1]:
                    self.messages.skip_payload()
        except ConnectionLostError as why:
            assert "nothing arrived" not in why.message, f"the host did not hang up in {time.monotonic() - started} s"
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()


class Eavesdropper:
    """Somebody in between: shows a certificate of its own to the client, and passes the plaintext on both ways."""

    def __init__(self, port: int, home: Path) -> None:
        identity = Identity.load_or_create(home)
        self._server = server_context(str(identity.file))
        self._upstream = port
        self.heard = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                near = self._server.wrap_socket(sock, server_side=True)
                far = client_context().wrap_socket(socket.create_connection(("127.0.0.1", self._upstream)))
                for plain in (near, far):
                    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: ssl.SSLSocket, sink: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.heard += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            sock.close()


class Listener:
    """Something that is not headrace: accepts connections on a port of 127.0.0.1 and lets `talk` handle each."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            threading.Thread(target=self._run, args=(sock,), daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._talk(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def tls_server(home: Path, *, alpn: str | None = ALPN) -> ssl.SSLContext:
    """A TLS 1.3 server that is not headrace, whatever it says."""
    give_identity(home)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "identity.pem")
    if alpn:
        context.set_alpn_protocols([alpn])
    return context
