"""What `bench.mount` shares: a large file, a huge one, a source tree in git, a folder of many entries."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.bench.mountwork import SEEK
from headrace.bench.process import BenchError
from headrace.bench.sshd import program
from headrace.bench.workspace import random_file

FIRSTS: Final = 40  # files whose first byte is read
FIRST_SIZE: Final = 256 << 10
PLACES: Final = 8  # of the huge file that hold bytes, and are read
FILES_A_FOLDER: Final = 20
WORDS: Final = ("import", "return", "if", "else", "for", "while", "class", "def", "self", "value", "result", "path")
_IDENTITY: Final = ("-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "safe.directory=*")


@dataclass(frozen=True, slots=True)
class Files:
    """large, huge: bytes. tree: files in git. many: entries of the folder."""

    large: int
    huge: int
    tree: int
    many: int

    @property
    def room(self) -> int:
        """Bytes that they take, in pages of 4 KiB."""
        return self.large + PLACES * SEEK + FIRSTS * FIRST_SIZE + self.tree * 3 * 4096 + self.many * 1024

    def first(self, number: int) -> dict[str, Any]:
        """For the work of that name."""
        names = [f"first/{one:03d}.bin" for one in range(FIRSTS)]
        random.Random(number).shuffle(names)
        return {"names": names}

    def places(self, number: int) -> list[int]:
        """Where the huge file holds bytes, in an order of the round's."""
        step = self.huge // PLACES
        found = [step * one + 12345 for one in range(PLACES)]  # at no chunk's edge
        random.Random(number).shuffle(found)
        return found


def make(files: Files, root: Path, names: set[str]) -> None:
    """Into the existing folder `root`. names: of what is wanted. Raises BenchError."""
    if "large" in names:
        random_file(root / "large.bin", files.large)
    if "huge" in names:
        with (root / "huge.bin").open("wb") as huge:
            huge.truncate(files.huge)
            for place in files.places(0):
                os.pwrite(huge.fileno(), os.urandom(SEEK), place)
    if "first" in names:
        (root / "first").mkdir()
        for number in range(FIRSTS):
            random_file(root / "first" / f"{number:03d}.bin", FIRST_SIZE)
    if "tree" in names:
        _tree(root / "tree", files.tree)
    if "many" in names:
        (root / "many").mkdir()
        for number in range(files.many):
            (root / "many" / f"entry-{number:06d}.dat").touch()


def _tree(root: Path, count: int) -> None:
    """Files of 0.5 to 8 KiB of words, all of them in git."""
    chance = random.Random(1)
    for first in range(0, count, FILES_A_FOLDER):
        folder = root / f"part{first // 1000:02d}" / f"module{first // FILES_A_FOLDER:04d}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + FILES_A_FOLDER, count)):
            lines = [" ".join(chance.choices(WORDS, k=8)) for _ in range(chance.randrange(10, 160))]
            (folder / f"file{number:05d}.py").write_text("\n".join([str(number), *lines, ""]))
    git = program("git")
    for arguments in (
        ("init", "--quiet"),
        ("config", "gc.auto", "0"),
        ("add", "--all"),
        ("commit", "--quiet", "-m", "all"),
        ("gc", "--quiet"),
    ):
        said = subprocess.run([git, *_IDENTITY, "-C", str(root), *arguments], capture_output=True, text=True)
        if said.returncode:
            raise BenchError(f"git {arguments[0]}: {said.stderr.strip()}")
