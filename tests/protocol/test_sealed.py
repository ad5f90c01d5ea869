"""Sealed records: what goes in comes out, in any pieces; anything done to them on the way is noticed."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConnectionLostError, ProtocolError
from headrace.protocol import sealed
from headrace.protocol.sealed import BATCH, FIRST_BUFFER, HEADER, RECORD, SHORT, TAG, SealedRecords

SECRET: Final = bytes(range(64))
NOISE: Final = random.Random(7420).randbytes(3 * RECORD)
VECTORS: Final = Path(__file__).parent.parent / "vectors" / "sealed.json"
EDGES: Final = (0, 1, 2, 1000, 16 * 1024 - 20, 16 * 1024, RECORD - 1, RECORD, RECORD + 1, 3 * RECORD)

sizes = st.lists(st.one_of(st.integers(0, 300), st.sampled_from(EDGES)), max_size=4)
seeds = st.integers(0, 2**32)


def pair() -> tuple[SealedRecords, SealedRecords]:
    return SealedRecords(SECRET, server=False), SealedRecords(SECRET, server=True)


def seal(records: SealedRecords, *parts: bytes) -> bytes:
    return b"".join(bytes(piece) for piece in records.protect(*parts))


def end(records: SealedRecords) -> bytes:
    return b"".join(bytes(piece) for piece in records.goodbye())


def feed(records: SealedRecords, wire: bytes, *, chance: random.Random | None = None, reader: int = RECORD) -> bytes:
    """What a reader gets that takes `reader` bytes at a time (any number, with `chance`) of what arrives."""
    got = bytearray()
    position = 0
    while True:
        while count := records.read_into(
            into := memoryview(bytearray(chance.randint(1, reader) if chance else reader))
        ):
            got += into[:count]
        if position == len(wire):
            return bytes(got)
        room = records.room(reader)
        assert room, "there must always be room for more"
        step = min(len(room), len(wire) - position, chance.randint(1, 2 * RECORD) if chance else BATCH)
        room[:step] = wire[position : position + step]
        records.arrived(step)
        position += step


def cut_up(wire: bytes) -> list[bytes]:
    """The records in it."""
    found = []
    while wire:
        size = HEADER.size + HEADER.unpack_from(wire)[0]
        found.append(wire[:size])
        wire = wire[size:]
    return found


@given(st.lists(sizes, max_size=3), seeds, st.sampled_from([1, 8, 4096, RECORD, 5 * RECORD]))
def test_any_split_of_the_wire_gives_the_same_bytes(flights: list[list[int]], seed: int, reader: int) -> None:
    chance = random.Random(seed)
    parts = [[NOISE[:size] for size in flight] for flight in flights]
    if reader < 4096:
        parts = [[part[:2000] for part in flight] for flight in parts]
    client, host = pair()
    wire = b"".join(seal(client, *flight) for flight in parts)
    assert feed(host, wire, chance=chance, reader=reader) == b"".join(map(b"".join, parts))
    assert not host.ended
    feed(host, end(client))
    assert host.ended


@given(sizes)
def test_no_record_is_larger_than_the_limit_and_no_piece_than_a_batch(parts: list[int]) -> None:
    client, _ = pair()
    pieces = [bytes(piece) for piece in client.protect(*[NOISE[:size] for size in parts])]
    assert all(0 < len(piece) <= BATCH for piece in pieces)
    assert all(len(record) <= HEADER.size + RECORD + TAG for record in cut_up(b"".join(pieces)))


def test_both_directions_have_keys_of_their_own() -> None:
    client, host = pair()
    sent, answered = seal(client, b"same bytes"), seal(host, b"same bytes")
    assert sent != answered
    assert feed(host, sent) == feed(client, answered) == b"same bytes"
    with pytest.raises(ConnectionLostError):  # a record sent back to where it came from
        feed(client, seal(client, b"mirror"))


def test_another_secret_opens_nothing() -> None:
    client, _ = pair()
    with pytest.raises(ConnectionLostError, match="changed on the way"):
        feed(SealedRecords(bytes(64), server=True), seal(client, b"x"))


def test_equal_bytes_never_look_equal() -> None:
    client, _ = pair()
    assert len({seal(client, b"again") for _ in range(100)}) == 100


@given(st.data())
def test_a_changed_bit_is_noticed(data: st.DataObject) -> None:
    client, host = pair()
    wire = bytearray(seal(client, NOISE[: data.draw(st.sampled_from([1, 100, RECORD]))]))
    bit = data.draw(st.integers(0, 8 * len(wire) - 1))
    wire[bit // 8] ^= 1 << bit % 8
    # A length that grew makes it wait for more: then what follows is taken for the rest, and nothing is believed.
    with pytest.raises((ConnectionLostError, ProtocolError)):
        assert feed(host, bytes(wire) + seal(client, NOISE) * 3) == b""


@pytest.mark.parametrize("what", ["swapped", "repeated", "dropped", "end moved forward"])
def test_records_out_of_their_place_are_noticed(what: str) -> None:
    client, host = pair()
    first, second, third, last = seal(client, b"1"), seal(client, b"2"), seal(client, b"3"), end(client)
    order = {
        "swapped": [second, first],
        "repeated": [first, first],
        "dropped": [first, third],
        "end moved forward": [first, last],
    }[what]
    with pytest.raises(ConnectionLostError):
        feed(host, b"".join(order))
    assert not host.ended


@pytest.mark.parametrize("length", [0, TAG - 1, RECORD + TAG + 1, 0xFFFFFFFF])
def test_an_impossible_length_is_refused_before_anything_is_allocated(length: int) -> None:
    _, host = pair()
    room = host.room(8)
    HEADER.pack_into(room, 0, length)
    host.arrived(HEADER.size)
    with pytest.raises(ProtocolError, match=f"a record of {length} bytes"):
        host.read_into(memoryview(bytearray(8)))


def test_nothing_is_read_behind_the_end() -> None:
    client, host = pair()
    wire = seal(client, b"last words") + end(client)
    assert feed(host, wire + seal(client, b"from the grave")) == b"last words"
    assert host.ended
    assert host.read_into(memoryview(bytearray(8))) == 0


def test_bytes_that_came_with_the_handshake_are_the_first() -> None:
    client, _ = pair()
    wire = seal(client, NOISE[: RECORD + 5])
    for early in (1, 3, 4, 5, len(wire) - 1, len(wire)):
        host = SealedRecords(SECRET, server=True, early=wire[:early])
        assert feed(host, wire[early:]) == NOISE[: RECORD + 5]


def test_the_key_changes_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "REKEY_AFTER", 3)
    client, host = pair()
    wires = [seal(client, b"again") for _ in range(10)]
    assert len(set(wires)) == 10  # the numbers begin anew, under another key
    assert feed(host, b"".join(wires)) == b"again" * 10
    monkeypatch.setattr(sealed, "REKEY_AFTER", 4)
    with pytest.raises(ConnectionLostError):  # both sides must do it at the same record
        feed(pair()[1], b"".join(wires))


@given(st.data())
def test_another_process_goes_on_anywhere(data: st.DataObject) -> None:
    """Between any two bytes that arrive or are read: with bytes that were not opened, and plaintext that was not
    taken."""
    client, host = pair()
    wire = seal(client, b"a request", NOISE[:1000], b"x") + seal(client, b"another") + end(client)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=4)))
    got, answers = bytearray(), []
    for start, stop in itertools.pairwise([0, *cuts, len(wire)]):
        room = host.room(stop - start)
        room[: stop - start] = wire[start:stop]
        host.arrived(stop - start)
        into = memoryview(bytearray(data.draw(st.integers(1, 50))))
        got += into[: host.read_into(into)]
        answers.append(seal(host, b"an answer"))
        host = SealedRecords.resumed(host.state)
    got += feed(host, b"")
    assert got == b"a request" + NOISE[:1000] + b"xanother"
    assert host.ended
    assert SealedRecords.resumed(host.state).ended
    assert feed(client, b"".join(answers)) == b"an answer" * len(answers)


def test_another_process_changes_keys_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "REKEY_AFTER", 3)
    client, host = pair()
    for _ in range(10):
        assert feed(host, seal(client, b"ask")) == b"ask"
        assert feed(client, seal(host, b"answer")) == b"answer"
        client, host = (SealedRecords.resumed(records.state) for records in (client, host))


def test_what_another_process_needs_is_not_shown() -> None:
    _, host = pair()
    assert "secret" not in repr(host.state) and "opened" not in repr(host.state)


def test_a_quiet_stream_stays_small() -> None:
    client, host = pair()
    for _ in range(100):
        feed(host, seal(client, b"a request", b""), reader=64)
    assert len(client._outbox) + len(host._inbox) + len(host._spare) <= 4 * sealed.FIRST_BUFFER


def test_the_golden_bytes() -> None:
    """Written once, on purpose, with nothing but the description in docs/protocol.md and `cryptography`."""
    for vector in json.loads(VECTORS.read_text()):
        client = SealedRecords(bytes.fromhex(vector["secret"]), server=False)
        host = SealedRecords(bytes.fromhex(vector["secret"]), server=True)
        sender, receiver = (client, host) if vector["from"] == "client" else (host, client)
        wire = b"".join(seal(sender, bytes.fromhex(plain)) for plain in vector["plain"]) + end(sender)
        assert wire.hex() == vector["wire"]
        assert feed(receiver, wire) == b"".join(map(bytes.fromhex, vector["plain"]))


# ---- short records ---------------------------------------------------------------------------------------------------


def arrive(records: SealedRecords, wire: bytes) -> None:
    while wire:
        room = records.room(0)
        room[: len(wire)] = wire[: len(room)]
        records.arrived(min(len(room), len(wire)))
        wire = wire[len(room) :]


@pytest.mark.parametrize("size", [1, 100, FIRST_BUFFER, SHORT])
def test_a_short_record_is_what_protect_would_have_made(size: int) -> None:
    """Two ends with the same keys, one of which takes the short way."""
    short, long = SealedRecords(SECRET, server=True), SealedRecords(SECRET, server=True)
    for parts in ([NOISE[:size]], [NOISE[: size // 2], NOISE[size // 2 : size]]):
        record = short.protect_short(*parts)
        assert record is not None
        assert bytes(record) == seal(long, b"".join(parts))


def test_what_is_longer_or_empty_has_to_go_the_long_way() -> None:
    client, host = pair()
    assert client.protect_short(NOISE[: SHORT + 1]) is None
    assert client.protect_short(b"", b"") is None
    assert feed(host, seal(client, b"in step")) == b"in step", "and no number was used up"


@given(sizes=st.lists(st.sampled_from([1, 50, 3000, FIRST_BUFFER, SHORT, RECORD]), max_size=6), seed=seeds)
def test_records_may_be_read_whole_or_in_pieces(sizes: list[int], seed: int) -> None:
    """Each is read whole where it can be, and by `read_into` where it is beyond that or chance says so."""
    chance = random.Random(seed)
    client, host = pair()
    for size in sizes:
        sent = NOISE[:size]
        arrive(host, seal(client, sent))
        assert host.beyond(4096) == (size > 4096)
        if size <= 4096 and chance.random() < 0.7:
            assert host.read_whole(4096) == sent
            continue
        assert size <= 4096 or host.read_whole(4096) is None
        into = memoryview(bytearray(size))
        first = host.read_into(into[: chance.randint(1, size)])
        if first < size:
            assert host.read_whole(RECORD) is None, "it was begun"
            assert host.beyond(RECORD)
            assert host.read_into(into[first:]) == size - first
        assert into == sent
    arrive(host, end(client))
    assert host.read_whole(4096) == b""
    assert host.ended
    assert host.beyond(4096)


def test_a_record_that_has_not_arrived_is_waited_for() -> None:
    client, host = pair()
    wire = seal(client, NOISE[:1000])
    for length in (0, 3, 4, len(wire) - 1):
        _, other = pair()
        arrive(other, wire[:length])
        assert other.read_whole(4096) is None
        assert not other.beyond(4096)


@pytest.mark.parametrize("at", [0, 3, 4, 500, -1])
def test_a_short_record_that_was_changed_is_noticed(at: int) -> None:
    client, host = pair()
    wire = bytearray(seal(client, NOISE[:1000]))
    wire[at] ^= 1
    arrive(host, bytes(wire))
    with pytest.raises((ConnectionLostError, ProtocolError)):
        host.read_whole(RECORD)
        host.beyond(RECORD)
        arrive(host, seal(client, NOISE[:2000]))  # a longer length waits for more first
        host.read_whole(RECORD)
