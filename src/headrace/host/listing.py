"""Answers to what is asked about directories. The caller sends them, so that failures of the connection are its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from headrace.errors import NotFoundError, ProtocolError
from headrace.host.watch import Watcher
from headrace.protocol.frames import SESSION_LIMITS
from headrace.protocol.messages import Entry, List, ListPart, Look, Looked, Message, StatFs, StatFsReply, wire_path
from headrace.protocol.paths import MAX_PATH
from headrace.storage.oserrors import label
from headrace.storage.tree import SharedTree

_ENTRY_COST: Final = 128  # bytes in a ListPart for an entry beside its name and target, at most
_ROOM: Final = SESSION_LIMITS.header - MAX_PATH - 1024


def fitting(entries: list[Entry]) -> Iterator[list[Entry]]:
    """`entries` in pieces that fit into a header, at least one. Only long targets of symlinks make more than one."""
    piece: list[Entry] = []
    left = _ROOM
    for entry in entries:
        cost = len(entry.name) + len(entry.target) + _ENTRY_COST
        if cost > left:
            yield piece
            piece, left = [], _ROOM
        piece.append(entry)
        left -= cost
    yield piece


def listing(request: List, tree: SharedTree) -> Iterator[Message]:
    """The answer, message by message. Raises what SharedTree.list raises."""
    for entries in tree.list(wire_path(request.path)):
        for piece in fitting(entries):
            yield ListPart(request.id, request.path, piece)
    yield ListPart(request.id, request.path, [], last=True)


def look(request: Look, tree: SharedTree, watcher: Watcher, peer: bytes) -> Iterator[Message]:
    """The answer, message by message. Raises what SharedTree.list raises; ProtocolError for a limit that is none."""
    if request.limit < 0:
        raise ProtocolError(f"a Look with the limit {request.limit}")
    path = wire_path(request.path)
    # In this order: what changes later is noticed.
    watched = bool(request.watch) and watcher.watch(peer, request.watch, path)
    itself = tree.stat(path)
    if itself.kind != "d":
        raise NotFoundError(f"{label(path)} is not a folder")
    left = request.limit
    for entries in tree.list(path):
        if request.limit and len(entries) > left:
            for piece in fitting(entries[:left]) if left else ():
                yield ListPart(request.id, request.path, piece)
            yield Looked(request.id, itself, watched, more=True)
            return
        left -= len(entries)
        for piece in fitting(entries):
            yield ListPart(request.id, request.path, piece)
    yield Looked(request.id, itself, watched)


def statfs(request: StatFs, tree: SharedTree) -> StatFsReply:
    """The answer. Raises what SharedTree.stat raises."""
    facts = tree.statfs(wire_path(request.path))
    unit = facts.f_frsize or facts.f_bsize
    total, files = facts.f_blocks * unit, facts.f_files
    free, files_free = min(facts.f_bfree * unit, total), min(facts.f_ffree, files)
    return StatFsReply(request.id, total, free, min(facts.f_bavail * unit, free), files, files_free)
