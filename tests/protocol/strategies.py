"""Hypothesis strategies for what travels: one for every message class, paths, and MessagePack values."""

from __future__ import annotations

from typing import Final

import msgspec
from hypothesis import strategies as st

from headrace.protocol import messages as m
from headrace.protocol.paths import MAX_DEPTH, MAX_NAME, MAX_PATH, RelPath

ids = st.integers(0, (1 << 63) - 1)
sizes = st.integers(0, m.MAX_FILE_SIZE)
versions = st.binary(min_size=m.VERSION_SIZE, max_size=m.VERSION_SIZE)
hashes = st.binary(min_size=m.HASH_SIZE, max_size=m.HASH_SIZE)
words = st.text(max_size=20)
wishes = st.integers(m.HOST_DECIDES, m.MAX_LEVEL)
packed_words = st.one_of(st.sampled_from(["", m.ZSTD_PACKED, "link"]), words)
seconds = st.floats(0, m.MAX_TIME)

_name_bytes = st.one_of(
    st.sampled_from([b"a", b"b", b"...", b" ", b"\xff", b"\n", b"\xc3\xa9", b"x" * MAX_NAME]),
    st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_")),
)
names = _name_bytes.filter(lambda name: name not in (b".", b".."))
rel_paths = (
    st.lists(names, max_size=MAX_DEPTH // 16)
    .map(lambda parts: RelPath(tuple(parts)))
    .filter(lambda path: len(bytes(path)) <= MAX_PATH)
)
wire_paths = rel_paths.map(bytes)

entries = st.one_of(
    st.builds(
        m.Entry,
        name=names,
        kind=st.just("f"),
        size=sizes,
        mtime_ns=st.integers(-(1 << 63), (1 << 63) - 1),
        mode=st.integers(0, 0o7777),
        version=versions,
        sparse=st.booleans(),
    ),
    st.builds(m.Entry, name=names, kind=st.just("l"), target=st.binary(max_size=40)),
    st.builds(m.Entry, name=names, kind=st.sampled_from(["d", "o"]), mode=st.integers(0, 0o7777)),
)

transfers = st.binary(min_size=m.TRANSFER_SIZE, max_size=m.TRANSFER_SIZE)
numbers = st.lists(st.integers(0, 1 << 40), max_size=3)
path_lists = st.lists(wire_paths, max_size=3)
entry_lists = st.lists(entries, max_size=3)

MESSAGES: Final[dict[type[m.Message], st.SearchStrategy[m.Message]]] = {
    m.Hello: st.builds(
        m.Hello,
        versions=st.tuples(st.integers(-(1 << 63), (1 << 64) - 1), st.integers(-(1 << 63), (1 << 64) - 1)),
        features=st.lists(words, max_size=5),
        agent=words,
        role=st.one_of(st.sampled_from([m.ROLE_CONTROL, m.ROLE_DATA]), words),
    ),
    m.Welcome: st.builds(
        m.Welcome, version=st.integers(0, 99), features=st.lists(words, max_size=5), agent=words, share=words
    ),
    m.AuthPake: st.builds(m.AuthPake, element=st.binary(max_size=40)),
    m.AuthPakeReply: st.builds(m.AuthPakeReply, element=st.binary(max_size=40)),
    m.AuthPakeConfirm: st.builds(m.AuthPakeConfirm, mac=st.binary(max_size=40)),
    m.AuthCredential: st.builds(
        m.AuthCredential, peer=st.binary(max_size=20), nonce=st.binary(max_size=20), proof=st.binary(max_size=40)
    ),
    m.Granted: st.builds(m.Granted, mac=st.binary(max_size=40), name=words),
    m.Stat: st.builds(m.Stat, id=ids, path=wire_paths),
    m.StatReply: st.builds(m.StatReply, id=ids, entry=entries),
    m.List: st.builds(m.List, id=ids, path=wire_paths),
    m.ListPart: st.builds(
        m.ListPart,
        id=ids,
        path=wire_paths,
        entries=st.lists(entries, max_size=4),
        last=st.booleans(),
        error=st.sampled_from(["", "denied", "not_found"]),
    ),
    m.Read: st.builds(
        m.Read,
        id=ids,
        path=wire_paths,
        offset=sizes,
        length=st.integers(0, m.READ_SIZE),
        version=st.one_of(st.just(b""), versions),
    ),
    m.Data: st.builds(m.Data, id=ids),
    m.Ping: st.builds(m.Ping, id=ids),
    m.Pong: st.builds(m.Pong, id=ids),
    m.Error: st.builds(
        m.Error,
        id=ids,
        code=words,
        message=words,
        retry_after=st.floats(0, 1e9),
        versions=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    ),
    m.Goodbye: st.builds(m.Goodbye, reason=words),
    m.Walk: st.builds(m.Walk, id=ids, path=wire_paths),
    m.GetManifest: st.builds(m.GetManifest, id=ids, path=wire_paths, version=versions),
    m.ManifestPart: st.builds(
        m.ManifestPart,
        id=ids,
        first=st.integers(0, 1 << 40),
        hashes=st.lists(hashes, max_size=4).map(b"".join),
        last=st.booleans(),
    ),
    m.GetChunk: st.builds(
        m.GetChunk,
        id=ids,
        path=wire_paths,
        version=versions,
        offset=sizes,
        length=st.integers(1, m.CHUNK_SIZE),
        zstd=wishes,
    ),
    m.Chunk: st.builds(
        m.Chunk, id=ids, hash=hashes, zero=st.booleans(), size=st.integers(0, m.MAX_PART), packed=packed_words
    ),
    m.GetBatch: st.builds(m.GetBatch, id=ids, items=st.lists(st.tuples(wire_paths, versions), max_size=4), zstd=wishes),
    m.Batch: st.builds(
        m.Batch,
        id=ids,
        first=st.integers(0, m.MAX_BATCH_ITEMS),
        sizes=st.lists(st.integers(0, m.MAX_BATCH_FILE), max_size=4),
        failed=st.lists(st.integers(0, m.MAX_BATCH_ITEMS), max_size=2),
        codes=st.lists(words, max_size=2),
        texts=st.lists(words, max_size=2),
        hash=hashes,
        packed=packed_words,
    ),
    m.GetBlocks: st.builds(
        m.GetBlocks, id=ids, path=wire_paths, version=versions, chunk=st.integers(-(1 << 63), 1 << 40)
    ),
    m.Blocks: st.builds(
        m.Blocks,
        id=ids,
        sums=st.binary(max_size=40),
        marks=st.lists(st.binary(max_size=9), max_size=3),
        places=st.binary(max_size=40),
    ),
    m.GetRanges: st.builds(
        m.GetRanges,
        id=ids,
        path=wire_paths,
        version=versions,
        ranges=st.lists(st.tuples(sizes, st.integers(-(1 << 63), m.CHUNK_SIZE)), max_size=4),
    ),
    m.Watch: st.builds(m.Watch, id=ids),
    m.Changed: st.builds(
        m.Changed,
        id=ids,
        watch=ids,
        entries=st.lists(wire_paths, max_size=3),
        names=st.lists(wire_paths, max_size=3),
        unwatched=st.lists(wire_paths, max_size=3),
        overflow=st.booleans(),
        last=st.booleans(),
    ),
    m.Look: st.builds(m.Look, id=ids, path=wire_paths, watch=ids, limit=st.integers(0, 1 << 32)),
    m.Looked: st.builds(m.Looked, id=ids, entry=entries, watched=st.booleans(), more=st.booleans()),
    m.StatFs: st.builds(m.StatFs, id=ids, path=wire_paths),
    m.StatFsReply: st.builds(
        m.StatFsReply, id=ids, total=sizes, free=sizes, available=sizes, files=sizes, files_free=sizes
    ),
    m.Trace: st.builds(m.Trace, context=words),
    m.GetTimes: st.builds(m.GetTimes, id=ids),
    m.Times: st.builds(
        m.Times,
        id=ids,
        disk=seconds,
        hash=seconds,
        sending=seconds,
        waiting=seconds,
        receiving=seconds,
        rest=seconds,
        limit=seconds,
    ),
    m.PutBegin: st.builds(m.PutBegin, id=ids, transfer=transfers),
    m.PutReady: st.builds(m.PutReady, id=ids, run=transfers),
    m.PutNames: st.builds(
        m.PutNames, id=ids, transfer=transfers, paths=path_lists, entries=entry_lists, replace=st.booleans()
    ),
    m.PutAttributes: st.builds(m.PutAttributes, id=ids, transfer=transfers, paths=path_lists, entries=entry_lists),
    m.PutFiles: st.builds(
        m.PutFiles,
        id=ids,
        transfer=transfers,
        paths=path_lists,
        entries=entry_lists,
        hash=hashes,
        replace=st.booleans(),
        packed=packed_words,
    ),
    m.PutDone: st.builds(
        m.PutDone,
        id=ids,
        made=numbers,
        replaced=numbers,
        failed=numbers,
        codes=st.lists(words, max_size=2),
        texts=st.lists(words, max_size=2),
    ),
    m.PutOpen: st.builds(
        m.PutOpen,
        id=ids,
        transfer=transfers,
        path=wire_paths,
        entry=entries,
        old=wire_paths,
        compare=st.booleans(),
    ),
    m.PutOpened: st.builds(
        m.PutOpened,
        id=ids,
        held=st.lists(st.tuples(sizes, sizes), max_size=3),
        offer=st.booleans(),
        there=st.booleans(),
        others=sizes,
    ),
    m.PutOffer: st.builds(
        m.PutOffer,
        id=ids,
        transfer=transfers,
        path=wire_paths,
        version=versions,
        first=st.integers(-(1 << 63), 1 << 40),
        hashes=st.lists(hashes, max_size=4).map(b"".join),
    ),
    m.PutWanted: st.builds(m.PutWanted, id=ids, chunks=numbers),
    m.PutChunk: st.builds(
        m.PutChunk,
        id=ids,
        transfer=transfers,
        path=wire_paths,
        version=versions,
        chunk=st.integers(-(1 << 63), 1 << 40),
        hash=hashes,
        zero=st.booleans(),
        at=st.integers(-(1 << 63), m.CHUNK_SIZE),
        size=st.integers(0, m.MAX_PART),
        packed=packed_words,
    ),
    m.PutStored: st.builds(m.PutStored, id=ids, known=st.booleans()),
    m.PutCommit: st.builds(
        m.PutCommit, id=ids, transfer=transfers, path=wire_paths, version=versions, replace=st.booleans()
    ),
    m.PutCommitted: st.builds(m.PutCommitted, id=ids, others=sizes, replaced=st.booleans()),
    m.PutLeave: st.builds(
        m.PutLeave, id=ids, transfer=transfers, path=wire_paths, version=versions, discard=st.booleans()
    ),
    m.PutEnd: st.builds(m.PutEnd, id=ids, transfer=transfers, sync=st.booleans()),
    m.PutEnded: st.builds(m.PutEnded, id=ids, run=transfers, lost=path_lists),
}
messages = st.one_of(*MESSAGES.values())

packable = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.floats(allow_nan=False),
        st.text(max_size=8),
        st.binary(max_size=8),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
unknown_headers = st.builds(
    lambda tag, rest: msgspec.msgpack.encode({**rest, "type": tag}),
    st.text(max_size=12).filter(lambda tag: tag not in m.BY_TYPE),
    st.dictionaries(st.text(max_size=8), packable, max_size=4),
)


def split(data: st.DataObject, raw: bytes) -> list[bytes]:
    """`raw` cut at places that hypothesis chooses."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12), label="cuts"))
    return [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
