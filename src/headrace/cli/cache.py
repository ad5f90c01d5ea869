"""`headrace cache`: the index of chunks that lie on this machine's disks already."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from headrace import config
from headrace.cli import options, output, signals
from headrace.cli.text import counted, human_rate, human_seconds, human_size
from headrace.errors import HeadraceError, IntegrityError, NotFoundError, SomeFailedError, UsageError, printable

if TYPE_CHECKING:
    from headrace.storage.index import ChunkIndex, IndexStats
    from headrace.storage.index_check import Checked
    from headrace.storage.index_seed import Seeded
    from headrace.storage.manifest_store import ManifestStore, StoreStats

COUNTERS: Final = ("asked", "found", "reused", "bytes_saved", "reflink", "copy_file_range", "copy")
LOSSES: Final = ("stale", "evicted", "dropped")
_LABEL: Final = 11  # columns


class _Part(options.Command):
    """One thing to do with the cache; they share their settings."""

    def config_name(self, ctx: click.Context) -> str:
        return "cache"


@click.group("cache", invoke_without_command=True)
@click.pass_context
def cache(context: click.Context) -> int:
    """Look after the index of chunks that lie on this machine's disks, so that they are not fetched again.

    \b
    headrace cache info
    headrace cache add ~/footage
    """
    if context.invoked_subcommand is None:
        output.note_all(context.get_help())
        return UsageError.exit_code
    return 0


@cache.command("info", cls=_Part)
@options.of("cache", without=(options.READ_DATA,))
@click.pass_obj
def info(common: options.Common, cache_entries: int) -> None:
    """Say how much is in the index, how often it helped, and how much was not fetched for it.

    Below it, what shares of this machine remember: hashes of files that need not be computed again.
    """
    events = _events(common)
    with output.telling(events), _index(cache_entries) as index:
        stats = signals.run(index.stats)
        with _manifests() as store:
            kept = signals.run(store.stats)
        if events:
            events.emit({"event": "info", **_figures(stats), **_figures_kept(kept)})
        else:
            output.write_text(_told(stats) + _told_kept(kept))


@cache.command("verify", cls=_Part)
@options.of("cache")
@click.pass_obj
def verify(common: options.Common, cache_entries: int, read_data: bool) -> None:
    """Check the index and the files it speaks of; what changed or is gone is forgotten.

    With --read-data, every indexed chunk is read and compared with its hash: this finds files that a failing disk
    changed. They are named, and the exit code is 9.
    """
    events = _events(common)
    with output.telling(events):
        started = time.monotonic()
        checked = _checked(common, cache_entries, read_data=read_data, forget_only=False)
        if events:
            figures = asdict(checked) | {"different": [os.fsdecode(path) for path in checked.different]}
            events.emit({"event": "done", **figures, "seconds": round(time.monotonic() - started, 3)})
        elif not common.quiet:
            parts = [f"checked the index and {counted(checked.files, 'file')}"]
            if read_data:
                seconds = time.monotonic() - started
                parts.append(f"{human_size(checked.read)} read in {human_seconds(seconds)}")
            parts += _found(checked)
            output.write_text(", ".join(parts) + "\n")
        if checked.different:
            for path in checked.different:
                output.say(f"{_shown(path)}: other bytes than it had, and the same times.")
            raise IntegrityError(
                f"{counted(len(checked.different), 'file')} changed without a sign of it",
                hint="The disk may be failing; compare with a copy. They are no longer in the index.",
            )


@cache.command("gc", cls=_Part)
@options.of("cache", without=(options.READ_DATA,))
@click.pass_obj
def gc(common: options.Common, cache_entries: int) -> None:
    """Forget files that changed or are gone, and give the space back to the disk."""
    events = _events(common)
    with output.telling(events):
        checked = _checked(common, cache_entries, read_data=False, forget_only=True)
        if events:
            events.emit({"event": "done", "files": checked.files, "stale": checked.stale})
        elif not common.quiet:
            output.write_text(", ".join([f"looked at {counted(checked.files, 'file')}", *_found(checked)]) + "\n")


@cache.command("clear", cls=_Part)
@options.of("cache", without=(options.READ_DATA,))
@click.pass_obj
def clear(common: options.Common, cache_entries: int) -> None:
    """Forget everything, the counters too, and the hashes that shares keep. No other file is touched."""
    events = _events(common)
    with output.telling(events), _index(cache_entries) as index:
        before = signals.run(index.stats)
        signals.run(index.clear)
        with _manifests() as store:
            signals.run(store.clear)
        if events:
            events.emit({"event": "done", "entries": before.entries, "files": before.files})
        elif not common.quiet:
            output.write_text(f"forgot {counted(before.entries, 'chunk')} of {counted(before.files, 'file')}\n")


@cache.command("add", cls=_Part)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=options.PATH)
@options.of("cache", without=(options.READ_DATA,))
@click.pass_obj
def add(common: options.Common, paths: tuple[str, ...], cache_entries: int) -> None:
    """Add files and folders of this machine to the index, so that get does not fetch what they hold.

    Everything below a PATH is read and hashed; symlinks are not followed. Files that are known and did not change are
    skipped, so it is quick to run again.
    """
    events = _events(common)
    with output.telling(events):
        from headrace.storage.index_seed import Seeder

        where = [_existing(path) for path in paths]
        told = _Told(events)
        started = time.monotonic()
        with _index(cache_entries) as index, _line(common) as line:
            seeder = Seeder(index, told.failed)

            def tick() -> None:
                if line:
                    line.show(_progress(seeder.progress, time.monotonic() - started))

            done = signals.run(lambda: seeder.run(where), cancel=seeder.cancel, tick=tick)
        seconds = time.monotonic() - started
        if events:
            events.emit({"event": "done", **asdict(done), "seconds": round(seconds, 3)})
        elif not common.quiet:
            output.write_text(_summary(done, seconds) + "\n")
        if done.failed:
            raise SomeFailedError(
                f"{counted(done.failed, 'path')} could not be added",
                hint="Each is named above.",
            )


def _events(common: options.Common) -> output.Events | None:
    return output.Events() if common.json else None


@contextlib.contextmanager
def _index(max_entries: int) -> Iterator[ChunkIndex]:
    """The index, open. Raises LocalDiskError where it cannot be used, which for these commands is an error."""
    from headrace.storage.index import ChunkIndex

    # Its warning is for transfers, which go on without it. Here the error says the same.
    logger = logging.getLogger("headrace.storage.index")
    logger.addFilter(_not_off)
    try:
        with ChunkIndex(config.home(), max_entries) as index:
            if index.off:
                raise index.off
            yield index
    finally:
        logger.removeFilter(_not_off)


def _manifests() -> ManifestStore:
    """The hashes that shares keep."""
    from headrace.storage.manifest_store import ManifestStore

    return ManifestStore(config.home())


def _not_off(record: logging.LogRecord) -> bool:
    return "index is off" not in str(record.msg)


def _checked(common: options.Common, max_entries: int, *, read_data: bool, forget_only: bool) -> Checked:
    """What `verify` or `gc` found, with a progress line meanwhile."""
    from headrace.storage import index_check

    stopping = threading.Event()
    latest: list[Checked] = []

    def moved(checked: Checked) -> None:
        latest[:] = [checked]

    with _index(max_entries) as index, _line(common) as line:

        def work() -> Checked:
            if forget_only:
                return index_check.gc(index, stop=stopping.is_set, moved=moved)
            return index_check.verify(index, read=read_data, stop=stopping.is_set, moved=moved)

        def tick() -> None:
            if line and latest:
                line.show(f"{counted(latest[0].files, 'file')}  {human_size(latest[0].read)} read")

        return signals.run(work, cancel=stopping.set, tick=tick)


@contextlib.contextmanager
def _line(common: options.Common) -> Iterator[output.ProgressLine | None]:
    """A progress line at the bottom of the terminal, where there is one and somebody wants it."""
    if common.quiet or common.json or not output.stderr_is_terminal() or os.environ.get("TERM") == "dumb":
        yield None
        return
    line = output.ProgressLine(sys.stderr)
    with contextlib.redirect_stderr(line):
        try:
            yield line
        finally:
            line.clear()


class _Told:
    """What could not be added, one line or event each. Called by one thread at a time."""

    def __init__(self, events: output.Events | None) -> None:
        self._events = events

    def failed(self, path: bytes, why: HeadraceError) -> None:
        if self._events:
            fields = {"code": why.code, "path": os.fsdecode(path), "message": why.message, "hint": why.hint}
            self._events.emit({"event": "error", **fields, "retryable": why.retryable})
        output.complain(why)


def _existing(path: str) -> bytes:
    """Absolute. What the user names may be a symlink, and is followed now, once."""
    real = os.path.realpath(os.fsencode(path))
    if not os.path.lexists(real):
        raise NotFoundError(f"{printable(path)} is not there", hint="Check the path.")
    return real


def _shown(path: bytes) -> str:
    return printable(path.decode("utf-8", "backslashreplace"))


def _found(checked: Checked) -> list[str]:
    parts = []
    if checked.stale:
        parts.append(f"{checked.stale:,} changed or gone and forgotten")
    if checked.unreadable:
        parts.append(f"{checked.unreadable:,} could not be read")
    return parts or ([] if checked.different else ["all as indexed"])


def _progress(done: Seeded, seconds: float) -> str:
    """1.2 GiB hashed  12 of 40 files found so far  512 MB/s"""
    seen = done.added + done.known + done.failed
    parts = [f"{human_size(done.hashed)} hashed", f"{seen:,} of {counted(done.files, 'file')} found so far"]
    return "  ".join([*parts, human_rate(done.hashed / seconds if seconds > 0 else 0.0)])


def _summary(done: Seeded, seconds: float) -> str:
    parts = [f"added {counted(done.added, 'file')}, {human_size(done.hashed)} hashed in {human_seconds(seconds)}"]
    if done.known:
        parts.append(f"{counted(done.known, 'file')} known and unchanged")
    if done.failed:
        parts.append(f"{counted(done.failed, 'path')} failed")
    return ", ".join(parts)


def _rate(stats: IndexStats) -> float | None:
    """Of the chunks that were looked up, the part that was found."""
    asked = stats.counters.get("asked", 0)
    return stats.counters.get("found", 0) / asked if asked else None


def _figures(stats: IndexStats) -> dict[str, Any]:
    rate = _rate(stats)
    return {
        "path": str(stats.path),
        "entries": stats.entries,
        "max_entries": stats.max_entries,
        "files": stats.files,
        "bytes_indexed": stats.bytes_indexed,
        "bytes_on_disk": stats.disk,
        "hit_rate": None if rate is None else round(rate, 4),
        "damaged": stats.damaged,
        **{name: stats.counters.get(name, 0) for name in (*COUNTERS, *LOSSES)},
    }


def _told(stats: IndexStats) -> str:
    count = {name: stats.counters.get(name, 0) for name in (*COUNTERS, *LOSSES)}
    rate = _rate(stats)
    found = f", {count['found']:,} found ({rate:.0%})" if rate is not None else ""
    saved = f", {human_size(count['bytes_saved'])} not fetched" if count["reused"] else ""
    ways = f" (reflink {count['reflink']:,}, copy_file_range {count['copy_file_range']:,}, copy {count['copy']:,})"
    lines = [
        ("index", printable(str(stats.path))),
        (
            "entries",
            f"{counted(stats.entries, 'chunk')} of {counted(stats.files, 'file')}; at most {stats.max_entries:,}",
        ),
        ("knows", human_size(stats.bytes_indexed)),
        ("on disk", human_size(stats.disk)),
        ("looked up", counted(count["asked"], "chunk") + found),
        ("reused", counted(count["reused"], "chunk") + saved + (ways if count["reused"] else "")),
        ("lost", f"{count['stale']:,} files changed, {count['evicted']:,} chunks for lack of room"),
    ]
    if count["dropped"]:
        lines.append(("dropped", f"{counted(count['dropped'], 'chunk')} that came faster than they could be written"))
    if stats.damaged:
        lines.append(("damaged", "an earlier index was damaged and set aside; headrace cache gc deletes it"))
    return "".join(f"{name:<{_LABEL}}{text}\n" for name, text in lines)


KEPT: Final = ("manifest_hits", "manifest_misses", "bytes_not_hashed")


def _figures_kept(stats: StoreStats | None) -> dict[str, Any]:
    counters = stats.counters if stats else {}
    return {
        "manifest_hashes": stats.hashes if stats else 0,
        "manifest_files": stats.files if stats else 0,
        "manifest_bytes_on_disk": stats.disk if stats else 0,
        **{name: counters.get(name, 0) for name in KEPT},
    }


def _told_kept(stats: StoreStats | None) -> str:
    if stats is None:
        return f"{'shares':<{_LABEL}}no hashes kept yet\n"
    hits, misses, size = (stats.counters.get(name, 0) for name in KEPT)
    rate = f" ({hits / (hits + misses):.0%})" if hits + misses else ""
    known = f"{counted(stats.hashes, 'chunk')} of {counted(stats.files, 'file')}, {human_size(stats.disk)} on disk"
    found = f"{counted(hits + misses, 'file')} looked up, {hits:,} known{rate}, {human_size(size)} not hashed again"
    return f"{'shares':<{_LABEL}}{known}; {found}\n"
