"""Manual pages: made from the commands, readable for man, and with the exit codes that the program has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from headrace.cli.app import COMMANDS
from headrace.cli.options import OPTIONS
from scripts.pages.commands import EXIT_CODES, classes, manual, pages

README = (Path(__file__).parent.parent.parent / "README.md").read_text("utf-8")
MANUAL = manual()


def test_there_is_a_page_for_every_command_and_one_for_all():
    names = {Path(place).name for place in MANUAL}
    assert names == {"headrace.1", *(f"headrace-{name}.1" for name in COMMANDS)}
    for name in COMMANDS:
        assert rf".BR headrace\-{name} (1)" in MANUAL["share/man/man1/headrace.1"]


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_there_with_its_help_and_its_variable(command):
    text = MANUAL[f"share/man/man1/headrace-{command}.1"].replace(r"\-", "-").replace(r"\e", "\\")
    for option in OPTIONS[command]:
        for flag in (*option.opts, *option.secondary_opts):
            assert rf"\fB{flag}\fR" in text
        assert option.help and option.help.lstrip(".'") in text
        assert f"Environment: {option.envvar}." in text


def test_examples_are_lines_of_their_own():
    (share,) = (page for page in pages() if page.name == "headrace share")
    assert "headrace share ~/footage" in share.examples
    assert "\nheadrace share ~/footage\n" in MANUAL["share/man/man1/headrace-share.1"].replace(r"\-", "-")


def test_exit_codes_are_those_of_the_errors_and_of_the_readme():
    codes = {code for words in EXIT_CODES for code in words.split(", ")}
    assert codes == {"0", "143", *(str(one.exit_code) for one in classes())}
    rows = re.findall(r"(?m)^\| ([\d, ]+) \| (.*) \|$", README)
    assert dict(rows) == EXIT_CODES


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff here")
def test_groff_has_nothing_to_complain_about():
    command = ["groff", "-man", "-ww", "-rHY=0", "-Kutf8", "-Tutf8"]
    said = subprocess.run(command, input="".join(MANUAL.values()), capture_output=True, text=True, timeout=50)
    assert said.returncode == 0
    assert re.sub(r".*(cannot adjust line|can't break line).*\n", "", said.stderr) == ""
    assert "headrace get 7k2m-xq4c-9dht@192.168.1.20:7420" in re.sub(r"\x1b\[[0-9;]*m", "", said.stdout)
