"""One errno, two sides, one sentence each."""

from __future__ import annotations

import errno
import os

import pytest

from headrace.errors import (
    HeadraceError,
    LocalDiskError,
    LocalFileError,
    NotFoundError,
    PermissionRefusedError,
    RemoteIOError,
)
from headrace.protocol.paths import ROOT, RelPath
from headrace.storage.oserrors import host_errors, label, local_errors


def raised(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG", "EMFILE", "EBUSY"])
def test_the_receivers_disk(name: str) -> None:
    with pytest.raises(LocalDiskError) as caught, local_errors("write", b"a.bin"):
        raise raised(getattr(errno, name))
    assert "write a.bin" in caught.value.message and caught.value.hint and caught.value.exit_code == 8
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EMFILE", "ENFILE", "ESTALE", "ENOMEM"])
def test_what_concerns_the_whole_disk(name: str) -> None:
    with pytest.raises(LocalDiskError) as caught, local_errors("write", b"a.bin"):
        raise raised(getattr(errno, name))
    assert not isinstance(caught.value, LocalFileError)


@pytest.mark.parametrize("name", ["EACCES", "EPERM", "EILSEQ", "ENAMETOOLONG", "EFBIG", "ELOOP", "ENOTDIR", "ENOENT"])
def test_what_concerns_one_file(name: str) -> None:
    with pytest.raises(LocalFileError) as caught, local_errors("write", b"a.bin"):
        raise raised(getattr(errno, name))
    assert (caught.value.code, caught.value.exit_code) == ("disk", 8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ENOENT", NotFoundError),
        ("ENOTDIR", NotFoundError),
        ("ELOOP", NotFoundError),
        ("EACCES", PermissionRefusedError),
        ("EPERM", PermissionRefusedError),
        ("EIO", RemoteIOError),
        ("EMFILE", RemoteIOError),
        ("ESTALE", RemoteIOError),
    ],
)
def test_the_hosts_disk(name: str, expected: type[HeadraceError]) -> None:
    with pytest.raises(HeadraceError) as caught, host_errors(RelPath.parse(b"dir/a.bin")):
        raise raised(getattr(errno, name))
    assert type(caught.value) is expected and "dir/a.bin" in caught.value.message


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), host_errors(ROOT):
        raise KeyError
    with pytest.raises(KeyError), local_errors("read", b"x"):
        raise KeyError


def test_labels_are_printable_whatever_the_name() -> None:
    assert label(ROOT) == "the share"
    for name in (b"\xff\x1b[31m", "\udcff\x1b", RelPath((b"\xff\n",))):
        assert label(name).isprintable()
