"""What first contact taught: the client's pinned hosts, the host's paired peers. JSON files of mode 0600.

A credential counts only together with the code it came from: beside it lies HMAC(credential, code), so the right
share with another code pairs anew, and neither file holds a code.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.errors import LocalDiskError
from headrace.protocol.codes import Code
from headrace.protocol.pake import PairingKeys, same

MAX_RECORDS: Final = 10_000
_HINT: Final = "Check its permissions and free space, or set HEADRACE_HOME."


def _code_check(credential: bytes, code: Code) -> str:
    return hmac.digest(credential, b"headrace code\0" + code.share.encode() + code.secret.encode(), "sha256").hex()


@dataclass(frozen=True, slots=True)
class Record:
    """One pairing. All bytes in hex; times in seconds since 1970.

    share: the public group of the code. fingerprint: of the host's certificate. label: for people, the host's
    address on a client and the peer's agent on a host.
    """

    peer: str
    credential: str = field(repr=False)
    code_check: str
    share: str
    fingerprint: str
    label: str
    since: float

    @classmethod
    def of(cls, keys_peer: bytes, credential: bytes, code: Code, fingerprint: bytes, label: str) -> Record:
        return cls(
            peer=keys_peer.hex(),
            credential=credential.hex(),
            code_check=_code_check(credential, code),
            share=code.share,
            fingerprint=fingerprint.hex(),
            label=label,
            since=time.time(),
        )

    def is_for(self, code: Code) -> bool:
        """Whether this pairing was made with this very code."""
        return same(self.code_check.encode(), _code_check(bytes.fromhex(self.credential), code).encode())


class _Records:
    """A JSON object of records on disk. Thread-safe and safe between processes: every change is made under a lock
    file and replaces the whole file. Raises LocalDiskError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, Record]:
        try:
            mode = stat.S_IMODE(self._path.stat().st_mode)
            records = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Record])
            for record in records.values():
                bytes.fromhex(record.peer + record.credential + record.fingerprint)
        except FileNotFoundError:
            return {}
        except OSError as why:
            raise LocalDiskError(f"{self._path} cannot be read ({why.strerror})", hint=_HINT) from why
        except (msgspec.DecodeError, ValueError, RecursionError) as why:
            raise LocalDiskError(
                f"{self._path} is damaged", hint="Move it away; pairings in it then have to be made again."
            ) from why
        if mode & 0o077:
            raise LocalDiskError(
                f"the credentials in {self._path} can be read by others (mode {mode:03o})",
                hint=f"Run: chmod 600 {self._path}",
            )
        return records

    def stamp(self) -> tuple[int, ...]:
        """Another one whenever the file was replaced; empty while there is none."""
        try:
            st = self._path.stat()
        except FileNotFoundError:
            return ()
        except OSError as why:
            raise LocalDiskError(f"{self._path} cannot be read ({why.strerror})", hint=_HINT) from why
        return st.st_ino, st.st_mtime_ns, st.st_size

    def change(self, edit: Callable[[dict[str, Record]], None]) -> None:
        with self._locked():
            records = self.load()
            edit(records)
            while len(records) > MAX_RECORDS:
                del records[min(records, key=lambda key: records[key].since)]
            temporary = self._path.with_suffix(".tmp")
            body = json.dumps({key: asdict(record) for key, record in records.items()}, indent=1)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as why:
            raise LocalDiskError(f"{self._path.parent} cannot be written ({why.strerror})", hint=_HINT) from why
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        except OSError as why:
            raise LocalDiskError(f"{self._path} cannot be written ({why.strerror})", hint=_HINT) from why
        finally:
            os.close(lock)


class Pins:
    """The client's side: one pinned host for each share, by the code's public group."""

    def __init__(self, home: Path) -> None:
        self._records = _Records(home / "pins.json")

    def get(self, share: str) -> Record | None:
        return self._records.load().get(share)

    def all(self) -> list[Record]:
        return list(self._records.load().values())

    def add(self, keys: PairingKeys, code: Code, fingerprint: bytes, label: str) -> None:
        record = Record.of(keys.peer, keys.credential, code, fingerprint, label)
        self._records.change(lambda records: records.__setitem__(code.share, record))

    def forget(self, share: str) -> bool:
        """Whether there was such a pin."""
        found: list[Record | None] = []
        self._records.change(lambda records: found.append(records.pop(share, None)))
        return found[0] is not None


class Peers:
    """The host's side: the peers that paired, by peer id. Thread-safe. Kept in memory, and read again whenever the file
    was replaced: another process may have paired one, or forgotten one."""

    def __init__(self, home: Path) -> None:
        self._records = _Records(home / "peers.json")
        self._lock = threading.Lock()
        self._known: dict[str, Record] = {}
        self._stamp: tuple[int, ...] = ()
        self._current()

    def _current(self) -> dict[str, Record]:
        with self._lock:
            stamp = self._records.stamp()
            if stamp != self._stamp:
                self._known, self._stamp = self._records.load(), stamp
            return self._known

    def credential(self, peer: bytes, code: Code) -> bytes | None:
        """The peer's credential if it paired with this very code."""
        record = self._current().get(peer.hex())
        return bytes.fromhex(record.credential) if record and record.is_for(code) else None

    def all(self) -> list[Record]:
        return list(self._records.load().values())

    def add(self, peer: bytes, credential: bytes, code: Code, fingerprint: bytes, label: str) -> None:
        """Raises LocalDiskError when it cannot be stored; it counts until the process ends all the same."""
        record = Record.of(peer, credential, code, fingerprint, label)
        with self._lock:
            self._known = {**self._known, record.peer: record}
        self._records.change(lambda records: records.__setitem__(record.peer, record))

    def forget(self, peer: str) -> bool:
        """Whether there was such a peer. A running share notices within its next new connection."""
        found: list[Record | None] = []
        self._records.change(lambda records: found.append(records.pop(peer, None)))
        return found[0] is not None
