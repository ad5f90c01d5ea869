"""The entry point of the `headrace` command."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Final

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
