"""The bench of mounts: its figures are what they say, and nothing is left behind. Nothing looks at how long it took."""

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

from bench.mount import Case, Row, Run, Work, table
from bench.mountfiles import Files, make
from headrace.bench import mounts
from headrace.bench.mounts import Mounted, is_mounted
from headrace.bench.mountwork import main as work
from headrace.bench.process import BenchError, Command

ROOT = Path(__file__).parents[2]
FUSE = os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("fusermount3")
TINY = ("--size", "1m", "--files", "40", "--entries", "30", "--reads", "9", "--rounds", "1", "--only", "headrace")


class NoMounter:
    """Its process does not mount anything."""

    name = "none"
    server = None

    def start(self, source: Path) -> None:
        pass

    def command(self, point: Path) -> Command:
        return Command((sys.executable, "-c", "raise SystemExit('cannot mount today')"))

    def stop(self) -> None:
        pass


def case(name: str, *seconds: float) -> Case:
    return Case(name, runs={"copy": [Run({"all": one}, 0.5, 0.25, 30_000_000) for one in seconds]})


def test_a_table_gives_times_and_how_they_compare_round_by_round():
    plan = [Work("copy", (Row("all", "ms", 1000, lambda figures: 0.0),), lambda number: {})]
    lines = table([case("headrace", 1.0, 2.0, 1.0), case("sshfs", 2.0, 2.0, 4.0), Case("rclone", "not here")], plan)
    assert [" ".join(line.split()) for line in lines.splitlines()[2:]] == [
        "copy: all, ms headrace 1,000.00 (1,000.00..2,000.00) 0.50 (0.25..1.00) 0.50 + 0.25 30",
        "copy: all, ms sshfs 2,000.00 (2,000.00..4,000.00) 1.00 (1.00..1.00) 0.50 + 0.25 30",
        "copy: all, ms rclone not here",
    ]


def test_a_mount_that_does_not_come_says_why(tmp_path: Path):
    with pytest.raises(BenchError, match="cannot mount today"):
        Mounted(NoMounter(), tmp_path, tmp_path.with_suffix(".log")).start()


def test_whether_something_is_mounted_is_read_from_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known = tmp_path / "mountinfo"
    known.write_text("36 35 0:44 / /mnt/a\\040b rw,nosuid - fuse.sshfs x rw\n37 35 0:45 / /mnt/c rw - fuse y rw\n")
    monkeypatch.setattr(mounts, "_MOUNTS", known)
    assert [is_mounted(Path(one)) for one in ("/mnt/a b", "/mnt/c", "/mnt/a", "/mnt")] == [True, True, False, False]


def test_work_on_a_folder_that_is_not_the_shared_one_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("source", "point"):
        (tmp_path / name).mkdir()
        make(Files(1 << 16, 1 << 30, 1, 5), tmp_path / name, {"large", "many"})
    told = {"point": str(tmp_path / "point"), "source": str(tmp_path / "source"), "name": "large.bin"}
    assert work("random", json.dumps(told | {"count": 4, "seed": 1})) == 1
    assert "other ones" in capsys.readouterr().err
    assert work("copy", json.dumps(told | {"dest": str(tmp_path / "copy")})) == 1
    assert not (tmp_path / "copy").exists()
    listed = {"point": str(tmp_path / "point"), "name": "many", "long": True}
    assert work("list", json.dumps(listed | {"entries": 6})) == 1
    capsys.readouterr()
    assert work("list", json.dumps(listed | {"entries": 5})) == 0
    assert json.loads(capsys.readouterr().out)["seconds"][0] > 0


def bench(folder: Path, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "bench.mount", *TINY, "--folder", str(folder), *options]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_nothing_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(folder).encode() not in file.read_bytes()
        except OSError:
            continue


@pytest.mark.slow
@pytest.mark.skipif(not FUSE, reason="no /dev/fuse or no fusermount3")
def test_work_is_done_on_a_real_mount(tmp_path: Path):
    found = tmp_path.with_suffix(".json")
    with bench(tmp_path, "--json", str(found), "--works", "random,seek,git,grep,long-list") as process:
        _, errors = process.communicate(timeout=50)
    assert process.returncode == 0, errors
    (headrace,) = json.loads(found.read_text())["results"]
    measured = {name for name, runs in headrace["runs"].items() if min(runs[0]["figures"].values()) > 0}
    assert measured == {"random", "seek", "git", "grep", "long-list"}
    assert_nothing_left(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not FUSE, reason="no /dev/fuse or no fusermount3")
def test_ctrl_c_leaves_no_mount_no_process_and_no_file(tmp_path: Path):
    process = bench(tmp_path, "--works", "random", "--reads", "1", "--rounds", "100000")
    deadline = time.monotonic() + 40
    while not list(tmp_path.glob("*/work.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert_nothing_left(tmp_path)
