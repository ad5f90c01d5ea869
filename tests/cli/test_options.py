"""Flags win over the environment, the environment over the config file; mistakes in either are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from headrace.cli.app import COMMANDS, headrace
from headrace.cli.get import get
from headrace.cli.options import BENCH_JSON, OPTIONS, Command, Common
from headrace.cli.share import share
from headrace.errors import UsageError


@pytest.fixture(autouse=True)
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    return tmp_path / "config.toml"


def parse(command: click.Command, *arguments: str) -> tuple[dict[str, Any], Common]:
    common = Common()
    context = command.make_context(str(command.name), list(arguments), obj=common)
    return context.params, common


def test_defaults():
    params, common = parse(get, "target")

    assert params["on_exist"] == "skip-same"
    assert params["connections"] is None
    assert params["include"] == ()
    assert common == Common()
    assert parse(share, "x")[0]["port"] == 7420


def test_flags_win_over_the_environment_and_that_over_the_file(config_file, monkeypatch):
    config_file.write_text('on-exist = "fail"\nprotocol = 7\n')
    assert parse(get, "t")[0]["on_exist"] == "fail"
    assert parse(get, "t")[1].protocol == "7"

    monkeypatch.setenv("HEADRACE_ON_EXIST", "rename")
    monkeypatch.setenv("HEADRACE_PROTOCOL", "8")
    assert parse(get, "t")[0]["on_exist"] == "rename"
    assert parse(get, "t")[1].protocol == "8"

    assert parse(get, "t", "--on-exist", "overwrite")[0]["on_exist"] == "overwrite"
    assert parse(get, "t", "--protocol", "auto")[1].protocol == "auto"


def test_a_switch_can_be_turned_off_everywhere(config_file, monkeypatch):
    assert parse(get, "t")[0]["content_addressing"] is True
    config_file.write_text("content-addressing = false\n")
    assert parse(get, "t")[0]["content_addressing"] is False

    monkeypatch.setenv("HEADRACE_CONTENT_ADDRESSING", "1")
    assert parse(get, "t")[0]["content_addressing"] is True
    assert parse(get, "t", "--no-content-addressing")[0]["content_addressing"] is False


def test_a_table_wins_over_the_top_level_and_is_for_one_command(config_file):
    config_file.write_text("port = 7000\njson = true\n[share]\nport = 7001\n[get]\njson = false\n")

    assert parse(share, "x")[0]["port"] == 7001
    assert parse(share, "x")[1].json is True
    assert parse(get, "t")[1].json is False


def test_keys_have_dashes_or_underscores_and_lists_where_options_repeat(config_file):
    config_file.write_text('on_exist = "rename"\nexclude = ["*.tmp", "a b"]\ninclude = "*.mov"\nverbose = 2\n')
    params, common = parse(get, "t")

    assert params["on_exist"] == "rename"
    assert params["exclude"] == ("*.tmp", "a b")
    assert params["include"] == ("*.mov",)
    assert common.verbose == 2


def test_an_option_of_another_command_at_the_top_level_is_no_mistake(config_file):
    config_file.write_text("port = 7000\n")

    parse(get, "t")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = true", "colour"),
        ("[get]\nport = 1", "get.port"),
        ("[download]\njson = true", "[download]"),
        ("port = 70000", "port"),
        ("port = true", "port"),
        ('port = "x"', "port"),
        ("port = [1]", "port"),
        ('json = "yes"', "json"),
        ('on-exist = "replace"', "on-exist"),
        ("exclude = 3", "exclude"),
        ("verbose = -1", "verbose"),
        ('transport = "smoke"', "transport"),
        ("[share]\nport = -1", "share.port"),
        ("port = ", "TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_whichever_command_runs(config_file, text, named):
    config_file.write_text(text)
    for command in (get, share):
        with pytest.raises(UsageError) as caught:
            parse(command, "x")
        assert str(config_file) in str(caught.value)
        assert named in str(caught.value)


def test_help_comes_even_when_the_file_is_broken(config_file, capsys):
    config_file.write_text("nonsense")
    with pytest.raises(click.exceptions.Exit):
        parse(get, "--help")

    assert "Usage:" in capsys.readouterr().out


def test_a_file_that_is_not_utf_8(config_file):
    config_file.write_bytes(b'name = "\xff"')
    with pytest.raises(UsageError, match="UTF-8"):
        parse(get, "t")


def test_a_bad_environment_variable_is_named(monkeypatch):
    monkeypatch.setenv("HEADRACE_CONNECTIONS", "17")
    with pytest.raises(click.BadParameter) as caught:
        parse(get, "t")

    assert "--connections" in caught.value.format_message()


def test_several_patterns_in_one_variable_one_a_line(monkeypatch):
    monkeypatch.setenv("HEADRACE_EXCLUDE", "*.tmp\nwith space\n")

    assert parse(get, "t")[0]["exclude"] == ("*.tmp", "with space")


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("HEADRACE_JSON", "1", "json", True),
        ("HEADRACE_QUIET", "true", "quiet", True),
        ("HEADRACE_VERBOSE", "2", "verbose", 2),
        ("HEADRACE_LOG_JSON", "yes", "log_json", True),
        ("HEADRACE_CODE_FILE", "x", "code_file", "x"),
    ],
)
def test_common_options_have_their_variables(monkeypatch, variable, value, field, expected):
    monkeypatch.setenv(variable, value)

    assert getattr(parse(get, "t")[1], field) == expected


def test_every_option_has_its_variable():
    for command, some in OPTIONS.items():
        for option in some:
            long = max(option.opts, key=len)
            assert long.startswith("--"), (command, option)
            # For bench it names a file, for all others it is a switch: one variable cannot be both.
            wanted = "bench_json" if option is BENCH_JSON else long[2:].replace("-", "_")
            assert option.envvar == "HEADRACE_" + wanted.upper()
            assert option.name == wanted


@pytest.mark.parametrize(("alias", "name"), [("send", "share"), ("serve", "share"), ("receive", "get")])
def test_aliases(alias, name):
    context = click.Context(headrace)

    assert headrace.get_command(context, alias) is headrace.get_command(context, name)


def test_each_command_is_where_its_name_says_and_has_its_options():
    context = click.Context(headrace)
    for name in COMMANDS:
        command = headrace.get_command(context, name)
        assert command is not None
        assert command.name == name
        if isinstance(command, Command):
            parts = command.commands.values() if isinstance(command, click.Group) else ()
            declared = {p.name for one in (command, *parts) for p in one.params if isinstance(p, click.Option)}
            assert declared == {o.name for o in OPTIONS[name]}
