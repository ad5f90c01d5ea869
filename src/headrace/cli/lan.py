"""`headrace status --lan`: the shares that announce themselves on the local network."""

from __future__ import annotations

from headrace import config
from headrace.cli import output
from headrace.cli.text import counted


def show_lan(events: output.Events | None) -> int:
    """Looks for a few seconds, then writes a line for each. Raises UnreachableError where nobody can be asked."""
    from headrace.transport import discovery
    from headrace.transport.trust import Pins

    pins = Pins(config.home())
    found = discovery.browse()
    for one in found:
        known = pins.get(one.group) is not None
        if events:
            events.emit(
                {
                    "event": "found",
                    "share": one.group,
                    "addresses": list(one.hosts),
                    "port": one.port,
                    "paired": known,
                }
            )
        else:
            note = "  (paired with this machine)" if known else ""
            output.write_text(f"{one.group}  port {one.port}  {', '.join(one.hosts)}{note}\n")
    if not events:
        output.note(f"{counted(len(found), 'share')} found; only their owners can tell the codes")
    output.flush()
    return 0
