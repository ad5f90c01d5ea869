"""Answers GetBatch: many small files in one exchange. One owner thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import msgspec

from headrace.engine.buffers import Buffers
from headrace.engine.packing import Packing
from headrace.errors import HeadraceError, ProtocolError
from headrace.observe.times import StreamTimes
from headrace.protocol.frames import SESSION_LIMITS
from headrace.protocol.messages import (
    MAX_BATCH_FILE,
    MAX_BATCH_ITEMS,
    MAX_BATCH_SIZE,
    MAX_PART,
    MIB,
    VERSION_SIZE,
    Batch,
    GetBatch,
)
from headrace.protocol.paths import BadPathError
from headrace.storage.chunks import hash_bytes
from headrace.storage.small import SmallReader
from headrace.storage.tree import SharedTree
from headrace.transport.framed import MessageStream

PART: Final = MIB  # bytes of files in one Batch: the first is on its way while the next is being read
# Bytes in a header for the reasons why items failed; the rest of it is plenty for the sizes of all items.
_ROOM_FOR_REASONS: Final = SESSION_LIMITS.header // 2
_REASON_COST: Final = 64  # bytes, beside the sentence


def answer_batch(
    request: GetBatch,
    tree: SharedTree,
    stream: MessageStream,
    buffers: Buffers,
    before_part: Callable[[], object],
    packing: Packing | None = None,
) -> int:
    """Sends the answer; how many bytes of files that were. before_part: called before each, for what others need.
    packing: where the client wants it compressed.

    Raises ProtocolError for what a client may not ask, and what sending raises.
    """
    items = request.items
    if not 0 < len(items) <= MAX_BATCH_ITEMS:
        raise ProtocolError(f"a GetBatch of {len(items)} files; 1 to {MAX_BATCH_ITEMS} are allowed")
    if any(len(version) != VERSION_SIZE for _, version in items):
        raise ProtocolError("a GetBatch with a version token that is none")
    compressor = packing.of_batch(path for path, _ in items) if packing else None
    position = sent = 0
    with SmallReader(tree) as reader:
        while position < len(items):
            before_part()
            # Who is held back by a rate limit holds a small buffer, as with chunks; a larger one, to compress, only
            # while nobody waits for it.
            files, room, packed = MAX_BATCH_FILE if stream.held_back else PART, 0, ""
            if packing and compressor:
                packed = compressor.declines(MAX_PART, request.zstd, packing.link) or ""
                if not packed and stream.held_back and buffers.contended:
                    packed = "memory"
                if not packed:
                    files = room = MAX_PART
            with buffers.acquire(files + room) as view:
                with stream.times.disk:
                    part, filled = _part(request, position, reader, view[:files], stream.times)
                sent += filled
                if sent > MAX_BATCH_SIZE:
                    raise ProtocolError(f"a GetBatch of more than {MAX_BATCH_SIZE} bytes")
                payload = view[:filled]
                if packing and compressor and room:
                    payload, packed = compressor.pack(payload, view[files:], request.zstd, packing.link)
                with packing.sending(len(payload)) if packing else contextlib.nullcontext():
                    stream.send(msgspec.structs.replace(part, packed=packed), payload)
            position += len(part.sizes)
    return sent


def _part(
    request: GetBatch, first: int, reader: SmallReader, view: memoryview, times: StreamTimes
) -> tuple[Batch, int]:
    """The items from `first` on, as many as fit into `view` and a header: at least one. And the length of the payload,
    which lies in `view`."""
    sizes: list[int] = []
    failed: list[int] = []
    codes: list[str] = []
    texts: list[str] = []
    filled, reasons = 0, _ROOM_FOR_REASONS
    items = request.items
    for number in range(first, len(items)):
        path, version = items[number]
        try:
            size = reader.read(path, version, view[filled:])
        except BadPathError as why:
            raise ProtocolError(f"the client sent {why}") from why
        except ProtocolError:
            raise
        except HeadraceError as why:
            reasons -= _REASON_COST + len(why.message.encode())
            if reasons < 0 and sizes:
                break
            failed.append(number)
            codes.append(why.code)
            texts.append(why.message)
            size = 0
        if size is None:
            if not sizes:
                raise ProtocolError(f"a GetBatch for a file of more than {MAX_BATCH_FILE} bytes")
            break
        if size > MAX_BATCH_FILE:
            raise ProtocolError(f"a GetBatch for a file of more than {MAX_BATCH_FILE} bytes")
        sizes.append(size)
        filled += size
    with times.hash:
        digest = hash_bytes(view[:filled])
    return Batch(request.id, first, sizes, failed, codes, texts, digest), filled
