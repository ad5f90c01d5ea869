"""Writing into a share, request by request: what honest clients get, and what others do not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.transport.memory import memory_pair

from headrace.engine.buffers import BufferPool
from headrace.errors import ProtocolError
from headrace.host import incoming as incoming_module
from headrace.host.incoming import Incoming
from headrace.host.writing import Writing
from headrace.protocol import messages as m
from headrace.storage.chunks import ZERO_HASH, hash_bytes
from headrace.storage.inflight import part_names
from headrace.transport.framed import MessageStream

MIB: Final = m.MIB
CHUNK: Final = m.CHUNK_SIZE
T1: Final = 1_700_000_000_123_456_789
VERSION: Final = bytes(range(16))
OTHER: Final = bytes(range(16, 32))
PEER: Final = b"p" * 16


class Client:
    """A client's end, and a Writing at the other one; one thread, as there is room for all of it on the way."""

    def __init__(self, incoming: Incoming, peer: bytes = PEER, transfer: bytes = b"t" * 16) -> None:
        near, far = memory_pair(capacity=64 * MIB)
        near.set_timeout(0)
        far.set_timeout(0)
        self.near, self.far = MessageStream(near), MessageStream(far)
        self.near.enter_session()
        self.far.enter_session()
        self.transfer = transfer
        self.buffers = BufferPool()
        self.writing = Writing(incoming, self.far, peer, self.buffers, unpacks=True)

    def ask(self, request: m.Message, payload: bytes = b"") -> m.Message:
        self.near.send(request, payload)
        got = self.far.receive()
        assert got
        self.writing.handle(*got)  # type: ignore[arg-type]
        answer, size = self.near.expect()
        assert not size
        return answer

    def error(self, request: m.Message, payload: bytes = b"") -> str:
        answer = self.ask(request, payload)
        assert isinstance(answer, m.Error), answer
        return answer.code

    def open(self, path: bytes, size: int, *, version: bytes = VERSION, **more: object) -> m.Message:
        entry = m.Entry(b"", "f", size, T1, 0o640, version=version)
        return self.ask(m.PutOpen(1, self.transfer, path, entry, **more))  # type: ignore[arg-type]

    def chunk(self, path: bytes, index: int, data: bytes, *, version: bytes = VERSION, **more: object) -> m.Message:
        digest = more.pop("hash", hash_bytes(data))
        return self.ask(m.PutChunk(2, self.transfer, path, version, index, digest, **more), data)  # type: ignore[arg-type]

    def commit(self, path: bytes, *, version: bytes = VERSION, replace: bool = False) -> m.Message:
        return self.ask(m.PutCommit(3, self.transfer, path, version, replace))

    def files(self, *files: tuple[bytes, bytes], replace: bool = False) -> m.Message:
        entries = [m.Entry(b"", "f", len(data), T1, 0o640, version=VERSION) for _, data in files]
        data = b"".join(data for _, data in files)
        paths = [path for path, _ in files]
        return self.ask(m.PutFiles(4, self.transfer, paths, entries, hash_bytes(data), replace), data)

    def names(self, *items: tuple[bytes, m.Entry], replace: bool = False) -> m.PutDone:
        paths, entries = [path for path, _ in items], [entry for _, entry in items]
        answer = self.ask(m.PutNames(5, self.transfer, paths, entries, replace))
        assert isinstance(answer, m.PutDone), answer
        return answer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def incoming(root: Path, tmp_path: Path) -> Iterator[Incoming]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    found = Incoming(fd, os.fsencode(root), tmp_path / "home")
    yield found
    found.close()


@pytest.fixture
def client(incoming: Incoming) -> Iterator[Client]:
    with_it = Client(incoming)
    yield with_it
    with_it.writing.close()
    assert with_it.buffers.figures().in_use == 0


def noise(size: int, seed: int = 1) -> bytes:
    import random

    return random.Random(seed).randbytes(size)


def link(target: bytes) -> m.Entry:
    return m.Entry(b"", "l", target=target)


# ---- what works ----------------------------------------------------------------------------------------------------


def test_a_file_in_chunks_of_several_streams(client: Client, incoming: Incoming, root: Path) -> None:
    data = noise(2 * CHUNK + 5)
    assert client.open(b"day 1/a.mov", len(data)) == m.PutOpened(1)
    other = Client(incoming)
    assert other.chunk(b"day 1/a.mov", 1, data[CHUNK : 2 * CHUNK]) == m.PutStored(2)
    assert client.chunk(b"day 1/a.mov", 0, data[:CHUNK]) == m.PutStored(2)
    assert not (root / "day 1" / "a.mov").exists()
    assert client.error(m.PutCommit(9, client.transfer, b"day 1/a.mov", VERSION)) == "refused"  # a chunk is missing
    assert client.chunk(b"day 1/a.mov", 2, data[2 * CHUNK :]) == m.PutStored(2)
    assert client.commit(b"day 1/a.mov") == m.PutCommitted(3)
    other.writing.close()
    file = root / "day 1" / "a.mov"
    assert file.read_bytes() == data
    assert (file.stat().st_mtime_ns, stat.S_IMODE(file.stat().st_mode)) == (T1, 0o640)
    assert os.listdir(root / "day 1") == ["a.mov"]


def test_a_chunk_in_parts_compressed_ones_among_them(client: Client, root: Path) -> None:
    import zstandard

    data = bytes(1000) + noise(3000)
    client.open(b"f", len(data))
    packed = zstandard.ZstdCompressor().compress(data[:1000])
    digest = hash_bytes(data)
    first = m.PutChunk(2, client.transfer, b"f", VERSION, 0, digest, size=1000, packed=m.ZSTD_PACKED)
    assert client.ask(first, packed) == m.PutStored(2)
    assert client.error(m.PutCommit(3, client.transfer, b"f", VERSION)) == "refused"
    assert client.chunk(b"f", 0, data[1000:], hash=digest, at=1000) == m.PutStored(2)
    client.commit(b"f")
    assert (root / "f").read_bytes() == data


def test_zeros_and_holes(client: Client, root: Path) -> None:
    size = CHUNK + 10
    entry = m.Entry(b"", "f", size, T1, 0o600, version=VERSION, sparse=True)
    client.ask(m.PutOpen(1, client.transfer, b"f", entry))
    zero = m.PutChunk(2, client.transfer, b"f", VERSION, 0, ZERO_HASH(CHUNK), zero=True)
    assert client.ask(zero) == m.PutStored(2)
    client.chunk(b"f", 1, b"0123456789")
    client.commit(b"f")
    assert (root / "f").read_bytes() == bytes(CHUNK) + b"0123456789"
    assert (root / "f").stat().st_blocks * 512 < CHUNK


def test_what_came_outlives_streams_and_is_told(client: Client, incoming: Incoming, root: Path) -> None:
    data = noise(2 * CHUNK)
    client.open(b"f", len(data))
    client.chunk(b"f", 1, data[CHUNK:])
    client.writing.close()  # its stream ended
    assert client.error(m.PutOffer(1, client.transfer, b"f", VERSION, 0, bytes(32))) == "not_found"
    assert sorted(os.listdir(root)) == sorted(os.fsdecode(name) for name in part_names(b"f"))
    again = Client(incoming)
    assert again.open(b"f", len(data)) == m.PutOpened(1, held=[(1, 1)])
    again.chunk(b"f", 0, data[:CHUNK])
    again.commit(b"f")
    again.writing.close()
    assert (root / "f").read_bytes() == data


def test_an_older_version_gives_its_chunks(client: Client, root: Path) -> None:
    old = noise(3 * CHUNK)
    (root / "f").write_bytes(old)
    new = old[:CHUNK] + noise(CHUNK, 2) + old[2 * CHUNK :]
    opened = client.open(b"f", len(new))
    assert isinstance(opened, m.PutOpened) and opened.offer and not opened.there
    hashes = b"".join(hash_bytes(new[start : start + CHUNK]) for start in range(0, len(new), CHUNK))
    assert client.ask(m.PutOffer(7, client.transfer, b"f", VERSION, 0, hashes)) == m.PutWanted(7, [1])
    client.chunk(b"f", 1, new[CHUNK : 2 * CHUNK])
    assert client.error(m.PutCommit(3, client.transfer, b"f", VERSION)) == "exists"  # and it stays in flight
    assert client.commit(b"f", replace=True) == m.PutCommitted(3)
    assert (root / "f").read_bytes() == new


def test_comparing_writes_nothing_but_the_time(client: Client, root: Path) -> None:
    data = noise(2 * CHUNK)
    (root / "f").write_bytes(data)
    client.open(b"f", len(data), compare=True)
    hashes = hash_bytes(data[:CHUNK]) + hash_bytes(data[CHUNK:])
    assert client.error(m.PutCommit(3, client.transfer, b"f", VERSION)) == "refused"  # nothing was compared yet
    assert client.error(m.PutChunk(2, client.transfer, b"f", VERSION, 0, hash_bytes(b"x" * 9)), b"x" * 9) == "refused"
    assert client.ask(m.PutOffer(7, client.transfer, b"f", VERSION, 0, hashes)) == m.PutWanted(7, [])
    before = (root / "f").stat().st_ino
    client.commit(b"f")
    assert ((root / "f").stat().st_ino, (root / "f").stat().st_mtime_ns) == (before, T1)


def test_small_files_folders_links_and_attributes(client: Client, root: Path) -> None:
    done = client.names((b"sub", m.Entry(b"", "d", mode=0o700)), (b"sub/l", link(b"../a")), (b"out", link(b"../a")))
    assert (done.made, done.failed, done.codes) == ([0], [2], ["refused"])
    assert client.names((b"sub", m.Entry(b"", "d", mode=0o755))).made == []
    assert client.files((b"a", b"one"), (b"sub/b", b""), (b"sub/c", b"three")) == m.PutDone(4)
    assert [(root / name).read_bytes() for name in ("a", "sub/b", "sub/c", "sub/l")] == [b"one", b"", b"three", b"one"]
    attributes = m.PutAttributes(
        6, client.transfer, [b"sub", b"gone"], [m.Entry(b"", "d", mtime_ns=T1, mode=0o511)] * 2
    )
    answer = client.ask(attributes)
    assert isinstance(answer, m.PutDone) and answer.codes == ["not_found"]
    assert ((root / "sub").stat().st_mtime_ns, stat.S_IMODE((root / "sub").stat().st_mode)) == (T1, 0o511)


def test_nothing_is_replaced_in_silence(client: Client, root: Path) -> None:
    (root / "a").write_bytes(b"theirs")
    answer = client.files((b"a", b"mine!!"), (b"b", b"mine"))
    assert isinstance(answer, m.PutDone) and (answer.failed, answer.codes) == ([0], ["exists"])
    assert (root / "a").read_bytes() == b"theirs"
    assert client.files((b"a", b"mine"), replace=True) == m.PutDone(4)
    assert (root / "a").read_bytes() == b"mine"
    assert client.files((b"a", b"mine")) == m.PutDone(4)  # the same again is no failure: the answer may have been lost
    done = client.names((b"a", link(b"b")))
    assert done.codes == ["exists"]
    assert client.names((b"a", link(b"b")), replace=True).failed == []
    assert os.readlink(root / "a") == "b"


# ---- two writers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_peer", [True, False])
def test_the_last_whole_file_wins_and_both_hear_of_it(incoming: Incoming, root: Path, same_peer: bool) -> None:
    one = Client(incoming)
    two = Client(incoming, PEER if same_peer else b"q" * 16, b"u" * 16)
    for client in (one, two):
        client.ask(m.PutBegin(1, client.transfer))
    first, second = noise(CHUNK + 1), noise(2 * CHUNK, 2)
    assert one.open(b"f", len(first)) == m.PutOpened(1)
    assert two.open(b"f", len(second), version=OTHER) == m.PutOpened(1, others=1)
    one.chunk(b"f", 0, first[:CHUNK])
    two.chunk(b"f", 0, second[:CHUNK], version=OTHER)
    one.chunk(b"f", 1, first[CHUNK:])
    two.chunk(b"f", 1, second[CHUNK:], version=OTHER)
    assert one.commit(b"f") == m.PutCommitted(3, others=1)
    assert (root / "f").read_bytes() == first
    assert two.commit(b"f", version=OTHER) == m.PutCommitted(3, replaced=True)
    assert (root / "f").read_bytes() == second
    ended = one.ask(m.PutEnd(8, one.transfer, False))
    assert isinstance(ended, m.PutEnded) and ended.lost == [b"f"]
    assert os.listdir(root) == ["f"]
    for client in (one, two):
        client.writing.close()


def test_small_files_of_two_writers(incoming: Incoming, root: Path) -> None:
    one, two = Client(incoming), Client(incoming, b"q" * 16, b"u" * 16)
    for client in (one, two):
        client.ask(m.PutBegin(1, client.transfer))
    assert one.files((b"f", b"first")) == m.PutDone(4)
    assert two.files((b"f", b"second")) == m.PutDone(4, replaced=[0])
    later = Client(incoming, PEER, b"v" * 16)
    later.ask(m.PutBegin(1, later.transfer))  # after all of that: nothing here came meanwhile
    answer = later.files((b"f", b"third"))
    assert isinstance(answer, m.PutDone) and answer.codes == ["exists"]
    assert (root / "f").read_bytes() == b"second"


def test_a_small_file_beside_a_large_one_in_flight(incoming: Incoming, client: Client, root: Path) -> None:
    client.ask(m.PutBegin(1, client.transfer))
    other = Client(incoming, b"q" * 16, b"u" * 16)
    other.ask(m.PutBegin(1, other.transfer))
    client.open(b"f", 5)
    assert other.files((b"f", b"small")) == m.PutDone(4)
    client.chunk(b"f", 0, b"large")
    assert client.commit(b"f") == m.PutCommitted(3, replaced=True)
    assert (root / "f").read_bytes() == b"large"


# ---- hostile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"../x", b"/x", b"a//b", b".", b"x\0", b"y" * 300])
def test_paths_that_lead_out(client: Client, root: Path, path: bytes) -> None:
    entry = m.Entry(b"", "f", 1, version=VERSION)
    for request, payload in (
        (m.PutOpen(1, client.transfer, path, entry), b""),
        (m.PutFiles(1, client.transfer, [path], [entry], hash_bytes(b"x")), b"x"),
        (m.PutNames(1, client.transfer, [path], [m.Entry(b"", "d")]), b""),
        (m.PutAttributes(1, client.transfer, [path], [m.Entry(b"", "d")]), b""),
    ):
        with pytest.raises(ProtocolError):
            Client.ask(Client(client.writing._incoming), request, payload)
    assert os.listdir(root.parent) in (["share"], ["share", "home"], ["home", "share"])
    assert os.listdir(root) == []


def test_symlinks_are_never_followed(client: Client, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"not shared")
    (root / "out").symlink_to(outside)
    (root / "leaf").symlink_to(outside / "f")
    assert client.open(b"out/f", 5).code == "exists"  # type: ignore[attr-defined]
    assert client.names((b"out/sub", m.Entry(b"", "d"))).codes == ["exists"]
    for answer in (client.files((b"out/f", b"mine"), replace=True), client.files((b"out/g", b"mine"))):
        assert isinstance(answer, m.PutDone) and answer.codes == ["exists"]
    answer = client.ask(
        m.PutAttributes(6, client.transfer, [b"leaf"], [m.Entry(b"", "f", mode=0o777, version=VERSION)])
    )
    assert isinstance(answer, m.PutDone) and answer.failed == [0]
    assert client.files((b"leaf", b"mine"), replace=True) == m.PutDone(4)  # the symlink itself is what is replaced
    assert not (root / "leaf").is_symlink() and (root / "leaf").read_bytes() == b"mine"
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"f": b"not shared"}


def test_a_folder_that_was_moved_out_takes_nothing_with_it(client: Client, root: Path, tmp_path: Path) -> None:
    client.names((b"sub", m.Entry(b"", "d", mode=0o755)))
    client.files((b"sub/a", b"a"))
    (root / "sub").rename(tmp_path / "moved")
    client.files((b"sub/b", b"b"))
    assert os.listdir(tmp_path / "moved") == ["a"]
    assert os.listdir(root / "sub") == ["b"]


def test_a_folder_that_is_not_to_be_written_to_stays_so(client: Client, root: Path) -> None:
    if os.geteuid() == 0:
        (root / "keep").mkdir(mode=0o555)
        client.names((b"keep/sub", m.Entry(b"", "d")))  # root may write all the same; what counts is the mode
    else:
        (root / "keep").mkdir(mode=0o555)
        assert client.names((b"keep/sub", m.Entry(b"", "d"))).codes == ["remote_file"]
    assert stat.S_IMODE((root / "keep").stat().st_mode) == 0o555


def test_names_of_files_in_flight(client: Client, root: Path) -> None:
    name = part_names(b"f")[0]
    assert client.open(name, 5).code == "exists"  # type: ignore[attr-defined]
    answer = client.files((name, b"x"), (b"sub/" + part_names(b"f")[1] + b"/x", b"y"))
    assert isinstance(answer, m.PutDone) and answer.codes == ["exists"] * 2
    assert client.names((name, m.Entry(b"", "d")), (name, link(b"x"))).codes == ["exists"] * 2
    assert os.listdir(root) == []


def test_bytes_that_are_not_what_their_hash_says(client: Client, root: Path) -> None:
    client.open(b"f", 10)
    assert client.error(m.PutChunk(2, client.transfer, b"f", VERSION, 0, bytes(32)), b"0123456789") == "changed"
    assert client.error(m.PutCommit(3, client.transfer, b"f", VERSION)) == "refused"
    entry = m.Entry(b"", "f", 1, version=VERSION)
    assert client.error(m.PutFiles(4, client.transfer, [b"g"], [entry], bytes(32)), b"x") == "changed"
    client.chunk(b"f", 0, b"0123456789")
    client.commit(b"f")
    assert os.listdir(root) == ["f"]


def lies(transfer: bytes) -> list[tuple[m.Message, bytes]]:
    def chunk(index: int, payload: bytes, **more: object) -> tuple[m.Message, bytes]:
        return m.PutChunk(2, transfer, b"f", VERSION, index, hash_bytes(payload), **more), payload  # type: ignore[arg-type]

    two = [m.Entry(b"", "f", MIB, version=VERSION)] * 2
    return [
        chunk(3, b"x"),
        chunk(-1, b"x"),
        chunk(2, b"0" * 6),  # the last one has 5 bytes
        chunk(0, b"x", at=1),  # the beginning never came
        chunk(0, b"x", at=-1),
        chunk(0, b"x", at=CHUNK),
        chunk(0, b"xx", size=1),
        chunk(0, b"x", size=2),
        chunk(0, b"x", size=m.MAX_PART + 1, packed="zstd"),
        chunk(0, b"no zstd frame", size=100, packed="zstd"),
        chunk(0, b""),
        chunk(0, b"x", zero=True),
        chunk(0, b"", zero=True),  # another hash than that of zeros
        (m.PutOffer(1, transfer, b"f", VERSION, 2, bytes(64)), b""),
        (m.PutCommit(1, transfer, b"f", VERSION), b"x"),
        (m.PutFiles(1, transfer, [b"a", b"b"], two, bytes(32)), b"x"),
        (m.PutFiles(1, transfer, [b"a"], two[:1], bytes(32)), b"x"),
        (m.PutFiles(1, transfer, [b"a"], [m.Entry(b"", "d")], bytes(32)), b""),
        (m.PutBegin(1, b"short"), b""),
    ]


@pytest.mark.parametrize("number", range(len(lies(b""))))
def test_lies_end_the_connection(client: Client, root: Path, number: int) -> None:
    client.open(b"f", 2 * CHUNK + 5)
    with pytest.raises(ProtocolError):
        client.ask(*lies(client.transfer)[number])
    assert not any(name in ("f", "a", "b") for name in os.listdir(root))


def test_the_rest_of_a_chunk_of_which_a_part_failed(client: Client, root: Path) -> None:
    """The client has sent all of it before it hears of that, so the rest is no lie."""
    client.open(b"f", 100)
    digest = hash_bytes(bytes(100))
    client.chunk(b"f", 0, b"x" * 10, hash=digest)
    client.writing._incoming.find(client.writing, (PEER, m.wire_path(b"f"), VERSION)).close()
    answer = client.chunk(b"f", 0, b"x" * 10, hash=digest, at=10)
    assert isinstance(answer, m.Error) and answer.code == "not_found"
    assert isinstance(client.chunk(b"f", 0, b"x" * 80, hash=digest, at=20), m.Error)
    assert client.files((b"a", b"a")) == m.PutDone(4)


def test_parts_out_of_order(client: Client) -> None:
    client.open(b"f", 100)
    digest = hash_bytes(bytes(100))
    client.chunk(b"f", 0, b"x" * 10, hash=digest)
    with pytest.raises(ProtocolError):
        client.chunk(b"f", 0, b"x" * 10, hash=digest, at=20)


def test_too_many_files_in_flight(incoming: Incoming, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_module, "MAX_OPEN", 3)
    for number in range(3):
        assert isinstance(client.open(b"%d" % number, 5), m.PutOpened)
    assert isinstance(client.open(b"2", 5), m.PutOpened)  # again: it is the same one
    assert client.open(b"3", 5).code == "refused"  # type: ignore[attr-defined]
    assert isinstance(Client(incoming, b"q" * 16).open(b"3", 5), m.PutOpened)  # another peer has its own
    client.ask(m.PutLeave(1, client.transfer, b"0", VERSION, discard=True))
    assert isinstance(client.open(b"4", 5), m.PutOpened)


def test_too_many_writers_to_one_path(incoming: Incoming, root: Path) -> None:
    clients = [Client(incoming, bytes([n]) * 16) for n in range(incoming_module.MAX_SLOTS + 1)]
    answers = [client.open(b"f", 5) for client in clients]
    assert all(isinstance(answer, m.PutOpened) for answer in answers[:-1])
    assert answers[-1].code == "refused"  # type: ignore[attr-defined]
    for client in clients:
        client.writing.close()


def test_a_chunk_takes_one_buffer_of_a_piece(client: Client) -> None:
    data = noise(CHUNK)
    client.open(b"f", CHUNK)
    client.chunk(b"f", 0, data)
    client.commit(b"f")
    client.files(*[(b"%d" % number, data[: MIB // 8]) for number in range(8)])
    assert 0 < client.buffers.figures().high_water <= MIB


def test_one_token_for_two_sizes(client: Client) -> None:
    client.open(b"f", 5)
    assert client.open(b"f", 6).code == "refused"  # type: ignore[attr-defined]


def test_a_payload_is_read_to_its_end_also_where_nobody_wants_it(client: Client, root: Path) -> None:
    assert client.error(m.PutChunk(2, client.transfer, b"f", VERSION, 0, bytes(32)), noise(3 * MIB)) == "not_found"
    assert client.files((b"a", b"a")) == m.PutDone(4)


def test_a_full_disk_says_which_side_it_is(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = client.open(b"f", 1 << 60)
    assert isinstance(answer, m.Error)
    assert answer.code in ("remote_disk", "remote_file") and answer.message.startswith("on the host: ")


def test_what_is_removed_is_what_was_in_flight(client: Client, root: Path) -> None:
    client.open(b"f", CHUNK + 5)
    client.ask(m.PutLeave(1, client.transfer, b"f", VERSION, discard=True))
    assert os.listdir(root) == []
    assert client.ask(m.PutLeave(1, client.transfer, b"f", VERSION)) == m.PutDone(1)
