"""`--include` and `--exclude`: gitignore patterns over paths below what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.errors import UsageError
from headrace.protocol.paths import RelPath


class Filters:
    """A file is wanted if it matches an include pattern (or there are none) and no exclude pattern."""

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Raises UsageError for a pattern that is none."""
        self._include = _compile(include)
        self._exclude = _compile(exclude)

    def wants(self, path: RelPath) -> bool:
        """Whether this file, symlink or other entry is asked for."""
        if self._include is None and self._exclude is None:
            return True
        text = bytes(path).decode("utf-8", "surrogateescape")
        if self._exclude is not None and self._exclude.match_file(text):
            return False
        return self._include is None or bool(self._include.match_file(text))

    def excludes_directory(self, path: RelPath) -> bool:
        """Whether everything in this directory is left out."""
        text = bytes(path).decode("utf-8", "surrogateescape") + "/"
        return self._exclude is not None and bool(self._exclude.match_file(text))

    def wants_directory(self, path: RelPath) -> bool:
        """Whether this directory is made even if nothing in it is wanted."""
        if self._include is None and self._exclude is None:
            return True
        text = bytes(path).decode("utf-8", "surrogateescape") + "/"
        return self._include is None and not (self._exclude is not None and self._exclude.match_file(text))


def _compile(patterns: Sequence[str]) -> Any:
    if not patterns:
        return None
    import pathspec  # only those who filter pay for it

    try:
        return pathspec.GitIgnoreSpec.from_lines(patterns)
    except ValueError as why:
        raise UsageError(f"a pattern cannot be used: {why}") from why
