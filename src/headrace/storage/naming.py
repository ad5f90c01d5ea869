"""What a file is called where its own name is taken: `NAME (1).ext`, `NAME (2).ext`, …"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from headrace.errors import DestinationExistsError
from headrace.protocol.paths import MAX_NAME, RelPath
from headrace.storage.inflight import cut
from headrace.storage.oserrors import label

_MAX_EXTENSION: Final = 16  # bytes; what follows a later dot is no extension
_MAX_COPIES: Final = 9999


def first_free(path: RelPath, taken: Callable[[RelPath], bool]) -> RelPath:
    """`path` if it is not taken, else the first of its numbered names that is not. Raises DestinationExistsError."""
    if not taken(path):
        return path
    dot = path.name.rfind(b".")
    if dot <= 0 or len(path.name) - dot > _MAX_EXTENSION:
        dot = len(path.name)
    stem, extension = path.name[:dot], path.name[dot:]
    for number in range(1, _MAX_COPIES + 1):
        ending = b" (%d)" % number + extension
        candidate = path.parent / (cut(stem, MAX_NAME - len(ending)) + ending)
        if not taken(candidate):
            return candidate
    raise DestinationExistsError(f"there are already {_MAX_COPIES} copies of {label(path)}")
