"""First contact: only the same code over the same certificate agrees; elements do no worse than PakeFailedError."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from spake2 import ed25519_basic

from headrace.protocol import pake
from headrace.protocol.codes import Code

from .handshakes import CODE, FINGERPRINT, OTHER_CODE, OTHER_FINGERPRINT

FIELD = 2**255 - 19
HOST_ELEMENT = pake.host_exchange(CODE, FINGERPRINT, os.urandom).element


def exchange(
    client_code: Code, client_fingerprint: bytes, host_code: Code, host_fingerprint: bytes
) -> tuple[pake.PairingKeys, pake.PairingKeys]:
    client = pake.client_exchange(client_code, client_fingerprint, os.urandom)
    host = pake.host_exchange(host_code, host_fingerprint, os.urandom)
    return client.finish(host.element), host.finish(client.element)


def everything(keys: pake.PairingKeys) -> list[bytes]:
    return [keys.client_mac, keys.host_mac, keys.peer, keys.credential]


def test_the_right_code_agrees() -> None:
    client, host = exchange(CODE, FINGERPRINT, CODE, FINGERPRINT)
    assert client == host
    assert [len(value) for value in everything(client)] == [pake.KEY_SIZE, pake.KEY_SIZE, pake.PEER_SIZE, pake.KEY_SIZE]
    assert len({value[:16] for value in everything(client)}) == 4


@pytest.mark.parametrize(
    ("host_code", "host_fingerprint"),
    [
        (OTHER_CODE, FINGERPRINT),
        (CODE, OTHER_FINGERPRINT),
        (Code("7k2n", CODE.secret), FINGERPRINT),
        (Code(CODE.share, CODE.secret + "0"), FINGERPRINT),
    ],
    ids=["another secret", "another certificate", "another share", "a longer secret"],
)
def test_anything_else_disagrees(host_code: Code, host_fingerprint: bytes) -> None:
    client, host = exchange(CODE, FINGERPRINT, host_code, host_fingerprint)
    assert not set(everything(client)) & set(everything(host))


def test_every_exchange_has_keys_of_its_own() -> None:
    one, _ = exchange(CODE, FINGERPRINT, CODE, FINGERPRINT)
    other, _ = exchange(CODE, FINGERPRINT, CODE, FINGERPRINT)
    assert not set(everything(one)) & set(everything(other))


def test_an_element_is_a_side_and_a_point() -> None:
    client = pake.client_exchange(CODE, FINGERPRINT, os.urandom)
    assert len(client.element) == len(HOST_ELEMENT) == pake.ELEMENT_SIZE
    assert (client.element[:1], HOST_ELEMENT[:1]) == (b"A", b"B")


# y of the points whose order divides 8: 1, 2, 4, 4 and 8; the last two are well known from tests of X25519.
SMALL_ORDER_Y = [
    1,
    FIELD - 1,
    0,
    int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
    int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
]
SMALL_ORDER = [(y | sign << 255).to_bytes(32, "little") for y in SMALL_ORDER_Y for sign in (0, 1)]


NO_ELEMENTS = {
    "empty": b"",
    "side alone": b"B",
    "zeros": bytes(33),
    "zeros with a side": b"B" + bytes(32),
    "ones": b"B" + b"\xff" * 32,
    "too short": HOST_ELEMENT[:-1],
    "too long": HOST_ELEMENT + b"\0",
    "far too long": HOST_ELEMENT + bytes(100_000),
    "no side": HOST_ELEMENT[1:],
    "own side": b"A" + HOST_ELEMENT[1:],
    "symmetric side": b"S" + HOST_ELEMENT[1:],
    "off the curve": b"B" + (2).to_bytes(32, "little"),
    "of mixed order": b"B" + (3).to_bytes(32, "little"),
    "the field itself": b"B" + FIELD.to_bytes(32, "little"),
    "identity, y above the field": b"B" + (FIELD + 1).to_bytes(32, "little"),
    "above the field": b"B" + (FIELD + 5).to_bytes(32, "little"),
} | {f"small order {number}": b"B" + point for number, point in enumerate(SMALL_ORDER)}


@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_points_of_small_order_are_what_they_are_called(point: bytes) -> None:
    found = ed25519_basic.ElementOfUnknownGroup(
        ed25519_basic.xform_affine_to_extended(ed25519_basic.decodepoint(point))
    )
    assert ed25519_basic.is_extended_zero(found.scalarmult(8).XYTZ)


@pytest.mark.parametrize("element", NO_ELEMENTS.values(), ids=NO_ELEMENTS.keys())
def test_what_is_no_element_fails(element: bytes) -> None:
    with pytest.raises(pake.PakeFailedError):
        pake.client_exchange(CODE, FINGERPRINT, os.urandom).finish(element)


@pytest.mark.parametrize("side", [b"A", b"B"])
def test_an_element_sent_back_fails(side: bytes) -> None:
    client = pake.client_exchange(CODE, FINGERPRINT, os.urandom)
    with pytest.raises(pake.PakeFailedError):
        client.finish(side + client.element[1:])
    host = pake.host_exchange(CODE, FINGERPRINT, os.urandom)
    with pytest.raises(pake.PakeFailedError):
        host.finish(side + host.element[1:])


def test_an_exchange_is_for_one_guess() -> None:
    client = pake.client_exchange(CODE, FINGERPRINT, os.urandom)
    client.finish(HOST_ELEMENT)
    with pytest.raises(pake.PakeFailedError):
        client.finish(HOST_ELEMENT)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.binary(min_size=32, max_size=32).map(lambda point: b"B" + point)))
def test_random_elements_fail_in_one_way_only(element: bytes) -> None:
    try:
        pake.client_exchange(CODE, FINGERPRINT, os.urandom).finish(element)
    except pake.PakeFailedError as why:
        assert str(why) == "an invalid SPAKE2 element"


@given(key=st.binary(min_size=32, max_size=32), label=st.binary(max_size=30), size=st.integers(1, 32))
def test_hkdf_is_rfc_5869(key: bytes, label: bytes, size: int) -> None:
    assert pake._hkdf(key, label, size) == HKDF(SHA256(), size, b"headrace", label).derive(key)


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_proofs_differ_wherever_their_inputs_do(one: bytes, other: bytes) -> None:
    proof = pake.credential_proof(b"c" * 32, FINGERPRINT, one)
    assert pake.same(proof, pake.credential_proof(b"c" * 32, FINGERPRINT, other)) == (one == other)
    assert not pake.same(proof, pake.credential_proof(b"c" * 32, OTHER_FINGERPRINT, one))
    assert not pake.same(proof, pake.credential_proof(b"d" * 32, FINGERPRINT, one))


def test_a_fingerprint_is_sha256() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert pake.fingerprint_of(b"").hex() == empty
    assert len(pake.fingerprint_of(b"")) == pake.FINGERPRINT_SIZE


def test_keys_are_not_shown() -> None:
    keys, _ = exchange(CODE, FINGERPRINT, CODE, FINGERPRINT)
    assert repr(keys) == str(keys) == f"PairingKeys(peer={keys.peer!r})"
