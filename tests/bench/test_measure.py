"""The benchmarks' figures are what they say, and nothing is left behind. Nothing here looks at how long it took."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.bench import measure, process, procfs, report, workspace

ROOT = Path(__file__).parents[2]
MIB = 1 << 20

# A process that starts another one in a session of its own, says so, and ends neither when asked to.
STUBBORN = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(300)
"""


def python(code: str, *arguments: str) -> process.Command:
    return process.Command((sys.executable, "-c", code, *arguments))


def sample(seconds: float) -> measure.Sample:
    return measure.Sample(seconds, client_cpu=0.5, server_cpu=0.25, client_rss=30_000_000, server_rss=40_000_000)


def wait_for_line(file: Path) -> str:
    deadline = time.monotonic() + 20
    while not file.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return file.read_text().strip()


def processes_that_name(text: str) -> list[str]:
    """The command lines of living processes, other than this one, with `text` in them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and file.parent.name != str(os.getpid()):
            found.append(line)
    return found


class CopyPeer:
    """Copies with a few lines of Python; its server is the stubborn one."""

    def __init__(self, name: str, folder: Path, *, code: str = "", missing: bool = False) -> None:
        self.name = name
        self.server: int | None = None
        self.stopped = False
        self._folder = folder
        self._code = code or "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
        self._missing = missing
        self._source = Path()
        self._child: process.Child | None = None

    def start(self, source: Path) -> None:
        if self._missing:
            raise process.NotInstalledError("no-such-program")
        self._source = source
        said = self._folder / f"{self.name}.pid"
        self._child = process.Child(python(STUBBORN), said)
        self.server = self._child.pid
        self.grandchild = int(wait_for_line(said))

    def before_run(self) -> None:
        pass

    def command(self, source_name: str, dest: Path) -> process.Command:
        return python(self._code, str(self._source / source_name), str(dest / source_name))

    def stop(self) -> None:
        self.stopped = True
        if self._child:
            self._child.end()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(b"content")
    return path


# ---- figures --------------------------------------------------------------------------------------------------------


def test_a_spread_is_the_median_and_the_ends():
    assert measure.Spread.of([3.0, 1.0, 2.0]) == measure.Spread(2.0, 1.0, 3.0)
    assert measure.Spread.of([4.0, 1.0]) == measure.Spread(2.5, 1.0, 4.0)


def test_rates_are_the_amount_by_the_seconds_of_each_run():
    assert measure.Result("a", 100, [sample(2.0), sample(4.0)]).rates == [50.0, 25.0]


def test_a_ratio_compares_the_runs_of_one_round():
    # Twice as fast in every round, while the machine became ten times slower: 2 and nothing else.
    fast = measure.Result("fast", 100, [sample(1.0), sample(10.0)])
    slow = measure.Result("slow", 100, [sample(2.0), sample(20.0)])
    assert fast.ratio_to(slow) == measure.Spread(2.0, 2.0, 2.0)


def test_there_is_no_ratio_to_what_was_not_measured():
    measured = measure.Result("a", 100, [sample(1.0)])
    assert measured.ratio_to(None) is None
    assert measured.ratio_to(measure.Result("b", 100, missing="not installed")) is None


def test_the_table_has_a_line_for_each_case_and_says_what_is_missing():
    results = [
        measure.Result("quick", 200_000_000, [sample(1.0), sample(2.0), sample(1.0)]),
        measure.Result("slow", 200_000_000, [sample(2.0), sample(2.0), sample(4.0)]),
        measure.Result("absent", 200_000_000, missing="not installed (frobnicate)"),
    ]
    head, line, quick, slow, absent = report.table(results, report.MEGABYTES, ["slow", "absent"]).splitlines()
    assert head.split("  ")[0] == "case"
    assert set(line) == {"-", " "}
    assert "200 (100..200)" in quick
    assert "2.00 (1.00..4.00)" in quick
    assert "0.50 + 0.25" in quick
    assert "30 + 40" in quick
    assert "1.00 (1.00..1.00)" in slow
    assert absent.split() == ["absent", "not", "installed", "(frobnicate)"]


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("64k", 65536), ("1G", 1 << 30), ("2MiB", 2 << 20)])
def test_sizes_have_units_of_1024(text: str, size: int):
    assert workspace.parse_size(text) == size


# ---- running a command ----------------------------------------------------------------------------------------------


def test_a_run_says_what_the_command_and_its_children_cost(tmp_path: Path):
    costly = "import time; held = bytearray(64 << 20)\nwhile time.process_time() < 0.3: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {costly!r}])"
    cost = measure.run(python(code), log=tmp_path / "log")
    assert cost.client_cpu >= 0.3
    assert cost.client_rss >= 64 * MIB
    assert (cost.server_cpu, cost.server_rss) == (0.0, 0)


def test_a_run_says_what_the_server_cost(tmp_path: Path):
    serve = """
import os, sys, time
print("ready", flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
until = time.process_time() + 0.3
while time.process_time() < until: pass
open(sys.argv[2], "w").close()
time.sleep(300)
"""
    wait = (
        "import os, sys, time\nopen(sys.argv[1], 'w').close()\nwhile not os.path.exists(sys.argv[2]): time.sleep(0.01)"
    )
    marks = (str(tmp_path / "begin"), str(tmp_path / "done"))
    with process.Child(python(serve, *marks), tmp_path / "server.log") as server:
        wait_for_line(tmp_path / "server.log")
        cost = measure.run(python(wait, *marks), log=tmp_path / "log", server=server.pid)
    assert cost.server_cpu >= 0.25  # the clock that it is read from has ticks
    assert cost.server_rss > 0


def test_a_command_that_fails_is_an_error_that_quotes_it(tmp_path: Path):
    with pytest.raises(measure.CommandFailedError, match=r"(?s)ended with 3.*no such luck"):
        measure.run(python("import sys; print('no such luck'); sys.exit(3)"), log=tmp_path / "log")


def test_a_command_may_be_meant_to_fail(tmp_path: Path):
    measure.run(python("import sys; sys.exit(5)"), log=tmp_path / "log", expected=5)


@pytest.mark.slow
def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path):
    in_its_group = STUBBORN.replace(", start_new_session=True", "")
    with pytest.raises(measure.CommandFailedError, match="not done after"):
        measure.run(python(in_its_group), log=tmp_path / "log", timeout=1.0)
    pid = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 20
    while procfs.is_running(pid, procfs.started(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- comparing ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_peers_take_turns_after_a_round_that_is_not_counted(tmp_path: Path, source: Path):
    code = """
import shutil, sys
shutil.copy(sys.argv[1], sys.argv[2])
print(NAME, file=open(sys.argv[1] + ".order", "a"))
"""
    peers = [CopyPeer(name, tmp_path, code=code.replace("NAME", repr(name))) for name in "ab"]
    check = workspace.checker(source)
    a, b = measure.compare(peers, source, amount=7, rounds=2, folder=tmp_path, check=check)
    assert (len(a.samples), len(b.samples)) == (2, 2)
    assert source.with_suffix(".bin.order").read_text().split() == ["a", "b"] * 3
    assert not (tmp_path / "copies").exists()


def test_a_missing_program_does_not_stop_the_others(tmp_path: Path, source: Path):
    peers = [CopyPeer("absent", tmp_path, missing=True), CopyPeer("here", tmp_path)]
    absent, here = measure.compare(peers, source, amount=7, rounds=1, folder=tmp_path, check=workspace.checker(source))
    assert absent.missing == "not installed (no-such-program)"
    assert len(here.samples) == 1


def test_a_copy_that_differs_ends_it_all_and_nothing_is_left(tmp_path: Path, source: Path):
    wrong = CopyPeer("wrong", tmp_path, code="import sys; open(sys.argv[2], 'w').write('contemt')")
    right = CopyPeer("right", tmp_path)
    with pytest.raises(measure.DifferentError) as caught:
        measure.compare([right, wrong], source, amount=7, rounds=1, folder=tmp_path, check=workspace.checker(source))
    assert caught.value.__notes__ == ["in the case wrong"]
    assert not (tmp_path / "copies").exists()
    for peer in (right, wrong):
        assert peer.stopped
        assert peer.server is not None
        assert not procfs.started(peer.server)
        assert not procfs.is_running(peer.grandchild, procfs.started(peer.grandchild))


def test_a_tree_that_lacks_a_file_differs(tmp_path: Path):
    workspace.random_tree(tmp_path / "one", files=3, size=10)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    check = workspace.checker(tmp_path / "one")
    check(tmp_path / "two")
    (tmp_path / "two" / "0000" / "000001.bin").unlink()
    with pytest.raises(measure.DifferentError):
        check(tmp_path / "two")


def test_the_workspace_goes_when_a_case_raises(tmp_path: Path):
    with pytest.raises(RuntimeError), workspace.workspace(MIB, tmp_path) as folder:
        (folder / "file").write_bytes(b"x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_workspace_wants_room(tmp_path: Path):
    with pytest.raises(process.BenchError, match="choose a smaller --size"), workspace.workspace(1 << 60, tmp_path):
        pass


# ---- for real -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tiny_run_has_all_its_rows(tmp_path: Path):
    cases = ["headrace-cold", "headrace-warm", "headrace-7", *(["rsync-daemon"] if shutil.which("rsync") else []), "cp"]
    where = ("--folder", str(tmp_path), "--json", str(tmp_path / "out.json"))
    command = [sys.executable, "-m", "bench.bulk", "--size", "1m", "--rounds", "1", "--only", ",".join(cases), *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.startswith(tuple(cases)) and "(" in line]
    assert [row for row in rows if not row.endswith(":")] == cases
    saved = json.loads((tmp_path / "out.json").read_text())
    assert [result["name"] for result in saved["results"]] == cases
    assert [len(result["samples"]) for result in saved["results"]] == [1] * len(cases)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert processes_that_name(str(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_process_and_no_folder(tmp_path: Path, number: signal.Signals):
    only = "headrace-warm,scp,rsync-ssh,rsync-daemon,sendfile"
    command = [sys.executable, "-m", "bench.bulk", "--size", "8m", "--rounds", "99", "--only", only]
    log = tmp_path / "log"
    folder = tmp_path / "work"
    folder.mkdir()
    with log.open("wb") as errors:
        bench = subprocess.Popen([*command, "--folder", str(folder)], cwd=ROOT, stdout=errors, stderr=errors)
    try:
        deadline = time.monotonic() + 40
        while b"round 1 of" not in log.read_bytes():
            assert bench.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        bench.send_signal(number)
        assert bench.wait(20) == 128 + number
    finally:
        bench.kill()
        bench.wait()
    assert list(folder.iterdir()) == []
    assert processes_that_name(str(folder)) == []
