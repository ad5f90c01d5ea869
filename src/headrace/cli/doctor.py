"""`headrace doctor`: what this machine can do, and where the time goes on the way to a share."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import click

from headrace.cli import options, output, reach, signals, times
from headrace.transport.abort import Abort

if TYPE_CHECKING:
    from headrace.client.session import Session
    from headrace.client.target import Target
    from headrace.doctor.checks import Check
    from headrace.doctor.path import Step
    from headrace.observe.bottleneck import Breakdown

_NAME: Final = 13  # columns
_STATUS: Final = 9
_VALUE: Final = 10


@click.command("doctor", cls=options.Command)
@click.argument("target", required=False)
@options.of("doctor")
@click.pass_obj
def doctor(common: options.Common, target: str | None) -> None:
    """Say what this machine can do for transfers, and what would mend the rest.

    Each check is ok, limited or missing, with the reason, and with the one command that would mend it where there is
    one (mostly for root). With a TARGET, also connects to that share and says where the time goes on the way; up to
    64 MiB of a file there are read, and written to a file without a name here.

    Exits with 0 once the checks ran, whatever they found: it is a report. A TARGET that cannot be reached is an error
    as for the other commands.

    \b
    headrace doctor
    headrace doctor 7k2m-xq4c-9dht@192.168.1.20:7420
    """
    events = output.Events() if common.json else None
    with output.telling(events):
        wanted = None if target is None else reach.target_of(target, common)
        abort = Abort()
        report = _Report(events)
        signals.run(lambda: _work(report, wanted, common, abort), cancel=abort)


def _work(report: _Report, target: Target | None, common: options.Common, abort: Abort) -> None:
    from headrace.doctor import checks

    for check in checks.run():
        report.check(check)
    if target is not None:
        from headrace.doctor import path

        def connect() -> Session:
            return reach.connect(target, common, abort=abort)

        report.way(target)
        for step in path.measure(target, connect, report.times):
            report.step(step)
    report.done(checks.STATUSES)


class _Report:
    """Lines for people and pipes, or events."""

    def __init__(self, events: output.Events | None) -> None:
        self._events = events
        self._counts: Counter[str] = Counter()

    def check(self, check: Check) -> None:
        found = check.found
        self._counts[found.status] += 1
        if self._events:
            fields = {"name": check.name, "status": found.status, "reason": found.reason, "mend": found.mend}
            self._events.emit({"event": "check", **fields})
            return
        self._line(f"{check.name:<{_NAME}}{found.status:<{_STATUS}}{found.reason}")
        if found.mend:
            self._line(f"{'':<{_NAME + _STATUS}}mend: {found.mend}")

    def way(self, target: Target) -> None:
        if not self._events:
            self._line(f"\nThe way to {target.address}:")

    def step(self, step: Step) -> None:
        if self._events:
            self._events.emit({"event": "path", "step": step.name, **step.figures, "reason": step.text})
            return
        self._line(f"{step.name:<{_NAME}}{step.value:>{_VALUE}}  {step.text}")

    def times(self, breakdown: Breakdown) -> None:
        if self._events:
            self._events.emit(times.event(breakdown))
            return
        self._line("\n" + "\n".join(times.lines(breakdown)))

    def done(self, statuses: tuple[str, ...]) -> None:
        counts = {status: self._counts[status] for status in statuses}
        if self._events:
            self._events.emit({"event": "done", **counts})
            return
        self._line("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))

    def _line(self, text: str) -> None:
        output.write_text(text + "\n")
        output.flush()
