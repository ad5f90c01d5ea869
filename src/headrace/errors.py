"""Every error headrace raises, in one tree.

Each class has an exit code (the contract of the command line), a stable `code` word (used on the wire and in
`--json` events), and whether running the same command again can help. An instance says in one sentence what
happened and to what (`message`) and in another what to do next (`hint`).

Errors of the operating system and of libraries are mapped to this tree at the boundary of `storage` and
`transport`, once.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class HeadraceError(Exception):
    """What no other class describes, and the root of them all."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = "Run again with -vv to see where it happened."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message.rstrip(".")
        self.hint = self.default_hint if hint is None else hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else f"{self.message}."


class UsageError(HeadraceError):
    """The command or the call was given something that makes no sense."""

    exit_code = 2
    code = "usage"
    default_hint = "See headrace --help."


class NotFoundError(HeadraceError):
    """No such share, or no such path in the share (or, on the host, on this disk)."""

    exit_code = 3
    code = "not_found"
    default_hint = "See what is there with headrace ls."


class RefusedError(HeadraceError):
    """The host or a local check refuses: code, pin or permission."""

    exit_code = 4
    code = "refused"
    default_hint = "Ask whoever shares this folder."


class WrongCodeError(RefusedError):
    """The code does not match the share's."""

    code = "wrong_code"
    default_hint = (
        "Check the code with whoever gave it to you: a share that was started again has another one. "
        "After ten wrong codes the share locks."
    )


class ShareLockedError(RefusedError):
    """Too many wrong codes: the share takes no new peers for a while. retry_after: seconds, 0 where that is unknown."""

    retry_after: float = 0.0
    code = "locked"
    retryable = True
    default_hint = "Wait, then try again with the right code. Peers that paired before can still connect."


class ShareFullError(RefusedError):
    """As many clients use the share as its owner lets in."""

    code = "full"
    retryable = True
    default_hint = "Try again later, or ask for a higher --max-clients."


class CredentialUnknownError(RefusedError):
    """The host does not know this peer's credential (any more); pairing with the code again mends it."""

    code = "credential_unknown"


class CertificateChangedError(RefusedError):
    """The host shows another certificate than the one pinned at first contact."""

    code = "certificate_changed"


class PermissionRefusedError(RefusedError):
    """The host may not read that path, or the share does not allow this."""

    code = "denied"
    default_hint = "The host's user needs permission to read it."


class UnreachableError(HeadraceError):
    """Nobody answers there, or what answers is not headrace."""

    exit_code = 5
    code = "unreachable"
    retryable = True
    default_hint = "Check the address and port, and that headrace share is still running there."


class HostAwayError(UnreachableError):
    """The host did not answer within the time that a call has. What is cached can still be had."""

    code = "away"
    default_hint = "It goes on by itself once the host is back."


class MountError(HeadraceError):
    """This machine cannot mount, or not there."""

    code = "mount"
    default_hint = "See headrace doctor."


class ConnectionLostError(HeadraceError):
    """The connection ended in the middle of something."""

    exit_code = 6
    code = "lost"
    retryable = True
    default_hint = "Run the same command again to resume."


class EndedByHostError(ConnectionLostError):
    """The host said that it ends the connection: trying again at once would change nothing."""

    code = "ended"


class NoCommonVersionError(HeadraceError):
    """The two sides speak no common protocol version."""

    exit_code = 7
    code = "version"
    default_hint = "Update headrace on the older side, or drop --protocol."


class LocalDiskError(HeadraceError):
    """This machine's disk does not take or give the bytes."""

    exit_code = 8
    code = "disk"
    default_hint = "Check the destination's permissions and free space, then run the same command again to resume."


class LocalFileError(LocalDiskError):
    """This machine's disk does not take one file or folder, and may well take the others."""

    default_hint = "Look at what is there at the destination, then run the same command again."


class IntegrityError(HeadraceError):
    """Bytes do not match their hash, twice."""

    exit_code = 9
    code = "integrity"
    default_hint = "The file was not written. The host's disk or memory may be faulty; run again to try once more."


class SomeFailedError(HeadraceError):
    """The rest arrived, some files did not."""

    exit_code = 10
    code = "some_failed"
    default_hint = "Each failed file is named above; run the same command again to try those."


class SourceChangedError(HeadraceError):
    """A file on the host changed while it was being read. Always about one file, so exit code 10."""

    exit_code = 10
    code = "changed"
    retryable = True
    default_hint = "Run the same command again when it is quiet."


class DifferentError(HeadraceError):
    """A different file is at the destination already and may not be replaced. About one file, exit code 10."""

    exit_code = 10
    code = "different"
    default_hint = "Use --on-exist overwrite or --on-exist rename."


class DestinationExistsError(HeadraceError):
    """The destination exists and `--on-exist fail` was given, or it is of a kind that cannot be replaced."""

    exit_code = 11
    code = "exists"
    default_hint = "Choose another destination, or another --on-exist."


class ProtocolError(HeadraceError):
    """The peer broke the protocol: a malformed frame, a lie about a length, a message out of turn."""

    code = "protocol"
    default_hint = "The other side is faulty or hostile; nothing more was read from it."


class RemoteIOError(HeadraceError):
    """The host could not read its own file. About one file, exit code 10."""

    exit_code = 10
    code = "remote_io"
    retryable = True
    default_hint = "Check the host's disk."


class RemoteDiskError(HeadraceError):
    """The host's disk does not take what is written into the share."""

    exit_code = 8
    code = "remote_disk"
    default_hint = "Make room on the host's disk, then run the same command again to resume."


class RemoteFileError(RemoteDiskError):
    """The host's disk does not take one file or folder, and may well take the others."""

    code = "remote_file"
    default_hint = "Look at what is there on the host, then run the same command again."


class StoppedError(HeadraceError):
    """The transfer was cancelled from this side."""

    exit_code = 130
    code = "stopped"
    retryable = True
    default_hint = "Run the same command again to resume."


def _all_classes(root: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [root] + [found for child in root.__subclasses__() for found in _all_classes(child)]


BY_CODE: dict[str, type[HeadraceError]] = {cls.code: cls for cls in _all_classes(HeadraceError) if "code" in vars(cls)}


# What a host may tell a client. The other words are about the client's own machine, or for itself to find out: a host
# that sends one wants the client to end with an exit code that means something else.
FROM_HOST: dict[str, type[HeadraceError]] = {
    cls.code: cls
    for cls in (
        HeadraceError,
        NotFoundError,
        RefusedError,
        WrongCodeError,
        ShareLockedError,
        ShareFullError,
        CredentialUnknownError,
        PermissionRefusedError,
        NoCommonVersionError,
        SourceChangedError,
        DestinationExistsError,
        ProtocolError,
        RemoteIOError,
        RemoteDiskError,
        RemoteFileError,
    )
}


def printable(text: str, limit: int = 300) -> str:
    """`text` from a peer or a disk, made safe to show on a terminal: control characters escaped, length cut."""
    if text.isprintable() and len(text) <= limit:  # nearly always, and this is asked for every file
        return text
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def system_word(error: BaseException) -> str | None:
    """What the system called it, such as ENOSPC, where an error of the system is behind `error`; else None."""
    cause: BaseException | None = error
    for _ in range(5):
        if isinstance(cause, OSError):
            return errno.errorcode.get(cause.errno or 0)
        cause = cause.__cause__ if cause else None
    return None


def from_wire(code: str, message: str) -> HeadraceError:
    """The error a host reported. A code that no host may send becomes the root class; the text is made printable."""
    cls = FROM_HOST.get(code, HeadraceError)
    return cls(printable(message.rstrip(".")) or "the other side reported an error")
