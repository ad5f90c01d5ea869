"""What the site is made of: links, the reference that the code writes, and pictures. `scripts/docs` builds it."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from headrace.cli.app import headrace
from headrace.cli.options import OPTIONS, Common
from headrace.errors import BY_CODE, UsageError
from headrace.observe.metrics import FAMILIES
from headrace.protocol.messages import BY_TYPE
from scripts.pages import commands, pictures, reference

ROOT = Path(__file__).parent.parent.parent
PAGES = [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").rglob("*.md") if "reference" not in page.parts)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere_in_the_repository_too(page):
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]+`", "", page.read_text("utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("#"):
            continue
        place = page.parent / unquote(link.partition("#")[0])
        made = (ROOT / "docs" / "reference") in place.resolve().parents  # by scripts/docs
        assert made or place.exists(), link


def test_the_reference_has_everything_that_the_code_has():
    pages = "".join(reference.command_page(page) for page in commands.pages())
    settings = reference.settings_page()
    for options in OPTIONS.values():
        for option in options:
            assert f"`{option.opts[0]}`" in pages
            assert f"`{option.envvar}`" in settings
    codes = reference.exit_codes_page()
    assert [word for word in BY_CODE if f"| `{word}` |" not in codes] == []
    assert [one.name for one in FAMILIES if f"| `{one.exported}` |" not in reference.metrics_page()] == []
    assert [name for name in BY_TYPE if f"\n## `{name}`\n" not in reference.messages_page()] == []
    assert "### RemoteShare.get" in reference.python_page()


def test_events_are_those_in_the_source_and_have_words():
    page = reference.events_page()
    for event in ("ready", "connected", "plan", "progress", "file", "warning", "error", "done", "limit", "times"):
        assert f"`{event}`\n" in page
    assert f"| `bytes_reused` | {reference.FIELDS['bytes_reused']} |" in page


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('tell({"event": "brandnew", "bytes": 1})', "brandnew"),
        ('tell({"event": "plan", "files": 1, "gremlins": 1})', "gremlins"),
        ('tell({"event": "plan", **mystery})', "mystery"),
    ],
)
def test_an_event_without_words_ends_the_build(line, named, tmp_path, monkeypatch):
    for path in reference.SOURCE.rglob("*.py"):
        copy = tmp_path / path.relative_to(reference.SOURCE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8") if '"event"' in path.read_text("utf-8") else "", "utf-8")
    (tmp_path / "client" / "new.py").write_text(line)
    monkeypatch.setattr(reference, "SOURCE", tmp_path)
    with pytest.raises(reference.NoWordsError, match=named):
        reference.events_page()


def test_what_stands_between_backticks_is_code_and_the_rest_is_words():
    assert reference.text("a_b of `a_b` <x> | y") == r"a\_b of `a_b` \<x\> \| y"


def test_a_screen_follows_what_headrace_draws():
    screen = pictures.Screen()
    screen.feed("first\r\n 10 %  1.0 MiB\r\x1b[Kdone\r\n")
    assert screen.lines == ["first", "done"]
    screen.feed("\x1b[?25l\x1b[Hagain\x1b[K\r\n\x1b[J")
    assert [line for line in screen.lines if line] == ["again"]
    with pytest.raises(ValueError, match="not known"):
        screen.feed("\x1b[5;5H")


@pytest.mark.parametrize(
    ("name", "words"), [("get.svg", ["headrace get", "MB/s", "in 2 files"]), ("status.svg", ["1 peer"])]
)
def test_pictures_are_drawings_of_what_was_shown(name, words):
    shown = ElementTree.fromstring((ROOT / "docs" / "pictures" / name).read_text("utf-8"))
    text = "\n".join("".join(one.itertext()) for one in shown.iter("{http://www.w3.org/2000/svg}text"))
    assert [word for word in words if word not in text] == []
    assert "127.0.0.1" not in text


def test_a_drawing_of_several_moments_shows_each_in_its_turn():
    drawn = ElementTree.fromstring(pictures.drawn("moments", [["$ one"], ["$ one", "a < b"], ["$ two"]]))
    moves = list(drawn.iter("{http://www.w3.org/2000/svg}animate"))
    assert [move.get("values") for move in moves] == ["inline;none", "none;inline;none", "none;inline"]
    assert [move.get("keyTimes") for move in moves] == ["0.0000;0.1667", "0.0000;0.1667;0.3333", "0.0000;0.3333"]


def typed_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `headrace …` that a page has, in a block or in a line."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        blocks = re.findall(r"(?ms)^```(?:sh|console)\n(.*?)^```$", text)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`(headrace [^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", text))
        for line in lines:
            line = re.sub(r"^(\w+\$ |until |\w+=\S+ |srun \S+ )+", "", line)
            line = re.split(r"\s#\s|\s[|>]\s|;\s|\s2>", line)[0]
            if re.match(r"headrace (?![A-Z-])", line) and "…" not in line:
                found.append((str(page.relative_to(ROOT)), shlex.split(line)[1:]))
    return found


def test_what_pages_tell_people_to_type_is_what_the_commands_take(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    typed = typed_commands()
    assert len(typed) > 100
    context = click.Context(headrace, info_name="headrace", obj=Common())
    wrong = []
    for page, words in typed:
        try:
            name, command, rest = headrace.resolve_command(context, words)
            assert command is not None
            command.make_context(name, rest, parent=context)
        except (click.MissingParameter, click.exceptions.Exit):  # in a line, where the rest is clear; --help
            pass
        except (click.ClickException, UsageError) as why:
            wrong.append(f"{page}: headrace {' '.join(words)}: {why}")
    assert wrong == []
