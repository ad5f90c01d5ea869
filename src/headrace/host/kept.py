"""Hashes that outlive a share; for the share itself and for its workers."""

from __future__ import annotations

import logging
from pathlib import Path

from headrace.storage.manifest import HashStore

log = logging.getLogger("headrace.host")


def kept_hashes(home: Path) -> HashStore | None:
    """Where they are kept below `home`; None where they cannot be."""
    try:
        from headrace.storage.manifest_store import ManifestStore  # with SQLite; a share of small files needs neither
    except ImportError as why:  # a Python without SQLite
        log.warning("hashes of files do not outlive this share: %s", why)
        return None
    return ManifestStore(home)
