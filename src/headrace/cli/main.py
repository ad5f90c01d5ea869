"""The entry point of the `headrace` command."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
from collections.abc import Sequence
from typing import Final, NoReturn

from headrace._version import __version__

# Importing makes some ten thousand objects that stay: with Python's threshold of 2,000 the collector looks through all
# of them again and again, for a twentieth of a start.
GC_THRESHOLD: Final = 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code. arguments: without the program's name, default those of this process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["--version"], ["-V"]):  # before anything is imported: scripts ask often
        print(f"headrace {__version__}")
        return 0
    gc.set_threshold(GC_THRESHOLD)
    from headrace.cli.app import run

    return run(given)


def program() -> NoReturn:
    """`main`, and then the end of the process without freeing its memory object by object, which takes as long as a
    fifth of what was imported."""
    code = main()
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        atexit._run_exitfuncs()
        leave(code)
    sys.exit(code)


def leave(code: int) -> NoReturn:
    """Ends the process at once: what was written is flushed, and no thread is waited for."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
