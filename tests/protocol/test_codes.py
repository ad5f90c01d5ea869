"""The short code: forgiving to type, never shown by accident."""

from __future__ import annotations

import dataclasses
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.codes import ALPHABET, GROUP, MAX_CODE, MIN_SECRET, SECRET_GROUPS, BadCodeError, Code

plain_codes = st.text(ALPHABET, min_size=GROUP + MIN_SECRET, max_size=MAX_CODE)
spelled = {"0": "0oO", "1": "1iIlL"}


@settings(max_examples=40)
@given(plain=plain_codes, data=st.data())
def test_any_spelling_of_a_code_is_that_code(plain: str, data: st.DataObject) -> None:
    typed = ""
    for letter in plain:
        typed += data.draw(st.sampled_from(["", "", "-", " ", "--", " - "]))
        typed += data.draw(st.sampled_from(spelled.get(letter, letter + letter.upper())))
    typed += data.draw(st.sampled_from(["", "-", " ", "\n", "\r\n"]))
    assert Code.parse(typed) == Code(plain[:GROUP], plain[GROUP:])


@given(plain_codes)
def test_the_text_of_a_code_parses_to_it(plain: str) -> None:
    code = Code.parse(plain)
    assert Code.parse(code.text) == code
    assert all(len(group) <= GROUP for group in code.text.split("-"))


@given(st.text(max_size=80))
def test_any_text_is_a_code_or_a_bad_code(text: str) -> None:
    try:
        code = Code.parse(text)
    except BadCodeError as why:
        plain = text.strip()
        assert len(plain) < 8 or plain not in str(why)
        return
    assert len(code.share) == GROUP
    assert MIN_SECRET <= len(code.secret) <= MAX_CODE - GROUP
    assert set(code.share + code.secret) <= set(ALPHABET)


@pytest.mark.parametrize(
    "text",
    ["", "7k2m", "7k2m-xq4", "7k2m-xq4u", "7k2m-xq4!", "7k2m/xq4c", "7k2m\txq4c", "7k2m\0xq4c", "é" * 12, "0" * 65],
)
def test_no_codes(text: str) -> None:
    with pytest.raises(BadCodeError):
        Code.parse(text)


def test_shortest_and_longest() -> None:
    assert Code.parse("7k2m-xq4c") == Code("7k2m", "xq4c")
    assert len(Code.parse("0" * MAX_CODE).secret) == MAX_CODE - GROUP


def test_the_alphabet_is_crockfords() -> None:
    assert len(ALPHABET) == len(set(ALPHABET)) == 32
    assert not set("ilou") & set(ALPHABET)


def test_generated_codes_parse() -> None:
    codes = {Code.generate(os.urandom) for _ in range(200)}
    assert len(codes) == 200
    for code in codes:
        assert Code.parse(code.text) == code
        assert len(code.secret) == GROUP * SECRET_GROUPS


def test_every_symbol_is_generated_equally_often() -> None:
    """Each of the 256 values of a random byte, once in every position."""
    seen = "".join(Code.generate(bytes([byte]).__mul__).secret[0] for byte in range(256))
    assert {seen.count(symbol) for symbol in ALPHABET} == {8}


@given(st.binary(min_size=12, max_size=12))
def test_the_secret_is_never_shown_by_accident(random: bytes) -> None:
    code = Code.generate(lambda count: random[:count])
    assert repr(code) == str(code) == f"{code}" == f"Code(share='{code.share}')"
    assert f"{[code]}" == f"[Code(share='{code.share}')]"
    assert code.secret in code.text.replace("-", "")


def test_a_code_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Code("7k2m", "xq4c9dht").secret = "x"  # type: ignore[misc]
