"""Messages: every one survives the wire, and nothing that a peer may send does worse than MalformedMessageError."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.messages import (
    BULK_REQUESTS,
    BY_TYPE,
    HASH_SIZE,
    KIB,
    MAX_ENTRIES,
    MAX_FILE_SIZE,
    MAX_HASHES,
    REQUESTS,
    VERSION_SIZE,
    AuthCredential,
    Entry,
    Error,
    Goodbye,
    Hello,
    ListPart,
    MalformedMessageError,
    ManifestPart,
    Message,
    Ping,
    Read,
    StatFsReply,
    check_entries,
    decode,
    encode,
    wire_path,
)
from headrace.protocol.paths import MAX_PATH, RelPath

from . import strategies

every_type = pytest.mark.parametrize("cls", BY_TYPE.values(), ids=BY_TYPE.keys())


def fields(header: bytes) -> dict[str, Any]:
    """The header as any MessagePack library would read it."""
    found = msgspec.msgpack.decode(header)
    assert isinstance(found, dict)
    return found


def subclasses(cls: type[Message]) -> set[type[Message]]:
    return {found for child in cls.__subclasses__() for found in (child, *subclasses(child))}


def test_every_message_is_in_the_table_and_has_a_strategy() -> None:
    assert set(BY_TYPE.values()) == subclasses(Message)
    assert set(strategies.MESSAGES) == set(BY_TYPE.values())


def test_requests_have_an_id_and_a_place_in_the_table() -> None:
    assert set(BULK_REQUESTS) < set(REQUESTS) < set(BY_TYPE.values())
    assert all("id" in cls.__struct_fields__ for cls in REQUESTS)


@every_type
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_round_trip(cls: type[Message], data: st.DataObject) -> None:
    message = data.draw(strategies.MESSAGES[cls])
    header = encode(message)
    assert decode(header) == message
    assert decode(bytearray(header)) == decode(memoryview(header)) == message
    assert BY_TYPE[fields(header)["type"]] is cls


@settings(max_examples=100, deadline=None)
@given(message=strategies.messages, data=st.data())
def test_unknown_fields_are_skipped_in_any_order(message: Message, data: st.DataObject) -> None:
    known = fields(encode(message))
    new_names = st.text(max_size=8).filter(lambda name: name not in known)
    unknown = data.draw(st.dictionaries(new_names, strategies.packable, max_size=4))
    order = data.draw(st.permutations([*known.items(), *unknown.items()]))
    assert decode(msgspec.msgpack.encode(dict(order))) == message


@given(entry=strategies.entries, unknown=st.dictionaries(st.text(max_size=8), strategies.packable, max_size=3))
def test_unknown_fields_of_entries_are_skipped(entry: Entry, unknown: dict[str, Any]) -> None:
    unknown = {name: value for name, value in unknown.items() if name not in Entry.__struct_fields__}
    part = ListPart(1, b"", [entry])
    header = fields(encode(part))
    header["entries"] = [unknown | found for found in header["entries"]]
    assert decode(msgspec.msgpack.encode(header)) == part


@given(strategies.unknown_headers)
def test_unknown_types_are_none(header: bytes) -> None:
    assert decode(header) is None


@every_type
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_fields_with_a_default_may_be_absent_and_others_not(cls: type[Message], data: st.DataObject) -> None:
    header = fields(encode(data.draw(strategies.MESSAGES[cls])))
    for field in msgspec.structs.fields(cls):
        without = msgspec.msgpack.encode({name: value for name, value in header.items() if name != field.name})
        if field.required:
            with pytest.raises(MalformedMessageError):
                decode(without)
        else:
            default = [] if field.default_factory is list else field.default
            assert getattr(decode(without), field.name) == default


@settings(max_examples=100, deadline=None)
@given(message=strategies.messages, data=st.data())
def test_mistyped_fields_are_malformed_at_worst(message: Message, data: st.DataObject) -> None:
    header = fields(encode(message))
    name = data.draw(st.sampled_from(list(header)))
    header[name] = data.draw(strategies.packable)
    decode_or_malformed(msgspec.msgpack.encode(header))


def decode_or_malformed(header: bytes) -> Message | None:
    try:
        return decode(header)
    except MalformedMessageError:
        return None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes(raw: bytes) -> None:
    decode_or_malformed(raw)


@settings(max_examples=200, deadline=None)
@given(message=strategies.messages, data=st.data())
def test_damaged_headers(message: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    decode_or_malformed(bytes(raw))
    decode_or_malformed(bytes(raw[:cut]))
    decode_or_malformed(bytes(raw) + bytes(raw[:cut]))


@pytest.mark.parametrize(
    "marker", [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"], ids=["array", "map", "bin", "str", "ext"]
)
@pytest.mark.parametrize(
    "before",
    [
        b"\x82\xa4type\xa5hello\xa8features",
        b"\x82\xa4type\xa9list-part\xa7entries",
        b"\x82\xa4type\xa9auth-pake\xa7element",
        b"\x82\xa4type\xa4ping\xa7unknown",
        b"\x82\xa4type\xa7unknown\xa1x",
        b"",
    ],
)
def test_a_claimed_length_inside_a_header_allocates_nothing(before: bytes, marker: bytes) -> None:
    header = before + marker + b"\xff\xff\xff\xff" + b"\x01"
    decode_or_malformed(header)  # whatever is made once is made now
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessageError):
            decode(header)
        assert tracemalloc.get_traced_memory()[1] < 64 * KIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("inner", [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01"])
@pytest.mark.parametrize("kind", [b"\xa4ping", b"\xa4pinh"])
def test_deep_nesting_is_malformed(inner: bytes, kind: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode(b"\x83\xa4type" + kind + b"\xa2id\x01\xa1x" + inner * 100_000 + b"\x01")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x80",
        b"\x90",
        b"\xc0",
        b"\xa4ping",
        b"\x81\xa2id\x01",  # no type
        b"\x82\xa4type\x07\xa2id\x01",  # a number for a type
        b"\x82\xa4type\xc4\x04ping\xa2id\x01",  # bin for a type
        b"\x82\xa4type\xa2\xff\xff\xa2id\x01",  # a type that is no UTF-8
        b"\x82\xa4type\xa4ping\xa2id\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00",  # 1.5
        b"\x82\xa4type\xa4ping\xa2id\xa11",  # a number as text
        b"\x82\xa4type\xa4ping\xa2id\x01\x00",  # bytes after the message
        b"\x82\xa4type\xa9auth-pake\xa7element\xa4abcd",  # str where bin belongs
    ],
)
def test_malformed(header: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode(header)


def test_the_fullest_messages_fit_into_a_frame() -> None:
    # Names as long as they get. Link targets can be longer still, which is why a sender also counts bytes.
    entry = Entry(b"n" * 255, "f", MAX_FILE_SIZE, -(1 << 63), 0o7777, b"", b"v" * VERSION_SIZE, sparse=True)
    assert len(encode(ListPart(1 << 62, b"p" * MAX_PATH, [entry] * MAX_ENTRIES))) < 512 * KIB
    assert len(encode(ManifestPart(1 << 62, 1 << 62, b"h" * HASH_SIZE * MAX_HASHES))) < 512 * KIB


@given(st.binary(max_size=30))
def test_wire_path(raw: bytes) -> None:
    try:
        path = wire_path(raw)
    except MalformedMessageError:
        return
    assert isinstance(path, RelPath)
    assert bytes(path) == raw


@given(strategies.entries)
def test_good_entries_pass_the_check(entry: Entry) -> None:
    assert entry.check() is entry


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"", "d"),
        Entry(b".", "d"),
        Entry(b"..", "d"),
        Entry(b"a/b", "d"),
        Entry(b"/", "d"),
        Entry(b"a\0", "d"),
        Entry(b"n" * 256, "d"),
        Entry(b"a", "d", size=-1),
        Entry(b"a", "d", size=MAX_FILE_SIZE + 1),
        Entry(b"a", "d", mtime_ns=1 << 63),
        Entry(b"a", "d", mtime_ns=-(1 << 63) - 1),
        Entry(b"a", "d", mode=-1),
        Entry(b"a", "d", mode=0o10000),
        Entry(b"a", "l", target=b"t" * (MAX_PATH + 1)),
        Entry(b"a", "f"),
        Entry(b"a", "f", version=b"v" * (VERSION_SIZE - 1)),
        Entry(b"a", "f", version=b"v" * (VERSION_SIZE + 1)),
    ],
    ids=repr,
)
def test_bad_entries_do_not(entry: Entry) -> None:
    with pytest.raises(ValueError, match=r"^a "):
        entry.check()


def test_the_root_may_go_without_a_name_and_nothing_else() -> None:
    root = Entry(b"", "d")
    assert root.check(is_root=True) is root
    with pytest.raises(ValueError, match="name"):
        Entry(b"..", "d").check(is_root=True)


def test_an_unknown_kind_is_malformed() -> None:
    header = fields(encode(ListPart(1, b"", [Entry(b"a", "d")])))
    header["entries"][0]["kind"] = "s"
    with pytest.raises(MalformedMessageError):
        decode(msgspec.msgpack.encode(header))


def test_absent_fields_take_their_defaults() -> None:
    assert decode(msgspec.msgpack.encode({"type": "read", "id": 1, "path": b"a", "offset": 0, "length": 9})) == Read(
        1, b"a", 0, 9, b""
    )
    hello = {"type": "hello", "versions": [7, 7], "features": [], "agent": ""}
    assert decode(msgspec.msgpack.encode(hello)) == Hello((7, 7), [], "", "control")
    assert decode(msgspec.msgpack.encode({"type": "goodbye"})) == Goodbye()
    assert decode(msgspec.msgpack.encode({"id": 3, "type": "ping"})) == Ping(3)


def test_numbers_may_come_in_any_format_that_holds_them() -> None:
    for number in (b"\x05", b"\xcc\x05", b"\xcd\0\x05", b"\xce\0\0\0\x05", b"\xcf" + bytes(7) + b"\x05", b"\xd0\x05"):
        assert decode(b"\x82\xa4type\xa4ping\xa2id" + number) == Ping(5)
    error = {"type": "error", "id": 0, "code": "locked", "message": "", "retry_after": 90}
    assert decode(msgspec.msgpack.encode(error)) == Error(0, "locked", "", 90.0)


def test_the_proof_of_a_credential_is_not_shown() -> None:
    message = AuthCredential(b"peer-id", b"n" * 16, b"s3cret")
    assert "s3cret" not in f"{message} {message!r} {[message]}"


def test_how_full_a_disk_is_must_add_up() -> None:
    good = StatFsReply(1, 100, 50, 40, 10, 10)
    assert good.check() is good
    for field, number in (("total", -1), ("total", 1 << 63), ("free", 101), ("available", 51), ("files_free", 11)):
        with pytest.raises(ValueError):
            msgspec.structs.replace(good, **{field: number}).check()


def _refused(check: Callable[[], object]) -> bool:
    try:
        check()
    except ValueError:
        return True
    return False


_odd_entries = st.builds(
    Entry,
    name=st.one_of(strategies.names, st.sampled_from([b"", b".", b"..", b"a/b", b"a\0", b"/", b"n" * 256])),
    kind=st.sampled_from(["f", "d", "l", "o"]),
    size=st.sampled_from([0, 1, MAX_FILE_SIZE, MAX_FILE_SIZE + 1, -1]),
    mtime_ns=st.sampled_from([0, -(1 << 63), -(1 << 63) - 1, (1 << 63) - 1, 1 << 63]),
    mode=st.sampled_from([0, 0o7777, 0o10000, -1]),
    target=st.sampled_from([b"", b"t" * MAX_PATH, b"t" * (MAX_PATH + 1)]),
    version=st.sampled_from([b"", b"v", b"v" * VERSION_SIZE, b"v" * (VERSION_SIZE + 1)]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(strategies.entries, max_size=5), st.lists(_odd_entries, max_size=1), st.randoms())
def test_entries_are_checked_together_as_one_by_one(good: list[Entry], odd: list[Entry], random: Random) -> None:
    entries = [*good, *odd]
    random.shuffle(entries)
    alone = any(_refused(entry.check) for entry in entries)
    assert _refused(lambda: check_entries(entries)) == alone


@pytest.mark.parametrize("field", ["name", "size", "mtime_ns", "mode", "target", "version"])
def test_each_bound_holds_among_good_entries(field: str) -> None:
    good = [Entry(b"%d" % number, "f", version=b"v" * VERSION_SIZE) for number in range(3)]
    worse: dict[str, list[Any]] = {
        "name": [b"", b".", b"..", b"a/b", b"a\0", b"n" * 256],
        "size": [-1, MAX_FILE_SIZE + 1],
        "mtime_ns": [-(1 << 63) - 1, 1 << 63],
        "mode": [-1, 0o10000],
        "target": [b"t" * (MAX_PATH + 1)],
        "version": [b"", b"v", b"v" * (VERSION_SIZE + 1)],
    }
    check_entries(good)
    check_entries([])
    for value in worse[field]:
        with pytest.raises(ValueError):
            check_entries([*good, msgspec.structs.replace(good[0], **{field: value}), *good])
