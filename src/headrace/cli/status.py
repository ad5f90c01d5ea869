"""`headrace status`: what runs on this machine, and limits that change while it runs."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

import click

from headrace.cli import options, output, signals
from headrace.cli.lan import show_lan
from headrace.cli.status_view import Rates, lines
from headrace.cli.text import counted, human_limit
from headrace.errors import HeadraceError, NotFoundError, UsageError, printable
from headrace.observe import running

Snapshot = dict[str, Any]

EVERY: Final = 1.0  # seconds between two pictures of --watch
GLANCE: Final = 0.5  # seconds over which a single picture's rates are measured
_HOME: Final = "\x1b[H"
_ERASE_LINE: Final = "\x1b[K"
_ERASE_BELOW: Final = "\x1b[J"


@click.command("status", cls=options.Command)
@click.argument("who", metavar="[PID|NAME]", required=False)
@options.of("status")
@click.pass_context
def status(
    context: click.Context,
    who: str | None,
    watch: bool,
    lan: bool,
    limit_rate: float | None,
    limit_peer: float | None,
) -> int | None:
    """Say what runs on this machine: shares with their peers, transfers, rates and limits.

    With --limit-rate or --limit-peer, changes the limit of one that runs instead, at once. PID|NAME says which: its
    process, the share's name, or the first group of its code. It can be left out where only one runs.

    \b
    headrace status
    headrace status --watch
    headrace status --limit-rate 20M footage
    headrace status --limit-peer off 4711
    headrace status --lan
    """
    common = context.ensure_object(options.Common)
    events = output.Events() if common.json else None
    rates = _asked_for(context, limit_rate=limit_rate, limit_peer=limit_peer)
    with output.telling(events):
        if lan:
            if rates or watch or who:
                raise UsageError("--lan stands alone: it is about other machines")
            return signals.run(lambda: show_lan(events), cancel=lambda: None)
        if rates and watch:
            raise UsageError("a limit is changed once, not watched", hint="Leave --watch out.")
        if rates:
            _change(who, rates, events)
            return None
        show = _Picture(events, who)
        return show.watch() if watch else show.once()


def _asked_for(context: click.Context, **given: float | None) -> dict[str, float | None]:
    """Which limits the command line itself names. The environment and the config file are for commands that start; they
    must not change one that runs."""
    on_command_line = click.core.ParameterSource.COMMANDLINE
    return {name: rate for name, rate in given.items() if context.get_parameter_source(name) is on_command_line}


# ---- looking -------------------------------------------------------------------------------------------------------


class _Picture:
    """What runs, as lines or as events."""

    def __init__(self, events: output.Events | None, who: str | None) -> None:
        self._events = events
        self._who = who
        self._rates = Rates()
        self._told: set[int] = set()
        self._stop = threading.Event()

    def once(self) -> int:
        return signals.run(self._once, cancel=self._stop.set)

    def watch(self) -> int:
        return signals.run(self._watch, cancel=self._stop.set)

    def _once(self) -> int:
        snapshots = self._look()
        if any(snapshot.get("peers") or "bytes_read" in snapshot for snapshot in snapshots) and not self._stop.wait(
            GLANCE
        ):
            snapshots = self._look()
        self._show(snapshots)
        return 0

    def _watch(self) -> int:
        """Until a signal comes, or until what it was to watch is gone."""
        snapshots = self._look()
        while True:
            self._show(snapshots, over=output.to_terminal())
            if self._stop.wait(EVERY):
                return 0
            try:
                snapshots = self._look()
            except NotFoundError:
                return 0

    def _look(self) -> list[Snapshot]:
        """The programs' answers, rates included. Raises NotFoundError where somebody was asked for who is not there."""
        found = _answers(self._told)
        if self._who is not None:
            found = {which: snapshot for which, snapshot in found.items() if _is(snapshot, self._who)}
            if not found:
                raise _nobody(self._who)
        return [self._rates.add(snapshot) for snapshot in found.values()]

    def _show(self, snapshots: list[Snapshot], *, over: bool = False) -> None:
        if self._events:
            # Not by `emit`, which goes on when the reader is gone: here is nothing else to do then.
            for snapshot in snapshots:
                output.write_text(json.dumps({"event": "status", "schema": output.SCHEMA, **snapshot}) + "\n")
            output.flush()
            return
        shown = lines(snapshots) or ["No share, transfer or mount runs here."]
        if over:
            columns, rows = _size()
            body = "".join(f"{line[: columns - 1]}{_ERASE_LINE}\n" for line in shown[: rows - 1])
            output.write_text(f"{_HOME}{body}{_ERASE_BELOW}")
        else:
            output.write_text("\n".join(shown) + "\n")
        output.flush()


def _answers(told: set[int]) -> dict[running.Found, Snapshot]:
    """What each program says. One that does not answer is named on standard error, once; told: their pids."""
    answers = {}
    for found in running.find():
        try:
            answers[found] = running.ask(found, {"ask": "status"})
        except running.GoneError:
            continue
        except HeadraceError as why:
            if found.pid not in told:
                output.complain(why)
            told.add(found.pid)
    return answers


def _size() -> tuple[int, int]:
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return (80, 24)


# ---- changing ------------------------------------------------------------------------------------------------------


def _change(who: str | None, rates: Mapping[str, float | None], events: output.Events | None) -> None:
    found, snapshot = _the_one(who, shares_only="limit_peer" in rates)
    answer = running.ask(found, {"ask": "limit", **rates})
    now: dict[str, Any] = {name: answer.get(name) for name in ("limit_rate", "limit_peer") if name in answer}
    if events:
        events.emit({"event": "limit", "kind": found.kind, "pid": found.pid, "name": snapshot.get("name"), **now})
        return
    texts = {"limit_rate": "in all" if found.kind == "share" else "", "limit_peer": "each peer"}
    told = ", ".join(f"{human_limit(now.get(name))} {texts[name]}".rstrip() for name in rates)
    output.write_text(f"{_title(found, snapshot)}: {told}\n")


def _the_one(who: str | None, *, shares_only: bool) -> tuple[running.Found, Snapshot]:
    """The program that is meant. Raises NotFoundError, and UsageError where several could be."""
    found = _answers(set())
    if who is not None:
        found = {which: snapshot for which, snapshot in found.items() if _is(snapshot, who)}
    if shares_only and len(found) > 1:
        found = {which: snapshot for which, snapshot in found.items() if which.kind == "share"} or found
    if not found:
        raise _nobody(who)
    if len(found) > 1:
        named = "; ".join(_title(which, snapshot) for which, snapshot in found.items())
        of_that_name = "run here" if who is None else f"answer to {printable(who)}"
        raise UsageError(
            f"{counted(len(found), 'program')} {of_that_name}", hint=f"Name one by its pid or share: {named}."
        )
    return next(iter(found.items()))


def _is(snapshot: Snapshot, who: str) -> bool:
    """Whether a program is meant by `who`; a whole code that somebody pasted means its share, and is not compared."""
    if who.isascii() and who.isdigit() and int(who) == snapshot.get("pid"):
        return True
    share = snapshot.get("share")
    return who in (snapshot.get("name"), snapshot.get("target")) or share in (who.lower(), _public(who))


def _public(who: str) -> str:
    from headrace.protocol.codes import BadCodeError, Code

    try:
        return Code.parse(who.partition("@")[0]).share
    except BadCodeError:
        return ""


def _nobody(who: str | None) -> NotFoundError:
    if who is None:
        return NotFoundError(
            "no share or transfer runs here", hint="It has to run as this user, with this HEADRACE_HOME."
        )
    return NotFoundError(f"nothing that runs here is called {printable(who)}", hint="See headrace status.")


def _title(found: running.Found, snapshot: Snapshot) -> str:
    return f"{found.kind} {printable(str(snapshot.get('name')))} (pid {found.pid})"
