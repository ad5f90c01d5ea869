"""A mount in the background: the command returns when the folder can be used, or says why it cannot.

The process forks before it has threads. The child mounts; the parent waits for its word on a pipe, and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from headrace import config
from headrace.errors import BY_CODE, HeadraceError

GRACE: Final = 5.0  # seconds that a child which is told to end may take
MAX_WORD: Final = 1 << 20  # bytes
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Word = dict[str, Any]


def in_background(work: Callable[[Callable[[Word], None]], int]) -> Word:
    """Runs `work` in a new process of its own session, until it says that it is ready; what it said.

    work: gets a function to call once with that word, upon which the process lets go of the terminal; its result is the
    exit code. Raises the HeadraceError that `work` raised before it was ready.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(work, writer)
    os.close(writer)
    try:
        word = _word(reader)
    except BaseException:  # Ctrl-C, say: nothing may stay behind
        _end(child)
        raise
    finally:
        os.close(reader)
    if word is None:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        raise HeadraceError(
            f"the mount's process ended without a word (exit code {code})", hint="Try --foreground -vv."
        )
    if "error" in word:
        os.waitpid(child, 0)
        raise BY_CODE.get(str(word["error"]), HeadraceError)(str(word["message"]), hint=str(word["hint"]))
    return word


def _child(work: Callable[[Callable[[Word], None]], int], writer: int) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        _close_inherited(writer)
        os.environ[config.HOME_VARIABLE] = os.path.abspath(config.home())
        told = False

        def ready(word: Word) -> None:
            nonlocal told
            told = True
            _tell(writer, word)
            _let_go()

        try:
            code = work(ready)
        except BaseException as why:  # noqa: BLE001  # the parent says what it was
            error = why if isinstance(why, HeadraceError) else HeadraceError(f"unexpected {type(why).__name__}: {why}")
            code = error.exit_code
            if not told:
                _tell(writer, {"error": error.code, "message": error.message, "hint": error.hint})
    finally:
        os._exit(code)


def _close_inherited(keep: int) -> None:
    """Descriptors that the caller had open, such as locks and pipes that somebody waits for."""
    os.closerange(3, keep)
    os.closerange(keep + 1, max(keep + 1, 256))


def _tell(writer: int, word: Word) -> None:
    data = json.dumps(word).encode("ascii") + b"\n"
    while data:
        data = data[os.write(writer, data) :]
    os.close(writer)


def _let_go() -> None:
    """Of the caller's output, whose end it may wait for, and of its folder, which may be unmounted some day."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _word(reader: int) -> Word | None:
    data = bytearray()
    while not data.endswith(b"\n") and len(data) < MAX_WORD:
        piece = os.read(reader, 65536)
        if not piece:
            return None
        data += piece
    word = json.loads(data)
    assert isinstance(word, dict)
    return word


def _end(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


class Wake:
    """Waits on the main thread for a signal or for `wake`, without looking every so often."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def wake(self) -> None:
        """From any thread."""
        with contextlib.suppress(OSError):
            os.write(self._writer, b"\0")

    def wait(self) -> int:
        """The signal's number, 0 for `wake`."""
        return os.read(self._reader, 1)[0]


@contextlib.contextmanager
def waking() -> Iterator[Wake]:
    """While it runs, signals are only noted, for `Wake.wait`. Call it from the main thread."""
    wake = Wake()

    def nothing(number: int, frame: FrameType | None) -> None:
        pass

    before = {number: signal.signal(number, nothing) for number in SIGNALS}
    descriptor = signal.set_wakeup_fd(wake._writer, warn_on_full_buffer=False)
    try:
        yield wake
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
