"""`headrace put` by real processes: trees, resuming after kills of either end, two writers, full disks, --on-exist."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from headrace.errors import RefusedError

from .support import (
    CHUNK,
    CODE,
    MIB,
    Headrace,
    Host,
    Outcome,
    assert_same_tree,
    call,
    facts_of,
    finish,
    leftovers,
    make_file,
    make_sparse,
    noise,
    wait_until,
)
from .test_disk import tmpfs

T1 = 1_700_000_000_123_456_789


def start_put(address: str, path: str, *sources: Path, home: Path, options: tuple[str, ...] = ()) -> Headrace:
    target = f"{address}/{path}" if path else address
    env = {"HEADRACE_CODE": CODE}
    return Headrace("put", "--json", *options, "--", *sources, target, home=home, env=env)


def run_put(address: str, path: str, *sources: Path, home: Path, options: tuple[str, ...] = ()) -> Outcome:
    with start_put(address, path, *sources, home=home, options=options) as process:
        return finish(process)


def call_put(address: str, path: str, *sources: Path, home: Path, options: tuple[str, ...] = ()) -> Outcome:
    """As `run_put`, in this process."""
    target = f"{address}/{path}" if path else address
    return call("put", "--json", *options, "--", *map(str, sources), target, home=home, env={"HEADRACE_CODE": CODE})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("put")


@pytest.fixture(scope="module")
def host(place: Path) -> Iterator[Host]:
    (place / "share").mkdir()
    with Host(place / "share", home=place / "host", options=["--write", "-v"]) as host:
        assert host.ready["write"]
        yield host
        assert host.alive()
        assert "Traceback" not in host.stderr, host.stderr


@pytest.fixture
def share(place: Path, host: Host) -> Path:
    return place / "share"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What is odd about a tree: times, modes, holes, links, empty folders, names that are no UTF-8."""
    top = tmp_path / "tree"
    make_file(top / "a", b"hello", mtime_ns=T1)
    make_file(top / "empty", b"", mtime_ns=T1 + 1)
    make_file(top / "sub" / "chunks", noise(2 * CHUNK + 1), mtime_ns=T1 + 2)
    make_file(top / "sub" / "middle", noise(MIB + 1), mtime_ns=T1 + 3)
    make_file(top / "sub" / "deep" / "private", b"secret", mtime_ns=T1 + 4)
    (top / "sub" / "deep" / "private").chmod(0o600)
    make_sparse(top / "holes", 3 * CHUNK, {CHUNK: b"x"})
    make_sparse(top / "small holes", MIB, {MIB - 1: b"x"})
    (top / "nothing in it").mkdir()
    with open(os.fsencode(top) + b"/\xff\xfe\n", "wb") as file:
        file.write(b"odd")
    for number in range(300):
        make_file(top / "many" / f"{number}", b"%d" % number, mtime_ns=T1 + number)
    (top / "link").symlink_to("sub/chunks")
    (top / "sub" / "up").symlink_to("../a")
    (top / "dangling").symlink_to("gone")
    (top / "sub" / "deep").chmod(0o700)
    os.utime(top / "nothing in it", ns=(T1, T1))
    os.utime(top / "sub", ns=(T1, T1))
    return top


@pytest.mark.slow
def test_a_tree_as_it_is_and_again(host: Host, share: Path, tree: Path, tmp_path: Path) -> None:
    done = call_put(host.address, "copies/tree", tree, home=tmp_path / "home").check_ok().done
    assert_same_tree(tree, share / "copies" / "tree")
    assert done["failed"] == 0 and done["files"] == 308
    assert (share / "copies" / "tree" / "holes").stat().st_blocks * 512 < 2 * CHUNK
    again = call_put(host.address, "copies/tree", tree, home=tmp_path / "home").check_ok()
    assert again.done["bytes_received"] == 0 and again.done["bytes_reused"] == done["bytes"]
    assert not leftovers(share)
    assert host.of("transfer")[0]["direction"] == "in"


def test_where_files_go(host: Host, share: Path, tmp_path: Path) -> None:
    home, one, two = tmp_path / "home", tmp_path / "one", tmp_path / "two"
    make_file(one, b"1")
    make_file(two, b"2")
    for path, *sources in (("", one), ("there/", one), ("there/other", two), ("there", two), ("both", one, two)):
        call_put(host.address, path, *sources, home=home).check_ok()
    assert (share / "one").read_bytes() == b"1"
    assert {p.name: p.read_bytes() for p in (share / "there").iterdir()} == {"one": b"1", "other": b"2", "two": b"2"}
    assert sorted(os.listdir(share / "both")) == ["one", "two"]
    with Headrace(*("put", f"{host.address}/x"), home=home, env={"HEADRACE_CODE": CODE}) as usage:
        assert usage.wait() == 2
    missing = call_put(host.address, "", tmp_path / "gone", home=home).check_failed(3)
    assert "gone" in missing.stderr


ON_EXIST = [
    # what is asked for, what is there (content, time), exit code, content then, other names
    ("skip-same", b"new", T1, 0, b"new", []),
    ("skip-same", b"new", T1 + 5, 0, b"new", []),
    ("skip-same", b"older", T1, 10, b"older", []),
    ("skip-same", b"old", T1 + 5, 10, b"old", []),
    ("overwrite", b"old", T1 + 5, 0, b"new", []),
    ("overwrite", b"older", T1, 0, b"new", []),
    ("rename", b"older", T1, 0, b"older", ["f (1).txt"]),
    ("rename", b"old", T1 + 5, 0, b"old", ["f (1).txt"]),
    ("fail", b"new", T1, 11, b"new", []),
]


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_on_exist(host: Host, share: Path, tmp_path: Path, large: bool) -> None:
    more = noise(CHUNK) if large else b""
    make_file(tmp_path / "f.txt", b"new" + more, mtime_ns=T1)
    for number, (mode, there, mtime_ns, code, then, others) in enumerate(ON_EXIST):
        folder = share / f"exist {large} {number}"
        make_file(folder / "f.txt", there + more, mtime_ns=mtime_ns)
        options = ("--on-exist", mode)
        outcome = call_put(host.address, folder.name, tmp_path / "f.txt", home=tmp_path / "home", options=options)
        assert outcome.exit_code == code, (mode, there, outcome.stderr)
        assert (folder / "f.txt").read_bytes() == then + more, (mode, there)
        assert sorted(os.listdir(folder)) == sorted(["f.txt", *others]), (mode, there)
        for name in others:
            assert (folder / name).read_bytes() == b"new" + more
        if then == b"new":
            assert (folder / "f.txt").stat().st_mtime_ns == T1, (mode, there)


@pytest.mark.slow
def test_only_changed_chunks_cross_the_network(host: Host, share: Path, tmp_path: Path) -> None:
    data = noise(6 * CHUNK, 7)
    make_file(tmp_path / "v", data, mtime_ns=T1)
    call_put(host.address, "versions/v", tmp_path / "v", home=tmp_path / "home").check_ok()
    make_file(tmp_path / "v", data[:CHUNK] + noise(10, 8) + data[CHUNK + 10 :], mtime_ns=T1 + 1)
    options = ("--on-exist", "overwrite")
    done = call_put(host.address, "versions/v", tmp_path / "v", home=tmp_path / "home", options=options).check_ok().done
    assert (share / "versions" / "v").read_bytes() == (tmp_path / "v").read_bytes()
    assert (done["bytes_received"], done["bytes_reused"]) == (CHUNK, 5 * CHUNK)
    # And what lies elsewhere in the share need not be sent either, once the index has it.
    make_file(tmp_path / "v", data, mtime_ns=T1 + 2)

    def reused() -> int:
        name = f"versions/{len(os.listdir(share / 'versions'))}"
        options = ("--connections", "1")
        outcome = call_put(host.address, name, tmp_path / "v", home=tmp_path / "home", options=options).check_ok()
        assert (share / name).read_bytes() == data
        return int(outcome.done["bytes_reused"])

    wait_until(lambda: reused() >= 4 * CHUNK, "chunks that are known to the host are not sent")


def test_text_goes_compressed_where_that_is_asked_for(host: Host, share: Path, tmp_path: Path) -> None:
    make_file(tmp_path / "t" / "large.txt", b"all the same line again\n" * 200_000)
    for number in range(20):
        make_file(tmp_path / "t" / f"{number}.txt", b"%d is a small text\n" % number * 1000)
    make_file(tmp_path / "t" / "noise", noise(MIB + 5))
    options = ("--compress", "3")
    done = call_put(host.address, "text", tmp_path / "t", home=tmp_path / "home", options=options).check_ok().done
    assert_same_tree(tmp_path / "t", share / "text")
    assert done["bytes_received"] < MIB * 3 // 2 and done["bytes_saved"] > 4 * MIB
    assert done["compression"]["zstd"] >= 3


def test_filters_dry_run_and_links_that_lead_out(host: Host, share: Path, tree: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    dry = call_put(host.address, "dry", tree, home=home, options=("--dry-run",)).check_ok()
    assert not (share / "dry").exists()
    assert len([event for event in dry.of("file") if event["action"] == "would-send"]) == 308
    (tree / "out").symlink_to("../../etc/passwd")
    options = ("--exclude", "many/", "--include", "a", "--include", "*1", "--include", "out")
    outcome = call_put(host.address, "some", tree, home=home, options=options)
    assert outcome.exit_code == 10
    assert [event["code"] for event in outcome.of("error")] == ["unsafe_link"]
    assert os.listdir(share / "some") == ["a"]


def test_a_read_only_share_refuses(place: Path, tmp_path: Path) -> None:
    make_file(tmp_path / "f", b"x")
    (tmp_path / "read").mkdir()
    with Host(tmp_path / "read", home=place / "host") as host:
        refused = call_put(host.address, "", tmp_path / "f", home=tmp_path / "home").check_failed(4)
        assert "read-only" in refused.stderr and "--write" in refused.stderr
        old = call_put(host.address, "", tmp_path / "f", home=tmp_path / "home", options=("--protocol", "7"))
        old.check_failed(4)
    assert os.listdir(tmp_path / "read") == []


def test_only_one_folder_can_be_shared_for_writing(tmp_path: Path) -> None:
    make_file(tmp_path / "f", b"x")
    (tmp_path / "d").mkdir()
    for paths in ([tmp_path / "f"], [tmp_path / "d", tmp_path / "f"]):
        outcome = call("share", "--write", "--port", "0", *map(str, paths), home=tmp_path / "home")
        assert outcome.exit_code == 2 and "cannot be written to" in outcome.stderr


# ---- kills -----------------------------------------------------------------------------------------------------------

SLOW = ("--limit-rate", "8M", "--connections", "1")  # so slow that nobody misses the moment


def arrived(folder: Path) -> int:
    """Bytes of chunks that the journals there speak of."""
    return sum(max(0, path.stat().st_size - 77) // 45 * CHUNK for path in folder.rglob(".*.headrace-journal"))


@pytest.mark.slow
def test_a_client_that_is_killed_goes_on_where_it_was(host: Host, share: Path, tmp_path: Path) -> None:
    make_file(tmp_path / "f", noise(40 * MIB, 3), mtime_ns=T1)
    with start_put(host.address, "killed/f", tmp_path / "f", home=tmp_path / "home", options=SLOW) as process:
        process.wait_for("some chunks on the host", lambda: arrived(share / "killed") >= 2 * CHUNK)
        process.kill(signal.SIGKILL)
        process.wait()
    assert not (share / "killed" / "f").exists()
    done = run_put(host.address, "killed/f", tmp_path / "f", home=tmp_path / "home").check_ok().done
    assert done["bytes_reused"] >= 2 * CHUNK
    assert done["bytes_received"] <= 40 * MIB - 2 * CHUNK
    assert facts_of(share / "killed" / "f") == facts_of(tmp_path / "f")
    assert not leftovers(share / "killed")


@pytest.mark.slow
def test_a_host_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """The client goes on by itself, and the host keeps what had come."""
    make_file(tmp_path / "tree" / "f", noise(24 * MIB, 4), mtime_ns=T1)
    for number in range(50):
        make_file(tmp_path / "tree" / "many" / f"{number}", noise(1000, number), mtime_ns=T1)
    (tmp_path / "share").mkdir()
    with Host(tmp_path / "share", home=tmp_path / "host", options=["--write"]) as first:
        options = (*SLOW, "--retry-for", "60s")
        with start_put(first.address, "in", tmp_path / "tree", home=tmp_path / "home", options=options) as process:
            process.wait_for("some chunks on the host", lambda: arrived(tmp_path / "share") >= CHUNK)
            first.kill(signal.SIGKILL)
            first.wait()
            kept = arrived(tmp_path / "share")
            with Host(tmp_path / "share", home=tmp_path / "host", port=first.port, options=["--write"]):
                outcome = finish(process).check_clean()
    assert outcome.exit_code == 0, outcome.stderr
    assert_same_tree(tmp_path / "tree", tmp_path / "share" / "in")
    assert outcome.done["bytes_received"] <= outcome.done["bytes"] - kept + 3 * CHUNK
    assert any("the connection broke" in event["message"] for event in outcome.of("warning"))


@pytest.mark.slow
def test_a_client_that_is_stopped_says_how_to_go_on(host: Host, share: Path, tmp_path: Path) -> None:
    make_file(tmp_path / "f", noise(40 * MIB, 5))
    with start_put(host.address, "stopped/f", tmp_path / "f", home=tmp_path / "home", options=SLOW) as process:
        process.wait_for("some chunks on the host", lambda: arrived(share / "stopped") >= CHUNK)
        process.kill(signal.SIGINT)
        assert process.wait() == 130
        assert "run the same command again" in process.stderr
    assert leftovers(share / "stopped") and not (share / "stopped" / "f").exists()


# ---- two writers, full disks -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_writers_to_one_path(host: Host, share: Path, tmp_path: Path) -> None:
    make_file(tmp_path / "one", noise(16 * MIB, 1), mtime_ns=T1)
    make_file(tmp_path / "two", noise(12 * MIB, 2), mtime_ns=T1 + 1)
    with start_put(host.address, "race/f", tmp_path / "one", home=tmp_path / "home 1", options=SLOW) as one:
        one.wait_for("a chunk of the first", lambda: arrived(share / "race") >= CHUNK)
        one.kill(signal.SIGSTOP)  # so that it cannot be over before the second one begins
        with start_put(host.address, "race/f", tmp_path / "two", home=tmp_path / "home 2", options=SLOW) as two:
            two.wait_for("two files in flight", lambda: len(list((share / "race").glob(".*.headrace-journal"))) == 2)
            one.kill(signal.SIGCONT)
            outcomes = [finish(one).check_clean(), finish(two).check_clean()]
    assert [outcome.exit_code for outcome in outcomes] == [0, 0]
    assert facts_of(share / "race" / "f") in (facts_of(tmp_path / "one"), facts_of(tmp_path / "two"))
    assert os.listdir(share / "race") == ["f"]
    said = [[event["message"] for event in outcome.of("warning")] for outcome in outcomes]
    assert all(any("another client" in message for message in messages) for messages in said), said


@pytest.mark.slow
def test_a_full_disk_on_the_host(tmp_path: Path) -> None:
    make_file(tmp_path / "large", noise(12 * MIB))
    make_file(tmp_path / "tree" / "a", b"x")
    for number in range(20):
        make_file(tmp_path / "tree" / "b" / f"{number}", noise(MIB - 1, number))
    with tmpfs(tmp_path / "disk", "size=8m") as disk:
        with Host(disk, home=tmp_path / "host", options=["--write"]) as host:
            full = call_put(host.address, "", tmp_path / "large", home=tmp_path / "home").check_failed(8)
            assert "on the host: no space left" in full.stderr
            assert full.of("error")[0]["code"] == "remote_disk"
            assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 7 * MIB  # it keeps nothing that is of no use
            tree = call_put(host.address, "tree", tmp_path / "tree", home=tmp_path / "home").check_failed(8)
            assert "on the host: no space left" in tree.stderr
            assert host.alive()
        for path in (disk / "tree" / "b").iterdir():
            if not path.name.startswith("."):
                assert path.stat().st_size == MIB - 1  # whole, or not there


def test_from_python(host: Host, share: Path, tmp_path: Path) -> None:
    make_file(tmp_path / "f", b"from python", mtime_ns=T1)
    (tmp_path / "f").chmod(0o640)
    with headrace.connect(f"{host.address}/py", code=CODE, home=tmp_path / "home") as remote:
        result = remote.put(tmp_path / "f", "sub/")
        assert (result.files, result.bytes) == (1, 11)
        remote.put([tmp_path / "f", tmp_path / "f"][:1], "as")
    assert (share / "py" / "sub" / "f").read_bytes() == (share / "py" / "as").read_bytes() == b"from python"
    assert stat.S_IMODE((share / "py" / "as").stat().st_mode) == 0o640
    with (
        headrace.share(tmp_path, bind="127.0.0.1", home=tmp_path / "host 2") as read_only,
        headrace.connect(read_only.target, home=tmp_path / "home") as remote,
        pytest.raises(RefusedError),
    ):
        remote.put(tmp_path / "f")
