"""`headrace ls`: what is in a share."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from headrace.cli import options, output, reach, signals
from headrace.cli.text import counted, shown_name
from headrace.errors import HeadraceError, SomeFailedError
from headrace.protocol.paths import ROOT, RelPath, text_fields
from headrace.transport.abort import Abort

if TYPE_CHECKING:
    from headrace.client.session import Session
    from headrace.client.target import Target
    from headrace.protocol.messages import Entry

KINDS: Final = {"f": "file", "d": "dir", "l": "link", "o": "other"}
_FILE_TYPES: Final = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "o": 0}


@click.command("ls", cls=options.Command)
@click.argument("target")
@options.of("ls")
@click.pass_obj
def ls(common: options.Common, target: str, long: bool, recursive: bool) -> None:
    """List what is in a share. Directories end in a slash.

    \b
    headrace ls 7k2m-xq4c-9dht@192.168.1.20:7420
    headrace ls -lR 7k2m-xq4c-9dht@192.168.1.20:7420/day1
    """
    wanted = reach.target_of(target, common)
    printer = _json_line if common.json else _Lines(long=long, escape=output.to_terminal()).line
    abort = Abort()

    def work() -> None:
        session = reach.connect(wanted, common, abort=abort)
        unread = _Unread()
        with session:
            for path, entry in _found(session, wanted, unread, recursive=recursive, in_order=not common.json):
                output.write(printer(path, entry))
            output.flush()
        unread.raise_if_any()

    signals.run(work, cancel=abort)


class _Unread:
    """Directories that could not be listed: each is told at once, the listing goes on."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, path: RelPath, error: HeadraceError) -> None:
        self._count += 1
        output.say(f"{path}: {error}", {"path": str(path), "code": error.code})

    def raise_if_any(self) -> None:
        if self._count:
            raise SomeFailedError(f"{counted(self._count, 'folder')} could not be listed", hint="Each is named above.")


def _found(
    session: Session, target: Target, unread: _Unread, *, recursive: bool, in_order: bool
) -> Iterator[tuple[RelPath, Entry]]:
    """Entries with their paths below the target. A recursive listing comes as the host reads it, so that the first
    lines of a large tree appear at once."""
    top = session.stat(target.path)
    if top.kind != "d":
        yield RelPath((target.path.name or top.name,)), top
        return
    if recursive:
        for directory, entries, error in session.walk(target.path):
            here = directory.relative_to(target.path)
            if error:
                unread.add(here, error)
            for entry in entries:
                yield here / entry.name, entry
        return
    parts = session.list(target.path)
    if in_order:
        parts = iter([sorted((entry for part in parts for entry in part), key=lambda entry: entry.name)])
    for part in parts:
        for entry in part:
            yield ROOT / entry.name, entry


def _json_line(path: RelPath, entry: Entry) -> bytes:
    fields: dict[str, Any] = {
        **text_fields("path", bytes(path)),
        "kind": KINDS[entry.kind],
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "mode": entry.mode,
    }
    fields |= text_fields("target", entry.target) if entry.kind == "l" else {"target": None}
    return json.dumps(fields).encode("ascii") + b"\n"


class _Lines:
    """Lines for people and for pipes. escape: on a terminal, names must not move the cursor."""

    def __init__(self, *, long: bool, escape: bool) -> None:
        self._long = long
        self._escape = escape

    def line(self, path: RelPath, entry: Entry) -> bytes:
        name = self._shown(bytes(path)) + (b"/" if entry.kind == "d" else b"")
        if not self._long:
            return name + b"\n"
        mode = stat.filemode(_FILE_TYPES[entry.kind] | entry.mode)
        size = "" if entry.kind == "d" else str(entry.size)
        arrow = b" -> " + self._shown(entry.target) if entry.kind == "l" else b""
        return f"{mode} {size:>14} {_local_time(entry.mtime_ns)} ".encode() + name + arrow + b"\n"

    def _shown(self, raw: bytes) -> bytes:
        return shown_name(raw).encode() if self._escape else raw


def _local_time(mtime_ns: int) -> str:
    try:
        return f"{datetime.fromtimestamp(mtime_ns // 1_000_000_000):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # before year 1 or after 9999, or not on this platform
        return "               ?"
