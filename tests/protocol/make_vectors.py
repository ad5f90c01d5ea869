"""Writes tests/vectors/*.json, the golden bytes of the wire. Run it from the repository's root, and only after a
deliberate change: python -m tests.protocol.make_vectors

A byte string stands as {"bin": hex}. What may change in these files is that frames are added.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
from spake2 import SPAKE2_A, SPAKE2_B

from headrace.protocol import messages as m
from headrace.protocol.frames import PREFIX, encode_frame
from headrace.protocol.session import Versions

from .handshakes import CODE, FINGERPRINT, OTHER_CODE, Policy, make_client, make_host, talk

VECTORS: Final = Path(__file__).parent.parent / "vectors"

VERSION: Final = bytes(range(0x10, 0x20))
BYTES: Final = b"headwater\n"
BYTES_HASH: Final = bytes.fromhex("31a0e4331d7b350d9ec4f8bce05f682bc57485cfe97a3f41512382695f306b8b")  # BLAKE3
# A thousand zeros as a zstd frame: magic number, single segment of 1000 bytes, one last block of one byte repeated.
ZEROS: Final = bytes.fromhex("28b52ffd 60e802 431f00 00")
FILE: Final = m.Entry(b"take-1.mov", "f", 9_000_000_000, 1_700_000_000_123_456_789, 0o644, b"", VERSION, sparse=True)

TRANSFER: Final = bytes(range(0x40, 0x50))
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # the example of W3C Trace Context

FRAMES: Final[list[tuple[str, m.Message, bytes]]] = [
    ("the client speaks phases 7 and 8", m.Hello((7, 8), ["sparse"], "headrace 1.0"), b""),
    ("a data connection, narrowed to phase 8", m.Hello((8, 8), ["sparse"], "headrace 1.0", "data"), b""),
    ("a client that would seal", m.Hello((8, 8), ["sealed"], "headrace 1.0", seal=bytes(range(32))), b""),
    ("the host chose phase 8", m.Welcome(8, ["sparse"], "headrace 1.0", "7k2m"), b""),
    ("the client's element (not a valid one)", m.AuthPake(b"A" + bytes(32)), b""),
    ("the host's element (not a valid one)", m.AuthPakeReply(b"B" + bytes(32)), b""),
    ("the client's confirmation", m.AuthPakeConfirm(bytes(range(32))), b""),
    ("a peer that paired before", m.AuthCredential(bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 64))), b""),
    ("in, by credential", m.Granted(b"", "footage"), b""),
    ("in, and from here on sealed", m.Granted(b"", "footage", bytes(range(32, 64))), b""),
    ("what is the root of the share?", m.Stat(1, b""), b""),
    ("the root", m.StatReply(1, m.Entry(b"footage", "d", mtime_ns=1_700_000_000_000_000_000, mode=0o755)), b""),
    ("what is in the directory `day 1`?", m.List(2, b"day 1"), b""),
    (
        "a large sparse file, a symlink whose name is no UTF-8, a socket; more follows",
        m.ListPart(2, b"day 1", [FILE, m.Entry(b"latest\xff", "l", target=b"../take-9.mov"), m.Entry(b"sock", "o")]),
        b"",
    ),
    ("the end of that listing", m.ListPart(2, b"day 1", [], last=True), b""),
    ("a directory within a walk that the host may not read", m.ListPart(3, b"private", [], error="denied"), b""),
    ("ten bytes at 4 GiB, of that version of the file only", m.Read(4, b"day 1/take-1.mov", 1 << 32, 10, VERSION), b""),
    ("the ten bytes", m.Data(4), BYTES),
    ("none: the offset lies at or past the end", m.Data(4), b""),
    ("are you there?", m.Ping(5), b""),
    ("yes", m.Pong(5), b""),
    ("one request failed, the connection goes on", m.Error(4, "changed", "day 1/take-1.mov changed"), b""),
    ("no common phase: the host speaks 8 alone", m.Error(0, "version", "no common phase", versions=(8, 8)), b""),
    ("locked for a minute and a half", m.Error(0, "locked", "too many wrong codes", retry_after=90.0), b""),
    ("no reason given", m.Goodbye(), b""),
    ("the share is stopped", m.Goodbye("stopped"), b""),
    ("the whole share", m.Walk(6, b""), b""),
    ("the hashes of a file", m.GetManifest(7, b"day 1/take-1.mov", VERSION), b""),
    ("the first two hashes", m.ManifestPart(7, 0, BYTES_HASH + bytes(32)), b""),
    ("the end of the manifest", m.ManifestPart(7, 2, b"", last=True), b""),
    ("a range of ten bytes", m.GetChunk(8, b"day 1/take-1.mov", VERSION, 1 << 32, 10), b""),
    ("the ten bytes and their hash", m.Chunk(8, BYTES_HASH), BYTES),
    ("a hole: no payload, the hash is that of the zeros", m.Chunk(9, bytes(range(32)), zero=True), b""),
    (
        "a range of 2000 bytes, compressed if that is faster",
        m.GetChunk(11, b"log", VERSION, 0, 2000, m.HOST_DECIDES),
        b"",
    ),
    ("its first thousand, a frame of zeros", m.Chunk(11, bytes(range(32)), size=1000, packed="zstd"), ZEROS),
    ("two small files, at level 3", m.GetBatch(12, [(b"a", VERSION), (b"b", VERSION)], 3), b""),
    ("both, compressed", m.Batch(12, 0, [400, 600], [], [], [], bytes(range(32)), "zstd"), ZEROS),
    ("two small files", m.GetBatch(10, [(b"day 1/notes", VERSION), (b"day 1/gone", VERSION)]), b""),
    (
        "the first, ten bytes long, and why there is no second one",
        m.Batch(10, 0, [10, 0], [1], ["not_found"], ["no such path in the share: day 1/gone"], BYTES_HASH),
        BYTES,
    ),
    ("what is the third chunk made of?", m.GetBlocks(11, b"day 1/take-1.mov", VERSION, 2), b""),
    (
        "a chunk of two blocks, the second one short, and one place where a mark is",
        m.Blocks(11, bytes.fromhex("c71c00113ee19fe8"), [b"\x07\xd1"], bytes.fromhex("00000400190a55ad")),
        b"",
    ),
    ("five bytes twice", m.GetRanges(12, b"day 1/notes", VERSION, [(0, 5), (4096, 5)]), b""),
    ("and they are these", m.Chunk(12, BYTES_HASH), BYTES),
    ("say what changes", m.Watch(11), b""),
    ("the number of that watch; nothing changed yet", m.Changed(11, 77), b""),
    ("the first 1000 entries of `day 1`, and a watch on it", m.Look(12, b"day 1", 77, 1000), b""),
    (
        "those were all, and it is watched",
        m.Looked(12, m.Entry(b"day 1", "d", mtime_ns=1_700_000_000_000_000_000, mode=0o755), watched=True),
        b"",
    ),
    (
        "a file was written, another came, a directory is watched no more",
        m.Changed(11, 77, [b"day 1/take-1.mov"], [b"day 1/take-2.mov"], [b"day 0"]),
        b"",
    ),
    ("changes were missed", m.Changed(11, 77, overflow=True), b""),
    ("how full is that disk?", m.StatFs(13, b""), b""),
    ("a tenth of 2 TB is free", m.StatFsReply(13, 2 * 10**12, 2 * 10**11, 10**11, 10**6, 10**5), b""),
    ("to which trace the requests of this stream belong", m.Trace(TRACEPARENT), b""),
    ("where did the host's time go?", m.GetTimes(14), b""),
    (
        "into its disk, and it lets this peer have 1 MiB/s",
        m.Times(14, 9.5, 0.5, 0.25, 1.0, 0.0, 0.75, 1048576.0),
        b"",
    ),
    ("a transfer into the share begins", m.PutBegin(15, TRANSFER), b""),
    ("it may; and this run of the machine is called so", m.PutReady(15, VERSION), b""),
    (
        "a folder, and a symlink in it",
        m.PutNames(
            16,
            TRANSFER,
            [b"day 2", b"day 2/latest"],
            [m.Entry(b"", "d", mode=0o750), m.Entry(b"", "l", target=b"take-9.mov")],
        ),
        b"",
    ),
    (
        "the folder was there; the symlink leads outside",
        m.PutDone(16, failed=[1], codes=["refused"], texts=["no"]),
        b"",
    ),
    (
        "permissions and time of that folder",
        m.PutAttributes(17, TRANSFER, [b"day 2"], [m.Entry(b"", "d", mtime_ns=1_700_000_000_000_000_000, mode=0o750)]),
        b"",
    ),
    (
        "two small files, the second one empty",
        m.PutFiles(
            18,
            TRANSFER,
            [b"day 2/notes", b"day 2/empty"],
            [m.Entry(b"", "f", 10, 1, 0o644, b"", VERSION), m.Entry(b"", "f", 0, 1, 0o600, b"", VERSION)],
            BYTES_HASH,
        ),
        BYTES,
    ),
    ("both are there; another client's notes were replaced", m.PutDone(18, replaced=[0]), b""),
    (
        "a large file, which is a new version of another one",
        m.PutOpen(19, TRANSFER, b"day 2/take-1.mov", msgspec.structs.replace(FILE, name=b""), b"day 1/take-1.mov"),
        b"",
    ),
    ("the first two chunks and the fifth came before", m.PutOpened(19, [(0, 2), (4, 1)], offer=True, others=1), b""),
    (
        "are chunks 2 and 3 on the host's disk?",
        m.PutOffer(20, TRANSFER, b"day 2/take-1.mov", VERSION, 2, BYTES_HASH + bytes(32)),
        b"",
    ),
    ("the second of them is not", m.PutWanted(20, [3]), b""),
    (
        "the first ten bytes of a chunk, which is longer",
        m.PutChunk(21, TRANSFER, b"day 2/take-1.mov", VERSION, 3, bytes(range(32))),
        BYTES,
    ),
    (
        "the next thousand, a frame of zeros",
        m.PutChunk(22, TRANSFER, b"day 2/take-1.mov", VERSION, 3, bytes(range(32)), at=10, size=1000, packed="zstd"),
        ZEROS,
    ),
    (
        "a chunk of zeros",
        m.PutChunk(23, TRANSFER, b"day 2/take-1.mov", VERSION, 5, bytes(range(32)), zero=True),
        b"",
    ),
    ("it is in its place, and the host knew one like it", m.PutStored(23, known=True), b""),
    ("that was all of the file", m.PutCommit(24, TRANSFER, b"day 2/take-1.mov", VERSION), b""),
    ("it has its name; another client writes there as well", m.PutCommitted(24, others=1), b""),
    ("the file is not wanted any more", m.PutLeave(25, TRANSFER, b"day 2/take-2.mov", VERSION, discard=True), b""),
    ("all is sent; tell when it is on the disk", m.PutEnd(26, TRANSFER), b""),
    ("it is; one file was replaced by another client since", m.PutEnded(26, VERSION, [b"day 2/notes"]), b""),
]


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def described(meaning: str, header: bytes, payload: bytes = b"", phase: int = 7) -> dict[str, Any]:
    fields = plain(msgspec.msgpack.decode(header))
    frame = PREFIX.pack(len(header), len(payload)) + header + payload
    return {"meaning": meaning, "phase": phase, "header": fields, "payload": payload.hex(), "frame": frame.hex()}


def phase_of(message: m.Message) -> int:
    bulk = (m.Walk, m.GetManifest, m.ManifestPart, m.GetChunk, m.Chunk, m.GetBatch, m.Batch)
    blocks = (m.GetBlocks, m.Blocks, m.GetRanges)
    mount = (m.Watch, m.Changed, m.Look, m.Looked, m.StatFs, m.StatFsReply)
    times = (m.Trace, m.GetTimes, m.Times)
    puts = (*m.PUTS, *m.PUT_ANSWERS)
    return m.PHASE_BULK if isinstance(message, (*bulk, *blocks, *mount, *times, *puts)) else m.PHASE_BASELINE


def frames() -> dict[str, Any]:
    known = [described(meaning, m.encode(message), payload, phase_of(message)) for meaning, message, payload in FRAMES]
    pack = msgspec.msgpack.encode
    skipped = [
        described("a message of a later version: skipped", pack({"type": "weather", "id": 1, "rain": [1, None]})),
        described("the same with a payload: skipped as well", pack({"type": "weather", "id": 2}), BYTES),
    ]
    extended = [
        described("a field of a later version: skipped", pack({"type": "ping", "urgent": {"a": b"b"}, "id": 5}))
    ]
    return {"known": known, "unknown_types": skipped, "unknown_fields": extended}


def counting(first: int) -> Any:
    """Entropy that is none: bytes counting up from `first`."""
    return lambda count: bytes((first + n) % 256 for n in range(count))


def conversation(meaning: str, policy: Policy, client: dict[str, Any], host: dict[str, Any]) -> dict[str, Any]:
    said = talk(make_client(entropy=counting(0), **client), make_host(policy, entropy=counting(64), **host)).said
    lines = [
        {"from": side, "header": plain(msgspec.msgpack.decode(m.encode(message))), "frame": encode_frame(message).hex()}
        for side, message in said
    ]
    return {"meaning": meaning, "frames": lines}


def handshake() -> dict[str, Any]:
    id_a = b"headrace client 7k2m " + FINGERPRINT
    id_b = b"headrace host 7k2m " + FINGERPRINT
    client = SPAKE2_A(b"xq4c9dht", idA=id_a, idB=id_b, entropy_f=counting(0))
    host = SPAKE2_B(b"xq4c9dht", idA=id_a, idB=id_b, entropy_f=counting(64))
    client_element, host_element = client.start(), host.start()
    paired = make_client(entropy=counting(0))
    policy = Policy()
    talk(paired, make_host(policy, entropy=counting(64)))
    assert paired.agreed and paired.agreed.keys
    keys = paired.agreed.keys
    agents = {"agent": "headrace 1.0", "features": ("sparse",)}  # later features change no recorded bytes
    known = {"code": None, "peer": keys.peer, "credential": keys.credential}
    return {
        "code": CODE.text,
        "fingerprint": FINGERPRINT.hex(),
        "client_entropy": counting(0)(64).hex(),
        "host_entropy": counting(64)(64).hex(),
        "id_a": id_a.hex(),
        "id_b": id_b.hex(),
        "client_element": client_element.hex(),
        "host_element": host_element.hex(),
        "spake2_key": client.finish(host_element).hex(),
        "client_mac": keys.client_mac.hex(),
        "host_mac": keys.host_mac.hex(),
        "peer": keys.peer.hex(),
        "credential": keys.credential.hex(),
        "conversations": [
            conversation("first contact", Policy(), agents, agents),
            conversation("paired before", policy, agents | known | {"role": "data"}, agents),
            conversation("a wrong code", Policy(), agents | {"code": OTHER_CODE}, agents),
            conversation("a peer that the host does not know", Policy(), agents | known, agents),
            conversation("a locked share", Policy(locked=90.0), agents, agents),
            conversation(
                "no common phase",
                Policy(),
                agents | {"versions": Versions(9, 9)},
                agents | {"versions": Versions(7, 8)},
            ),
        ],
    }


def rendered() -> dict[str, str]:
    """The files' names and their text."""
    files = {"frames.json": frames(), "handshake.json": handshake()}
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in files.items()}


def main() -> None:
    VECTORS.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (VECTORS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
