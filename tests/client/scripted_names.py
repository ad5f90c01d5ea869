"""A link to a tree in memory: what Attributes need of one, with faults and a clock that a test chooses. No threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.engine.scripted import ScriptedHost

from headrace.client.attributes import Attributes
from headrace.engine.lane import Lane
from headrace.errors import ConnectionLostError, HostAwayError
from headrace.protocol.messages import Changed, Entry, Error, List, ListPart, Look, Looked, Stat, StatFs, StatReply
from headrace.protocol.paths import RelPath
from headrace.protocol.session import STATFS, WATCH

WATCHING = frozenset({WATCH, STATFS})


def path(text: str) -> RelPath:
    return RelPath.from_user(text.encode())


def a_file(name: bytes, size: int = 1, version: int = 1) -> Entry:
    return Entry(name, "f", size, 5, 0o644, b"", b"%016d" % version)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ScriptedNames:
    """directories: by path, the entries in each. requests: all that was asked. watch: the number that Look knows.

    refused: codes of errors by path. meanwhile: called after an answer was made up and before it is on its way.
    """

    def __init__(self, clock: Clock, features: frozenset[str] = WATCHING) -> None:
        self.clock = clock
        self.up = True
        self.closed = False
        self.features = features
        self.watch = 0
        self.directories: dict[bytes, list[Entry]] = {b"": []}
        self.refused: dict[bytes, str] = {}
        self.requests: list[Any] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.answer: Callable[[Any], Any] | None = None
        self.hangs = 0.0  # seconds that the host needs
        self._lock = threading.Lock()

    def on_up(self, callback: Callable[[], None]) -> None:
        pass

    def run(self, do: Callable[[Any, Lane], Any], deadline: float, *, bulk: bool = False) -> Any:
        if not self.up:
            raise HostAwayError("the host is away")
        if self.clock.now + self.hangs > deadline:
            self.clock.now = deadline
            raise HostAwayError("the host did not answer in time")
        self.clock.now += self.hangs
        session: Any = SimpleNamespace(agreed=SimpleNamespace(features=self.features))
        host = ScriptedHost()
        host.answering = lambda request: self._answer(host, request)
        try:
            return do(session, host.lane)
        except ConnectionLostError as why:
            raise HostAwayError("the host did not answer in time") from why

    def asked(self) -> list[Any]:
        """What was asked since the last look."""
        with self._lock:
            asked, self.requests = self.requests, []
        return asked

    def _answer(self, host: ScriptedHost, request: Any) -> None:
        with self._lock:
            self.requests.append(request)
        for message in self.answer(request) if self.answer else self.answers(request):
            host.say(message)

    def answers(self, request: Any) -> list[Any]:
        code = self.refused.get(request.path)
        if code and not isinstance(request, Stat):
            made: list[Any] = [Error(request.id, code, "no")]
        elif isinstance(request, Stat):
            entry = self.entry(request.path)
            made = [StatReply(request.id, entry) if entry else Error(request.id, "not_found", "no such path")]
        elif isinstance(request, StatFs):
            made = [Error(request.id, "remote_io", "no")]
        elif request.path not in self.directories:
            made = [Error(request.id, "not_found", "no such path")]
        else:
            made = self._listing(request)
        self.meanwhile()
        return made

    def entry(self, where: bytes) -> Entry | None:
        if not where:
            return Entry(b"share", "d", mode=0o755)
        above, _, name = where.rpartition(b"/")
        return next((entry for entry in self.directories.get(above, []) if entry.name == name), None)

    def _listing(self, request: List | Look) -> list[Any]:
        entries = list(self.directories[request.path])
        if isinstance(request, List):
            return [ListPart(request.id, request.path, entries), ListPart(request.id, request.path, [], last=True)]
        limit = request.limit or len(entries)
        itself = self.entry(request.path) or Entry(request.path.rpartition(b"/")[2], "d", mode=0o755)
        return [
            ListPart(request.id, request.path, entries[:limit]),
            Looked(request.id, itself, bool(request.watch) and request.watch == self.watch, len(entries) > limit),
        ]


class Watched:
    """In the place of Watching: the test says what the host tells."""

    def __init__(self, link: ScriptedNames, on_changed: Callable[[Changed], None]) -> None:
        self.number = 0
        self.tell = on_changed

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.number = 0


def watch(attributes: Attributes, link: ScriptedNames, number: int = 7) -> Callable[..., None]:
    """The watch stands from here on. What is returned tells of changes."""
    watched: Any = attributes._watching
    watched.number = link.watch = number

    def tell(**what: Any) -> None:
        watched.tell(Changed(1, number, **what))

    return tell
