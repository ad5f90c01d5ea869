"""How file bytes are read and written: one face, several backends. `platform.platform_io` picks one and says why.

Opening, renaming, locking and stamping are not part of it: those are the same calls everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Wanted(NamedTuple):
    """A small file to be read whole. name: of a regular file in the batch's folder. size: bytes, at most."""

    name: bytes
    size: int


class NewFile(NamedTuple):
    """A small file to be made. mode: permission bits; mtime_ns: nanoseconds since 1970."""

    name: bytes
    data: bytes | memoryview
    mode: int
    mtime_ns: int


class Range(NamedTuple):
    """A piece of an open file that belongs in a buffer."""

    fd: int
    buffer: memoryview
    offset: int


class FileIO(Protocol):
    """Thread-safe; every call blocks until it is done and holds no buffer afterwards. OSError passes through.

    Descriptors stay the caller's. A batch never raises for one of its entries: its result is the OSError instead.
    """

    @property
    def name(self) -> str:
        """`uring`, `posix` or `plain`; what the `done` event says."""

    @property
    def reason(self) -> str:
        """Why it was chosen, for people."""

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Fills `buffer` from `offset` on; how many bytes there were (fewer only at the end of the file)."""

    def write(self, fd: int, data: memoryview | bytes, offset: int) -> None:
        """Writes all of `data` at `offset`."""

    def read_ranges(self, ranges: Sequence[Range]) -> list[int | OSError]:
        """`read_into` for each, all asked of the disk at once."""

    def read_files(self, dir_fd: int, wanted: Sequence[Wanted]) -> list[bytes | OSError]:
        """Opens, reads and closes each, following no symlink. Shorter than `size` only when the file is."""

    def create_files(self, dir_fd: int, files: Sequence[NewFile]) -> list[None | OSError]:
        """Makes each with its permissions and time. The name must be free, a symlink's included: else EEXIST.

        Where that fails half-way nothing is left of the file.
        """

    def close(self) -> None:
        """Gives back what it holds; nobody may use it any more."""
