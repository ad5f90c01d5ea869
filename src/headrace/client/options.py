"""What can be asked of a transfer, and what it answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from headrace.engine.buffers import DEFAULT_LIMIT, check_limit
from headrace.engine.compress import check_level
from headrace.engine.plan import OnExist
from headrace.errors import HeadraceError, UsageError
from headrace.protocol.messages import HOST_DECIDES, NOT_PACKED
from headrace.storage.platform import platform_io
from headrace.transport.zerocopy import wants_clear


class Links(enum.StrEnum):
    """Which symlinks are made: those that stay inside the destination, all, or none."""

    SAFE = "safe"
    ALL = "all"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class GetOptions:
    """connections: how many for chunks; None chooses. streams: chunk requests in flight, on all of them together; None
    adapts to the path. retry_for: seconds for which a host may be gone in the middle of it; 0: not at all.
    buffers: memory for chunks, in bytes.

    data_plane: `tls`, or `clear`: chunks are not encrypted, only checked. The host must allow it.
    io: how files are written: `auto`, or one of storage.platform.CHOICES.

    content_addressing: chunks are compared with their hashes, those that lie on this disk are not fetched, and what
    came is remembered for that. Without it TLS alone protects what comes, so it goes with `tls` only.
    cache_entries: chunks that the index remembers at most; None for the default.

    fsync: what came is on disk before the transfer says that it is done, and a file of several chunks before it gets
    its name. Without it a power cut can take what was done, and leave such a file with zeros.

    compress: -1 has the host compress where that is faster, 0 never, 1 to 19 always, at that level of zstd. Chunks in
    the clear are never compressed.
    """

    on_exist: OnExist = OnExist.SKIP_SAME
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dry_run: bool = False
    links: Links = Links.SAFE
    checksum: bool = False
    connections: int | None = None
    streams: int | None = None
    retry_for: float = 60.0
    buffers: int = DEFAULT_LIMIT
    data_plane: str = "tls"
    io: str = "auto"
    content_addressing: bool = True
    cache_entries: int | None = None
    compress: int = HOST_DECIDES
    fsync: bool = True

    def __post_init__(self) -> None:
        """Words become what they mean; UsageError for one that means nothing, never a silent default."""
        check_limit(self.buffers)
        if check_level(self.compress) > NOT_PACKED and wants_clear(self.data_plane):
            raise UsageError(
                "chunks in the clear are not compressed", hint="Leave --compress or --data-plane clear out."
            )
        if wants_clear(self.data_plane) and not self.content_addressing:
            raise UsageError(
                "chunks in the clear are only protected by their hashes",
                hint="Leave --no-content-addressing or --data-plane clear out.",
            )
        if self.io != "auto":  # what is not to be had shows before anybody is called
            platform_io(self.io).close()
        try:
            object.__setattr__(self, "on_exist", OnExist(self.on_exist))
            object.__setattr__(self, "links", Links(self.links))
        except ValueError as why:
            raise UsageError(f"an option cannot be used: {why}") from why


@dataclass(frozen=True, slots=True)
class GetResult:
    """What a transfer did. Sizes in bytes; the fields are those of the `done` event.

    bytes_received: of chunks and batches, as they crossed the network. bytes_saved: how many more they are without
    compression.
    compression: how many answers came compressed (`zstd`), or why not, see engine.compress.Reason.

    error: set when failed > 0; what the exit code comes from.
    """

    files: int
    bytes: int
    bytes_received: int
    bytes_reused: int
    bytes_wire: int
    seconds: float
    first_byte_ms: float | None
    transport: str
    protocol: int
    io: str
    data_plane: str
    streams: int
    failed: int
    bytes_saved: int = 0
    compression: dict[str, int] = field(default_factory=dict)
    error: HeadraceError | None = None
