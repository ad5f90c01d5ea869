"""The commands as real processes: what they print, where, and how they end."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import headrace
from headrace.cli.main import main
from headrace.errors import PermissionRefusedError
from headrace.protocol.messages import Entry
from headrace.protocol.paths import RelPath

from .processes import CODE, PATIENCE, WRONG_CODE, Sharing, json_lines, run, start, wait_until


def one_line(raw: bytes) -> str:
    """Standard error when something went wrong: one line that says what, and one that helps."""
    lines = raw.decode().splitlines()
    # A busy machine may take too long to answer by UDP, which is told and is not what these tests are about.
    lines = [line for line in lines if not line.endswith("using TCP")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("headrace: ")
    return lines[0]


# ---- without a share -------------------------------------------------------------------------------------------------


def test_version_is_quick_and_imports_nothing():
    code = "import sys; from headrace.cli.main import main; main(['--version']); print(*sys.modules, file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert ran.stdout == f"headrace {headrace.__version__}\n"
    assert not {"click", "headrace.cli.app", "logging", "socket", "msgspec"} & set(ran.stderr.split())


def test_get_imports_only_what_it_needs(sharing, home, tmp_path):
    code = (
        "import sys; from headrace.cli.main import main; "
        f"main(['get', '-q', {sharing.target + '/notes.txt'!r}, {str(tmp_path)!r}]); print(*sys.modules)"
    )
    env = {**os.environ, "HEADRACE_HOME": str(home)}
    ran = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True) for _ in range(2)]

    modules = {name.partition(".")[0] for name in ran[1].stdout.split()}
    assert "headrace" in modules
    assert not modules & {"rich", "cryptography", "spake2", "pathspec", "platformdirs", "asyncio", "tomllib"}


def test_help_lists_the_commands(home):
    ran = run("--help", home=home)

    assert ran.returncode == 0
    for word in (b"share", b"send, serve", b"get", b"receive", b"ls", b"cat", b"peers", b"completion"):
        assert word in ran.stdout


def test_no_command_is_a_usage_error(home):
    ran = run(home=home)

    assert (ran.returncode, ran.stdout) == (2, b"")
    assert b"Usage:" in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("get",),
        ("get", "--frobnicate", "x"),
        ("get", "--protocol", "9", "x"),
        ("get", "--transport", "smoke", "x"),
        ("get", "--data-plane", "clear", "x"),
        ("get", "--io", "uring", "x"),
        ("get", "--connections", "0", "x"),
        ("cat", "--offset", "-1", "x"),
        ("share",),
        ("share", "--port", "65536", "."),
        ("share", "--code", "short", "."),
        ("get", f"{CODE}@127.0.0.1:70000"),
        ("get", "127.0.0.1:7420"),
        ("get", f"{CODE}@127.0.0.1:7420/../x"),
        ("get", "--json", f"{CODE}@127.0.0.1:7420", "-"),
        ("completion", "tcsh"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments, home):
    ran = run(*arguments, home=home)

    assert ran.returncode == 2
    one_line(ran.stderr)


def test_a_mistake_in_the_config_file(home):
    home.mkdir()
    (home / "config.toml").write_text("[get]\ncolour = 1\n")
    ran = run("get", "x", home=home)

    assert ran.returncode == 2
    assert "config.toml: get.colour is no option" in one_line(ran.stderr)


def test_sharing_what_is_not_there(home):
    ran = run("share", "nothing", "--port", "0", home=home)

    assert ran.returncode == 3
    one_line(ran.stderr)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell, home):
    ran = run("completion", shell, home=home)

    assert ran.returncode == 0
    assert b"_HEADRACE_COMPLETE" in ran.stdout


def test_completions_of_options_and_commands(home):
    env = {"_HEADRACE_COMPLETE": "bash_complete", "COMP_WORDS": "headrace get --on", "COMP_CWORD": "2"}
    assert b"--on-exist" in run(home=home, env=env).stdout

    env = {"_HEADRACE_COMPLETE": "bash_complete", "COMP_WORDS": "headrace s", "COMP_CWORD": "1"}
    assert b"share" in run(home=home, env=env).stdout


def test_an_unexpected_error_is_one_line_and_a_traceback_with_vv(home):
    code = (
        "import sys, headrace.cli.reach as reach; from headrace.cli.main import main\n"
        "def broken(target, common, **how): raise KeyError('surprise')\n"
        "reach.connect = broken\n"
        f"sys.exit(main(['ls', *sys.argv[1:], '{CODE}@127.0.0.1:1']))"
    )
    env = {**os.environ, "HEADRACE_HOME": str(home)}
    plain = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
    detailed = subprocess.run([sys.executable, "-c", code, "-vv"], env=env, capture_output=True)

    assert plain.returncode == detailed.returncode == 1
    line = one_line(plain.stderr)
    assert "KeyError" in line
    assert "-vv" in line
    assert b"Traceback" in detailed.stderr


# ---- ls --------------------------------------------------------------------------------------------------------------


def test_ls_is_sorted_and_marks_folders(sharing, home):
    ran = run("ls", sharing.target, home=home)

    assert ran.returncode == 0
    assert ran.stdout == b"caf\xe9\nday1/\nlink\nnotes.txt\ntwo\nlines\n"
    assert ran.stderr == b""


def test_ls_of_a_folder_and_of_a_file(sharing, home):
    assert run("ls", sharing.target + "/day1", home=home).stdout == b"a.mov\nraw/\n"
    assert run("ls", sharing.target + "/day1/a.mov", home=home).stdout == b"a.mov\n"


def test_ls_recursive(sharing, home):
    lines = run("ls", "-R", sharing.target, home=home).stdout.splitlines()

    assert {b"day1/", b"day1/raw/", b"day1/raw/x", b"notes.txt"} <= set(lines)
    assert run("ls", "-R", sharing.target + "/day1", home=home).stdout.splitlines()[-1] == b"raw/x"


def test_ls_long(sharing, home):
    ran = run("ls", "-l", sharing.target, home=home, env={"TZ": "UTC"})

    assert b"-rw-r-----              6 2023-11-14 22:13 notes.txt\n" in ran.stdout
    assert b" link -> notes.txt\n" in ran.stdout


def test_ls_json(sharing, home):
    entries = {
        entry["path"]: entry for entry in json_lines(run("ls", "-R", "--json", sharing.target, home=home).stdout)
    }

    assert entries["notes.txt"] == {
        "path": "notes.txt",
        "kind": "file",
        "size": 6,
        "mtime_ns": 1_700_000_000_123_456_789,
        "mode": 0o640,
        "target": None,
    }
    assert entries["link"]["kind"] == "link"
    assert entries["link"]["target"] == "notes.txt"
    assert entries["day1/raw"]["kind"] == "dir"
    assert "two\nlines" in entries
    assert base64.b64decode(entries["caf\\xe9"]["path_b64"]) == b"caf\xe9"


def test_ls_into_head_is_no_error(sharing, home):
    command = f"{sys.executable} -m headrace ls -R {sharing.target} | true; echo ${{PIPESTATUS[0]}}"
    env = {**os.environ, "HEADRACE_HOME": str(home)}
    ran = subprocess.run(["bash", "-c", command], env=env, capture_output=True)

    assert ran.stdout == b"0\n"
    assert ran.stderr == b""


class HalfReadable:
    """A session with a share in which one folder may not be read."""

    def stat(self, path):
        return Entry(b"tree", "d")

    def walk(self, path):
        yield RelPath(), [Entry(b"closed", "d"), Entry(b"open", "d")], None
        yield RelPath((b"closed",)), [], PermissionRefusedError("the host may not read it")
        yield RelPath((b"open",)), [Entry(b"file", "f")], None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


def test_ls_goes_on_after_a_folder_that_cannot_be_read(monkeypatch, capfdbinary):
    monkeypatch.setattr("headrace.cli.reach.connect", lambda target, common, **how: HalfReadable())

    exit_code = main(["ls", "-R", f"{CODE}@127.0.0.1"])

    out, err = capfdbinary.readouterr()
    assert exit_code == 10
    assert out == b"closed/\nopen/\nopen/file\n"
    first, last = err.decode().splitlines()
    assert first.startswith("headrace: closed: the host may not read it. ")
    assert last.startswith("headrace: 1 folder could not be listed. ")


# ---- cat -------------------------------------------------------------------------------------------------------------


def test_cat(sharing, home, tree):
    whole = (tree / "day1" / "a.mov").read_bytes()
    target = sharing.target + "/day1/a.mov"

    assert run("cat", target, home=home).stdout == whole
    assert run("cat", target, "--offset", "1000000", "--length", "5", home=home).stdout == whole[1_000_000:1_000_005]
    assert run("cat", target, "--offset", "99999999", home=home).stdout == b""
    assert run("get", target, "-", home=home).stdout == whole


def test_cat_of_a_folder(sharing, home):
    ran = run("cat", sharing.target, home=home)

    assert ran.returncode == 3
    one_line(ran.stderr)


def test_cat_into_head_is_no_error(sharing, home):
    command = (
        f"{sys.executable} -m headrace cat {sharing.target}/day1/a.mov | head -c 10 | wc -c; echo ${{PIPESTATUS[0]}}"
    )
    env = {**os.environ, "HEADRACE_HOME": str(home)}
    ran = subprocess.run(["bash", "-c", command], env=env, capture_output=True)

    assert ran.stdout.split() == [b"10", b"0"]
    assert ran.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_cat_onto_a_full_disk(sharing, home):
    with open("/dev/full", "wb") as full:
        ran = run("cat", sharing.target + "/notes.txt", home=home, stdout=full)

    assert ran.returncode == 8
    assert "No space left" in one_line(ran.stderr)


def test_closed_streams_are_no_surprise(sharing, home):
    command = '"$0" -m headrace cat "$1" >&-; echo $? >&2'
    env = {**os.environ, "HEADRACE_HOME": str(home)}
    ran = subprocess.run(["bash", "-c", command, sys.executable, sharing.target + "/notes.txt"], env=env, stderr=-1)
    assert ran.stderr.splitlines()[-1] == b"8"

    command = '"$0" -m headrace cat "$1" 2>&-; echo $?'
    ran = subprocess.run(["bash", "-c", command, sys.executable, sharing.target + "/notes.txt"], env=env, stdout=-1)
    assert ran.stdout == b"hello\n0\n"


# ---- get -------------------------------------------------------------------------------------------------------------


def test_get_sums_up_on_standard_output(sharing, home, tmp_path, tree):
    ran = run("get", sharing.target + "/day1", tmp_path / "dest", home=home)

    assert ran.returncode == 0
    assert ran.stderr == b"", "no bar where nobody watches"
    summary = ran.stdout.decode()
    assert summary.startswith("3.0 MiB in 2 files, ")
    assert "over tcp (protocol 8)" in summary
    assert (tmp_path / "dest" / "a.mov").read_bytes() == (tree / "day1" / "a.mov").read_bytes()

    again = run("get", sharing.target + "/day1", tmp_path / "dest", home=home).stdout.decode()
    assert "2 identical files skipped" in again
    assert "3.0 MiB of it were here already" in again

    assert run("get", "-q", sharing.target + "/day1", tmp_path / "dest", home=home).stdout == b""


def test_get_json(sharing, home, tmp_path):
    ran = run("get", "--json", sharing.target + "/day1", tmp_path / "dest", home=home)
    events = json_lines(ran.stdout)

    assert ran.returncode == 0
    assert ran.stderr == b""
    assert all(event["schema"] == 1 for event in events)
    assert all(list(event)[:2] == ["event", "schema"] for event in events)
    connected = events[0]
    assert connected["event"] == "connected"
    assert (connected["transport"], connected["protocol"]) == ("tcp", 8)
    assert connected["reason"]
    assert connected["fallback_reason"] is None, "UDP passes, TCP was chosen"
    assert connected["rtt_ms"] > 0
    assert {"event": "plan", "schema": 1, "files": 2, "bytes": 3145734} in events
    assert {event["path"] for event in events if event["event"] == "file"} == {"a.mov", "raw/x"}
    assert "progress" in {event["event"] for event in events}
    done = events[-1]
    assert list(done) == [
        *("event", "schema", "files", "bytes", "bytes_received", "bytes_reused", "bytes_wire", "seconds"),
        *("first_byte_ms", "transport", "protocol", "io", "data_plane", "streams", "failed"),
        *("bytes_saved", "compression"),
    ]
    assert (done["event"], done["files"], done["bytes"], done["failed"]) == ("done", 2, 3145734, 0)


def test_protocol_7(sharing, home, tmp_path):
    ran = run("get", "--json", "--protocol", "7", sharing.target + "/notes.txt", tmp_path, home=home)

    assert json_lines(ran.stdout)[-1]["protocol"] == 7


def test_a_file_that_fails_is_named_and_the_rest_arrives(sharing, home, tmp_path):
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "a.mov").write_text("something else")
    plain = run("get", "-q", sharing.target + "/day1", tmp_path / "dest", home=home)

    assert plain.returncode == 10
    # -q: on a busy machine there may be a line on how it is connected.
    first, last = plain.stderr.decode().splitlines()
    assert first.startswith("headrace: a.mov") or "a.mov" in first
    assert "1 file failed" in last
    assert (tmp_path / "dest" / "raw" / "x").read_text() == "x"

    ran = run("get", "--json", sharing.target + "/day1", tmp_path / "dest", home=home)
    events = json_lines(ran.stdout)
    assert ran.returncode == 10
    (error,) = [event for event in events if event["event"] == "error"]
    assert error["code"] == "different"
    assert error["path"].endswith("a.mov")
    assert error["retryable"] is False
    assert events[-1]["failed"] == 1
    assert ran.stderr == plain.stderr, "what failed is said in words as well"


def test_a_single_file_that_fails_is_told_once(sharing, home, tmp_path):
    (tmp_path / "notes.txt").write_text("something else")
    for options in ((), ("--json",)):
        ran = run("get", *options, sharing.target + "/notes.txt", tmp_path, home=home)

        assert ran.returncode == 10
        one_line(ran.stderr)


@pytest.mark.parametrize(
    ("path", "code", "exit_code", "word"),
    [("/nothing", CODE, 3, "not_found"), ("", WRONG_CODE, 4, "wrong_code")],
)
def test_the_error_that_ends_a_get_is_an_event_as_well(sharing, home, tmp_path, path, code, exit_code, word):
    target = sharing.address + path
    ran = run("get", "--json", target, tmp_path / "dest", home=home, env={"HEADRACE_CODE": code})
    last = json_lines(ran.stdout)[-1]

    assert ran.returncode == exit_code
    assert (last["event"], last["code"], last["path"]) == ("error", word, None)
    one_line(ran.stderr)
    assert not (tmp_path / "dest").exists()


def test_nobody_there(home, tmp_path):
    ran = run("get", f"{CODE}@127.0.0.1:1", tmp_path / "dest", home=home)

    assert ran.returncode == 5
    one_line(ran.stderr)


def test_the_code_from_a_file_or_standard_input(sharing, home, tmp_path):
    (tmp_path / "code").write_text(CODE + "\n")
    assert run("ls", "--code-file", tmp_path / "code", sharing.address, home=home).returncode == 0
    assert run("ls", "--code-file", "-", sharing.address, home=home, stdin=None, input=CODE.encode()).returncode == 0


def test_dry_run_says_what_would_happen_and_writes_nothing(sharing, home, tmp_path):
    ran = run("get", "--dry-run", sharing.target + "/day1", tmp_path / "dest", home=home)

    assert ran.returncode == 0
    assert b"would fetch a.mov (3.0 MiB)\n" in ran.stdout
    assert b"would fetch 3.0 MiB in 2 files" in ran.stdout
    assert not (tmp_path / "dest").exists()


def test_verbose_names_the_files(sharing, home, tmp_path):
    ran = run("get", "-v", sharing.target + "/day1", tmp_path / "dest", home=home)
    assert b"fetched a.mov" in ran.stderr

    ran = run("get", "-v", "--log-json", sharing.target + "/day1", tmp_path / "dest", home=home)
    assert {"same a.mov", "same raw/x"} <= {line["message"] for line in json_lines(ran.stderr)}


def test_output_that_is_closed_early_does_not_end_a_get(sharing, home, tmp_path):
    command = '"$0" -m headrace get --json "$1" "$2" | true; echo ${PIPESTATUS[0]}'
    arguments = [sys.executable, sharing.target + "/day1", str(tmp_path / "dest")]
    env = {**os.environ, "HEADRACE_HOME": str(home)}
    ran = subprocess.run(["bash", "-c", command, *arguments], env=env, capture_output=True)

    assert ran.stdout == b"0\n"
    assert ran.stderr == b""
    assert (tmp_path / "dest" / "raw" / "x").exists()


# ---- share -----------------------------------------------------------------------------------------------------------


def test_share_says_at_once_how_to_get_it(tmp_path, tree, home):
    with (tmp_path / "err").open("wb") as err:
        process = start("share", tree, "--port", "0", "--bind", "127.0.0.1", home=home, stderr=err)
        try:
            assert process.stdout
            lines = [process.stdout.readline().decode() for _ in range(4)]
            command = lines[3].split()
            assert command[:2] == ["headrace", "get"]
            code, _, address = command[2].partition("@")
            assert code in lines[0]
            assert address.startswith("127.0.0.1:")

            assert run("ls", command[2], home=tmp_path / "other").returncode == 0
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        finally:
            process.kill()
            process.communicate()
    log = (tmp_path / "err").read_text().splitlines()
    assert "127.0.0.1 connected (headrace " in log[0]
    assert log[-1] == "stopped"


def test_share_json(tree, tmp_path, home):
    with Sharing(tree, home=tmp_path / "host", options=("--name", "my footage")) as share:
        assert list(share.ready)[:2] == ["event", "schema"]
        assert share.ready == {
            "event": "ready",
            "schema": 1,
            "code": CODE,
            "port": share.ready["port"],
            "addresses": ["127.0.0.1"],
            "target": share.target,
            "name": "my footage",
            "write": False,
        }
        assert run("cat", share.target + "/notes.txt", home=home).returncode == 0
        wait_until(lambda: share.process.poll() is None)
        assert share.end(signal.SIGTERM) == 143
        assert share.process.stdout
        events = json_lines(share.process.stdout.read())
        assert [event["event"] for event in events] == ["peer", "transfer", "peer"]
        assert all(event["schema"] == 1 for event in events)
        assert share.stderr == "stopped\n"


def test_share_stops_quickly_while_somebody_is_connected(tree, tmp_path, home):
    with Sharing(tree, home=tmp_path / "host") as share:
        with headrace.connect(share.target, home=home) as remote:
            assert remote.ls()
            started = time.monotonic()
            assert share.end(signal.SIGINT) == 130
            assert time.monotonic() - started < 3


def test_two_shares_cannot_have_one_port(sharing, tree, home):
    ran = run("share", tree, "--bind", "127.0.0.1", "--port", str(sharing.ready["port"]), "--json", home=home)

    assert ran.returncode == 2
    assert "in use" in one_line(ran.stderr)
    (event,) = json_lines(ran.stdout)
    assert (event["event"], event["code"]) == ("error", "usage")


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-q",)])
def test_a_lockout_is_said_once(tree, tmp_path, options):
    with Sharing(tree, home=tmp_path / "host", options=options) as share:
        for _ in range(10):
            with pytest.raises(headrace.HeadraceError):
                headrace.connect(share.target, code=WRONG_CODE, home=tmp_path / "client")
        wait_until(lambda: "too many wrong codes" in share.stderr)
        assert share.end() == 143
        assert share.stderr.count("too many wrong codes") == 1
        assert share.process.stdout
        assert [e["code"] for e in json_lines(share.process.stdout.read())].count("locked") == 1


# ---- peers -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_peers(tree, tmp_path):
    machine, other = tmp_path / "machine", tmp_path / "other"
    with Sharing(tree, home=machine) as share:
        assert run("ls", share.target, home=other).returncode == 0
        assert run("ls", share.target, home=machine).returncode == 0

    listed = run("peers", home=machine)
    assert listed.returncode == 0
    assert b"Hosts pinned by this machine:\n  7k2m " in listed.stdout
    records = json_lines(run("peers", "--json", home=machine).stdout)
    assert [record["kind"] for record in records] == ["host", "peer", "peer"]
    assert not any("credential" in record or "code_check" in record for record in records)
    peer = records[1]["peer"]
    assert peer[:8].encode() in listed.stdout

    assert run("peers", "forget", peer[:10], home=machine).returncode == 0
    assert run("peers", "forget", "7K2M", home=machine).returncode == 0
    assert [r["kind"] for r in json_lines(run("peers", "--json", home=machine).stdout)] == ["peer"]
    again = run("peers", "forget", peer, home=machine)
    assert again.returncode == 3
    one_line(again.stderr)


def test_a_beginning_that_fits_two_peers_forgets_none(tmp_path):
    record = {"credential": "00", "code_check": "", "share": "aaaa", "fingerprint": "", "label": "x", "since": 0.0}
    records = {peer: {**record, "peer": peer} for peer in ("abcd01", "abcd02")}
    (tmp_path / "peers.json").touch(0o600)
    (tmp_path / "peers.json").write_text(json.dumps(records))

    ran = run("peers", "forget", "abcd", home=tmp_path)
    assert ran.returncode == 2
    assert "2 peers begin with" in one_line(ran.stderr)
    assert len(json_lines(run("peers", "--json", home=tmp_path).stdout)) == 2


def test_peers_of_a_machine_that_was_never_used(home):
    ran = run("peers", home=home)

    assert ran.stdout == b"Hosts pinned by this machine: none\nPeers paired with its shares: none\n"
    assert not home.exists()


@pytest.mark.slow
def test_verbose_ends_with_where_the_time_went(sharing, home, tmp_path):
    ran = run("get", "-v", "--log-json", sharing.target + "/day1", tmp_path / "dest", home=home)
    lines = [line for line in json_lines(ran.stderr) if line["message"].startswith("The bottleneck is")]

    assert len(lines) == 1
    assert lines[0]["share"] == "7k2m" and lines[0]["peer"] and lines[0]["transfer"]
