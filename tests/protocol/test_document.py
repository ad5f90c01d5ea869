"""docs/protocol.md says what the code does: every message, field, type, default, code, limit and constant."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec
import pytest

from headrace.errors import BY_CODE, FROM_HOST
from headrace.protocol import frames, messages, pake, paths, sealed, session
from headrace.protocol.messages import BY_TYPE, Entry, Message

from . import make_vectors, test_vectors

ROOT: Final = Path(__file__).parent.parent.parent
TEXT: Final = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
TYPES: Final[dict[Any, str]] = {int: "int", float: "float", bool: "bool", str: "str", bytes: "bin", Entry: "entry"}


def section(heading: str) -> str:
    """The text under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/protocol.md has no section {heading}"
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """Table rows by their first cell, where that is `a word`."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {row[0].strip("`"): row[1:] for row in cells if row[0].startswith("`")}


def type_word(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "str"
    if get_origin(annotation) is tuple:
        return f"array of {len(get_args(annotation))} {type_word(get_args(annotation)[0])}"
    if get_origin(annotation) is list:
        return f"array of {type_word(get_args(annotation)[0])}"
    assert not isinstance(annotation, types.UnionType)
    return TYPES[annotation]


def default_word(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return ""
    if field.default_factory is list:
        return "`[]`"
    if isinstance(field.default, bytes):
        return "empty" if not field.default else field.default.hex()
    if isinstance(field.default, str):
        return f"`{field.default}`" if field.default else '`""`'
    return json.dumps(field.default)


def assert_fields(struct: type[msgspec.Struct], text: str) -> None:
    described = rows(text)
    assert list(described) == list(struct.__struct_fields__)
    for field in msgspec.structs.fields(struct):
        kind, default, meaning = described[field.name]
        assert kind == type_word(field.type), field.name
        assert default == default_word(field), field.name
        assert meaning, field.name


@pytest.mark.parametrize("name", BY_TYPE)
def test_every_message_with_its_fields(name: str) -> None:
    assert_fields(BY_TYPE[name], section(f"`{name}`"))


def test_entries() -> None:
    assert_fields(Entry, section("Entries"))
    kinds = next(field.type for field in msgspec.structs.fields(Entry) if field.name == "kind")
    assert all(f"`{kind}`" in rows(section("Entries"))["kind"][2] for kind in get_args(kinds))


def test_no_message_that_does_not_exist() -> None:
    assert set(re.findall(r"^### `(.+)`$", TEXT, re.MULTILINE)) == set(BY_TYPE)


@pytest.mark.parametrize("cls", BY_TYPE.values(), ids=BY_TYPE.keys())
def test_every_message_stands_in_its_phase(cls: type[Message]) -> None:
    bulk = TEXT.index("## Messages of phase 8")
    heading = TEXT.index(f"### `{cls.__struct_config__.tag}`\n")
    assert (heading > bulk) == any(make_vectors.phase_of(m) == 8 for _, m, _ in make_vectors.FRAMES if type(m) is cls)


def test_every_request_has_an_answer() -> None:
    answers = rows(section("Requests and answers"))
    assert set(answers) == {cls.__struct_config__.tag for cls in messages.REQUESTS}
    assert all(re.findall("`(.+)`", row[0])[0] in BY_TYPE for row in answers.values())


def test_every_error_with_its_exit_code() -> None:
    described = rows(section("Errors"))
    assert set(described) == set(BY_CODE)
    for code, (exit_code, again, sent, meaning) in described.items():
        assert exit_code == str(BY_CODE[code].exit_code), code
        assert again == ("yes" if BY_CODE[code].retryable else "no"), code
        assert sent == ("yes" if code in FROM_HOST else "no"), code
        assert meaning, code


def test_every_feature() -> None:
    assert set(rows(section("Phases and features"))) >= {*session.FEATURES, session.SEALED, session.CLEAR}


def test_limits() -> None:
    text = section("Limits")
    for limit in (
        *(frames.HANDSHAKE_LIMITS.header, frames.HANDSHAKE_LIMITS.payload),
        *(frames.SESSION_LIMITS.header, frames.SESSION_LIMITS.payload),
        *(messages.READ_SIZE, messages.CHUNK_SIZE, messages.MAX_ENTRIES, messages.MAX_HASHES, messages.MAX_FILE_SIZE),
        *(messages.MAX_BATCH_ITEMS, messages.MAX_BATCH_FILE, messages.MAX_BATCH_SIZE, messages.MAX_PART),
        *(messages.MAX_CHANGES, messages.MAX_RANGES, messages.MAX_MARKS),
        *(messages.MAX_PUT_ITEMS, messages.MAX_PUT_FILES, messages.MAX_OFFER, messages.MAX_HELD),
        *(session.MAX_FEATURES, session.MAX_WORD, paths.MAX_NAME, paths.MAX_PATH, paths.MAX_DEPTH),
    ):
        assert re.search(rf"\b{limit}\b", text), limit
    assert f"0 to {messages.READ_SIZE}" in rows(section("`read`"))["length"][2]
    assert f"for {messages.HEARTBEAT:.0f} seconds" in section("`changed`")
    assert f"1 to {messages.CHUNK_SIZE}" in rows(section("`get-chunk`"))["length"][2]
    assert f"1 to {messages.MAX_LEVEL}" in rows(section("`get-chunk`"))["zstd"][2]
    assert f"at most {messages.MAX_PART}" in rows(section("`chunk`"))["size"][2]
    assert f"A block is {messages.BLOCK_SIZE} bytes" in section("`blocks`")
    assert f"\n{messages.MARK_SPAN} bytes from there on" in section("`blocks`")
    assert f"at most {messages.MAX_MARKS} places" in section("`blocks`")


def test_sizes() -> None:
    for row, size in (
        (rows(section("`auth-pake`"))["element"], pake.ELEMENT_SIZE),
        (rows(section("`auth-pake-reply`"))["element"], pake.ELEMENT_SIZE),
        (rows(section("`auth-pake-confirm`"))["mac"], pake.KEY_SIZE),
        (rows(section("`granted`"))["mac"], pake.KEY_SIZE),
        (rows(section("`auth-credential`"))["peer"], pake.PEER_SIZE),
        (rows(section("`hello`"))["seal"], session.SEAL_SIZE),
        (rows(section("`granted`"))["seal"], session.SEAL_SIZE),
        (rows(section("`chunk`"))["hash"], messages.HASH_SIZE),
        (rows(section("`batch`"))["hash"], messages.HASH_SIZE),
        (rows(section("`get-batch`"))["items"], messages.VERSION_SIZE),
        *((rows(section(f"`{name}`"))["version"], messages.VERSION_SIZE) for name in ("put-offer", "put-chunk")),
        *((rows(section(f"`{name}`"))["hash"], messages.HASH_SIZE) for name in ("put-files", "put-chunk")),
        (rows(section("`put-begin`"))["transfer"], messages.TRANSFER_SIZE),
        (rows(section("`put-ready`"))["run"], messages.TRANSFER_SIZE),
        (rows(section("Entries"))["version"], messages.VERSION_SIZE),
    ):
        assert f" {size} bytes" in row[2]


def test_the_example_is_a_vector() -> None:
    lines = [line[4:28] for line in section("Frames").splitlines() if re.match(r"    [0-9a-f]{2,} ", line)]
    example = "".join(lines).replace(" ", "")
    assert example in {vector["frame"] for vector in test_vectors.FRAMES["known"]}


def test_the_constants_of_first_contact() -> None:
    text = section("First contact")
    for constant in (
        *(test_vectors.M.hex(), test_vectors.N.hex(), str(test_vectors.L - 2**252)),
        *('"headrace client "', '"headrace host "', '"SPAKE2 pw"', "`headrace`"),
        *("`client confirmation`", "`host confirmation`", "`peer id`", "`credential`"),
    ):
        assert constant in text
    assert '"headrace credential" ‖ 00 ‖ fingerprint ‖ nonce' in section("Later connections")


def test_it_opens_with_terminology() -> None:
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE)[0] == "Terminology"


def test_the_files_that_it_names_exist() -> None:
    for name in re.findall(r"`((?:tests|headrace)/[\w/.]+)`", TEXT):
        assert (ROOT / name).exists() or (ROOT / "src" / name).exists(), name


def test_sealed_records() -> None:
    text = section("Sealed records")
    assert f"0 to {sealed.RECORD} ({sealed.RECORD // 1024} KiB)" in text
    assert f"After {sealed.REKEY_AFTER} records" in text
    assert f"at most {sealed.REKEY_AFTER * sealed.RECORD >> 30} GiB" in text
    assert f"tag, {sealed.TAG} bytes" in text
