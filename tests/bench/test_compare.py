"""`headrace bench compare`, plots, and the gate on dearer copies: what they say, and that they can say it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from bench import ratios
from headrace.bench import compare, noise, results
from headrace.bench.process import BenchError
from headrace.bench.results import Case, Report, Row
from headrace.cli.app import headrace as command

ROUNDS = 7


def near(value: float, seed: int, noise_of: float = 0.04) -> list[float]:
    chance = random.Random(seed)
    return [value * (1 + chance.uniform(-noise_of, noise_of)) for _ in range(ROUNDS)]


def row(name: str, kind: Any, rate: float, seed: int, cpu: float = 1.0) -> Row:
    none = [0] * ROUNDS
    return Row(name, kind, near(rate, seed), near(cpu, seed + 50), [0.0] * ROUNDS, none, none)


def report(mine: float, limit: float = 1000.0, cpu: float = 1.0, seed: int = 1, size: int = 100) -> Report:
    rows = [row("headrace", "headrace", mine, seed, cpu), row("sendfile", "limit", limit, seed + 20)]
    return Report("quick", "now", {}, [Case("bulk", "t", "MB/s", True, rows, size=size)])


# ---- comparing ------------------------------------------------------------------------------------------------------


def verdicts(before: Report, now: Report) -> dict[str, str]:
    return {change.row: change.verdict() for change in compare.changes(before, now)}


def test_a_change_beyond_noise_is_better_or_worse_and_a_smaller_one_is_noise():
    assert verdicts(report(500), report(600, seed=2))["headrace"] == "better"
    assert verdicts(report(500), report(400, seed=2))["headrace"] == "worse"
    assert verdicts(report(500), report(515, seed=2))["headrace"] == "noise"


def test_a_slower_machine_is_no_slower_headrace():
    assert verdicts(report(500, limit=1000), report(250, limit=500, seed=3))["headrace"] == "noise"


def test_cpu_time_counts_for_itself_and_less_is_better():
    found = verdicts(report(500, cpu=1.0), report(500, cpu=1.5, seed=4))
    assert (found["headrace"], found["headrace, CPU"]) == ("noise", "worse")


def test_cases_of_another_size_are_other_cases():
    assert compare.changes(report(500, size=100), report(400, size=200)) == []


def test_few_rounds_that_overlap_are_noise_whatever_their_medians():
    assert noise.ratio([1.0, 3.0], [1.5, 2.0]).verdict(0.1) == "noise"


def test_the_command_says_what_got_worse_and_exits_with_1(tmp_path: Path):
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for file, made in zip(files, (report(500), report(300, seed=5)), strict=True):
        results.save(made, Path(file))
    done = CliRunner().invoke(command, ["bench", "compare", *files], standalone_mode=False)
    assert "WORSE" in done.output
    assert done.return_value == 1
    assert (
        CliRunner().invoke(command, ["bench", "compare", files[0], files[0]], standalone_mode=False).return_value == 0
    )


# ---- plots ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plots_are_svg_and_png_with_every_row_that_has_values(tmp_path: Path):
    plot = pytest.importorskip("headrace.bench.plot")
    made = report(500)
    made.cases[0].rows.append(Row("absent", "peer", missing="not installed"))
    for number, rtt in enumerate((2.0, 50.0)):
        case = Case(f"rtt-{rtt:g}", "t", "MB/s", True, [row("headrace", "headrace", 10, number)], at={"rtt_ms": rtt})
        made.cases.append(case)
    written = plot.draw(made, tmp_path)
    assert {file.name for file in written} == {
        f"{name}.{kind}" for name in ("bulk", "throughput-by-rtt") for kind in ("svg", "png")
    }
    text = (tmp_path / "bulk.svg").read_text()
    ElementTree.fromstring(text)
    assert "sendfile" in text
    assert "absent" not in text
    assert (tmp_path / "bulk.png").read_bytes().startswith(b"\x89PNG")


# ---- the gate -------------------------------------------------------------------------------------------------------


class Rounds:
    """A bench whose rounds are made up: of each headrace, how many times as dear as 1."""

    def __init__(self, folder: Path, dear: Callable[[], float]) -> None:
        self.folder = folder
        self.rounds = 0
        self.beside: list[str] = []
        self._dear = {"now": dear}
        self._chance = random.Random(7)

    def add(self, name: str, tree: Path) -> None:
        self.beside.append(name)
        self._dear[name] = lambda: self._chance.uniform(0.95, 1.05)

    def round(self) -> dict[str, dict[str, float]]:
        self.rounds += 1
        return {name: {figure: dear() for figure in ratios.figures()} for name, dear in self._dear.items()}


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.setattr(ratios, "checkout", lambda commit, into: into)
    known = {figure: near(1.0, number) for number, figure in enumerate(ratios.figures())}
    yield {"commit": "0" * 40, "machine": ratios.machine(), "ratios": known}


def judged(bench: Rounds, baseline: dict[str, Any]) -> None:
    ratios.judge(*ratios.gate(bench, baseline))  # type: ignore[arg-type]


def test_as_dear_as_ever_passes_without_a_second_look(tmp_path: Path, baseline: dict[str, Any]):
    bench = Rounds(tmp_path, lambda: 1.05)
    judged(bench, baseline)
    assert (bench.rounds, bench.beside) == (ratios.FIRST, [])


def test_dearer_beside_the_baseline_too_fails(tmp_path: Path, baseline: dict[str, Any]):
    bench = Rounds(tmp_path, lambda: 1.7)
    with pytest.raises(BenchError, match="bulk, cpu"):
        judged(bench, baseline)
    assert bench.beside == ["then"]


def test_what_only_the_machine_made_dearer_passes(tmp_path: Path, baseline: dict[str, Any]):
    baseline["ratios"] = {figure: near(0.5, 3) for figure in ratios.figures()}  # an easier day
    bench = Rounds(tmp_path, lambda: 1.0)
    judged(bench, baseline)
    assert bench.beside == ["then"]


def test_noise_is_never_a_failure(tmp_path: Path, baseline: dict[str, Any]):
    chance = random.Random(11)
    for _ in range(20):
        judged(Rounds(tmp_path, lambda: chance.choice([0.9, 1.0, 1.1, 1.9])), baseline)


def test_another_machine_is_measured_beside_the_baseline(tmp_path: Path, baseline: dict[str, Any]):
    baseline["machine"] = {"cpu": "another"}
    bench = Rounds(tmp_path, lambda: 1.0)
    judged(bench, baseline)
    assert bench.beside == ["then"]


def test_without_the_commit_the_limits_are_wider(
    tmp_path: Path, baseline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ratios, "checkout", lambda commit, into: None)
    judged(Rounds(tmp_path, lambda: 1.3), baseline)
    with pytest.raises(BenchError, match="dearer"):
        judged(Rounds(tmp_path, lambda: 2.5), baseline)


def test_the_committed_baseline_has_every_figure():
    import json

    kept = json.loads(ratios.BASELINE.read_text())
    assert sorted(kept["ratios"]) == sorted(ratios.figures())
    assert len(kept["commit"]) == 40
