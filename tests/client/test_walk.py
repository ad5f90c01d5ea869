"""A walk over a connection that breaks: every entry comes once, whatever the moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client.outage import Outage
from headrace.client.walk import Walk
from headrace.errors import ConnectionLostError, HeadraceError, NotFoundError
from headrace.protocol.messages import Entry
from headrace.protocol.paths import ROOT, RelPath

Tree = dict[str, Any]  # a folder's names; None is a file
Entries = list[Entry]


class Share:
    """Lists a tree as a host does: folders one after the other, each in parts of two. It breaks after so many parts."""

    def __init__(self, tree: Tree, breaks: list[int]) -> None:
        self.tree = tree
        self._breaks = list(breaks)
        self.gone: set[RelPath] = set()
        self.agreed = SimpleNamespace(version=len(tree) % 2 + 7)

    def _part(self) -> None:
        if self._breaks:
            self._breaks[0] -= 1
            if self._breaks[0] < 0:
                self._breaks.pop(0)
                raise ConnectionLostError("it broke")

    def _folder(self, path: RelPath) -> Tree:
        found = self.tree
        for name in path.parts:
            found = found[name.decode()]
        return found

    def list(self, path: RelPath) -> Iterator[Entries]:
        if path in self.gone:
            raise NotFoundError("it is gone")
        entries = [
            Entry(name.encode(), "f" if below is None else "d") for name, below in sorted(self._folder(path).items())
        ]
        for start in range(0, len(entries), 2):
            self._part()
            yield entries[start : start + 2]
        self._part()

    def walk(self, path: RelPath) -> Iterator[tuple[RelPath, Entries, HeadraceError | None]]:
        for entries in self.list(path):
            yield path, entries, None
        for name, below in reversed(self._folder(path).items()):
            if below is not None:
                yield from self.walk(path / name.encode())


def outage() -> Outage:
    class NoWait(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return False

    return Outage(lambda event: None, NoWait(), limit=60.0, clock=lambda: 0.0)


def everything(tree: Tree, above: str = "") -> list[str]:
    found = []
    for name, below in tree.items():
        found.append(f"{above}{name}")
        if below is not None:
            found += everything(below, f"{above}{name}/")
    return found


def walked(share: Share) -> list[str]:
    found = []
    for directory, entries, error in Walk(share, ROOT, outage()).parts():  # type: ignore[arg-type]
        assert error is None or not entries
        found += [str(directory / entry.name) for entry in entries]
    return found


names = st.text("abcdefgh", min_size=1, max_size=2)
trees = st.recursive(st.none(), lambda below: st.dictionaries(names, below, max_size=6), max_leaves=30).map(
    lambda tree: tree or {}
)


@given(trees, st.lists(st.integers(0, 8), max_size=10))
def test_every_entry_comes_once(tree: Tree, breaks: list[int]) -> None:
    assert sorted(walked(Share(tree, breaks))) == sorted(everything(tree))


def test_a_folder_that_vanished_meanwhile_is_told_and_the_rest_comes() -> None:
    tree: Tree = {"a": {"x": None, "y": None, "z": None}, "b": {"w": None}}
    share = Share(tree, [])
    errors, found = [], []
    for directory, entries, error in Walk(share, ROOT, outage()).parts():  # type: ignore[arg-type]
        found += [str(directory / entry.name) for entry in entries]
        errors += [(str(directory), type(error))] if error else []
        if directory == RelPath((b"b",)):  # the next one is a: it is gone when the connection is back
            share._breaks = [0]
            share.gone = {RelPath((b"a",))}
    assert errors == [("a", NotFoundError)]
    assert sorted(found) == ["a", "b", "b/w"]


def test_a_top_that_is_not_there_is_raised() -> None:
    share = Share({}, [])
    share.gone = {ROOT}
    with pytest.raises(NotFoundError):
        walked(share)
