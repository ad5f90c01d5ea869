"""Logs on standard error: lines for people, or JSON for programs.

Modules log to `logging.getLogger("headrace.…")`; only a command (never the library) calls `setup`. Standard error is
looked up at each record, so that a progress line can stand in front of it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from headrace.errors import printable

ROOT: Final = "headrace"
MAX_MESSAGE: Final = 2000  # characters of one message; what a peer sent may be in it
_LEVELS: Final = (logging.WARNING, logging.INFO, logging.DEBUG)


def level_for(verbosity: int, *, quiet: bool = False) -> int:
    """The level of `-v` given `verbosity` times, or of `-q`."""
    return logging.ERROR if quiet else _LEVELS[min(verbosity, len(_LEVELS) - 1)]


def setup(verbosity: int = 0, *, json: bool = False, quiet: bool = False) -> None:
    """Sends everything below the `headrace` logger to standard error. May be called again.

    verbosity: 0 warnings, 1 information, 2 debug with tracebacks. quiet: errors only.
    """
    logger = logging.getLogger(ROOT)
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    handler = _StderrHandler()
    handler.setFormatter(JsonFormatter() if json else HumanFormatter(details=verbosity >= 2))
    global _json
    _json = json
    logger.addHandler(handler)
    logger.setLevel(level_for(verbosity, quiet=quiet))
    logger.propagate = False


def as_json(level: int, message: str, fields: Mapping[str, Any]) -> bool:
    """One line of JSON, whatever the level of the log; whether that is how this process logs. fields: beside the usual
    ones, such as `path` and `errno`."""
    if not _json:
        return False
    logger = logging.getLogger(f"{ROOT}.cli")
    logger.handle(logger.makeRecord(logger.name, level, "", 0, message, (), None, extra={"fields": dict(fields)}))
    return True


_json = False  # since the last `setup`
_process: dict[str, str] = {}
_thread: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))


@contextlib.contextmanager
def about_all(**ids: str) -> Iterator[None]:
    """What every line of this process is about as long as the block runs: the share, the transfer. For JSON lines;
    never a secret."""
    _process.update(ids)
    try:
        yield
    finally:
        for name in ids:
            _process.pop(name, None)


@contextlib.contextmanager
def about(**ids: str) -> Iterator[None]:
    """What lines of this thread are about as long as the block runs."""
    token = _thread.set({**_thread.get(), **ids})
    try:
        yield
    finally:
        _thread.reset(token)


def now_about() -> Mapping[str, str]:
    """What lines of this thread are about now."""
    return _thread.get()


class HumanFormatter(logging.Formatter):
    """`14:03:22 warning: MESSAGE`. details: also milliseconds, the logger, the thread and tracebacks."""

    def __init__(self, *, details: bool = False) -> None:
        super().__init__()
        self._details = details

    def format(self, record: logging.LogRecord) -> str:
        message = printable(record.getMessage(), MAX_MESSAGE)
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        time = self.formatTime(record, "%H:%M:%S")
        if not self._details:
            return f"{time} {level}{message}{_cause(record)}"
        where = f"{record.name.removeprefix(ROOT + '.')} [{record.threadName}]"
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{time}.{int(record.msecs):03d} {where} {level}{message}{trace}"


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC, ISO 8601), level, logger, thread, message, the ids of what it is about (`about`),
    what `as_json` was given, and traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        import json

        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage()[:MAX_MESSAGE],
            **_process,
            **_thread.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class _StderrHandler(logging.Handler):
    """Writes to whatever `sys.stderr` is by then. A standard error that is gone loses the log, not the command."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except (TypeError, ValueError) as why:  # a logging call with the wrong arguments
            line = f"a log line could not be formatted: {why}"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _cause(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    why = record.exc_info[1]
    return f" ({type(why).__name__}: {printable(str(why))})"
