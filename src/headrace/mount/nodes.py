"""What the kernel knows by number.

A node is one state of one name: another version of a file is another node. So the kernel, which keeps pages by node,
never mixes two versions: who has the old one open keeps its node and its pages, who opens the file now gets the new.
The number that stat(2) shows (st_ino) is another one, made from the path: it is the same for every version, and again
after a new mount.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from headrace.mount.wire import ROOT_NODE
from headrace.protocol.messages import Entry
from headrace.protocol.paths import ROOT, RelPath


class Node:
    """known: how many times the kernel was told of it and has not forgotten. opened: handles that are open.

    listed: of a directory, the listing that the kernel has, and until when it believes what came with it.
    """

    __slots__ = ("_path", "entry", "ino", "known", "listed", "listed_until", "name", "number", "opened", "parent")

    def __init__(self, number: int, ino: int, parent: Node | None, name: bytes, entry: Entry) -> None:
        self.number = number
        self.ino = ino
        self.parent = parent
        self.name = name
        self.entry = entry
        self.known = 0
        self.opened = 0
        self.listed: Sequence[Entry] | None = None
        self.listed_until = 0.0
        self._path: RelPath | None = None

    @property
    def path(self) -> RelPath:
        if self._path is None:
            path = RelPath((*self.parent.path.parts, self.name)) if self.parent else ROOT
            if self.entry.kind != "d":  # asked for once or twice; those of directories for everything in them
                return path
            self._path = path
        return self._path


def identity(entry: Entry) -> tuple[str, bytes]:
    """What may not change within a node. A directory may: the kernel is told to ask anew."""
    return entry.kind, entry.target if entry.kind == "l" else entry.version if entry.kind == "f" else b""


def ino_of(parent: int, name: bytes) -> int:
    """The inode number of a name in the directory with inode number `parent`: a hash, so that it stays. Not 0 or 1."""
    digest = blake2b(name, digest_size=8, key=parent.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") or 2


class Nodes:
    """All nodes the kernel may ask about. Thread-safe."""

    def __init__(self, root: Entry) -> None:
        self._lock = threading.Lock()
        self.root: Final = Node(ROOT_NODE, ROOT_NODE, None, b"", root)
        self._by_number: dict[int, Node] = {ROOT_NODE: self.root}
        self._by_name: dict[tuple[int, bytes], Node] = {}
        self._next = ROOT_NODE + 1

    def __len__(self) -> int:
        return len(self._by_number)

    def everything(self) -> list[Node]:
        """All of them, as they are now."""
        with self._lock:
            return list(self._by_number.values())

    def get(self, number: int) -> Node | None:
        return self._by_number.get(number)

    def tell(self, parent: Node, entry: Entry) -> Node:
        """The node of an entry of a directory, which the kernel is about to be told of once more."""
        key = (parent.number, entry.name)
        with self._lock:
            node = self._by_name.get(key)
            if node is None or (node.entry is not entry and identity(node.entry) != identity(entry)):
                node = Node(self._next, ino_of(parent.ino, entry.name), parent, entry.name, entry)
                self._next += 1
                self._by_number[node.number] = self._by_name[key] = node
            node.entry = entry
            node.known += 1
            return node

    def forget(self, number: int, times: int) -> None:
        """The kernel forgot it so many times."""
        with self._lock:
            node = self._by_number.get(number)
            if node is None or node is self.root:
                return
            node.known -= times
            if node.known <= 0:
                del self._by_number[number]
                assert node.parent is not None
                key = (node.parent.number, node.name)
                if self._by_name.get(key) is node:
                    del self._by_name[key]

    def at(self, path: RelPath) -> Node | None:
        """The node that has this path now, where the kernel knows it."""
        if path == ROOT:
            return self.root
        node = self.root
        with self._lock:
            for name in path.parts:
                found = self._by_name.get((node.number, name))
                if found is None:
                    return None
                node = found
        return node
