"""One share for the tests that only look at it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import Sharing

MIB = 1024 * 1024


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of a machine that was never used."""
    return tmp_path / "home"


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bit of everything. Not to be changed."""
    root = tmp_path_factory.mktemp("tree") / "footage"
    (root / "day1" / "raw").mkdir(parents=True)
    (root / "notes.txt").write_text("hello\n")
    (root / "day1" / "a.mov").write_bytes(os.urandom(3 * MIB + 5))
    (root / "day1" / "raw" / "x").write_text("x")
    (root / "two\nlines").write_text("")
    os.symlink("notes.txt", root / "link")
    with open(os.fsencode(root) + b"/caf\xe9", "wb") as file:
        file.write(b"latin-1")
    os.utime(root / "notes.txt", ns=(1_700_000_000_123_456_789,) * 2)
    (root / "notes.txt").chmod(0o640)
    return root


@pytest.fixture(scope="session")
def sharing(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    """That folder, shared."""
    with Sharing(tree, home=tmp_path_factory.mktemp("host")) as share:
        yield share
