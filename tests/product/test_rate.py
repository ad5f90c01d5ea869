"""--limit-rate and --limit-peer: what was asked for, on either side, in both directions; what they cannot be."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from headrace.cli.options import Rate, Size
from headrace.client.session import Session
from headrace.client.target import Target, parse_code
from headrace.observe.running import ask, find
from headrace.protocol.frames import PREFIX
from headrace.protocol.messages import Ping, Pong

from .load import check_kept, check_runs, load
from .support import CODE, MIB, Host, call, facts_of, make_file, noise, run_get

SIZE: Final = 6 * MIB
RATE: Final = 4 * MIB
LEAST: Final = SIZE / RATE * 0.95 - 0.1  # seconds; the bucket may be 50 ms ahead. How long it takes at most is not ours


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rate") / "file"
    make_file(path, noise(SIZE))
    return path


@pytest.mark.parametrize("protocol", ["8", "7"])
@pytest.mark.parametrize("side", ["get", "share"])
@pytest.mark.slow
def test_it_is_kept(file: Path, tmp_path: Path, side: str, protocol: str) -> None:
    limit = ("--limit-rate", "4M")
    ours, theirs = (limit, ()) if side == "get" else ((), ("--bwlimit", "4M"))
    with Host(file, home=tmp_path / "host", options=theirs) as host:
        got = run_get(host.address, tmp_path / "dest", "--protocol", protocol, *ours, home=tmp_path / "home").check_ok()
    assert got.done["seconds"] >= LEAST
    assert facts_of(tmp_path / "dest") == facts_of(file)


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A host's home whose path leaves room for the control socket's."""
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        yield Path(folder)


def change(home: Path, **rates: float | None) -> None:
    """What `headrace status --limit-rate` does."""
    (found,) = find(home)
    ask(found, {"ask": "limit", **rates})


def reachable(home: Path) -> bool:
    """Whether the control socket is there: it opens once the share is ready."""
    return bool(find(home))


@pytest.mark.slow
@pytest.mark.parametrize(("plane", "lanes"), [("tls", 1), ("tls", 4), ("clear", 2)])
def test_it_is_accurate_and_can_be_changed_in_the_middle(
    file: Path, tmp_path: Path, short_home: Path, plane: str, lanes: int
) -> None:
    with (
        Host(file, home=short_home, options=("--limit-rate", "50M", "--data-plane", plane)) as host,
        load(host.port, b"", home=tmp_path / "home", lanes=lanes, clear=plane == "clear") as client,
    ):
        host.wait_for("the control socket", lambda: reachable(short_home))
        check_runs(client.received, MIB)
        check_kept(client.received, 50 * MIB)
        change(short_home, limit_rate=MIB)
        check_runs(client.received, MIB // 2)  # what was on its way
        check_kept(client.received, MIB)
        change(short_home, limit_rate=None)
        check_runs(client.received, 64 * MIB)  # a minute's worth of the old limit
        assert [event["limit_rate"] for event in host.of("limit")] == [MIB, None]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["host", "client"])
def test_it_is_accurate_over_quic(file: Path, tmp_path: Path, side: str) -> None:
    pytest.importorskip("aiopquic")
    options, limit = (("--limit-rate", "8M"), None) if side == "host" else ((), 8 * MIB)
    with (
        Host(file, home=tmp_path / "host", options=options) as host,
        load(host.port, b"", home=tmp_path / "home", lanes=2, limit=limit, transport="quic") as client,
    ):
        check_runs(client.received, 8 * MIB)  # the first credit is spent as fast as the host likes
        check_kept(client.received, 8 * MIB)


@pytest.mark.slow
def test_each_peer_has_its_own_and_its_connections_share_it(file: Path, tmp_path: Path, short_home: Path) -> None:
    alice, bob = tmp_path / "alice", tmp_path / "bob"
    with (
        Host(file, home=short_home, options=("--limit-peer", "4M", "--limit-rate", "50M")) as host,
        load(host.port, b"", home=alice, lanes=2) as first,
        load(host.port, b"", home=alice, lanes=1) as again,  # the same peer: it knows this host
        load(host.port, b"", home=bob, lanes=1) as other,
    ):
        host.wait_for("the control socket", lambda: reachable(short_home))
        for client in (first, again, other):
            check_runs(client.received, MIB // 4)
        check_kept(other.received, 4 * MIB, 3.0)
        check_kept(lambda: first.received() + again.received(), 4 * MIB)
        change(short_home, limit_peer=10 * MIB)
        check_runs(other.received, MIB)
        check_kept(lambda: first.received() + again.received(), 10 * MIB, 3.0)
        change(short_home, limit_rate=5 * MIB, limit_peer=None)  # for all of them together now
        check_runs(other.received, MIB // 2)
        check_kept(lambda: sum(client.received() for client in (first, again, other)), 5 * MIB, 3.0)


@pytest.mark.slow
def test_a_peer_that_is_held_back_takes_no_memory_from_the_others(file: Path, tmp_path: Path) -> None:
    """Four chunks' worth of buffers, and four connections that need 16 s for a chunk each."""
    slow = ("--limit-peer", "1M", "--buffers", "16M")
    with (
        Host(file, home=tmp_path / "host", options=slow) as host,
        load(host.port, b"", home=tmp_path / "alice", lanes=4) as first,
    ):
        check_runs(first.received, MIB)
        with load(host.port, b"", home=tmp_path / "bob", lanes=1) as other:
            check_runs(other.received, MIB)
            check_kept(other.received, MIB, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 4])
def test_a_clients_own_limit_is_accurate(file: Path, tmp_path: Path, lanes: int) -> None:
    with (
        Host(file, home=tmp_path / "host") as host,
        load(host.port, b"", home=tmp_path / "home", lanes=lanes, limit=8 * MIB) as client,
    ):
        check_runs(client.received, MIB)
        check_kept(client.received, 8 * MIB)
        client.session.limit.rate = None
        check_runs(client.received, 64 * MIB)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["client", "host", "peer"])
def test_what_goes_to_the_host_is_limited_too(file: Path, tmp_path: Path, side: str) -> None:
    """By either side. Messages of a type from the future are read and skipped, so they can be as large as one likes."""
    options = {"client": (), "host": ("--limit-rate", "2M"), "peer": ("--limit-peer", "2M")}[side]
    future = b"\x81\xa4type\xa6future"
    with Host(file, home=tmp_path / "host", options=options) as host:
        target = Target("127.0.0.1", host.port, code=parse_code(CODE))
        limit = 2 * MIB if side == "client" else None
        session = Session.connect(target, home=tmp_path / "home", limit_rate=limit, transport="tcp")
        lane = session.open_lane()
        started = time.monotonic()
        for _ in range(4):
            lane.messages.stream.send(PREFIX.pack(len(future), MIB), future, bytes(MIB))
        lane.post(Ping(lane.next_id()))
        assert isinstance(lane.answer()[0], Pong)  # all before it was read
        assert time.monotonic() - started >= 4 / 2 * 0.95 - 0.1
        session.release(lane)
        session.close()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("64M", 64 * MIB),
        ("64m", 64 * MIB),
        ("64MiB", 64 * MIB),
        ("1.5k", 1536),
        ("2G", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_sizes_are_powers_of_1024(text: str, value: int) -> None:
    assert Size().convert(text, None, None) == Rate().convert(text, None, None) == value


def test_off_is_no_limit() -> None:
    assert Rate().convert("off", None, None) is None


@pytest.mark.parametrize("rate", ["0", "-1", "fast", "5X", "", "nan", "1e400"])
def test_what_is_no_rate_is_a_usage_error(tmp_path: Path, rate: str) -> None:
    got = call("get", f"--limit-rate={rate}", "127.0.0.1:1", home=tmp_path, env={"HEADRACE_CODE": "h3ad-race-7e57"})
    assert got.exit_code == 2, got.stderr
    assert "rate" in got.stderr or "size" in got.stderr
