"""`headrace bench`: what is missing or fails is a row or a reason, and nothing is left behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace.bench import copies, netlab, procfs, profiles, results, suite, table
from headrace.bench.context import Bench
from headrace.bench.copies import COPIES, Copy
from headrace.bench.entries import Entry, headrace
from headrace.bench.peers import Cp
from headrace.bench.process import BenchError, Command, NotInstalledError
from headrace.bench.results import Case, Report, Row
from headrace.bench.turns import Taker, Turn, in_turn
from headrace.bench.workspace import place
from headrace.cli.app import headrace as command
from headrace.errors import HeadraceError, UsageError

MIB = 1 << 20


class Failing(Cp):
    """Starts well, and then copies nothing."""

    def command(self, source_name: str, dest: Path) -> Command:
        return Command((sys.executable, "-c", "import sys; sys.exit('no such luck')"))


class Absent(Cp):
    def start(self, source: Path) -> None:
        raise NotInstalledError("frobnicate")


def bench_in(folder: Path, **changes: object) -> Bench:
    made = Bench(folder, True, frozenset({"broken", "absent"}), 1, float("inf"), False, lambda line: None)
    return replace(made, **changes)  # type: ignore[arg-type]


# ---- rows and reasons -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_missing_or_fails_is_a_row_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        copies,
        "PEERS",
        (
            Entry("broken", "peer", lambda folder, at: Failing("broken")),
            Entry("absent", "peer", lambda folder, at: Absent("absent")),
        ),
    )
    tiny = Copy("tiny", "one file of SIZE", MIB, MIB, (headrace("headrace"),), limits=("cp",))
    report = Report("quick", "now", {}, [suite.one(tiny, bench_in(tmp_path), 30)])
    case = report.cases[0]
    assert not case.skipped
    mine, broken, absent, cp = case.rows
    assert (len(mine.values), len(cp.values), cp.kind) == (1, 1, "limit")
    assert mine.cpu[0] > 0
    assert mine.client_rss[0] > 0
    assert broken.failed
    assert "no such luck" in broken.missing
    assert absent.missing == "not installed (frobnicate)"
    assert suite.failed(report) == [], "peers may fail; only headrace may not"
    shown = table.of_case(case)
    assert "no such luck" in shown
    assert "% of limit" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_headrace_that_fails_is_told_apart():
    rows = [Row("headrace", "headrace", missing="failed: it hung", failed=True), Row("cp", "limit", values=[1.0])]
    report = Report("quick", "now", {}, [Case("bulk", "", "MB/s", True, rows), Case("wan", "", "", True, skipped="no")])
    assert suite.failed(report) == ["bulk: headrace"]


def test_a_disk_that_would_fill_up_stops_the_case_before_it(tmp_path: Path):
    huge = Copy("huge", "", 1 << 60, 1 << 60, (headrace("headrace"),))
    case = suite.one(huge, bench_in(tmp_path), 30)
    assert "MiB free; it needs" in case.skipped
    assert list(tmp_path.iterdir()) == []


def test_without_root_a_long_link_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    wan = next(case for case in COPIES if case.name == "wan")
    assert "need root" in suite.one(wan, bench_in(tmp_path), 30).skipped


def test_when_the_time_is_over_no_further_case_begins(tmp_path: Path):
    case = suite.one(COPIES[0], bench_in(tmp_path, ends=0.0), 30)
    assert case.skipped.startswith("no time is left")


def test_rows_take_turns_and_one_that_fails_drops_out():
    order: list[str] = []

    def take(name: str, fails: bool = False) -> Turn:
        order.append(name)
        if fails and order.count(name) == 2:
            raise BenchError("it broke")
        return Turn([2.0, 1.0, 3.0], client_cpu=0.5)

    takers = [Taker("a", "headrace", lambda: take("a")), Taker("b", "peer", lambda: take("b", True))]
    a, b = in_turn(takers, bench_in(Path(), rounds=2))
    assert order == ["a", "b", "a", "b", "a"]
    assert (a.values, a.client_cpu) == ([2.0, 2.0], [0.5, 0.5])
    assert (b.values, b.missing) == ([], "failed: it broke")


def test_every_case_of_the_quick_suite_is_there():
    assert set(suite.QUICK) <= set(suite.CASES)
    assert sum(suite.QUICK.values()) <= suite.QUICK_SECONDS


def test_the_limit_is_the_best_of_those_that_were_measured():
    rows = [Row("a", "limit", [1.0]), Row("b", "limit", [3.0]), Row("c", "limit", missing="not installed")]
    best = table.limit(Case("bulk", "", "MB/s", True, rows))
    assert best
    assert best.name == "b"


# ---- the file of results --------------------------------------------------------------------------------------------


def test_results_can_be_read_back(tmp_path: Path):
    row = Row("headrace", "headrace", [1.0, 2.0], [0.1, 0.1], [0.2, 0.2], [1, 1], [2, 2], 9.5, [1.0])
    report = Report("quick", "now", {"cpu": "x"}, [Case("bulk", "t", "MB/s", True, [row], at={"loss": 0.0})])
    results.save(report, tmp_path / "r.json")
    assert results.load(tmp_path / "r.json") == report
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == 1


@pytest.mark.parametrize("text", ["", "{}", '{"suite": "quick"}', "[1]"])
def test_another_file_is_no_result(tmp_path: Path, text: str):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BenchError, match="is no result"):
        results.load(tmp_path / "r.json")


# ---- the command ----------------------------------------------------------------------------------------------------


def test_an_unknown_case_or_peer_is_wrong_usage():
    for words in (["--only", "bulk,balk"], ["--peers", "spc"]):
        with pytest.raises(UsageError, match=r"no such .*\. There are "):
            CliRunner().invoke(command, ["bench", *words], standalone_mode=False, catch_exceptions=False)


def test_plots_without_matplotlib_say_what_to_install_and_measure_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "headrace.bench.plot", raising=False)
    monkeypatch.delattr("headrace.bench.plot", raising=False)
    words = ["bench", "--plot", str(tmp_path / "plots"), "--folder", str(tmp_path)]
    with pytest.raises(HeadraceError, match=r"headrace\[bench\]"):
        CliRunner().invoke(command, words, standalone_mode=False, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_profiles_without_a_profiler_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(profiles, "_program", lambda name: None)
    with pytest.raises(BenchError, match="pip install py-spy"):
        profiles.profiles(tmp_path / "out", tmp_path, tell=print)
    assert list(tmp_path.iterdir()) == []


def processes_that_name(text: str) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.fixture
def work() -> Iterator[Path]:
    """In memory where there is room, as for users: a busy disk would take its time."""
    with tempfile.TemporaryDirectory(dir=place()) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(150)  # on a busy machine
@pytest.mark.parametrize(
    ("case", "peers", "moment"),
    [
        ("scrub", "sshfs", "headrace, mount  "),  # mounts, and sshd: the first mount has been, the next one comes
        pytest.param(
            "wan",
            "scp-gcm,rsync-daemon",
            "warm-up",  # namespaces and the link
            marks=pytest.mark.skipif(bool(netlab.why_not()), reason=netlab.why_not() or "there is a lab"),
        ),
    ],
)
def test_ctrl_c_leaves_no_process_mount_namespace_or_file(
    tmp_path: Path, work: Path, case: str, peers: str, moment: str
):
    log = tmp_path / "log"
    argv = [sys.executable, "-m", "headrace", "bench", "--only", case, "--peers", peers, "--folder", str(work)]
    with log.open("wb") as said:
        bench = subprocess.Popen(argv, stdout=said, stderr=said, start_new_session=True)
    name = f"{netlab.PREFIX}{bench.pid}-{procfs.started(bench.pid)}"
    try:
        deadline = time.monotonic() + 80
        while moment.encode() not in log.read_bytes():
            assert bench.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(bench.pid, signal.SIGINT)  # as a terminal does
        assert bench.wait(50) == 130
    finally:
        bench.kill()
        bench.wait()
    assert list(work.iterdir()) == []
    assert processes_that_name(str(work)) == []
    assert str(work) not in Path("/proc/self/mountinfo").read_text()
    assert list(netlab.NAMESPACES.glob(f"{name}-*")) == []
    assert processes_that_name(name) == []
