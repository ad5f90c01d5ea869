"""A folder by its descriptor, and a disk of 20 MiB that can be filled, where we may mount one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield disk
    finally:
        # Lazily: an open descriptor of a failed test must not keep the mount, and the next run, stuck.
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """tmp_path, open."""
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)
