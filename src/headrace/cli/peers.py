"""`headrace peers`: whom this machine knows from earlier, and how to forget them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

import click

from headrace import config
from headrace.cli import options, output
from headrace.errors import NotFoundError, UsageError, printable
from headrace.protocol.codes import BadCodeError, Code

if TYPE_CHECKING:
    from headrace.transport.trust import Record

SHOWN = 8  # hex digits of a peer's id that are shown; enough to tell peers apart


class Peers(options.Command, click.Group):
    """A group that lists when it is given no further command."""


@click.group("peers", cls=Peers, invoke_without_command=True)
@options.of("peers")
@click.pass_context
def peers(context: click.Context) -> None:
    """List the hosts this machine has pinned and the peers that paired with its shares.

    \b
    headrace peers
    headrace peers forget 7k2m
    """
    if context.invoked_subcommand is None:
        _list(as_json=context.ensure_object(options.Common).json)


@peers.command("forget")
@click.argument("who", metavar="SHARE_OR_PEER")
def forget(who: str) -> None:
    """Forget a pinned host by its share (the code's first group), or a paired peer by its id.

    A host that was set up anew has to be forgotten before it can be trusted again. A peer that is forgotten has to
    give the code again. The beginning of a peer's id will do.
    """
    from headrace.transport.trust import Peers as Paired
    from headrace.transport.trust import Pins

    home = config.home()
    share = _share_of(who)
    pins = Pins(home)
    if pins.get(share) and pins.forget(share):
        output.write_text(f"forgot the host of share {share}\n")
        return
    paired = Paired(home)
    matching = [record.peer for record in paired.all() if who and record.peer.startswith(who.lower())]
    if len(matching) > 1:
        raise UsageError(f"{len(matching)} peers begin with {printable(who)}", hint="Give more of the id.")
    if not matching or not paired.forget(matching[0]):
        raise NotFoundError(f"nothing is known by the name {printable(who)}", hint="See headrace peers.")
    output.write_text(f"forgot the peer {matching[0][:SHOWN]}\n")


def _share_of(who: str) -> str:
    """The share's name, also from a whole code that somebody pasted."""
    try:
        return Code.parse(who.partition("@")[0]).share
    except BadCodeError:
        return who.lower()


def _list(*, as_json: bool) -> None:
    from headrace.transport.trust import Peers as Paired
    from headrace.transport.trust import Pins

    home = config.home()
    hosts, paired = Pins(home).all(), Paired(home).all()
    if as_json:
        for kind, records in (("host", hosts), ("peer", paired)):
            for record in records:
                output.write_text(json.dumps(_public(kind, record)) + "\n")
        return
    output.write_text(_table("Hosts pinned by this machine", [(record.share, record) for record in hosts]))
    output.write_text(_table("Peers paired with its shares", [(record.peer[:SHOWN], record) for record in paired]))


def _public(kind: str, record: Record) -> dict[str, str | float]:
    """Without the credential."""
    return {
        "kind": kind,
        "share": record.share,
        "peer": record.peer,
        "label": record.label,
        "since": record.since,
        "fingerprint": record.fingerprint,
    }


def _table(title: str, rows: list[tuple[str, Record]]) -> str:
    if not rows:
        return f"{title}: none\n"
    lines = [f"{title}:"]
    for name, record in sorted(rows, key=lambda row: row[1].since):
        since = f"{datetime.fromtimestamp(record.since):%Y-%m-%d %H:%M}"
        lines.append(f"  {name:<{SHOWN}}  since {since}  {printable(record.label)}")
    return "\n".join(lines) + "\n"
