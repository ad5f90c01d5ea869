"""The same job on every file backend, and what is said where one is not to be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from headrace.errors import UsageError
from headrace.protocol.paths import RelPath
from headrace.storage.manifest import HashCache, manifest
from headrace.storage.platform import NoRingError, platform_io, uring
from headrace.storage.source import SourceFile
from headrace.storage.tree import SharedTree

from .support import CODE, MIB, Host, assert_same_tree, make_file, make_sparse, noise, run_get

# A filter as containers have it: io_uring_setup (425 on every architecture) answers EPERM. See seccomp(2).
_FILTERED = """
import ctypes, os, struct, sys
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN, ERRNO, ALLOW = 0x20, 0x15, 0x06, 0x00050000, 0x7FFF0000
rules = ((LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 1, 425), (RETURN, 0, 0, ERRNO | 1), (RETURN, 0, 0, ALLOW))
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(rules), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def need(backend: str) -> None:
    if backend == "uring":
        try:
            uring("a test").close()
        except NoRingError as why:
            pytest.skip(f"no io_uring here: {why}")


def filtered(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    if sys.platform != "linux":
        pytest.skip("seccomp is Linux's")
    env = {**os.environ, "HEADRACE_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", _FILTERED, *arguments], env=env, capture_output=True, text=True, timeout=30
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("io") / "tree"
    (folder / "below").mkdir(parents=True)
    make_file(folder / "large", noise(9 * MIB))
    make_sparse(folder / "below" / "sparse", 20 * MIB, {0: b"start", 9 * MIB: noise(MIB)})
    for number in range(20):
        make_file(folder / "below" / str(number), noise(number * 1000))
    return folder


@pytest.mark.parametrize("backend", ["uring", "posix", "plain"])
@pytest.mark.slow
def test_every_backend_makes_the_same_tree(backend: str, tree: Path, tmp_path: Path) -> None:
    need(backend)
    with Host(tree, home=tmp_path / "host", options=["--io", backend]) as host:
        dest = tmp_path / "dest"
        first = run_get(host.address, dest, "--io", backend, home=tmp_path / "home").check_ok()
        assert first.done["io"] == backend
        assert_same_tree(dest, tree)

        # And again where a part of it differs: that is read, compared and written by the backend as well.
        with (dest / "large").open("r+b") as file:
            file.seek(5 * MIB)
            file.write(b"something else")
        again = run_get(
            host.address, dest, "--io", backend, "--checksum", "--on-exist", "overwrite", home=tmp_path / "home"
        ).check_ok()
        # plain goes without what finds the rest of it here.
        assert again.done["bytes_received"] == (9 * MIB if backend == "plain" else 4096)
        assert_same_tree(dest, tree)


def test_every_backend_makes_the_same_manifest(tree: Path) -> None:
    found = []
    for backend in ("uring", "posix", "plain"):
        need(backend)
        io = platform_io(backend)
        with SharedTree.open([tree], io=io) as shared, SourceFile.open(shared, RelPath.from_user(b"large")) as source:
            found.append(list(manifest(source, source.size, HashCache())))
        io.close()
    assert found[0]
    assert found[0] == found[1] == found[2]


def test_auto_says_what_it_took(tree: Path, tmp_path: Path) -> None:
    with headrace.share(tree, home=tmp_path / "host") as share, headrace.connect(share.target, home=tmp_path) as remote:
        assert remote.get("below/7", tmp_path / "dest").io == "posix"
        with pytest.raises(UsageError):
            remote.get("below/7", tmp_path / "dest", io="fast")


@pytest.mark.slow
def test_plain_has_no_zero_copy(tree: Path, tmp_path: Path) -> None:
    options = ["--data-plane", "clear", "--io", "plain"]
    with Host(tree, home=tmp_path / "host", options=options) as host:
        run_get(host.address, tmp_path / "dest", *options, home=tmp_path / "home").check_ok()
    assert_same_tree(tmp_path / "dest", tree)


@pytest.mark.parametrize("command", ["get", "share"])
def test_forcing_what_is_forbidden(command: str, tree: Path, tmp_path: Path) -> None:
    need("uring")
    arguments = [f"{CODE}@127.0.0.1:1"] if command == "get" else [str(tree), "--port", "0"]
    ended = filtered("-m", "headrace", command, "--io", "uring", *arguments, home=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("headrace: io_uring cannot be used here: a filter of system calls (seccomp)")
    assert "--io posix" in line


_TRY_FIRST = """
import logging
from headrace.storage.platform import FALLBACKS, platform_io
logging.basicConfig(format="%(levelname)s %(message)s")
print([platform_io(ring_first=True).name for _ in range(3)], FALLBACKS.counts())
"""


def test_a_real_filter_is_warned_of_once_and_counted(tmp_path: Path) -> None:
    need("uring")
    ended = filtered("-c", _TRY_FIRST, home=tmp_path)
    assert ended.stdout == "['posix', 'posix', 'posix'] {'forbidden': 3}\n"
    (line,) = ended.stderr.splitlines()
    assert line.startswith("WARNING no io_uring (a filter of system calls (seccomp)")
