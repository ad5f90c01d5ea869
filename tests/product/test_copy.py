"""The main job: what was shared arrives as it was, and what is there already is not moved again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from headrace.engine.plan import OnExist
from headrace.errors import HeadraceError

from .support import (
    CHUNK,
    KIB,
    MIB,
    Host,
    allocated,
    assert_same_tree,
    call,
    call_get,
    contents,
    facts_of,
    finish,
    leftovers,
    make_file,
    make_sparse,
    make_tree,
    noise,
    run_get,
    snapshot,
    start_get,
)

PHASES = [
    "auto",
    pytest.param("client pinned to 7", marks=pytest.mark.slow),
    pytest.param("host pinned to 7", marks=pytest.mark.slow),
]
T1 = 1_700_000_000_123_456_789


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("copy")
    make_tree(folder / "tree")
    yield folder
    os.chmod(folder / "tree" / "locked", 0o755)


@pytest.fixture(scope="module")
def host(place: Path) -> Iterator[Host]:
    with Host(place / "tree", home=place / "host") as host:
        yield host


@pytest.fixture(scope="module")
def old_host(place: Path) -> Iterator[Host]:
    with Host(place / "tree", home=place / "old host", options=["--protocol", "7"]) as host:
        yield host


@pytest.mark.parametrize("phase", PHASES)
def test_a_tree_arrives_byte_for_byte_and_the_second_time_nothing_moves(
    phase: str, place: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    host: Host = request.getfixturevalue("old_host" if phase.startswith("host") else "host")
    options = ["--protocol", "7"] if phase.startswith("client") else []
    dest = tmp_path / "made" / "dest"
    first = run_get(host.address, dest, *options, home=tmp_path / "home").check_ok()
    assert first.stderr == ""
    assert first.done["protocol"] == (8 if phase == "auto" else 7)
    assert_same_tree(dest, place / "tree")
    files = [fact for fact in snapshot(dest).values() if fact.kind == "file"]
    assert (first.done["files"], first.done["bytes"]) == (len(files), sum(fact.size for fact in files))
    assert first.done["failed"] == 0
    if phase == "auto":  # phase 7 cannot say that a hole is one
        assert first.done["bytes_received"] < first.done["bytes"] - 30 * MIB

    second = run_get(host.address, dest, *options, home=tmp_path / "home").check_ok()
    assert second.done["bytes_received"] == 0
    assert second.done["bytes_reused"] == second.done["bytes"] == first.done["bytes"]
    assert_same_tree(dest, place / "tree")


def test_events_come_in_the_order_of_the_contract(host: Host, tmp_path: Path) -> None:
    result = run_get(host.address, tmp_path / "dest", home=tmp_path / "home", path="sizes").check_ok()
    kinds = [event["event"] for event in result.events]
    assert kinds[0] == "connected"
    assert kinds[-1] == "done"
    assert {"plan", "file"} <= set(kinds)
    assert all(event["schema"] == 1 for event in result.events)
    fields = {"files", "bytes", "bytes_received", "bytes_reused", "bytes_wire", "seconds", "first_byte_ms"}
    assert fields | {"transport", "protocol", "io", "data_plane", "streams", "failed"} <= result.done.keys()
    assert result.done["bytes_wire"] > result.done["bytes_received"]
    (plan,) = result.of("plan")
    assert (plan["files"], plan["bytes"]) == (result.done["files"], result.done["bytes"])


def test_where_a_file_and_a_folder_go(host: Host, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    big = f"{2 * CHUNK + 1}.bin"
    odd = os.fsdecode(b"odd/caf\xe9 in latin-1/caf\xe9 in latin-1")
    (tmp_path / "folder").mkdir()
    with headrace.connect(f"{host.code}@{host.address}", home=tmp_path / "home") as remote:
        for path, dest, lands in (
            (f"sizes/{big}", tmp_path / "renamed", tmp_path / "renamed"),
            (f"sizes/{big}", "relative", tmp_path / "relative"),
            (f"sizes/{big}", tmp_path / "folder", tmp_path / "folder" / big),
            (f"sizes/{big}", f"{tmp_path}/new/", tmp_path / "new" / big),
            (f"sizes/{big}", None, tmp_path / big),
            ("sizes/0.bin", tmp_path / "empty", tmp_path / "empty"),
            (odd, None, tmp_path / os.path.basename(odd)),
        ):
            assert remote.get(path, dest).files == 1
            assert facts_of(lands) == facts_of(place / "tree" / path)
        remote.get("sizes", tmp_path / "sizes")
        assert_same_tree(tmp_path / "sizes", place / "tree" / "sizes")
    run_get(host.address, None, home=tmp_path / "home", path="modes", cwd=tmp_path).check_ok()
    assert_same_tree(tmp_path / "modes", place / "tree" / "modes")
    assert not leftovers(tmp_path)


def test_several_paths_are_a_folder_that_holds_them(place: Path, tmp_path: Path) -> None:
    paths = [place / "tree" / "sizes", place / "tree" / "old", place / "tree" / "modes"]
    with Host(*paths, home=tmp_path / "host") as host:
        call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_ok()
    assert sorted(os.listdir(tmp_path / "dest")) == ["modes", "old", "sizes"]
    assert_same_tree(tmp_path / "dest" / "sizes", paths[0])
    assert_same_tree(tmp_path / "dest" / "modes", paths[2])


@pytest.mark.slow
def test_where_permissions_bind(host: Host, place: Path, tmp_path: Path) -> None:
    """Files go into folders that end as 0555, also when they are fetched once more."""
    home, dest = tmp_path / "home", tmp_path / "dest"
    run_get(host.address, dest, home=home, bound=True).check_ok()
    assert_same_tree(dest, place / "tree")
    os.chmod(dest / "locked", 0o755)
    (dest / "locked" / "inside").unlink()
    os.chmod(dest / "locked", 0o555)
    run_get(host.address, dest, home=home, bound=True).check_ok()
    assert_same_tree(dest, place / "tree")
    os.chmod(dest / "locked", 0o755)  # so that pytest can remove it

    (tmp_path / "closed").mkdir(mode=0o555)
    into = run_get(host.address, tmp_path / "closed" / "dest", home=home, bound=True).check_failed(8)
    assert "permission" in into.stderr


@pytest.mark.slow
def test_three_at_once_get_the_same(host: Host, place: Path, tmp_path: Path) -> None:
    names = ("one", "two", "three")
    runs = [start_get(host.address, tmp_path / name, home=tmp_path / f"{name} home") for name in names]
    try:
        for process in runs:
            finish(process).check_ok()
    finally:
        for process in runs:
            process.__exit__()
    for name in names:
        assert_same_tree(tmp_path / name, place / "tree")


def test_what_the_host_may_not_read_is_told_and_the_rest_comes(tmp_path: Path) -> None:
    for path in ("readable", "closed/inside", "open/secret", "open/fine"):
        make_file(tmp_path / "share" / path, b"content")
    os.chmod(tmp_path / "share" / "open" / "secret", 0)
    os.chmod(tmp_path / "share" / "closed", 0)
    for protocol in ("8", "7"):
        dest = tmp_path / f"dest {protocol}"
        with Host(tmp_path / "share", home=tmp_path / "host", bound=True) as host:
            result = call_get(host.address, dest, "--protocol", protocol, home=tmp_path / "home").check_clean()
        assert result.exit_code == 10
        assert {(event["code"], event["path"]) for event in result.of("error")} == {
            ("denied", "open/secret"),
            ("denied", "closed"),
        }
        assert contents(dest).keys() == {b"readable", b"open/fine"}
        os.chmod(dest / "closed", 0o755)  # so that pytest can remove it
    os.chmod(tmp_path / "share" / "closed", 0o755)


def test_holes_stay_holes_also_in_large_ones(tmp_path: Path) -> None:
    make_sparse(tmp_path / "disk.img", 3 << 30, {(1 << 30) + 5: b"an island", (3 << 30) - 4 * KIB: b"the end"})
    with Host(tmp_path / "disk.img", home=tmp_path / "host") as host:
        result = run_get(host.address, tmp_path / "dest" / "copy.img", home=tmp_path / "home").check_ok()
    assert allocated(tmp_path / "dest" / "copy.img") < MIB
    assert result.done["bytes_received"] <= 4 * CHUNK
    with open(tmp_path / "dest" / "copy.img", "rb") as copy:
        copy.seek((1 << 30) + 5)
        assert copy.read(9) == b"an island"
        copy.seek((3 << 30) - 4 * KIB)
        assert copy.read().startswith(b"the end\0")


def test_reading_with_ls_and_cat(host: Host, place: Path, tmp_path: Path) -> None:
    env = {"HEADRACE_CODE": host.code}
    content = (place / "tree" / "sizes" / f"{CHUNK + 1}.bin").read_bytes()
    home, file = tmp_path / "home", f"{host.address}/sizes/{CHUNK + 1}.bin"
    assert call("cat", file, home=home, env=env).check_ok().stdout == content
    part = call("cat", file, "--offset", f"{CHUNK - 10}", "--length", "20", home=home, env=env)
    assert part.check_ok().stdout == content[-11:]
    listed = call("ls", "-R", "--json", host.address, home=home, env=env).check_ok()
    assert len(listed.stdout.splitlines()) == len(snapshot(place / "tree")) - 1


# ---- --on-exist --------------------------------------------------------------------------------------------------

EXISTING = {
    "same": (b"new" * 5000, T1),
    "same content, other time": (b"new" * 5000, T1 - 1),
    "same size": (b"old" * 5000, T1 - 1),
    "other size": (b"older" * 5000, T1 - 1),
}


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A share of one file of several chunks and a small one."""
    folder = tmp_path_factory.mktemp("choosing")
    make_file(folder / "share" / "small.txt", b"new" * 5000, mtime_ns=T1)
    make_file(folder / "share" / "big.bin", noise(2 * CHUNK + 99, "new"), mtime_ns=T1)
    with Host(folder / "share", home=folder / "host") as host:
        yield host


@pytest.mark.parametrize("protocol", [8, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("on_exist", "existing", "exit_code"),
    [
        *[("skip-same", case, code) for case, code in zip(EXISTING, (0, 0, 10, 10), strict=True)],
        *[("overwrite", case, 0) for case in EXISTING],
        *[("rename", case, 0) for case in EXISTING],
        *[("fail", case, 11) for case in EXISTING],
    ],
)
def test_what_happens_to_a_file_that_exists(
    choosing: Host, place: Path, tmp_path: Path, on_exist: str, existing: str, exit_code: int, protocol: int
) -> None:
    content, mtime_ns = EXISTING[existing]
    big = noise(2 * CHUNK + 99, "new") if content == b"new" * 5000 else noise(2 * CHUNK + 99, "old")
    dest = tmp_path / "dest"
    make_file(dest / "small.txt", content, mtime_ns=mtime_ns)
    make_file(dest / "big.bin", big if existing != "other size" else big[1:], mtime_ns=mtime_ns)
    before = contents(dest)
    target = f"{choosing.code}@{choosing.address}"
    error, received = None, 0
    with headrace.connect(target, home=place / "choosing home", protocol=protocol) as remote:
        try:
            result = remote.get("", dest, on_exist=OnExist(on_exist))
        except HeadraceError as why:
            error = why
        else:
            error, received = result.error, result.bytes_received
    assert (error.exit_code if error else 0) == exit_code
    assert not leftovers(dest)

    new = {b"small.txt", b"big.bin"}
    same = existing.startswith("same") and "size" not in existing
    if exit_code:
        assert contents(dest) == before
    elif same:
        assert contents(dest) == before
        assert received == 0
        assert {os.stat(dest / name.decode()).st_mtime_ns for name in new} == {T1}
    elif on_exist == "overwrite":
        assert contents(dest).keys() == new
        assert (dest / "small.txt").read_bytes() == b"new" * 5000
        assert (dest / "big.bin").read_bytes() == noise(2 * CHUNK + 99, "new")
    else:
        assert contents(dest).keys() == new | {b"small (1).txt", b"big (1).bin"}
        assert {path: contents(dest)[path] for path in new} == before
        assert (dest / "big (1).bin").read_bytes() == noise(2 * CHUNK + 99, "new")


@pytest.mark.parametrize(("on_exist", "exit_code"), [("skip-same", 10), ("overwrite", 0), ("rename", 0), ("fail", 11)])
def test_what_the_command_says_of_a_file_that_exists(
    choosing: Host, tmp_path: Path, on_exist: str, exit_code: int
) -> None:
    make_file(tmp_path / "dest" / "small.txt", b"something else", mtime_ns=T1)
    options = ("--on-exist", on_exist)
    result = call_get(choosing.address, tmp_path / "dest", *options, home=tmp_path / "home").check_clean()
    assert result.exit_code == exit_code, result.stderr
    told = {"skip-same": ["different"], "fail": ["exists"]}
    assert [event["code"] for event in result.of("error")] == told.get(on_exist, [])


def test_a_failed_file_is_told_in_words_too(choosing: Host, tmp_path: Path) -> None:
    make_file(tmp_path / "dest", b"something else", mtime_ns=T1)
    env = {"HEADRACE_CODE": choosing.code}
    target = f"{choosing.address}/small.txt"
    result = call("get", target, str(tmp_path / "dest"), home=tmp_path / "home", env=env).check_failed(10)
    assert "--on-exist" in result.stderr
    assert (tmp_path / "dest").read_bytes() == b"something else"


def test_a_file_where_a_folder_belongs_and_the_other_way_round(choosing: Host, tmp_path: Path) -> None:
    make_file(tmp_path / "dest", b"a file")
    result = call_get(choosing.address, tmp_path / "dest", home=tmp_path / "home").check_failed(8, 11)
    assert "not a folder" in result.stderr
    call_get(choosing.address, tmp_path / "dest" / "below", home=tmp_path / "home").check_failed(8, 11)
    assert (tmp_path / "dest").read_bytes() == b"a file"

    (tmp_path / "other" / "small.txt").mkdir(parents=True)
    blocked = call_get(choosing.address, tmp_path / "other", home=tmp_path / "home").check_clean()
    assert blocked.exit_code == 10, blocked.stderr
    assert [event["path"] for event in blocked.of("error")] == ["small.txt"]
    assert (tmp_path / "other" / "big.bin").stat().st_size == 2 * CHUNK + 99


def test_nothing_is_written_through_a_link_in_the_destination(host: Host, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    make_file(outside / "4096.bin", b"untouched")
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "sizes").symlink_to(outside)
    (dest / "old").symlink_to(outside / "4096.bin")
    for on_exist in ("skip-same", "overwrite"):
        options = ("--on-exist", on_exist, "--exclude", "many/", "--exclude", "odd/")
        result = call_get(host.address, dest, *options, home=tmp_path / "home").check_clean()
        assert result.exit_code == 10, result.stderr
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"4096.bin": b"untouched"}
    # The user said so: the link gave way to the file, and what it pointed to is as it was.
    assert not (dest / "old").is_symlink()
    assert (dest / "old").read_bytes() == b"before 1970"


def test_a_dry_run_changes_nothing(host: Host, tmp_path: Path) -> None:
    result = call_get(host.address, tmp_path / "dest", "--dry-run", home=tmp_path / "home").check_ok()
    assert result.of("plan")[0]["files"] > 1500
    assert not (tmp_path / "dest").exists()
