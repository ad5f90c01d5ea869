"""What may happen to either end of a put: the whole right file is in the share in the end, or none, and the next run
resumes. Kills and full disks are in test_put.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.storage.powerloss import ForgetfulDisk, PowerCutError, forgetful

import headrace
from headrace.errors import HeadraceError
from headrace.storage import partial
from headrace.storage.inflight import is_inflight_name

from .faults import CLOCK_SET_BACK, failing_reads, failing_writes, few_descriptors, stall_timeout
from .support import (
    CHUNK,
    CODE,
    KIB,
    MIB,
    Gate,
    Headrace,
    Host,
    Outcome,
    facts_of,
    finish,
    give_identity,
    leftovers,
    make_file,
    noise,
    snapshot,
    whole_files,
)

pytestmark = pytest.mark.slow

SMALL = 200


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small files, one that comes alone, two of several chunks."""
    folder = tmp_path_factory.mktemp("source") / "tree"
    for number in range(SMALL):
        make_file(folder / f"{number % 9}" / f"{number}", noise(3000, number))
    make_file(folder / "alone", noise(300 * KIB))
    for number in range(2):
        make_file(folder / "large" / f"{number}", noise(2 * CHUNK + 5, number))
    return folder


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


def writable(share: Path, fault: str = "", port: int = 0) -> Host:
    return Host(share, home=share.parent / "host", options=["--write"], fault=fault, port=port)


def start(address: str, tree: Path, *options: str, home: Path, fault: str = "") -> Headrace:
    where, env = ("--", tree, f"{address}/in"), {"HEADRACE_CODE": CODE}
    return Headrace("put", "--json", "--transport", "tcp", *options, *where, home=home, env=env, fault=fault)


def put(address: str, tree: Path, *options: str, home: Path, fault: str = "") -> Outcome:
    with start(address, tree, *options, home=home, fault=fault) as process:
        return finish(process)


def assert_arrived(copy: Path, original: Path) -> None:
    """All below is the same. A folder that was there already, as for a second run, keeps its own time."""
    ours, theirs = snapshot(copy), snapshot(original)
    del ours[b""], theirs[b""]
    assert ours == theirs


def test_a_share_whose_disk_fails_in_the_middle(tree: Path, share: Path) -> None:
    home = share.parent / "home"
    with writable(share, failing_writes(7 * MIB)) as host:
        port = host.port
        failed = put(host.address, tree, home=home).check_clean()
        assert failed.exit_code in (8, 10), failed.stderr
        assert "the disk reported an error" in failed.stderr
        whole_files(share / "in", tree)
        assert host.alive() and "Traceback" not in host.stderr
    with writable(share, port=port) as host:
        put(host.address, tree, home=home).check_ok()
    assert_arrived(share / "in", tree)
    assert not leftovers(share)


def test_a_source_that_cannot_be_read_to_its_end(tree: Path, share: Path) -> None:
    """That file fails alone, and what came of it counts once the disk reads again."""
    home = share.parent / "home"
    with writable(share) as host:
        failed = put(host.address, tree, home=home, fault=failing_reads(CHUNK + 5, "1")).check_clean()
        assert failed.exit_code in (8, 10), failed.stderr
        assert not (share / "in" / "large" / "1").exists()
        whole_files(share / "in", tree)
        put(host.address, tree, home=home).check_ok()
    assert_arrived(share / "in", tree)
    assert not leftovers(share)


def test_a_share_that_stands_still_and_connections_that_are_reset(tree: Path, share: Path) -> None:
    """The one put gives up and the next run goes on; with patience it goes on by itself."""
    home = share.parent / "home"
    with writable(share) as host, Gate(host.port) as gate:
        slow = ("--limit-rate", "8M")
        with start(gate.address, tree, *slow, home=home, fault=stall_timeout(1.0)) as process:
            process.wait_for("a file in flight", lambda: leftovers(share))
            host.kill(signal.SIGSTOP)
            try:
                finish(process).check_failed(6)
            finally:
                host.kill(signal.SIGCONT)
        whole_files(share / "in", tree)
        with start(gate.address, tree, *slow, "--retry-for", "30s", home=home) as process:
            process.wait_for("a plan", lambda: process.of("plan"))
            gate.drop()
            finish(process).check_ok()
    assert_arrived(share / "in", tree)
    assert not leftovers(share)


def test_a_file_that_changes_while_it_is_sent(tree: Path, share: Path, tmp_path: Path) -> None:
    make_file(tmp_path / "tree" / "file", noise(20 * MIB, "one"))
    home = tmp_path / "home"
    with writable(share) as host:
        with start(host.address, tmp_path / "tree", "--limit-rate", "12M", home=home) as process:
            process.wait_for("a file in flight", lambda: leftovers(share))
            make_file(tmp_path / "tree" / "file", noise(20 * MIB, "two"))
            changed = finish(process).check_clean()
        assert changed.exit_code in (0, 10), changed.stderr
        if changed.exit_code:
            assert not (share / "in" / "file").exists()
        put(host.address, tmp_path / "tree", home=home).check_ok()
    assert facts_of(share / "in" / "file") == facts_of(tmp_path / "tree" / "file")


def test_few_descriptors_and_a_clock_that_is_set_back_on_both_ends(tree: Path, share: Path) -> None:
    home, fault = share.parent / "home", few_descriptors(64) + CLOCK_SET_BACK
    with writable(share, fault) as host:
        port = host.port
        first = put(host.address, tree, home=home, fault=few_descriptors(40) + CLOCK_SET_BACK).check_clean()
        if first.exit_code:
            assert "too many open files" in first.stderr.lower(), first.stderr
        assert "Traceback" not in host.stderr
    whole_files(share / "in", tree)
    with writable(share, port=port) as host:
        put(host.address, tree, home=home).check_ok()
    assert_arrived(share / "in", tree)


# ---- the power goes, on the side of the share --------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not is_inflight_name(path.name.encode()))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    give_identity(tmp_path / "host")
    yield tmp_path / "host", tmp_path / "client"


@pytest.mark.parametrize("names", [None, 1, 150])
def test_no_name_comes_before_its_bytes_are_on_disk(
    tree: Path, share: Path, homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, names: int | None
) -> None:
    """names: after so many the power goes; None: never, and then `done` means all of it."""
    disk = ForgetfulDisk(share, cut_after=names)

    def send() -> None:
        with (
            headrace.share(share, bind="127.0.0.1", home=homes[0], transports={"tcp"}, write=True) as shared,
            headrace.connect(shared.target, home=homes[1]) as remote,
        ):
            remote.put(tree, "in", retry_for=0)

    with forgetful(disk):
        if names is None:
            send()
            assert disk.loose == set() and len(disk.named) == SMALL + 3
        else:
            with pytest.raises((PowerCutError, HeadraceError)):
                send()
    assert disk.early == []
    disk.lose_power()
    expected, left = contents(tree), contents(share / "in")
    assert left == {name: expected[name] for name in left}
    if names is not None:
        monkeypatch.setattr(partial, "current_boot_id", lambda: b"the next boot")
        send()
    assert contents(share / "in") == expected
