"""Spans: what happened when, below what. Off unless a command turned it on, and then it costs next to nothing.

    with tracing.span("connect", host=address): ...
    with tracing.sampled("fetch", lane.times): ...

A span belongs below the one that its thread is in, else below the one that `under` or `start` gave. The names are
few and fixed; attributes are numbers and words of our own, never a code, a credential, a path or a peer's text.
See docs/monitoring.md, docs/decisions/020-tracing.md.
"""

from __future__ import annotations

import contextlib
import functools
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol

from headrace.observe.times import STAGES, StreamTimes

Value = str | int | float | bool

# W3C Trace Context, level 1: version, trace id, parent id, flags. Neither id may be all zeros.
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
SERVE: Final = "serve"
ALL_OF: Final = 64  # of what happens often each of the first so many has a span, and after that one in EVERY
EVERY: Final = 64
# What a stage of a stream is called where it becomes a span, by side.
_HERE: Final = {"hash": "verify", "disk": "write", "waiting": "wait", "receiving": "receive"}
_THERE: Final = {"disk": "read", "hash": "hash", "sending": "send"}


@dataclass(frozen=True, slots=True)
class Context:
    """Which span: ids in hex, 32 and 16 digits."""

    trace_id: str
    span_id: str

    @property
    def traceparent(self) -> str:
        """As W3C Trace Context writes it, with the flag `sampled`."""
        return f"00-{self.trace_id}-{self.span_id}-01"


def parse(traceparent: str) -> Context | None:
    """The context that a peer sent; None for anything else than a sampled one of the known form."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return Context(found[1], found[2]) if found and int(found[3], 16) & 1 else None


@dataclass(slots=True)
class Span:
    """One that is over, or lasts. Times in nanoseconds since 1970. error: what kind was raised, not its text."""

    name: str
    context: Context
    parent: str
    began: int
    ended: int = 0
    attributes: dict[str, Value] = field(default_factory=dict)
    error: str = ""
    thread: str = ""


class Exporter(Protocol):
    """Where spans go. Called from many threads; must not raise, nor block for long."""

    def export(self, span: Span) -> None:
        """The span is over."""

    def close(self) -> None:
        """No more will come: whatever waits is written."""


class Tracer:
    """Makes spans and gives them away when they end. Thread-safe.

    clock: nanoseconds since 1970. serves: this side answers requests, so stages of streams are named from there.
    """

    def __init__(
        self, exporters: list[Exporter], *, serves: bool = False, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._exporters = exporters
        self._stages = _THERE if serves else _HERE
        self._clock = clock
        self._local = threading.local()
        self._root: Context | None = None
        self._seen: Counter[str] = Counter()

    def begin(self, name: str, attributes: dict[str, Value]) -> Span:
        """A span that lasts until `end`; below the thread's current one, and the current one itself from now on."""
        parent = self.current()
        trace_id = parent.trace_id if parent else secrets.token_hex(16)
        context = Context(trace_id, secrets.token_hex(8))
        span = Span(name, context, parent.span_id if parent else "", self._clock(), attributes=attributes)
        span.thread = threading.current_thread().name
        self._stack().append(context)
        return span

    def end(self, span: Span, error: BaseException | None = None) -> None:
        """On the thread that began it."""
        span.ended = self._clock()
        span.error = type(error).__name__ if error else ""
        self._stack().pop()
        self._give(span)

    def stages(self, span: Span, times: StreamTimes, before: tuple[float, ...]) -> None:
        """One span for each stage that the stream was in during `span`, which is over. They take turns piece by piece,
        so they are told as if each had come at once: where they begin is not true, how long they lasted is."""
        began = span.began
        for stage, seconds in zip(
            STAGES, (now - then for now, then in zip(times.spent(), before, strict=True)), strict=True
        ):
            if stage not in self._stages or seconds <= 0:
                continue
            ended = began + round(seconds * 1e9)
            context = Context(span.context.trace_id, secrets.token_hex(8))
            part = Span(self._stages[stage], context, span.context.span_id, began, ended, thread=span.thread)
            part.attributes["interleaved"] = True
            self._give(part)
            began = ended

    def is_due(self, name: str) -> bool:
        """Whether this one of many should have a span. Several threads may lose a count now and then."""
        count = self._seen[name] = self._seen[name] + 1
        return count <= ALL_OF or count % EVERY == 0

    def current(self) -> Context | None:
        """What a new span of this thread would be below."""
        stack = self._stack()
        return stack[-1] if stack else self._root

    @contextlib.contextmanager
    def under(self, context: Context | None) -> Iterator[None]:
        """New spans of this thread are below `context`; None: below nothing."""
        stack = self._stack()
        depth = len(stack)
        if context:
            stack.append(context)
        try:
            yield
        finally:
            del stack[depth:]

    @contextlib.contextmanager
    def serving(self, traceparent: str, times: StreamTimes) -> Iterator[None]:
        """A request of the other side."""
        with self.under(parse(traceparent)), _On(self, SERVE, {}, times) if self.is_due(SERVE) else _OFF:
            yield

    def root(self, context: Context | None) -> None:
        """Threads that are in no span are below this one."""
        self._root = context

    def close(self) -> None:
        for exporter in self._exporters:
            exporter.close()

    def _give(self, span: Span) -> None:
        for exporter in self._exporters:
            exporter.export(span)

    def _stack(self) -> list[Context]:
        stack: list[Context] | None = getattr(self._local, "stack", None)
        if stack is None:
            stack = self._local.stack = []
        return stack


class _Off:
    """What `with` gets while nothing is traced."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, why: object, trace: object) -> None:
        return None


class _On:
    """One span, for `with`."""

    __slots__ = ("_attributes", "_before", "_name", "_span", "_times", "_tracer")

    def __init__(
        self, tracer: Tracer, name: str, attributes: dict[str, Value], times: StreamTimes | None = None
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes
        self._times = times

    def __enter__(self) -> None:
        self._span = self._tracer.begin(self._name, self._attributes)
        if self._times:
            self._before = self._times.spent()

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracer.end(self._span, why)
        if self._times:
            self._tracer.stages(self._span, self._times, self._before)


_OFF: Final = _Off()
_tracer: Tracer | None = None  # a process is traced as a whole, or not


def span(name: str, **attributes: Value) -> AbstractContextManager[None]:
    """A span for as long as a `with` block runs."""
    return _On(_tracer, name, attributes) if _tracer else _OFF


def on() -> bool:
    """Whether anything is traced."""
    return _tracer is not None


def sampled(name: str, times: StreamTimes | None = None) -> AbstractContextManager[None]:
    """As `span`, for what happens very often: most have none. times: of the stream that is used; its stages become
    spans below."""
    return _On(_tracer, name, {}, times) if _tracer and _tracer.is_due(name) else _OFF


def traced[**P, R](name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: every call of the function is a span. Not for generators."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _tracer is None:
                return function(*args, **kwargs)
            with _On(_tracer, name, {}):
                return function(*args, **kwargs)

        return call

    return wrap


def traceparent() -> str:
    """The current span, for the other side; empty while nothing is traced."""
    context = _tracer.current() if _tracer else None
    return context.traceparent if context else ""


def serving(traceparent: str, times: StreamTimes) -> AbstractContextManager[None]:
    """As `sampled`, for a request of the other side, below its span `traceparent`."""
    if _tracer is None:
        return _OFF
    return _tracer.serving(traceparent, times)


def fresh() -> str:
    """A trace that has nothing in it yet; empty while nothing is traced."""
    return Context(secrets.token_hex(16), secrets.token_hex(8)).traceparent if _tracer else ""


def under(traceparent: str) -> AbstractContextManager[None]:
    """Spans of this thread are below the one of the other side, as long as the block runs. What is no traceparent
    counts as none."""
    return _tracer.under(parse(traceparent)) if _tracer else _OFF


@contextlib.contextmanager
def tracing(tracer: Tracer, root: str = "", **attributes: Value) -> Iterator[None]:
    """This process is traced as long as the block runs. root: the name of a span for all of it; empty: none."""
    global _tracer
    _tracer = tracer
    try:
        if root:
            with _On(tracer, root, attributes):
                tracer.root(tracer.current())
                yield
        else:
            yield
    finally:
        _tracer = None
        tracer.close()
