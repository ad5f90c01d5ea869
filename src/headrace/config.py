"""Where headrace keeps its state, and what the system gives this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

HOME_VARIABLE: Final = "HEADRACE_HOME"
DEFAULT_PORT: Final = 7420


def home() -> Path:
    """The folder for identity, pins and caches: HEADRACE_HOME, else the platform's user state directory."""
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        return Path(chosen)
    from platformdirs import user_state_path  # only when needed: most tests and all services set HEADRACE_HOME

    return user_state_path("headrace", appauthor=False)


def descriptors() -> int:
    """How many files and sockets this process may have open."""
    try:
        import resource
    except ImportError:  # Windows, where no such number is in the way
        return sys.maxsize
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
