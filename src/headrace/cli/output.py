"""What a command writes: bytes and events on standard output, one-line messages and the progress line on the other."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TextIO

from headrace.cli.signals import Stopped
from headrace.errors import HeadraceError, LocalDiskError, StoppedError, printable, system_word
from headrace.observe import logs

SCHEMA: Final = 1
MAX_MESSAGE: Final = 2000  # characters
_CLEAR: Final = "\r\x1b[K"  # to the line's start, and erase to its end


class ReaderGoneError(Exception):
    """Whoever read standard output has closed it (`headrace ls … | head`): nothing is left to do, and no error."""


def write(data: bytes | memoryview) -> None:
    """All of `data` to standard output. Raises ReaderGoneError, LocalDiskError."""
    with _standard_output():
        if sys.stdout is None:
            raise OSError("it is closed")
        sys.stdout.buffer.write(data)


def write_text(text: str) -> None:
    """`text` to standard output; surrogates become the bytes they stand for, whatever the locale."""
    write(text.encode("utf-8", "surrogateescape"))


def flush() -> None:
    """Raises ReaderGoneError, LocalDiskError."""
    if sys.stdout is not None:
        with _standard_output():
            sys.stdout.buffer.flush()


def to_terminal() -> bool:
    """Whether standard output is a terminal, on which names must not move the cursor."""
    return sys.stdout is not None and sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    """Whether somebody watches standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(message: str, fields: Mapping[str, Any] = MappingProxyType({}), *, level: int = logging.ERROR) -> None:
    """One line on standard error, as every error and warning is told. fields, level: for --log-json."""
    if logs.as_json(level, message, fields):
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error may be closed: nobody to tell
        sys.stderr.write(f"headrace: {printable(message, MAX_MESSAGE)}\n")
        sys.stderr.flush()


def complain(why: HeadraceError) -> None:
    """What failed, and what to do, in one line. As JSON also by its word, with the system's word behind it."""
    fields = {"hint": why.hint, "code": why.code, "errno": system_word(why), "retryable": why.retryable}
    say(str(why), fields)


def note(message: str) -> None:
    """One line on standard error that is no complaint."""
    if logs.as_json(logging.INFO, message, {}):
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{printable(message, MAX_MESSAGE)}\n")
        sys.stderr.flush()


def note_all(text: str) -> None:
    """Lines of our own on standard error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Events:
    """NDJSON on standard output. Thread-safe. When the reader is gone, events are dropped and the work goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gone = False

    def emit(self, event: Mapping[str, Any]) -> None:
        """One line, flushed. event: has an `event`, and else what JSON can express."""
        line = json.dumps({"event": event["event"], "schema": SCHEMA, **event}) + "\n"
        with self._lock:
            if self._gone:
                return
            try:
                write(line.encode("ascii"))
                flush()
            except (ReaderGoneError, LocalDiskError):
                self._gone = True
                forget_standard_output()


@contextlib.contextmanager
def telling(events: Events | None) -> Iterator[None]:
    """The error that ends a command is an `error` event as well, where there are events."""
    try:
        yield
    except ReaderGoneError:
        raise
    except Exception as why:
        if events:
            events.emit(_error_event(why))
        raise


def unexpected(why: Exception) -> HeadraceError:
    """What nobody was prepared for, as an error. That no file can be opened any more may come up anywhere."""
    if isinstance(why, OSError) and why.errno in (errno.EMFILE, errno.ENFILE):
        from headrace.storage.oserrors import local_error

        return local_error(why, "go on")
    return HeadraceError(f"unexpected {type(why).__name__}: {why}")


def _error_event(why: Exception) -> dict[str, Any]:
    if isinstance(why, Stopped):
        why = StoppedError("interrupted")
    if not isinstance(why, HeadraceError):
        why = unexpected(why)
    return {
        "event": "error",
        "code": why.code,
        "path": None,
        "message": why.message,
        "hint": why.hint,
        "errno": system_word(why),
        "retryable": why.retryable,
    }


class ProgressLine(io.TextIOBase):
    """One line at the bottom of a terminal that is drawn over and over. Stands in for `sys.stderr` meanwhile, so that
    whatever else is written there goes above it. Thread-safe."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.Lock()
        self._shown = ""

    def show(self, text: str) -> None:
        """Draws the line, cut to the terminal's width."""
        shown = text[: max(10, self._width() - 1)]
        with self._lock:
            if shown != self._shown:
                self._put(_CLEAR + shown)
                self._shown = shown

    def clear(self) -> None:
        """Erases the line."""
        with self._lock:
            if self._shown:
                self._put(_CLEAR)
                self._shown = ""

    def write(self, text: str) -> int:
        with self._lock:
            self._put(f"{_CLEAR if self._shown else ''}{text}{self._shown if text.endswith(chr(10)) else ''}")
        return len(text)

    def flush(self) -> None:
        self._terminal.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()

    def _put(self, text: str) -> None:
        self._terminal.write(text)
        self._terminal.flush()

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._terminal.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


def forget_standard_output() -> None:
    """Sends the rest of standard output nowhere, so that the interpreter's own flush at exit cannot fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as why:
        raise ReaderGoneError from why
    except OSError as why:
        hint = "Check the free space and permissions of where it goes."
        raise LocalDiskError(f"standard output cannot be written ({why.strerror or why})", hint=hint) from why
