"""Where the code comes from when the target has none."""

from __future__ import annotations

import pytest

from headrace.cli import reach
from headrace.cli.options import Common
from headrace.errors import UsageError
from headrace.protocol.session import Versions

OURS, OTHER = "7k2m-xq4c-9dht", "aaaa-bbbb-cccc"


@pytest.fixture
def code_file(tmp_path):
    file = tmp_path / "code"
    file.write_text(f"{OTHER}\nand a comment\n")
    return str(file)


def code_of(text: str, common: Common) -> str:
    code = reach.target_of(text, common).code
    assert code is not None
    return code.text


def test_a_code_in_the_target_wins(monkeypatch, code_file):
    monkeypatch.setenv("HEADRACE_CODE", OTHER)

    assert code_of(f"{OURS}@host:1", Common(code_file=code_file, code_file_given=True)) == OURS


def test_the_environment(monkeypatch):
    monkeypatch.setenv("HEADRACE_CODE", OURS.upper())

    assert code_of("host:1/path", Common()) == OURS


def test_the_code_file(monkeypatch, code_file):
    monkeypatch.delenv("HEADRACE_CODE", raising=False)

    assert code_of("host:1", Common(code_file=code_file)) == OTHER


def test_a_flag_wins_over_the_environment_and_that_over_the_config_file(monkeypatch, code_file):
    monkeypatch.setenv("HEADRACE_CODE", OURS)

    assert code_of("host:1", Common(code_file=code_file, code_file_given=True)) == OTHER
    assert code_of("host:1", Common(code_file=code_file)) == OURS


def test_without_a_terminal_there_is_no_prompt(monkeypatch):
    monkeypatch.delenv("HEADRACE_CODE", raising=False)
    with pytest.raises(UsageError, match="no code for host:1.*HEADRACE_CODE.*--code-file"):
        reach.target_of("host:1", Common())


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"\xff\xfe", b"7k2m-xq4c-9dh!"])
def test_a_code_file_without_a_code(tmp_path, content):
    file = tmp_path / "code"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        reach.elsewhere(Common(code_file=str(file)))

    assert str(file) in str(caught.value)
    assert "9dh!" not in str(caught.value), "a code is never repeated"


def test_a_code_file_that_is_missing(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        reach.read_code_file(str(tmp_path / "nothing"))


def test_a_bad_code_in_the_environment(monkeypatch):
    monkeypatch.setenv("HEADRACE_CODE", "hunter2!")
    with pytest.raises(UsageError, match="HEADRACE_CODE") as caught:
        reach.elsewhere(Common())

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("word", "low", "high"), [("auto", 7, 8), ("7", 7, 7), ("8", 8, 8)])
def test_protocol_versions(word, low, high):
    assert reach.versions(Common(protocol=word)) == Versions(low, high)
