"""The golden bytes. When a test here fails, the wire has changed: peers of the last version may not understand it."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any, Final

import msgspec
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from headrace.protocol import pake
from headrace.protocol.codes import Code
from headrace.protocol.frames import SESSION_LIMITS, FrameDecoder, encode_frame
from headrace.protocol.messages import BY_TYPE, decode

from . import make_vectors
from .handshakes import Policy, make_host

FILES: Final = {name: (make_vectors.VECTORS / name).read_text(encoding="utf-8") for name in make_vectors.rendered()}
FRAMES: Final[dict[str, list[dict[str, Any]]]] = json.loads(FILES["frames.json"])
HANDSHAKE: Final[dict[str, Any]] = json.loads(FILES["handshake.json"])


@pytest.mark.parametrize("name", FILES)
def test_the_wire_is_what_it_was(name: str) -> None:
    assert make_vectors.rendered()[name] == FILES[name]


def test_every_message_has_a_frame() -> None:
    assert {frame["header"]["type"] for frame in FRAMES["known"]} == set(BY_TYPE)


def parse(frame: bytes) -> tuple[dict[str, Any], bytes]:
    """A frame read by the document alone."""
    header, payload = int.from_bytes(frame[:4], "big"), int.from_bytes(frame[4:8], "big")
    assert len(frame) == 8 + header + payload
    return make_vectors.plain(msgspec.msgpack.decode(frame[8 : 8 + header])), frame[8 + header :]


@pytest.mark.parametrize("vector", [vector for kind in FRAMES.values() for vector in kind], ids=lambda v: v["meaning"])
def test_frames_hold_what_is_written_beside_them(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    assert parse(frame) == (vector["header"], bytes.fromhex(vector["payload"]))
    decoder = FrameDecoder(SESSION_LIMITS)
    decoder.feed(frame)
    head = decoder.next_head()
    assert head
    assert head.payload_length * 2 == len(vector["payload"])
    assert head.message == decode(frame[8 : len(frame) - head.payload_length])
    assert (head.message is None) == (vector in FRAMES["unknown_types"])
    if vector in FRAMES["known"]:
        assert head.message
        assert encode_frame(head.message, head.payload_length) == frame[: len(frame) - head.payload_length]


@pytest.mark.parametrize("kind", ["known", "unknown_types", "unknown_fields"])
def test_phases(kind: str) -> None:
    bulk = {"walk", "get-manifest", "manifest-part", "get-chunk", "chunk", "get-batch", "batch"}
    bulk |= {"get-blocks", "blocks", "get-ranges"}
    bulk |= {"watch", "changed", "look", "looked", "statfs", "statfs-reply"}
    bulk |= {"trace", "get-times", "times"}
    bulk |= {"put-begin", "put-ready", "put-names", "put-attributes", "put-files", "put-done", "put-open", "put-opened"}
    bulk |= {"put-offer", "put-wanted", "put-chunk", "put-stored", "put-commit", "put-committed", "put-leave"}
    bulk |= {"put-end", "put-ended"}
    for vector in FRAMES[kind]:
        assert vector["phase"] == (8 if vector["header"]["type"] in bulk else 7)


def test_a_host_answers_the_recorded_bytes_with_the_recorded_bytes() -> None:
    frames = HANDSHAKE["conversations"][0]["frames"]
    entropy = bytes.fromhex(HANDSHAKE["host_entropy"])
    host = make_host(Policy(), entropy=lambda count: entropy[:count], agent="headrace 1.0")
    decoder = FrameDecoder()
    answered = b""
    for line in frames:
        if line["from"] == "client":
            decoder.feed(bytes.fromhex(line["frame"]))
            head = decoder.next_head()
            assert head
            answered += b"".join(map(encode_frame, host.receive(head.message)))
    assert answered.hex() == "".join(line["frame"] for line in frames if line["from"] == "host")
    assert host.agreed and host.agreed.keys
    assert host.agreed.keys.credential.hex() == HANDSHAKE["credential"]


# ---- the handshake by docs/protocol.md alone, without our code or the spake2 package ------------------------------

Point = tuple[int, int]
P: Final = 2**255 - 19
L: Final = 2**252 + 27742317777372353535851937790883648493
D: Final = -121665 * pow(121666, -1, P) % P
G: Final[Point] = (
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    46316835694926478169428394003475163141307993866256225615783033603165251855960,
)
M: Final = bytes.fromhex("15cfd18e385952982b6a8f8c7854963b58e34388c8e6dae891db756481a02312")
N: Final = bytes.fromhex("f04f2e7eb734b2a8f8b472eaf9c3c632576ac64aea650b496a8a20ff00e583c3")


def add(a: Point, b: Point) -> Point:
    common = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + common, -1, P) % P
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - common, -1, P) % P
    return x, y


def times(scalar: int, point: Point) -> Point:
    total = (0, 1)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total


def pack(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def unpack(raw: bytes) -> Point:
    sign, y = divmod(int.from_bytes(raw, "little"), 1 << 255)
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return (x if x & 1 == sign else P - x), y


def hkdf(key: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    return HKDF(SHA256(), size, salt, info).derive(key)


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def test_first_contact_by_the_document_alone() -> None:
    secret = HANDSHAKE["code"].replace("-", "")[4:].encode()
    share = HANDSHAKE["code"].replace("-", "")[:4].encode()
    fingerprint = bytes.fromhex(HANDSHAKE["fingerprint"])
    id_a = b"headrace client " + share + b" " + fingerprint
    id_b = b"headrace host " + share + b" " + fingerprint
    assert (id_a.hex(), id_b.hex()) == (HANDSHAKE["id_a"], HANDSHAKE["id_b"])

    w = int.from_bytes(hkdf(secret, b"", b"SPAKE2 pw", 48), "big") % L
    x = int.from_bytes(bytes.fromhex(HANDSHAKE["client_entropy"]), "big") % L
    y = int.from_bytes(bytes.fromhex(HANDSHAKE["host_entropy"]), "big") % L
    client_point = pack(add(times(x, G), times(w, unpack(M))))
    host_point = pack(add(times(y, G), times(w, unpack(N))))
    assert (b"A" + client_point).hex() == HANDSHAKE["client_element"]
    assert (b"B" + host_point).hex() == HANDSHAKE["host_element"]

    shared = pack(times(x, add(unpack(host_point), times(L - w, unpack(N)))))
    key = sha256(sha256(secret), sha256(id_a), sha256(id_b), client_point, host_point, shared)
    assert key.hex() == HANDSHAKE["spake2_key"]
    assert hkdf(key, b"headrace", b"client confirmation", 32).hex() == HANDSHAKE["client_mac"]
    assert hkdf(key, b"headrace", b"host confirmation", 32).hex() == HANDSHAKE["host_mac"]
    assert hkdf(key, b"headrace", b"peer id", 16).hex() == HANDSHAKE["peer"]
    assert hkdf(key, b"headrace", b"credential", 32).hex() == HANDSHAKE["credential"]


def test_a_later_connection_by_the_document_alone() -> None:
    _, message, *_ = (line["header"] for line in HANDSHAKE["conversations"][1]["frames"])
    fingerprint, credential = bytes.fromhex(HANDSHAKE["fingerprint"]), bytes.fromhex(HANDSHAKE["credential"])
    nonce = bytes.fromhex(message["nonce"]["bin"])
    assert message["peer"]["bin"] == HANDSHAKE["peer"]
    proof = hmac.digest(credential, b"headrace credential\0" + fingerprint + nonce, "sha256")
    assert message["proof"]["bin"] == proof.hex()
    assert proof == pake.credential_proof(credential, fingerprint, nonce)


def test_conversations_end_as_they_say() -> None:
    ends = {talk["meaning"]: talk["frames"][-1]["header"] for talk in HANDSHAKE["conversations"]}
    assert {meaning: (end["type"], end.get("code")) for meaning, end in ends.items()} == {
        "first contact": ("granted", None),
        "paired before": ("granted", None),
        "a wrong code": ("error", "wrong_code"),
        "a peer that the host does not know": ("error", "credential_unknown"),
        "a locked share": ("error", "locked"),
        "no common phase": ("error", "version"),
    }
    assert Code.parse(HANDSHAKE["code"]).text == HANDSHAKE["code"]
