"""--limit-rate: what was asked for, on either side; what it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from headrace.cli.options import Rate, Size

from .support import MIB, Host, call, facts_of, finish, make_file, noise, run_get, start_get

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
def test_it_is_kept(file: Path, tmp_path: Path, side: str, protocol: str) -> None:
    limit = ("--limit-rate", "4M")
    ours, theirs = (limit, ()) if side == "get" else ((), ("--bwlimit", "4M"))
    with Host(file, home=tmp_path / "host", options=theirs) as host:
        got = run_get(host.address, tmp_path / "dest", "--protocol", protocol, *ours, home=tmp_path / "home").check_ok()
    assert got.done["seconds"] >= LEAST
    assert facts_of(tmp_path / "dest") == facts_of(file)


def test_two_clients_share_what_the_host_gives(file: Path, tmp_path: Path) -> None:
    with Host(file, home=tmp_path / "host", options=("--limit-rate", "8M", "--data-plane", "clear")) as host:
        both = [
            start_get(host.address, tmp_path / n, "--data-plane", "clear", home=tmp_path / f"home{n}") for n in "ab"
        ]
        done = [finish(process).check_ok().done for process in both]
        for process in both:
            process.__exit__()
    assert max(one["seconds"] for one in done) >= LEAST
    assert facts_of(tmp_path / "a") == facts_of(tmp_path / "b") == facts_of(file)


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
