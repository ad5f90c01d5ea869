"""Files to copy, in memory where there is room, and the check that a copy is one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import blake3

from headrace.bench.measure import DifferentError
from headrace.bench.process import BenchError

MIB: Final = 1 << 20
GIB: Final = 1 << 30
MEMORY: Final = Path("/dev/shm")
PREFIX: Final = "headrace-bench-"
FILES_A_FOLDER: Final = 1000
_PIECE: Final = 8 * MIB
_UNITS: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_size(text: str) -> int:
    """512, 64k, 1g: bytes, with units of 1024. Raises ValueError."""
    number = text.lower().removesuffix("ib").removesuffix("b")
    unit = _UNITS.get(number[-1:], 1)
    return int(number[:-1] if unit > 1 else number) * unit


def free(where: Path) -> int:
    """Bytes that can be written there. In memory, also no more than the machine has left."""
    room = shutil.disk_usage(where).free
    if where == MEMORY:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/meminfo").read_text().splitlines()
            available = next(line for line in lines if line.startswith("MemAvailable:"))
            room = min(room, int(available.split()[1]) * 1024)
    return room


def place() -> Path:
    """/dev/shm, or the folder for temporary files where there is none: then the disk may set the pace."""
    return MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())


@contextlib.contextmanager
def workspace(needed: int, where: Path) -> Iterator[Path]:
    """A new folder in `where` that is removed at the end. needed: bytes. Raises BenchError where there is less room."""
    if free(where) < needed:
        raise BenchError(
            f"{where} has {free(where) / MIB:,.0f} MiB free and this needs {needed / MIB:,.0f}: choose a smaller --size"
        )
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=where, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def random_file(path: Path, size: int) -> None:
    """Bytes that do not compress."""
    with path.open("wb") as file:
        for start in range(0, size, _PIECE):
            file.write(os.urandom(min(_PIECE, size - start)))


def random_tree(root: Path, files: int, size: int) -> None:
    """`files` files of `size` random bytes each, a thousand to a folder."""
    for first in range(0, files, FILES_A_FOLDER):
        folder = root / f"{first // FILES_A_FOLDER:04d}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + FILES_A_FOLDER, files)):
            (folder / f"{number:06d}.bin").write_bytes(os.urandom(size))


def text_file(path: Path, size: int) -> None:
    """Source code: the modules of the standard library one after the other, and again where that is not enough. The
    distance is far longer than what a compressor here looks back."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    with path.open("wb") as file:
        while True:
            for module in modules:
                left = size - file.tell()
                if left <= 0:
                    return
                file.write(module.read_bytes()[:left])


def tree_size(root: Path) -> tuple[int, int]:
    """(files, bytes) below `root`."""
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def digest(path: Path) -> str:
    """Of a file's content, or of all names and contents below a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, blake3.blake3).hexdigest()  # type: ignore[arg-type]  # it is hash-like
    whole = blake3.blake3()
    for entry in sorted(path.rglob("*")):
        kind = "d" if entry.is_dir() else digest(entry)
        whole.update(f"{entry.relative_to(path)}\0{kind}\0".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def checker(source: Path) -> Callable[[Path], None]:
    """For measure.compare: raises DifferentError unless a path holds what `source` holds now."""
    wanted = digest(source)

    def check(copy: Path) -> None:
        if not copy.exists():
            gone = "" if copy.parent.exists() else f": somebody removed {copy.parent} meanwhile"
            raise DifferentError(f"{copy} is not there although the command ended well{gone}")
        if digest(copy) != wanted:
            raise DifferentError(f"{copy} differs from {source}")

    return check
