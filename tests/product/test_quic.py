"""Real shares, reached by QUIC: the whole way from the command line."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from headrace.client.session import Session
from headrace.client.target import Target
from headrace.protocol.paths import RelPath
from headrace.transport.quic import unavailable

from .support import Host, assert_same_tree, finish, make_tree, noise, run_get, start_get

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "client"


@pytest.mark.slow
def test_a_tree_arrives_as_it_is(tmp_path: Path, home: Path) -> None:
    tree = make_tree(tmp_path / "tree", small_files=300)
    with Host(tree, home=tmp_path / "host") as host:
        get = run_get(host.address, tmp_path / "copy", "--transport", "quic", home=home).check_ok()
        assert_same_tree(tmp_path / "copy", tree)
        assert host.alive()
    assert (get.of("connected")[0]["transport"], get.done["transport"]) == ("quic", "quic")
    assert get.done["bytes_wire"] > get.done["bytes_received"]


@pytest.mark.slow
def test_the_second_time_resumes_with_what_the_first_one_kept(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_bytes(noise(100_000))
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        for copy in ("one", "two"):
            run_get(host.address, tmp_path / copy, "--transport", "quic", home=home).check_ok()
            assert (tmp_path / copy).read_bytes() == noise(100_000)
        kept = sorted(path.suffix for path in home.rglob("*") if path.suffix in (".pem", ".tickets"))
    assert kept == [".pem", ".tickets"]


@pytest.mark.slow
def test_a_wrong_code_is_refused_over_quic_too(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_bytes(b"secret")
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        get = run_get(host.address, tmp_path / "copy", "--transport", "quic", home=home, code="7k2m-zzzz-zzzz")
        get.check_failed(4)
    assert not (tmp_path / "copy").exists()


@pytest.mark.slow
def test_a_host_that_stops_in_the_middle_is_a_lost_connection(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_bytes(noise(8 << 20))
    options = ("--transport", "quic", "--limit-rate", "1M")
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        with start_get(host.address, tmp_path / "copy", *options, home=home) as get:
            get.wait_event("plan")
            host.kill(signal.SIGINT)
            finish(get).check_failed(6)
        assert host.wait() == 130
        assert "Traceback" not in host.stderr


@pytest.mark.slow
def test_a_get_that_is_interrupted_ends_at_once(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_bytes(noise(8 << 20))
    options = ("--transport", "quic", "--limit-rate", "1M")
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        with start_get(host.address, tmp_path / "copy", *options, home=home) as get:
            get.wait_event("plan")
            get.kill(signal.SIGINT)
            assert get.wait(10) == 130
            assert "Traceback" not in get.stderr
        (tmp_path / "small").write_bytes(b"x")
        run_get(host.address, tmp_path / "copy", "--transport", "quic", home=home).check_ok()
        assert (tmp_path / "copy").read_bytes() == noise(8 << 20)


@pytest.mark.slow
def test_lanes_of_a_session_share_one_quic_connection(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_bytes(noise(10_000))
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        target = Target.parse(f"{host.code}@{host.address}")
        with Session.connect(target, home=home, transport="quic") as session:
            lanes = [session.open_lane() for _ in range(3)]
            assert {lane.messages.stream.transport for lane in lanes} == {"quic"}
            assert session.stat(RelPath.parse(b"")).size == 10_000
            for lane in lanes:
                session.release(lane)


@pytest.mark.slow
def test_memory_stays_small(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_bytes(noise(64 << 20) * 4)
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        get = run_get(host.address, tmp_path / "copy", "--transport", "quic", home=home, measure=True).check_ok()
        host.watch_rss()
    assert get.done["bytes_received"] == 256 << 20
    assert get.peak_rss < 130 << 20
    assert host.peak_rss < 160 << 20
