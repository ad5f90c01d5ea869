"""Errors as they travel: a stable word, a sentence that is safe to show, and the class on the other side."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace import errors
from headrace.errors import BY_CODE, FROM_HOST, HeadraceError, LocalFileError, ShareLockedError, from_wire, printable
from headrace.protocol.frames import HANDSHAKE_LIMITS
from headrace.protocol.messages import decode, encode
from headrace.protocol.session import error_message

every_class = pytest.mark.parametrize("cls", BY_CODE.values(), ids=BY_CODE.keys())


def test_every_class_has_a_code_of_its_own() -> None:
    classes = {found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, HeadraceError)}
    assert set(BY_CODE.values()) == classes - {LocalFileError}
    assert LocalFileError.code == "disk" and BY_CODE["disk"] is not LocalFileError, "it never leaves this machine"


@every_class
def test_exit_codes_are_those_of_the_command_line(cls: type[HeadraceError]) -> None:
    assert cls.exit_code in {*range(1, 12), 130}
    assert cls.__doc__


@every_class
def test_an_error_arrives_as_what_it_was(cls: type[HeadraceError]) -> None:
    message = error_message(cls("it broke."), request=7)
    arrived = decode(encode(message))
    assert arrived == message
    assert (message.id, message.code, message.message) == (7, cls.code, "it broke")
    error = from_wire(message.code, message.message)
    expected = cls if cls.code in FROM_HOST else HeadraceError
    assert type(error) is expected
    assert error.message == "it broke"
    assert error.hint == expected.default_hint


@pytest.mark.parametrize(
    "code", ["usage", "disk", "stopped", "unreachable", "lost", "integrity", "different", "some_failed"]
)
def test_a_host_cannot_choose_an_exit_code_that_is_not_for_it_to_choose(code: str) -> None:
    error = from_wire(code, "it broke")
    assert (error.code, error.exit_code, error.retryable) == ("internal", 1, False)


def test_what_only_a_client_knows_is_not_taken_from_a_host() -> None:
    """The client's own class for a symlink that leads outside has a word that is in no table."""
    import headrace.client.get  # noqa: F401  # defines it

    assert "unsafe_link" not in BY_CODE
    assert type(from_wire("unsafe_link", "x")) is HeadraceError


def test_hints_stay_here() -> None:
    error = HeadraceError("it broke", hint="look at my disk")
    assert str(error) == "it broke. look at my disk"
    assert b"look at" not in encode(error_message(error))


def test_what_goes_along_with_the_sentence() -> None:
    error = ShareLockedError("x")
    assert (error_message(error).retry_after, error_message(error).versions) == (0.0, (0, 0))
    error.retry_after = 2.5
    error.versions = (7, 8)  # type: ignore[attr-defined]
    assert (error_message(error).retry_after, error_message(error).versions) == (2.5, (7, 8))


@example(code="locked", text="...")
@example(code="", text="")
@given(code=st.text(max_size=20), text=st.text(max_size=500))
def test_errors_from_a_peer_are_safe_to_show(code: str, text: str) -> None:
    error = from_wire(code, text)
    assert error.message
    assert str(error).isprintable()
    assert len(error.message) <= 300
    assert type(error) is FROM_HOST.get(code, HeadraceError)


@given(text=st.text(st.characters(), max_size=60), limit=st.integers(1, 80))
def test_printable(text: str, limit: int) -> None:
    safe = printable(text, limit)
    assert safe.isprintable()
    assert len(safe) <= limit
    if text.isprintable() and len(text) <= limit:
        assert safe == text


def test_printable_escapes_surrogates_and_direction_marks() -> None:
    assert printable("a\udcffb\u202ec\r\n\x1b[0m") == r"a\udcffb\u202ec\r\n\x1b[0m"


@every_class
def test_a_long_sentence_of_the_handshake_fits_its_frame(cls: type[HeadraceError]) -> None:
    assert len(encode(error_message(cls("x" * 1000)))) < HANDSHAKE_LIMITS.header


def test_errors_can_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(ShareLockedError("locked", hint="wait")))
    assert (type(error), error.message, error.hint) == (ShareLockedError, "locked", "wait")
