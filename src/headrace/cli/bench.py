"""`headrace bench`: headrace beside the tools that people use today, on this machine."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli import options, output
from headrace.errors import HeadraceError, LocalDiskError, SomeFailedError, UsageError

if TYPE_CHECKING:
    from headrace.bench.results import Report


class _Bench(options.Command, click.Group):
    """A command with options of its own and, below it, others."""


class _Part(options.Command):
    """What is below it; they share its settings."""

    def config_name(self, ctx: click.Context) -> str:
        return "bench"


@click.group("bench", cls=_Bench, invoke_without_command=True)
@options.of("bench", without=(options.BAND,))
@click.pass_context
def bench(
    context: click.Context,
    suite: str,
    only: str | None,
    peers: str | None,
    rounds: int | None,
    folder: str | None,
    calls: bool,
    bench_json: str | None,
    plot: str | None,
    profile: str | None,
    list_cases: bool,
) -> None:
    """Measure headrace beside scp, rsync, sshfs, rclone, NFS, curl and magic-wormhole, as far as they are here.

    It makes its data in memory, starts each program on the same bytes over the same link in turn, round after round,
    compares every copy, and prints ratios with median, range and number of runs. What is not installed or fails is a
    line that says so. Nothing is left behind: no process, mount, network namespace or file.

    quick takes at most a minute and a half; full takes half an hour and has every case. Long links need root.

    \b
    headrace bench
    headrace bench --suite full --json results.json --plot plots
    headrace bench --only bulk,wan --peers rsync-daemon
    headrace bench compare before.json after.json
    """
    if context.invoked_subcommand is not None:
        return
    needs_linux()
    from headrace.bench import suite as suites
    from headrace.bench.process import BenchError, orderly
    from headrace.bench.workspace import place

    if list_cases:
        output.write_text("\n".join(suites.CASES) + "\n")
        return
    wishes = suites.Wishes(
        suite,
        _chosen_peers(peers),
        Path(folder) if folder else place(),
        only=_chosen(only, list(suites.CASES), "case") if only else None,
        rounds=rounds,
        calls=calls or (suite == "full" and not only),
    )
    quiet = context.obj.quiet
    try:
        with orderly():
            if plot:
                _plots()  # before anything is measured: it may not be installed
            if profile is not None:
                from headrace.bench.profiles import profiles

                output.write_text(profiles(Path(profile), wishes.folder, tell=_tell if not quiet else _nobody))
                return
            report = suites.run(wishes, _nobody if quiet else _tell, _show)
            _finish(report, bench_json, plot)
    except BenchError as why:
        raise HeadraceError(str(why), hint="") from why
    if wrong := suites.failed(report):
        raise SomeFailedError(f"headrace itself failed in {', '.join(wrong)}", hint="The table says how.")


@bench.command("compare", cls=_Part)
@click.argument("before", metavar="A", type=click.Path(dir_okay=False))
@click.argument("after", metavar="B", type=click.Path(dir_okay=False))
@options.of("bench", without=options.OF_SUITES)
def compare(before: str, after: str, band: float) -> int:
    """Say what got better or worse from result A to result B, beyond noise. Exits with 1 where something got worse.

    Both are files of --json. Each row is divided by a limit or a peer of its own run first, so that another machine or
    another day changes little.

    \b
    headrace bench compare before.json after.json
    """
    from headrace.bench import compare as comparing
    from headrace.bench.process import BenchError
    from headrace.bench.results import load

    try:
        found = comparing.changes(load(Path(before)), load(Path(after)))
    except BenchError as why:
        raise HeadraceError(str(why), hint="Write such a file with headrace bench --json FILE.") from why
    if not found:
        raise HeadraceError(f"{before} and {after} have no case in common", hint="Cases of another size do not count.")
    output.write_text(comparing.table(found, band) + "\n")
    return int(any(change.verdict(band) == "worse" for change in found))


def needs_linux() -> None:
    """Raises UsageError on other systems: costs are read from /proc, and namespaces are Linux's."""
    if sys.platform != "linux":
        raise UsageError("headrace bench needs Linux", hint="What a program costs is read from /proc.")


def _chosen_peers(text: str | None) -> frozenset[str]:
    from headrace.bench.entries import NAMES

    if text is None:
        return frozenset(NAMES)
    return frozenset(_chosen(text, NAMES, "peer") if text != "none" else ())


def _chosen(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(known)):
        raise UsageError(f"no such {what}: {', '.join(unknown)}", hint=f"There are {', '.join(known)}.")
    return names


def _finish(report: Report, json: str | None, plot: str | None) -> None:
    from headrace.bench import results, table

    output.write_text(table.about(report) + "\n")
    output.flush()
    if json:
        try:
            results.save(report, Path(json))
        except OSError as why:
            raise LocalDiskError(f"{json} cannot be written ({why.strerror})") from why
    if plot:
        for file in _plots().draw(report, Path(plot)):
            output.note(f"wrote {file}")


def _plots() -> Any:
    try:
        return importlib.import_module("headrace.bench.plot")
    except ImportError as why:
        raise HeadraceError(
            "plots need matplotlib, which is not installed", hint="Install it with headrace: headrace[bench]."
        ) from why


def _tell(line: str) -> None:
    output.note(line)


def _nobody(line: str) -> None:
    """Nobody wants to know."""


def _show(text: str) -> None:
    output.write_text(text + "\n\n")
    output.flush()
