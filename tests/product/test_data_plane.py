"""What protects the bytes of chunks on the way: sealed by default, in the clear where both sides say so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from .support import MIB, Gate, Host, assert_same_tree, call, facts_of, leftovers, make_file, noise, run_get

CLEAR: Final = ("--data-plane", "clear")
SIZE: Final = 30 * MIB + 7


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`file`: 30 MiB. `tree`: small and large files, one of them with holes."""
    folder = tmp_path_factory.mktemp("plane")
    make_file(folder / "file", noise(SIZE))
    for number, size in enumerate([0, 1, 5000, 128 * 1024, 128 * 1024 + 1, 4 * MIB, 9 * MIB]):
        make_file(folder / "tree" / f"{number}.bin", noise(size, number))
    with (folder / "tree" / "holes").open("wb") as file:
        file.seek(20 * MIB)
        file.write(b"end")
    return folder


@pytest.fixture(scope="module")
def clear_host(place: Path) -> Iterator[Host]:
    with Host(place / "file", place / "tree", home=place / "clear host", options=CLEAR) as host:
        yield host


@pytest.fixture(scope="module")
def sealed_host(place: Path) -> Iterator[Host]:
    with Host(place / "file", home=place / "sealed host") as host:
        yield host


class Damage:
    """Flips a bit in the middle of the stream from the host: in the first large piece after `skip` bytes, `times`
    times."""

    def __init__(self, skip: int, times: int) -> None:
        self._lock = threading.Lock()
        self._skip = skip
        self.left = times

    def __call__(self, data: bytes) -> bytes:
        with self._lock:
            self._skip -= len(data)
            if self._skip > 0 or not self.left or len(data) < 8000:
                return data
            self.left -= 1
            self._skip = 4 * MIB
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class Seen:
    """Keeps what passes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = bytearray()

    def __call__(self, data: bytes) -> bytes:
        with self._lock:
            self.bytes += data
        return data


@pytest.mark.parametrize("hashed", ["never hashed", "hashed before"])
@pytest.mark.slow
def test_a_tree_in_the_clear_is_the_same_tree(clear_host: Host, place: Path, tmp_path: Path, hashed: str) -> None:
    got = run_get(clear_host.address, tmp_path / "dest", *CLEAR, home=tmp_path / "home", path="tree").check_ok()
    assert got.done["data_plane"] == "clear"
    assert_same_tree(tmp_path / "dest", place / "tree")


def test_bytes_in_the_clear_really_are(clear_host: Host, sealed_host: Host, place: Path, tmp_path: Path) -> None:
    needle = (place / "file").read_bytes()[10 * MIB : 10 * MIB + 24]
    for host, options, expected in ((clear_host, CLEAR, True), (clear_host, (), False), (sealed_host, (), False)):
        seen = Seen()
        dest = tmp_path / f"{expected}{host.port}{len(options)}"
        path = "file" if host is clear_host else ""
        with Gate(host.port, damage=seen) as gate:
            # One lane: pieces of several would lie between each other.
            one = ("--connections", "1")
            got = run_get(gate.address, dest, *options, *one, home=tmp_path / "home", path=path).check_ok()
        assert got.done["data_plane"] == ("clear" if expected else "tls")
        assert (needle in seen.bytes) is expected
        assert facts_of(dest) == facts_of(place / "file")


def test_a_host_that_did_not_opt_in_refuses(sealed_host: Host, tmp_path: Path) -> None:
    got = run_get(sealed_host.address, tmp_path / "dest", *CLEAR, home=tmp_path / "home").check_failed(4)
    assert "both sides must want it" in got.stderr
    assert "--data-plane clear" in got.stderr
    assert not list(tmp_path.glob("dest*"))


def test_the_baseline_has_no_such_thing(clear_host: Host, tmp_path: Path) -> None:
    options = (*CLEAR, "--protocol", "7")
    got = run_get(clear_host.address, tmp_path / "dest", *options, home=tmp_path / "home", path="file").check_failed(4)
    assert "baseline" in got.stderr


def test_one_changed_bit_in_the_clear_costs_one_chunk(clear_host: Host, place: Path, tmp_path: Path) -> None:
    with Gate(clear_host.port, damage=Damage(9 * MIB, 1)) as gate:
        got = run_get(gate.address, tmp_path / "dest", *CLEAR, home=tmp_path / "home", path="file").check_ok()
    assert facts_of(tmp_path / "dest") == facts_of(place / "file")
    assert SIZE < got.done["bytes_received"] <= SIZE + 4 * MIB


def test_bits_that_change_all_the_time_are_exit_9(clear_host: Host, tmp_path: Path) -> None:
    with Gate(clear_host.port, damage=Damage(MIB, 1000)) as gate:
        got = run_get(gate.address, tmp_path / "dest", *CLEAR, home=tmp_path / "home", path="file")
    got.check_failed(9, 6)  # 6 where the bit was one of a record's, and the connection cannot be believed any more
    assert not (tmp_path / "dest").exists()


@pytest.mark.slow
def test_one_changed_bit_under_the_seal_ends_the_connection_and_the_rest_comes_later(
    sealed_host: Host, place: Path, tmp_path: Path
) -> None:
    with Gate(sealed_host.port, damage=Damage(20 * MIB, 1)) as gate:
        got = run_get(gate.address, tmp_path / "dest", home=tmp_path / "home")
        got.check_failed(6)
        assert "changed on the way" in got.stderr
        assert not (tmp_path / "dest").exists()
        again = run_get(gate.address, tmp_path / "dest", home=tmp_path / "home").check_ok()
    assert facts_of(tmp_path / "dest") == facts_of(place / "file")
    assert again.done["bytes_reused"] >= 8 * MIB
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("size", ["0", "1M", "4095K"])
@pytest.mark.parametrize("command", ["get", "share"])
def test_a_pool_smaller_than_a_chunk_is_a_usage_error(
    clear_host: Host, place: Path, tmp_path: Path, command: str, size: str
) -> None:
    where = ["127.0.0.1:1", str(tmp_path / "x")] if command == "get" else [str(place / "tree")]
    got = call(command, "--buffers", size, *where, home=tmp_path / "home", env={"HEADRACE_CODE": "h3ad-race-7e57"})
    assert got.exit_code == 2
    assert "one chunk" in got.stderr


@pytest.mark.slow
def test_a_pool_of_one_chunk_is_slow_but_enough(clear_host: Host, place: Path, tmp_path: Path) -> None:
    options = ("--buffers", "4M", "--connections", "4")
    run_get(clear_host.address, tmp_path / "dest", *options, home=tmp_path / "home", path="tree").check_ok()
    assert_same_tree(tmp_path / "dest", place / "tree")
