"""Writes the seed corpus: true inputs of each target, for a fuzzer to change. `python -m fuzz.seeds`"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from typing import Final

from blake3 import blake3

from fuzz import writing
from fuzz.run import CORPUS
from fuzz.targets import CODE, CONTENT, CREDENTIAL, FINGERPRINT, TARGETS, VERSION
from headrace.protocol.frames import encode_frame
from headrace.protocol.messages import (
    AuthCredential,
    AuthPake,
    AuthPakeReply,
    Batch,
    Entry,
    Error,
    GetBatch,
    GetBlocks,
    GetChunk,
    GetManifest,
    GetRanges,
    GetTimes,
    Goodbye,
    Granted,
    Hello,
    List,
    ListPart,
    Looked,
    ManifestPart,
    Message,
    Ping,
    Read,
    Stat,
    StatFs,
    Trace,
    Walk,
    Welcome,
    encode,
)
from headrace.protocol.pake import client_exchange, credential_proof, host_exchange
from headrace.protocol.sealed import SealedRecords
from headrace.storage.blocks import pack_places
from headrace.storage.journal import Header, Journal, Record

_FILE: Final = Entry(b"file", "f", size=10, mtime_ns=1, mode=0o644, version=VERSION)
_ENTRIES: Final = [_FILE, Entry(b"d", "d", mode=0o755), Entry(b"l", "l", target=b"../x")]
_LIST: Final = ListPart(1, b"sub", _ENTRIES)
_LAST: Final = ListPart(1, b"sub", [], last=True)
REQUESTS: Final[list[Message]] = [
    Stat(1, b""),
    Stat(2, b"leak"),
    List(3, b"sub"),
    Walk(4, b""),
    Read(5, b"file", 10, 100),
    Ping(6),
    GetManifest(7, b"file", b""),
    GetChunk(8, b"file", b"", 0, 1000, zstd=1),
    GetBatch(9, [(b"sub/small", VERSION)], zstd=3),
    GetBlocks(10, b"file", b"", 0),
    GetRanges(11, b"file", b"", [(0, 5), (9, 100)]),
    StatFs(12, b""),
    Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    GetTimes(13),
    Read(14, b"out/secret", 0, 100),
    Goodbye("done"),
]


def framed(*messages: Message) -> bytes:
    return b"".join(map(encode_frame, messages))


def _journal() -> bytes:
    fd = os.memfd_create("journal")
    journal = Journal(fd)
    journal.start(Header(1000, VERSION, 1, bytes(16)), {0: Record(bytes(32))})
    data = os.pread(fd, 10_000, 0)
    journal.close()
    return data


def seeds() -> Iterator[tuple[str, bytes]]:
    """(target, input)"""
    hello = Hello((7, 8), ["batch", "zstd"], "fuzz")
    client = client_exchange(CODE, FINGERPRINT, bytes)
    host = host_exchange(CODE, FINGERPRINT, bytes)
    proof = credential_proof(CREDENTIAL, FINGERPRINT, bytes(16))
    yield "handshake_host", framed(hello, AuthPake(client.element))
    yield "handshake_host", framed(hello, AuthCredential(bytes(16), bytes(16), proof))
    for point in (bytes(32), b"\1" + bytes(31), b"\xff" * 32, bytes(31) + b"\x80"):
        yield "handshake_host", framed(hello, AuthPake(b"A" + point))
        yield "handshake_client", framed(Welcome(8, [], "fuzz", "h3ad"), AuthPakeReply(b"B" + point))
    yield "handshake_client", framed(Welcome(8, ["batch"], "fuzz", "h3ad"), AuthPakeReply(host.element))
    yield "handshake_client", framed(Welcome(8, ["batch"], "fuzz", "h3ad"), Granted(b"", "share"))
    yield "handshake_client", framed(Error(0, "locked", "wait", retry_after=5.0))
    for request in REQUESTS:
        yield "messages", encode(request)
        yield "requests", framed(request)
    yield "requests", framed(*REQUESTS)
    for message in (hello, _LIST, Looked(1, _FILE), ManifestPart(1, 0, bytes(64)), Error(1, "changed", "so")):
        yield "messages", encode(message)
        yield "frames", framed(message, Ping(1))
    yield "frames", encode_frame(Ping(1), 5) + b"hello" + framed(Ping(2))
    for path in (b"a/b", b"../x", b"a//b", b"/a", b"a/../b", b"x" * 256, b"a\0"):
        yield "paths", path
    yield "listing", framed(_LIST, _LAST)
    yield "listing", framed(_LIST, Looked(1, Entry(b"sub", "d")))
    yield "listing", framed(ListPart(1, b"sub/../..", [_FILE]), _LAST)
    yield "listing", framed(Error(1, "not_found", "no"))
    yield "manifest", framed(ManifestPart(1, 0, bytes(32)), ManifestPart(1, 1, b"", last=True))
    yield "manifest", framed(ManifestPart(1, 0, bytes(2048 * 32)))
    data = b"x" * 1013
    answer = Batch(1, 0, [10, 1000, 3], [], [], [], blake3(data).digest())
    yield "batches", encode_frame(answer, len(data)) + data
    failed = Batch(1, 0, [0, 0, 0], [0, 1, 2], ["changed"] * 3, ["so"] * 3, blake3(b"").digest())
    yield "batches", framed(failed)
    yield "sealed", b"".join(bytes(piece) for piece in SealedRecords(bytes(64), server=True).protect(b"true"))
    yield "sealed", b"\0\1\4\1"
    yield "quic_words", b"\0\0\0\4abcd\x80\0\1\0" + b"\0\0\0\2ef"
    yield "unpack", b"\x28\xb5\x2f\xfd\x20\x05\x29\0\0hello"
    yield "block_sums", pack_places([(10, 77), (50_000, zlib.crc32(CONTENT[50_000:50_032]))])
    yield "block_sums", b""
    yield "discovery", b"\x1d\x02" + b"h3ad" + bytes([192, 168, 1, 20])
    yield "discovery", b"\x1d\x02" + bytes(15) + b"\1" + b"x"
    for data in writing.seeds():
        yield "writing", data
    yield "journal", _journal()
    yield "journal", _journal() + b"torn"


def write() -> None:
    for name in TARGETS:
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
    for name, data in seeds():
        (CORPUS / name / f"seed-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)


if __name__ == "__main__":
    write()
