"""One share for the tests that go to one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.processes import Sharing

MIB = 1024 * 1024


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of a machine that was never used."""
    return tmp_path / "home"


@pytest.fixture(scope="session")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    """A large file, a small one, a hole. Not to be changed."""
    root = tmp_path_factory.mktemp("tree")
    (root / "day1").mkdir()
    (root / "day1" / "a.mov").write_bytes(os.urandom(9 * MIB + 5))
    (root / "small").mkdir()
    (root / "small" / "notes.txt").write_text("hello\n")
    (root / "zeros").mkdir()
    with (root / "zeros" / "z").open("wb") as file:
        file.truncate(5 * MIB)
    with Sharing(root, home=tmp_path_factory.mktemp("host")) as share:
        yield share
