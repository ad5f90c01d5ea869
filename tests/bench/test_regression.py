"""The latency gate: what it makes of ratios, when it measures again, and that it sees a delay."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import regression
from bench.regression import FIRST, LIMIT, MOST, Bench, Figure, blocks, compare, figure, gate, judge
from bench.sampler import NAMES, slowed
from headrace.bench.pingpong import PingPong
from headrace.bench.process import BenchError

BEFORE = {name: [[7.0, 7.1, 7.2]] * 8 for name in NAMES}


def noisy(chance: random.Random, ratio: float, launches: int) -> list[list[float]]:
    """As measured beside other work: a launch is off by 4 %, a block of it by 3 % more, every eighth by 25 %."""
    found = []
    for _ in range(launches):
        launch = ratio * chance.gauss(1, 0.04) * (1.25 if chance.random() < 1 / 8 else 1)
        found.append([launch * chance.gauss(1, 0.03) for _ in range(3)])
    return found


class ScriptedBench:
    """Its launches find what they are told, over and over. ratios: of this headrace, and of the one in `tree`."""

    def __init__(self, *ratios: float, tree: float | None = None) -> None:
        self._ratios = itertools.cycle(ratios)
        self._tree = tree
        self.launched: list[tuple[int, Path]] = []
        self._cpus = itertools.cycle([0, 1])

    def next_cpu(self) -> int:
        return next(self._cpus)

    def launch(self, cpu: int, tree: Path = regression.ROOT) -> Any:
        self.launched.append((cpu, tree))
        if tree == regression.ROOT:
            ratio = next(self._ratios)
        else:
            assert self._tree
            ratio = self._tree
        return {name: {"ratios": [ratio] * 3, "microseconds": 1.0} for name in NAMES}

    def checkout(self, commit: str) -> Path | None:
        return Path("before") if self._tree else None


def baseline(machine: dict[str, str] | None = None) -> dict[str, Any]:
    return {"commit": "0" * 40, "machine": machine or regression.machine(), "blocks": BEFORE}


def scripted(*ratios: float, tree: float | None = None) -> Any:
    return ScriptedBench(*ratios, tree=tree)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "RESAMPLES", 60)


def test_a_figure_is_the_ratio_of_the_medians_and_its_interval_holds_it():
    found = figure([[8.0, 8.2, 8.1]] * 4, [[4.0, 4.1, 3.9]] * 4)
    assert found.median == pytest.approx(8.1 / 4.0)
    assert found.low <= found.median <= found.high
    assert figure([[8.0]], [[4.0]]) == Figure(2.0, 2.0, 2.0)


def test_the_verdict_takes_the_whole_interval():
    assert Figure(1.05, 1.00, 1.10).verdict == "fine"
    assert Figure(1.12, 1.09, 1.15).verdict == "undecided"
    assert Figure(1.15, 1.11, 1.20).verdict == "slower"


def test_of_noise_alone_nothing_is_slower_and_what_is_a_fifth_slower_is_mostly_found():
    chance = random.Random(2)
    same = [figure(noisy(chance, 7, MOST), noisy(chance, 7, MOST)) for _ in range(10)]
    assert not [one for one in same if one.verdict == "slower" or one.median > LIMIT]
    slower = [figure(noisy(chance, 8.4, MOST), noisy(chance, 7, MOST)) for _ in range(10)]
    assert sum(one.verdict == "slower" for one in slower) > 5


def test_what_is_fine_is_measured_no_longer_than_needed():
    bench = scripted(7.2)
    figures = compare(bench, BEFORE)
    assert {one.verdict for one in figures.values()} == {"fine"}
    assert [cpu for cpu, _ in bench.launched] == [0, 1, 0, 1], "the cores in turn"
    assert len(bench.launched) == FIRST


def test_what_is_undecided_is_measured_longer():
    bench = scripted(7.1, 7.1, 8.0, 8.0)
    figures = compare(bench, BEFORE)
    assert {one.verdict for one in figures.values()} == {"undecided"}
    assert len(bench.launched) == MOST


def test_what_looks_slower_is_measured_again_beside_the_commit_of_the_baseline():
    drifted = scripted(8.5, tree=8.4)  # the machine is another one than it was; headrace is not
    figures = gate(drifted, baseline())
    assert {one.verdict for one in figures.values()} == {"fine"}
    beside = drifted.launched[FIRST:]
    assert [tree.name for _, tree in beside] == [regression.ROOT.name, "before"] * FIRST
    assert all(one[0] == other[0] for one, other in itertools.batched(beside, 2)), "a pair shares a core"

    slower = gate(scripted(8.5, tree=7.1), baseline())
    assert {one.verdict for one in slower.values()} == {"slower"}


def test_without_that_commit_it_is_measured_again_all_the_same():
    bad_start = scripted(*[8.5] * FIRST, *[7.1] * FIRST)
    assert {one.verdict for one in gate(bad_start, baseline()).values()} == {"fine"}
    assert {one.verdict for one in gate(scripted(8.5), baseline()).values()} == {"slower"}


def test_another_kind_of_machine_is_not_compared_with_the_baseline_but_with_its_commit():
    elsewhere = baseline({"cpu": "another"})
    bench = scripted(12.0, tree=12.1)
    assert {one.verdict for one in gate(bench, elsewhere).values()} == {"fine"}
    assert len(bench.launched) == 2 * FIRST
    assert {one.verdict for one in gate(scripted(12.0), elsewhere).values()} == {"slower"}, "no commit: ratios decide"


def test_what_is_slower_ends_in_an_error_that_names_it(capsys: pytest.CaptureFixture[str]):
    fine = Figure(1.0, 0.98, 1.03)
    judge({"read": fine, "list": Figure(1.12, 1.05, 1.2)})
    with pytest.raises(BenchError, match="slower by more than 10% than the baseline: list$"):
        judge({"read": fine, "list": Figure(1.2, 1.15, 1.25)})
    assert "1.200 (1.150..1.250)" in capsys.readouterr().out


def test_no_such_commit_is_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(regression, "ROOT", tmp_path)
    assert Bench(tmp_path).checkout("0" * 40) is None


def test_a_slowed_request_takes_longer():
    started = time.perf_counter()
    slowed(lambda: time.sleep(0.02), 0.5)()
    assert time.perf_counter() - started >= 0.03


def test_the_answering_end_goes_with_the_asking_end():
    with PingPong() as ping:
        for size in (1, 4096, 1 << 20):
            ping.exchange(size)
        pid = ping._pid
    assert not Path(f"/proc/{pid}").exists()


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Bench]:
    before = set(threading.enumerate())
    with Bench(tmp_path) as bench:
        yield bench
    assert list(tmp_path.iterdir()) == []
    assert set(threading.enumerate()) == before


@pytest.mark.slow
def test_a_real_delay_is_seen(quick: Bench):
    """Launches of the same headrace, plain and delayed by a quarter in turn, until that is beyond doubt."""
    plain: list[Any] = []
    delayed: list[Any] = []
    for _ in range(6):
        cpu = quick.next_cpu()
        quick.slower = ()
        plain.append(quick.launch(cpu))
        quick.slower = tuple(f"{name}=0.25" for name in NAMES)
        delayed.append(quick.launch(cpu))
        figures = {name: figure(blocks(delayed, name), blocks(plain, name)) for name in NAMES}
        if len(plain) >= 2 and any(one.verdict == "slower" for one in figures.values()):
            return
    pytest.fail(f"not seen: {regression.shown(figures)}")
