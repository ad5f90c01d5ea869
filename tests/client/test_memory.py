"""What a listing takes in memory does not grow with the number of files in it, at either end."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from headrace.client.options import GetOptions
from headrace.client.outage import Outage
from headrace.client.plan import Planner
from headrace.engine.progress import Progress
from headrace.errors import HeadraceError
from headrace.protocol.messages import KIB, PHASE_BULK, VERSION_SIZE, Entry
from headrace.protocol.paths import ROOT, RelPath
from headrace.storage.tree import SharedTree


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python had at most, beside what it had before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


FILES = 200  # in one folder


class Share:
    """Lists one folder after the other, each of FILES files; nothing is there before it is asked for."""

    agreed = SimpleNamespace(version=PHASE_BULK)

    def __init__(self, folders: int) -> None:
        self._folders = folders

    def walk(self, top: RelPath) -> Iterator[tuple[RelPath, list[Entry], HeadraceError | None]]:
        yield top, [Entry(b"%d" % number, "d") for number in range(self._folders)], None
        for number in range(self._folders):
            files = [Entry(b"file-%d" % n, "f", n, version=b"v" * VERSION_SIZE) for n in range(FILES)]
            yield top / (b"%d" % number), files, None


def plan(folders: int) -> int:
    """How many files were planned; the jobs are gone as soon as they are made, as if workers took them."""
    told: Any = SimpleNamespace(failed_path=None, warn=None)
    session: Any = Share(folders)
    outage: Any = Outage.__new__(Outage)
    outage.over = lambda: None
    planner = Planner(session, ROOT, None, GetOptions(dry_run=True), Progress(), told, outage)
    return sum(len(jobs) for jobs in planner.jobs(Entry(b"", "d"), ROOT))


def test_a_plan_takes_no_more_for_ten_times_as_many_files() -> None:
    plan(1)  # what is made once
    assert plan(2) == 2 * FILES
    few, many = peak(lambda: plan(2)), peak(lambda: plan(20))
    assert many < few + 100 * KIB


def test_a_walk_takes_no_more_for_ten_times_as_many_files(tmp_path: Path) -> None:
    for number in range(1000):
        folder = tmp_path / ("few" if number < 100 else f"many-{number // 100}")
        folder.mkdir(exist_ok=True)
        (folder / f"{number}").touch()

    def walk(tree: SharedTree) -> int:
        return sum(len(entries) for _, entries, _ in tree.walk(ROOT))

    with SharedTree.open([tmp_path / "few"]) as few, SharedTree.open([tmp_path]) as many:
        assert (walk(few), walk(many)) == (100, 1010)
        assert peak(lambda: walk(many)) < peak(lambda: walk(few)) + 100 * KIB
