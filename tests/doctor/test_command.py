"""`headrace doctor` as a real process, alone and with a share to go to."""

from __future__ import annotations

import pytest
from tests.cli.processes import CODE, WRONG_CODE, json_lines, run

from headrace.doctor.checks import CHECKS

MIB = 1024 * 1024


def test_a_table_with_what_would_mend_it(home, tmp_path):
    ran = run("doctor", home=home, env={"PATH": ""}, cwd=tmp_path)

    assert (ran.returncode, ran.stderr) == (0, b"")
    lines = ran.stdout.decode().splitlines()
    rows = {line.split()[0]: line for line in lines if line and not line.startswith(" ")}
    assert list(rows)[: len(CHECKS)] == list(CHECKS)
    assert len({len(line) - len(line.split(maxsplit=2)[2]) for line in list(rows.values())[: len(CHECKS)]}) == 1
    assert lines[-1].endswith(" missing")
    if "fusermount3 is not in PATH" in rows["fuse"]:  # else /dev/fuse is not there either
        assert lines[lines.index(rows["fuse"]) + 1].strip() == "mend: apt install fuse3"
    assert list(tmp_path.iterdir()) == []


def test_events(home):
    ran = run("doctor", "--json", home=home)

    assert (ran.returncode, ran.stderr) == (0, b"")
    *found, done = json_lines(ran.stdout)
    assert [event["name"] for event in found] == list(CHECKS)
    for event in found:
        assert set(event) == {"event", "schema", "name", "status", "reason", "mend"}
        assert (event["event"], event["schema"]) == ("check", 1)
    counts = {status: sum(event["status"] == status for event in found) for status in ("ok", "limited", "missing")}
    assert done == {"event": "done", "schema": 1, **counts}


def steps(ran_stdout: bytes) -> dict[str, dict]:
    return {event["step"]: event for event in json_lines(ran_stdout) if event["event"] == "path"}


def test_the_way_to_a_share(sharing, home, tmp_path):
    ran = run("doctor", "--json", sharing.target, home=home, cwd=tmp_path)

    assert (ran.returncode, ran.stderr) == (0, b"")
    found = steps(ran.stdout)
    assert list(found) == ["name", "connect", "tls", "handshake", "ping", "read", "stream"]
    assert all(found[name]["ms"] >= 0 for name in ("name", "connect", "tls", "handshake", "ping"))
    assert "by the code" in found["handshake"]["reason"]
    assert 0 < found["ping"]["min_ms"] <= found["ping"]["ms"]
    assert (found["read"]["path"], found["read"]["bytes"]) == ("day1/a.mov", 9 * MIB + 5)
    assert found["read"]["bytes_per_second"] > 0
    assert found["read"]["cpu_seconds_per_gib"] > 0
    assert (found["stream"]["transport"], found["stream"]["protocol"]) == ("tcp", 8)
    assert found["stream"]["sealed"] is True
    assert json_lines(ran.stdout)[-1]["event"] == "done"
    assert list(tmp_path.glob("*.mov")) == [], "what was read is not written"

    again = run("doctor", sharing.target, home=home)
    assert (again.returncode, again.stderr) == (0, b"")
    assert f"The way to {sharing.address}:\n".encode() in again.stdout
    assert b"by the credential" in again.stdout
    assert b"sealed records" in again.stdout
    assert CODE.encode() not in again.stdout


def test_the_baseline_protocol_has_tls_records(sharing, home):
    found = steps(run("doctor", "--json", "--protocol", "7", sharing.target + "/day1/a.mov", home=home).stdout)

    assert found["read"]["bytes"] == 9 * MIB + 5
    assert (found["stream"]["protocol"], found["stream"]["sealed"]) == (7, False)


@pytest.mark.parametrize(
    ("path", "word"),
    [("/small", "no file of 4 MiB"), ("/small/notes.txt", "no file of 4 MiB"), ("/zeros/z", "nothing but zeros")],
)
def test_nothing_worth_reading(sharing, home, path, word):
    ran = run("doctor", "--json", sharing.target + path, home=home)

    assert ran.returncode == 0
    found = steps(ran.stdout)
    assert word in found["read"]["skipped"]
    assert "bytes_per_second" not in found["read"]


def test_a_target_that_fails_is_an_error_after_the_checks(sharing, home):
    for target, code in (
        (f"{CODE}@127.0.0.1:1", 5),
        (sharing.target.replace(CODE, WRONG_CODE), 4),
        (f"{sharing.target}/nothing", 3),
    ):
        ran = run("doctor", "--json", target, home=home)
        assert ran.returncode == code
        events = json_lines(ran.stdout)
        assert [event["event"] for event in events][: len(CHECKS)] == ["check"] * len(CHECKS)
        assert events[-1]["event"] == "error"
        assert len(ran.stderr.splitlines()) == 1


def test_usage_and_the_config_file(home):
    assert run("doctor", "127.0.0.1:7420", home=home).returncode == 2
    assert run("doctor", "a", "b", home=home).returncode == 2
    help_text = run("doctor", "--help", home=home).stdout
    assert b"Exits with 0" in help_text
    home.mkdir()
    (home / "config.toml").write_text("json = true\n[doctor]\nquiet = true\n")
    assert json_lines(run("doctor", home=home).stdout)[-1]["event"] == "done"
