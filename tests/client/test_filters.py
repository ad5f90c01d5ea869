"""`--include` and `--exclude`: patterns as in .gitignore, over paths below what was asked for."""

from __future__ import annotations

import pytest

from headrace.client.filters import Filters
from headrace.errors import UsageError
from headrace.protocol.paths import RelPath


def wants(path: str | bytes, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> bool:
    raw = path.encode() if isinstance(path, str) else path
    return Filters(include, exclude).wants(RelPath.parse(raw))


def wants_directory(path: str, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> bool:
    return Filters(include, exclude).wants_directory(RelPath.parse(path.encode()))


def test_without_patterns_everything_is_wanted() -> None:
    assert wants("a/b.o")
    assert wants_directory("a")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.o", ["a.o", "src/a.o", "src/.o"], ["a.c", "a.o.c", "ao"]),
        ("a.o", ["a.o", "src/a.o", "a.o/below"], ["ba.o", "a.ob"]),
        ("/a.o", ["a.o"], ["src/a.o"]),
        ("src/a.o", ["src/a.o"], ["x/src/a.o"]),
        ("**/src/a.o", ["src/a.o", "x/src/a.o", "x/y/src/a.o"], ["src/b/a.o"]),
        ("src/**/a.o", ["src/a.o", "src/x/a.o", "src/x/y/a.o"], ["a.o", "x/src/a.o"]),
        ("src/**", ["src/a", "src/x/y"], ["source", "x/src/a"]),
        ("src/*", ["src/a", "src/x/y"], ["src2/a"]),  # what matches a folder matches what is in it
        ("build/", ["build/a", "src/build/a/b"], ["build"]),  # a file of that name is no folder
        ("a?.o", ["ab.o"], ["a.o", "a/.o", "abc.o"]),
        ("[ab].o", ["a.o", "b.o"], ["c.o", "ab.o"]),
        ("[!ab].o", ["c.o"], ["a.o"]),
        ("a*z", ["az", "abcz"], ["a/z", "azb"]),
        (r"\#a", ["#a"], ["a", r"\#a"]),
        (r"\!a", ["!a"], ["a"]),
        ("#a", [], ["#a", "a"]),  # a comment
        ("", [], ["a"]),
        ("a ", ["a"], ["a "]),  # trailing spaces do not count
        (r"a\ ", ["a "], ["a"]),
        ("ä*", ["äö", "x/ä"], ["a"]),
        ("A", ["A"], ["a"]),
    ],
)
def test_a_pattern_is_that_of_gitignore(pattern: str, yes: list[str], no: list[str]) -> None:
    for path in yes:
        assert not wants(path, exclude=(pattern,)), path
        assert wants(path, include=(pattern,)), path
    for path in no:
        assert wants(path, exclude=(pattern,)), path
        assert not wants(path, include=(pattern,)), path


def test_the_last_pattern_that_matches_decides() -> None:
    assert wants("keep.o", exclude=("*.o", "!keep.o"))
    assert not wants("drop.o", exclude=("*.o", "!keep.o"))
    assert not wants("keep.o", exclude=("!keep.o", "*.o"))
    assert not wants("a.txt", include=("*", "!*.txt"))
    assert wants("a.mov", include=("*", "!*.txt"))


def test_everything_but_one_kind() -> None:
    """The idiom needs `!*/`, as in a .gitignore: all is left out, folders are not, nor what ends in .mov."""
    patterns = ("*", "!*/", "!*.mov")
    for path, wanted in {"a.mov": True, "d/a.mov": True, "a.txt": False, "d/a.txt": False}.items():
        assert wants(path, exclude=patterns) is wanted, path


def test_what_is_excluded_is_not_wanted_though_it_is_included() -> None:
    assert not wants("a.mov", include=("*.mov",), exclude=("a.*",))
    assert wants("b.mov", include=("*.mov",), exclude=("a.*",))
    assert not wants("b.txt", include=("*.mov",), exclude=("a.*",))


def test_any_include_pattern_will_do() -> None:
    for path, wanted in {"a.mov": True, "b.wav": True, "c.txt": False}.items():
        assert wants(path, include=("*.mov", "*.wav")) is wanted


def test_names_that_are_no_utf_8() -> None:
    assert not wants(b"caf\xe9.o", exclude=("*.o",))
    assert wants(b"caf\xe9.o", include=("caf?.o",))
    assert wants(b"a\nb", include=("a*",))


def test_a_folder_is_made_unless_it_is_excluded() -> None:
    assert wants_directory("src", exclude=("*.o",))
    assert not wants_directory("build", exclude=("build/",))
    assert not wants_directory("build/below", exclude=("build/",))
    assert not wants_directory("build", exclude=("build",))


def test_with_include_patterns_no_folder_is_made_for_its_own_sake() -> None:
    """It comes with the first wanted file in it."""
    assert not wants_directory("src", include=("*.mov",))
    assert not wants_directory("src", include=("src/",))


@pytest.mark.parametrize("pattern", ["!", "a/**/***/[", "//"])
def test_a_pattern_that_is_none_is_a_usage_error_or_matches_nothing(pattern: str) -> None:
    try:
        filters = Filters((), (pattern,))
    except UsageError as why:
        assert why.exit_code == 2
    else:
        assert filters.wants(RelPath((b"a",)))
