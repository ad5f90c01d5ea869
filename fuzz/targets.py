"""What is fuzzed: each target is given bytes, as a peer could send them, and must end in a HeadraceError or in order.

Any other exception, a hang, or a broken promise (an assertion here) is a crash. Nothing touches the network.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Final, cast

import msgspec

from fuzz.wire import SaidStream, session
from fuzz.writing import writing
from headrace.client.looking import Looking, look
from headrace.client.session import Session
from headrace.engine import batch
from headrace.engine.buffers import BufferPool
from headrace.engine.lane import Lane
from headrace.engine.manifests import ManifestReader
from headrace.engine.queue import Group, Job
from headrace.engine.unpack import decompress_into
from headrace.errors import HeadraceError
from headrace.host.requests import RequestHandler
from headrace.protocol.codes import Code
from headrace.protocol.frames import HANDSHAKE_LIMITS, SESSION_LIMITS, FrameDecoder, FrameTooLargeError
from headrace.protocol.messages import (
    CHUNK_SIZE,
    MAX_PART,
    ROLE_CONTROL,
    Entry,
    MalformedMessageError,
    decode,
    encode,
)
from headrace.protocol.paths import RelPath
from headrace.protocol.sealed import SealedRecords
from headrace.protocol.session import FEATURES, WATCH, Agreed, ClientHandshake, HostHandshake
from headrace.storage.blocks import block_sums as block_sums_of
from headrace.storage.blocks import check_marks, pack_sums, unpack_places, unpack_sums
from headrace.storage.manifest import HashCache
from headrace.storage.old_copy import OldCopy
from headrace.storage.partial import Partial, part_names
from headrace.storage.tree import SharedTree
from headrace.transport.discovery import SERVICE, _checked
from headrace.transport.framed import MessageStream
from headrace.transport.quic.lanes import Inflow

CODE: Final = Code.parse("h3ad-race-7e57")
FINGERPRINT: Final = bytes(32)
CREDENTIAL: Final = bytes(range(32))
SECRET: Final = b"lies beside the share and must never be sent"
CONTENT: Final = random.Random(1).randbytes(100_000)
VERSION: Final = b"v" * 16


def entropy(count: int) -> bytes:
    """The same for every input, so that an input can go further than a guess would."""
    return bytes(count)


# ---- protocol ------------------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """In pieces of any size the same frames come out, and no more is kept than was fed."""
    heads = [_frames_of(data, size) for size in (1 << 20, 1 + (data[0] if data else 0))]
    assert heads[0] == heads[1]


def _frames_of(data: bytes, piece: int) -> list[tuple[object, int]]:
    decoder = FrameDecoder(SESSION_LIMITS if len(data) % 2 else HANDSHAKE_LIMITS)
    found: list[tuple[object, int]] = []
    into = memoryview(bytearray(4096))
    try:
        for start in range(0, len(data), piece):
            decoder.feed(data[start : start + piece])
            while True:
                while decoder.payload_left and decoder.take_payload(into):
                    pass
                if decoder.payload_left and not decoder.buffered:
                    break
                head = decoder.next_head()
                if head is None:
                    break
                found.append((head.message and encode(head.message), head.payload_length))  # NaN is not itself
            assert decoder.buffered <= SESSION_LIMITS.header + 8 + piece
    except (FrameTooLargeError, MalformedMessageError) as why:
        found.append((type(why), 0))
    return found


def messages(data: bytes) -> None:
    """What can be read can be written, and is the same when it is read again."""
    try:
        message = decode(data)
    except MalformedMessageError:
        return
    if message is not None:
        assert encode(decode(encode(message)) or message) == encode(message)
        for field in msgspec.structs.asdict(message).values():
            for entry in field if isinstance(field, list) else [field]:
                if isinstance(entry, Entry):
                    with contextlib.suppress(ValueError):
                        entry.check()


def paths(data: bytes) -> None:
    """A path that is taken names something below."""
    try:
        path = RelPath.parse(data)
    except ValueError:
        return
    assert bytes(path) == data and b".." not in path.parts and not data.startswith(b"/") and b"\0" not in data


class _Policy:
    def locked_for(self) -> float:
        return 0.0

    def guess_started(self) -> None: ...

    def guess_right(self) -> None:
        raise AssertionError("somebody proved a code that nobody knows")

    def credential(self, peer: bytes) -> bytes | None:
        return CREDENTIAL if peer == bytes(16) else None

    def remember(self, peer: bytes, credential: bytes, agent: str) -> None:
        raise AssertionError("somebody paired without the code")


def handshake_host(data: bytes) -> None:
    _shake(data, HostHandshake(code=CODE, fingerprint=FINGERPRINT, policy=_Policy(), entropy=os.urandom))


def handshake_client(data: bytes) -> None:
    """By the credential and by the code. A host that does not know the code is never believed."""
    known = ClientHandshake(fingerprint=FINGERPRINT, entropy=entropy, peer=bytes(16), credential=CREDENTIAL)
    known.start()
    _shake(data, known)
    new = ClientHandshake(fingerprint=FINGERPRINT, entropy=os.urandom, code=CODE)
    new.start()
    _shake(data, new)
    assert new.agreed is None, "a host without the code was believed"


def _shake(data: bytes, handshake: HostHandshake | ClientHandshake) -> None:
    messages = MessageStream(SaidStream(data, piece=1 + len(data) % 7))
    with contextlib.suppress(HeadraceError):
        while handshake.agreed is None:
            message, payload = messages.expect()
            if payload:
                return
            messages.send_all(handshake.receive(message))


def sealed(data: bytes) -> None:
    """As the next record, and as a change of true ones: nothing but what the peer sealed comes out."""
    for said in (data, _mangled(data)):
        reader, into = SealedRecords(bytes(64), server=False), memoryview(bytearray(1 << 19))
        got = b""
        with contextlib.suppress(HeadraceError):
            position = 0
            while position < len(said) and not reader.ended:
                room = reader.room(len(into))
                count = min(len(room), len(said) - position, 1 + len(data) % 999)
                room[:count] = said[position : position + count]
                position += count
                reader.arrived(count)
                while filled := reader.read_into(into):
                    got += bytes(into[:filled])
        assert got in (b"", b"true", b"truetrue"), "a record that nobody sealed was opened"


def _mangled(data: bytes) -> bytes:
    """Two true records, changed where `data` says."""
    writer = SealedRecords(bytes(64), server=True)
    true = bytearray(b"".join(bytes(piece) for _ in range(2) for piece in writer.protect(b"true")))
    for start in range(0, len(data) - 1, 2):
        true[data[start] % len(true)] ^= data[start + 1]
    return bytes(true)


def quic_words(data: bytes) -> None:
    """Blocks and credit of a QUIC stream: no more is kept than was granted."""
    inflow, into = Inflow(4096, 65536), memoryview(bytearray(1000))
    with contextlib.suppress(HeadraceError):
        for start in range(0, len(data), 37):
            inflow.feed(memoryview(data)[start : start + 37])
            assert inflow.waiting <= 65536
            while inflow.take(into):
                pass


# ---- what a host says ----------------------------------------------------------------------------------------------


def _job(name: bytes, size: int) -> Job:
    path = RelPath.parse(name)
    return Job(path, path, Entry(name, "f", size=size, version=VERSION))


def manifest(data: bytes) -> None:
    """No more hashes than the file has chunks, however long the answer is."""
    lane, count = Lane(session(data)[0]), len(data) % 9
    reader = ManifestReader(lane)
    reader.post(_job(b"file", count * CHUNK_SIZE))
    had = 0
    with contextlib.suppress(HeadraceError):
        while True:
            part = reader.part()
            had += len(part.hashes)
            assert had <= count
            if part.last:
                return


def batches(data: bytes) -> None:
    """Every file of a batch has the size that was listed."""
    lane = Lane(session(data)[0], batches=True, packs=True)
    lane.zstd = len(data) % 3
    group = Group([_job(b"a", 10), _job(b"b", 0), _job(b"c", 1000), _job(b"d", 3)])
    batch.request(lane, group)
    with contextlib.suppress(HeadraceError):
        for part in batch.receive(lane, group, BufferPool()):
            for one in part:
                if not isinstance(one, Job) and isinstance(one[1], memoryview):
                    assert len(one[1]) == one[0].entry.size


def listing(data: bytes) -> None:
    """By Walk and by Look: every name is one, every directory lies below what was asked for."""
    top = RelPath.parse(b"sub")
    with contextlib.suppress(HeadraceError):
        parts = Session._parts(cast(Session, None), _asked(data), top)
        for directory, entries, _ in parts:
            assert bytes(directory) == b"sub" or bytes(directory).startswith(b"sub/")
            assert all(RelPath((entry.name,)) for entry in entries)
    for features in (frozenset({WATCH}), frozenset[str]()):
        fake = cast(Session, SimpleNamespace(agreed=SimpleNamespace(features=features)))
        with contextlib.suppress(HeadraceError):
            found: Looking = look(fake, Lane(session(data)[0]), top, watch=0, limit=50)
            assert len(found.entries) <= 50 + 1000 and all(b"/" not in name for name in found.entries)


def _asked(data: bytes) -> Lane:
    lane = Lane(session(data)[0])
    lane.next_id()
    return lane


def unpack(data: bytes) -> None:
    """A compressed payload: it fills what it should, or is refused."""
    room = memoryview(bytearray(1 + len(data) * 7 % MAX_PART))
    with contextlib.suppress(HeadraceError):
        decompress_into(data, room)


def block_sums(data: bytes) -> None:
    """Hints about a chunk: whatever they say, what is looked for lies inside the old copy and the chunk."""
    raw = bytearray(pack_sums(_sums()))
    for start in range(0, len(data) - 1, 2):
        raw[data[start] % len(raw)] ^= data[start + 1]
    if len(data) % 11 == 3:
        raw = bytearray(data)
    marks = [CONTENT[7 * start :][: 2 + start % 8] for start in data[:2]]
    size = len(CONTENT)
    try:
        sums, places = unpack_sums(bytes(raw), size), unpack_places(data[: len(data) // 8 * 8], size)
        check_marks(marks)
    except ValueError:
        return
    old = OldCopy(os.dup(_old_copy()))
    try:
        for start, length, there in old.search(0, size, sums, marks, places):
            assert start >= 0 and length > 0 and start + length <= size
            assert there is None or 0 <= there <= size - length
    finally:
        old.close()


@functools.cache
def _sums() -> list[int]:
    return block_sums_of(memoryview(CONTENT))


@functools.cache
def _old_copy() -> int:
    fd = os.memfd_create("old")
    os.write(fd, CONTENT)
    return fd


def discovery(data: bytes) -> None:
    """An answer on the LAN: what it says is an address and a port, or it says nothing."""
    from zeroconf import ServiceInfo

    size = 4 if len(data) % 2 else 16
    addresses = [data[start : start + size] for start in range(2, len(data) - size + 1, size)][:20]
    port = int.from_bytes(data[:2], "big")
    name = data[2:10].decode("latin-1").replace(".", "_") or "x"
    try:
        info = ServiceInfo(SERVICE, f"{name}.{SERVICE}", addresses=addresses, port=port, properties=data[:200])
    except Exception:  # noqa: BLE001  # zeroconf's own refusal
        return
    found = _checked(info, name)
    if found:
        assert found.group.isalnum() and found.port and len(found.hosts) <= 16


# ---- what a client says --------------------------------------------------------------------------------------------


@functools.cache
def _shared() -> SharedTree:
    """A small share; SECRET lies beside it, and links lead there."""
    root = Path(tempfile.mkdtemp(prefix="headrace-fuzz-"))
    share = root / "share"
    (share / "sub").mkdir(parents=True)
    (root / "secret").write_bytes(SECRET)
    (share / "file").write_bytes(CONTENT)
    (share / "sub" / "small").write_bytes(b"small")
    (share / "out").symlink_to(root)
    (share / "leak").symlink_to(root / "secret")
    return SharedTree.open([share])


def requests(data: bytes) -> None:
    """A session after the handshake: whatever is asked, nothing from outside of the share comes back."""
    tree = _shared()
    messages, stream = session(data)
    features = frozenset(FEATURES) - {WATCH}
    agreed = Agreed(7 + len(data) % 2, features, "fuzz", "h3ad", ROLE_CONTROL, bytes(16))
    handler = RequestHandler(tree, HashCache(), messages, agreed)
    try:
        while received := messages.receive():
            if received[1]:
                return
            handler.handle(received[0])
    except HeadraceError:
        pass
    finally:
        handler.close()
        assert SECRET not in stream.sent


# ---- what lies on the disk -----------------------------------------------------------------------------------------


def journal(data: bytes) -> None:
    """A journal that says anything: no chunk counts that has not the hash that it names, and the file can be ended."""
    size = 1000 if len(data) % 2 else CHUNK_SIZE + 5
    with tempfile.TemporaryDirectory(prefix="headrace-fuzz-", dir=_fast()) as folder:
        part, name = (os.path.join(folder, os.fsdecode(name)) for name in part_names(b"a"))
        with open(part, "wb") as file:
            file.truncate(size)
        with open(name, "wb") as file:
            file.write(data)
        above = os.open(folder, os.O_RDONLY)
        try:
            partial = Partial.open(
                above, b"a", size=size, version=VERSION, mtime_ns=1, sparse=False, boot_id=b"another"
            )
            assert not partial.verified, "nothing was ever written"
            partial.close()
        finally:
            os.close(above)


def _fast() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


Target = Callable[[bytes], None]
TARGETS: Final[dict[str, Target]] = {
    target.__name__: target
    for target in (
        frames,
        messages,
        paths,
        handshake_host,
        handshake_client,
        sealed,
        quic_words,
        manifest,
        batches,
        listing,
        unpack,
        block_sums,
        discovery,
        requests,
        writing,
        journal,
    )
}
