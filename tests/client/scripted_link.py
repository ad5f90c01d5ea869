"""A link to a file in memory: what a BlockReader needs of one, with faults that a test chooses. No threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tests.engine.scripted import ScriptedHost

from headrace.engine.lane import Lane
from headrace.errors import ConnectionLostError, HostAwayError
from headrace.protocol.messages import Chunk, Data, Entry, Error, GetChunk, Read
from headrace.protocol.paths import RelPath
from headrace.protocol.session import Agreed
from headrace.storage.chunks import hash_bytes

PATH = RelPath((b"film", b"one.mov"))
VERSION = b"1" * 16


class ScriptedLink:
    """content, version: of the one file that the host has now. asked: (offset, length) of each request so far.

    gate: what each request waits for before it is answered. spoil: bytes that are answered wrongly, so many times more.
    """

    def __init__(self, content: bytes, *, phase: int = 8, clock: Callable[[], float] = time.monotonic) -> None:
        self.content = content
        self.version = VERSION
        self.clock = clock
        self.up = True
        self.crowded = False
        self.phase = phase
        self.asked: list[tuple[int, int]] = []
        self.requests: list[Any] = []
        self.bulk: list[bool] = []
        self.gate = threading.Event()
        self.gate.set()
        self.spoil = 0
        self._lock = threading.Lock()
        self._idle: list[ScriptedHost] = []

    @property
    def entry(self) -> Entry:
        return Entry(PATH.name, "f", size=len(self.content), version=self.version)

    def run(self, do: Callable[[Any, Lane], Any], deadline: float, *, bulk: bool = False, wait: bool = True) -> Any:
        if not self.up:
            raise HostAwayError("the host is away")
        with self._lock:
            host = self._idle.pop() if self._idle else self._new()
            self.bulk.append(bulk)
        session: Any = _Session(self.phase)
        try:
            return do(session, host.lane)
        except ConnectionLostError as why:
            raise HostAwayError("the host did not answer in time") from why
        finally:
            if host.lane.idle:
                with self._lock:
                    self._idle.append(host)

    def _new(self) -> ScriptedHost:
        host = ScriptedHost()
        host.answering = lambda request: self._answer(host, request)
        return host

    def _answer(self, host: ScriptedHost, request: Read | GetChunk) -> None:
        with self._lock:
            self.asked.append((request.offset, request.length))
            self.requests.append(request)
        self.gate.wait(20)
        assert request.path == bytes(PATH)
        if request.version != self.version:
            host.say(Error(request.id, "changed", "it is another one"))
            return
        part = self.content[request.offset : request.offset + request.length]
        if isinstance(request, Read):
            host.say(Data(request.id), part)
            return
        if len(part) < request.length:
            host.say(Error(request.id, "not_found", "that range lies past the end of the file"))
            return
        digest = hash_bytes(part)
        if self.spoil:
            self.spoil -= 1
            part = bytes([part[0] ^ 1]) + part[1:]
        host.say(Chunk(request.id, digest), part)


class _Session:
    def __init__(self, phase: int) -> None:
        self.agreed = Agreed(phase, frozenset(), "", "", "control", b"p" * 16)
