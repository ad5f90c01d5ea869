"""Logs on standard error: for people, or as JSON."""

from __future__ import annotations

import json
import logging

import pytest

from headrace.observe import logs

from .processes import Sharing, json_lines, run

LOG = logging.getLogger("headrace.test")


@pytest.fixture(autouse=True)
def as_before():
    root = logging.getLogger("headrace")
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers[:], root.level, root.propagate = before


def failing():
    try:
        raise ValueError("a\x1b[31m reason")
    except ValueError:
        LOG.exception("it failed")


@pytest.mark.parametrize(
    ("verbosity", "quiet", "words"),
    [(0, False, "we"), (1, False, "iwe"), (2, False, "diwe"), (5, False, "diwe"), (0, True, "e"), (2, True, "e")],
)
def test_levels(capsys, verbosity, quiet, words):
    logs.setup(verbosity, quiet=quiet)
    for method, word in ((LOG.debug, "d"), (LOG.info, "i"), (LOG.warning, "w"), (LOG.error, "e")):
        method("<%s>", word)

    err = capsys.readouterr().err
    assert [word for word in "diwe" if f"<{word}>" in err] == list(words)
    assert err.count("\n") == len(words)


def test_what_a_peer_sent_cannot_move_the_cursor(capsys):
    logs.setup(0)
    LOG.warning("agent %s", "\x1b[2J\r\n")

    err = capsys.readouterr().err
    assert err.endswith("warning: agent \\x1b[2J\\r\\n\n")
    assert "\x1b" not in err


def test_a_traceback_only_with_vv(capsys):
    logs.setup(1)
    failing()
    assert capsys.readouterr().err.endswith("error: it failed (ValueError: a\\x1b[31m reason)\n")

    logs.setup(2)
    failing()
    assert "Traceback" in capsys.readouterr().err


def test_json_lines(capsys):
    logs.setup(1, json=True)
    LOG.info("hello %d", 1)
    failing()

    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["message"] == "hello 1"
    assert first["level"] == "info"
    assert first["logger"] == "headrace.test"
    assert first["time"].endswith("+00:00")
    assert "ValueError" in second["traceback"]


def test_setting_up_twice_logs_once(capsys):
    logs.setup(0)
    logs.setup(0)
    LOG.warning("once")

    assert capsys.readouterr().err.count("once") == 1


def test_json_lines_say_what_they_are_about(capsys):
    logs.setup(0, json=True)
    log = logging.getLogger("headrace.test")
    with logs.about_all(share="7k2m"):
        with logs.about(peer="0011aabb"):
            log.warning("within")
        log.warning("without a peer")
    log.warning("outside")
    within, between, outside = map(json.loads, capsys.readouterr().err.splitlines())

    assert (within["share"], within["peer"]) == ("7k2m", "0011aabb")
    assert between["share"] == "7k2m" and "peer" not in between
    assert "share" not in outside


@pytest.mark.slow
def test_what_fails_is_a_line_of_json_too_with_the_path_the_systems_word_and_what_to_do(tmp_path):
    """Nothing else is on standard error then, so that a program can read all of it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "source" / "below").mkdir(parents=True)
    (tmp_path / "source" / "below" / "a").write_text("a")
    (tmp_path / "source" / "b").write_text("b")
    (tmp_path / "dest" / "below").mkdir(parents=True)
    (tmp_path / "dest" / "b").write_text("another")
    with Sharing(tmp_path / "source", home=tmp_path / "host") as share:
        get = ("get", share.target, tmp_path / "dest", "--log-json", "--transport", "tcp")
        ran = run(*get, home=tmp_path / "home")
        different, whole = json_lines(ran.stderr)
        missing = run("get", share.target + "/none", tmp_path / "dest", "--log-json", home=tmp_path / "home")
    usage = run("get", "--log-json", "--frobnicate", home=tmp_path / "home")
    off = run("share", tmp_path / "source", "--log-json", "--trace", tmp_path / "no" / "file", home=tmp_path / "home")

    assert ran.returncode == 10
    assert (different["level"], different["code"], different["path"]) == ("error", "different", "b")
    assert different["hint"] == "Use --on-exist overwrite or --on-exist rename."
    assert {"share", "peer", "transfer"} <= different.keys()
    assert whole["code"] == "some_failed"
    assert [line["code"] for line in json_lines(missing.stderr)] == ["not_found"]
    assert [line["code"] for line in json_lines(usage.stderr)] == ["usage"]
    (line,) = json_lines(off.stderr)
    assert (line["code"], line["errno"]) == ("disk", "ENOENT")
    assert str(tmp_path / "no" / "file") in line["message"] and "--trace" in line["hint"]
