"""Who may use a share, how many at once, and for how long."""

from __future__ import annotations

from pathlib import Path

import pytest

from .scripted import ScriptedClient
from .support import Host, run_get


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "file").write_bytes(b"content")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "quic"])
def test_one_client_too_many_is_told_so_and_gets_in_when_the_other_leaves(place: Path, transport: str) -> None:
    options = ("--transport", transport)
    with Host(place / "share", home=place / "home", options=["--max-clients", "1"]) as host:
        with ScriptedClient(host.port) as first:
            first.pair()
            refused = run_get(host.address, place / "dest", *options, home=place / "client")
            assert refused.exit_code == 4
            assert "takes no more than 1 at once" in refused.stderr
            assert "--max-clients" in refused.stderr
        run_get(host.address, place / "dest", *options, home=place / "client").check_ok()


@pytest.mark.slow
@pytest.mark.parametrize(("network", "code"), [("192.0.2.0/24", 5), ("127.0.0.0/8", 0)])
@pytest.mark.parametrize("transport", ["tcp", "quic"])
def test_only_from_the_networks_that_were_named(place: Path, network: str, code: int, transport: str) -> None:
    with Host(place / "share", home=place / "home", options=["--allow", network]) as host:
        got = run_get(host.address, place / "dest", "--transport", transport, home=place / "client")
        assert got.exit_code == code, got.stderr
        assert (place / "dest" / "file").exists() is (code == 0)


@pytest.mark.slow
def test_a_share_ends_when_its_time_is_over(place: Path) -> None:
    with Host(place / "share", home=place / "home", options=["--expire", "4s"]) as host:
        run_get(host.address, place / "dest", home=place / "client").check_ok()
        assert host.wait(10) == 0
        assert host.events[-1]["event"] == "expired"
    assert run_get(host.address, place / "again", home=place / "client").exit_code == 5
