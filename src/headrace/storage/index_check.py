"""Looking after the chunk index: whether what it says is still so, and throwing out what is not."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.chunks import hash_bytes
from headrace.storage.clone import SourceUnfitError, open_place
from headrace.storage.index import ChunkIndex
from headrace.storage.index_file import remove_damaged
from headrace.storage.index_places import Facts, IndexedFile, Place
from headrace.storage.index_writer import EVICT_STEP
from headrace.storage.rawio import pread_all

_FILES: Final = 256  # read from the database at once; others may read it between two


@dataclass(slots=True)
class Checked:
    """Files that were looked at, by what came of it; chunks that were hashed, and their bytes (read).

    stale: gone or changed since they were added. unreadable: they are there, but could not be read. different: those
    whose bytes are not what they were, though their times are; their paths.
    """

    files: int = 0
    stale: int = 0
    unreadable: int = 0
    chunks: int = 0
    read: int = 0
    different: list[bytes] = field(default_factory=list)


def verify(index: ChunkIndex, *, read: bool, stop: Callable[[], bool], moved: Callable[[Checked], None]) -> Checked:
    """Checks the database, and each file against it. read: and all indexed chunks against their hashes.

    Files that are not what they were are forgotten. stop: asked now and then; when it says so, what was checked so far
    is returned. moved: called after each file. Raises LocalDiskError, also for a damaged database.
    """
    index.flush()
    with index.database() as database:
        database.check()
    checked = Checked()
    buffer = memoryview(bytearray(CHUNK_SIZE if read else 0))
    for file in _files(index):
        if stop():
            break
        checked.files += 1
        verdict = _look(file)
        if read and not verdict:
            verdict = _read(index, file, buffer, checked, stop)
        if verdict == "unreadable":
            checked.unreadable += 1
        elif verdict:
            if verdict == "different":
                checked.different.append(file.path)
            else:
                checked.stale += 1
            _forget(index, file, checked)
        moved(checked)
    index.flush()
    return checked


def gc(index: ChunkIndex, *, stop: Callable[[], bool], moved: Callable[[Checked], None]) -> Checked:
    """Forgets files that are gone or changed, deletes a damaged database that was set aside, and gives the space back.

    Arguments and errors as `verify`.
    """
    checked = Checked()
    for file in _files(index):
        if stop():
            return checked
        checked.files += 1
        if _look(file) not in ("", "unreadable"):
            checked.stale += 1
            _forget(index, file, checked)
        moved(checked)
    index.flush()
    with index.database() as database:
        while database.evict(index.max_entries, max(1, index.max_entries // 20), EVICT_STEP):
            pass
        database.compact()
        remove_damaged(database.home)
    return checked


def _files(index: ChunkIndex) -> Iterator[IndexedFile]:
    last = 0
    while True:
        with index.database() as database:
            files = database.files_after(last, _FILES)
        yield from files
        if len(files) < _FILES:
            return
        last = files[-1].id


def _forget(index: ChunkIndex, file: IndexedFile, checked: Checked) -> None:
    index.forget(Place(file, 0, 0, b""))
    if not (checked.stale + len(checked.different)) % _FILES:  # so that the queue stays short
        index.flush()


def _look(file: IndexedFile) -> str:
    """Empty when it is the file that was added, else why not."""
    try:
        st = os.stat(file.path, follow_symlinks=False)
    except OSError as why:
        return "unreadable" if isinstance(why, PermissionError) else "gone"
    return "" if stat.S_ISREG(st.st_mode) and Facts.of(st) == file.facts else "changed"


def _read(index: ChunkIndex, file: IndexedFile, buffer: memoryview, checked: Checked, stop: Callable[[], bool]) -> str:
    """Empty when every indexed chunk has its hash, else why not."""
    with index.database() as database:
        places = database.chunks_of(file)
    if not places:
        return ""
    try:
        fd = open_place(places[0])
    except SourceUnfitError as why:
        return why.miss
    try:
        for place in places:
            if stop():
                return ""
            got = pread_all(fd, buffer[: place.length], place.offset)
            checked.chunks += 1
            checked.read += got
            if hash_bytes(buffer[:got]) != place.hash:
                return "changed" if Facts.of(os.fstat(fd)) != file.facts else "different"
    except OSError:
        return "unreadable"
    finally:
        os.close(fd)
    return ""
