"""What is said while a transfer runs: never more than is known."""

from __future__ import annotations

import io

import pytest

from headrace.cli.output import ProgressLine
from headrace.cli.progress import Meter, progress_event, progress_line
from headrace.engine.progress import Totals

MB = 1_000_000


def totals(**figures) -> Totals:
    return Totals(**figures)


def test_before_the_plan_there_is_no_percentage_and_no_time_left():
    meter = Meter()
    view = meter.look(totals(files=40, files_done=3, bytes=900 * MB, bytes_received=30 * MB, seconds=1.0))

    assert view.percent is None
    assert view.left is None
    assert progress_line(view) == "28.6 MiB  3 of 40 files so far  30.0 MB/s"


def test_with_the_plan_there_is_both():
    meter = Meter()
    figures = {"files": 4, "files_done": 1, "bytes": 400 * MB, "bytes_received": 100 * MB, "planned": True}
    view = meter.look(totals(seconds=2.0, **figures))

    assert view.percent == 25
    assert view.left == 6.0
    assert progress_line(view) == " 25 %  95.4 MiB of 381 MiB  1 of 4 files  50.0 MB/s  0:06 left"


def test_what_was_there_already_counts_as_done_but_not_as_rate():
    meter = Meter()
    view = meter.look(totals(bytes=400, bytes_received=100, bytes_reused=200, planned=True, seconds=1.0))

    assert (view.done, view.percent, view.rate, view.left) == (300, 75, 100.0, 1.0)


def test_what_compression_saved_counts_as_done_and_as_rate():
    view = Meter().look(totals(bytes=400, bytes_received=50, bytes_saved=150, planned=True, seconds=1.0))

    assert (view.done, view.percent, view.rate, view.left) == (200, 50, 200.0, 1.0)
    assert (progress_event(view)["bytes_received"], progress_event(view)["bytes_saved"]) == (50, 150)


@pytest.mark.parametrize("received", [999, 1000, 1500])
def test_never_100_percent_before_the_end(received):
    view = Meter().look(totals(bytes=1000, bytes_received=received, planned=True, seconds=1.0))

    assert view.percent == 99


def test_the_rate_is_that_of_the_last_five_seconds():
    meter = Meter()
    for tick in range(101):  # 10 s of 10 MB/s
        view = meter.look(totals(bytes_received=tick * MB, seconds=tick / 10))
    assert view.rate == pytest.approx(10 * MB)

    for tick in range(101, 126):  # half the window with nothing
        view = meter.look(totals(bytes_received=100 * MB, seconds=tick / 10))
    assert view.rate == pytest.approx(5 * MB, rel=0.05)

    for tick in range(126, 160):
        view = meter.look(totals(bytes=1000 * MB, bytes_received=100 * MB, seconds=tick / 10, planned=True))
    assert view.rate == 0
    assert view.left is None, "nobody knows how long nothing takes"


def test_nothing_to_fetch_is_no_division_by_zero():
    view = Meter().look(totals(planned=True))

    assert view.percent is None
    assert progress_line(view) == "0 B of 0 B  0 of 0 files  0 B/s"


def test_failures_are_in_the_line():
    view = Meter().look(totals(files=3, files_failed=1, bytes=3, planned=True, seconds=1.0))

    assert "1 failed" in progress_line(view)


def test_the_event_has_figures_a_program_can_use():
    view = Meter().look(totals(files=1, bytes=200, bytes_received=100, planned=True, seconds=1.0))

    assert progress_event(view) == {
        "event": "progress",
        "files": 1,
        "files_done": 0,
        "files_failed": 0,
        "bytes": 200,
        "bytes_done": 100,
        "bytes_received": 100,
        "bytes_saved": 0,
        "bytes_reused": 0,
        "planned": True,
        "seconds": 1.0,
        "rate": 100,
        "seconds_left": 1.0,
    }


def test_other_output_goes_above_the_progress_line():
    terminal = io.StringIO()
    line = ProgressLine(terminal)

    line.show("10 %")
    line.write("headrace: a message\n")
    line.show("20 %")
    line.clear()

    clear = "\r\x1b[K"
    assert terminal.getvalue() == f"{clear}10 %{clear}headrace: a message\n10 %{clear}20 %{clear}"


def test_an_unchanged_line_is_not_drawn_again_and_a_long_one_is_cut():
    terminal = io.StringIO()
    line = ProgressLine(terminal)

    line.show("x" * 500)
    line.show("x" * 500)

    assert terminal.getvalue() == "\r\x1b[K" + "x" * 79
