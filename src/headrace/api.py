"""`headrace.share`: the host as a context manager."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from headrace.client.target import parse_code
from headrace.host.server import ShareServer


def share(
    *paths: str | os.PathLike[str],
    port: int = 0,
    bind: str = "",
    code: str | None = None,
    name: str | None = None,
    home: str | os.PathLike[str] | None = None,
    **more: Any,
) -> ShareServer:
    """Shares folders or files from this process for as long as the `with` block runs; `.target` is what to connect to.

    port: 0 picks a free one. bind: an address to listen on, empty for all. code: None makes a fresh one. home: where
    the identity lives; default as in `headrace.config.home`. more: see host.server.ShareServer. Raises
    NotFoundError, PermissionRefusedError, UsageError (port in use), LocalDiskError.
    """
    return ShareServer(
        paths,
        port=port,
        bind=bind,
        code=None if code is None else parse_code(code),
        name=name,
        home=None if home is None else Path(home),
        **more,
    )
