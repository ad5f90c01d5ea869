"""The entry point of the `headrace` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headrace._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code. arguments: without the program's name, default those of this process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["--version"], ["-V"]):  # before anything is imported: scripts ask often
        print(f"headrace {__version__}")
        return 0
    from headrace.cli.app import run

    return run(given)
