"""headrace: share a folder, and list, read or copy it from another machine, with nothing in between but a short code.

with headrace.share("footage", bind="127.0.0.1") as shared:
    print(shared.target)

with headrace.connect("7k2m-xq4c-9dht@192.168.1.20:7420") as remote:
    for entry in remote.ls():
        print(entry.path, entry.size)
    with remote.open("day1/a.mov") as file:
        file.seek(1_000_000)
        file.read(4096)
    remote.get("day1", "copies/day1")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace._version import __version__

if TYPE_CHECKING:
    from headrace.api import share
    from headrace.client.file import RemoteFile
    from headrace.client.get import GetResult
    from headrace.client.remote import FileInfo, RemoteShare, connect
    from headrace.errors import HeadraceError
    from headrace.host.server import ShareServer

_HOMES = {
    "FileInfo": "headrace.client.remote",
    "GetResult": "headrace.client.get",
    "HeadraceError": "headrace.errors",
    "RemoteFile": "headrace.client.file",
    "RemoteShare": "headrace.client.remote",
    "ShareServer": "headrace.host.server",
    "connect": "headrace.client.remote",
    "share": "headrace.api",
}

__all__ = [
    "FileInfo",
    "GetResult",
    "HeadraceError",
    "RemoteFile",
    "RemoteShare",
    "ShareServer",
    "__version__",
    "connect",
    "share",
]


def __getattr__(name: str) -> Any:
    """Imports on first use: `headrace --version` and programs that only connect do not pay for the rest."""
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
