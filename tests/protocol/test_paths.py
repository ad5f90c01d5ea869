"""Paths cannot leave the share, and neither can symlinks that obey the rule."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.paths import (
    MAX_DEPTH,
    MAX_NAME,
    MAX_PATH,
    ROOT,
    BadPathError,
    RelPath,
    check_name,
    link_stays_inside,
)

from . import strategies

raw_paths = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"", b".", b"..", b"a", b"b", b"\0", b"...", b"\xff"]), max_size=8).map(b"/".join),
)


def assert_sound(path: RelPath) -> None:
    for part in path.parts:
        assert part
        assert part not in (b".", b"..")
        assert b"/" not in part
        assert b"\0" not in part
        assert len(part) <= MAX_NAME
    assert len(path.parts) <= MAX_DEPTH
    assert len(bytes(path)) <= MAX_PATH
    assert RelPath.parse(bytes(path)) == path


@settings(max_examples=150)
@given(raw_paths)
def test_parse_gives_sound_paths_or_refuses(raw: bytes) -> None:
    try:
        path = RelPath.parse(raw)
    except BadPathError:
        return
    assert_sound(path)
    assert bytes(path) == raw


@given(strategies.rel_paths)
def test_every_path_comes_back_from_its_bytes(path: RelPath) -> None:
    assert_sound(path)


@settings(max_examples=150)
@given(raw_paths)
def test_what_people_type_is_forgiven_but_not_dots(raw: bytes) -> None:
    try:
        path = RelPath.from_user(raw)
    except BadPathError:
        return
    assert_sound(path)
    assert b".." not in raw.split(b"/")
    assert path == RelPath.from_user(b"//./" + raw + b"/./")


@pytest.mark.parametrize(
    "raw",
    [b".", b"..", b"/", b"a/", b"/a", b"a//b", b"a/./b", b"a/../b", b"../a", b"a/..", b"a\0b", b"a/\0", b"\0"],
)
def test_parse_refuses(raw: bytes) -> None:
    with pytest.raises(BadPathError):
        RelPath.parse(raw)


def test_parse_at_its_limits() -> None:
    long = b"/".join([b"n" * 254] * 16) + b"/" + b"m" * 15
    assert len(long) == MAX_PATH - 1
    assert_sound(RelPath.parse(long + b"m"))
    assert_sound(RelPath.parse(b"n" * MAX_NAME))
    assert_sound(RelPath.parse(b"/".join([b"d"] * MAX_DEPTH)))
    for raw in (long + b"mm", b"n" * (MAX_NAME + 1), b"/".join([b"d"] * (MAX_DEPTH + 1))):
        with pytest.raises(BadPathError):
            RelPath.parse(raw)


@given(base=strategies.rel_paths, names=st.lists(st.one_of(strategies.names, st.binary(max_size=3)), max_size=8))
def test_joining_gives_sound_paths_or_refuses(base: RelPath, names: list[bytes]) -> None:
    path = base
    for name in names:
        try:
            longer = path / name
        except BadPathError:
            continue
        assert_sound(longer)
        assert (longer.parent, longer.name) == (path, name)
        path = longer
    assert path.relative_to(base).parts == path.parts[len(base.parts) :]


@given(one=strategies.rel_paths, other=strategies.rel_paths)
def test_join_and_relative_to_are_inverse(one: RelPath, other: RelPath) -> None:
    try:
        joined = one.join(other)
    except BadPathError:
        assert len(bytes(one)) + 1 + len(bytes(other)) > MAX_PATH
        return
    assert_sound(joined)
    assert joined.relative_to(one) == other
    assert joined.relative_to(ROOT) == joined
    assert ROOT.join(joined) == joined == joined.join(ROOT)


@given(one=strategies.rel_paths, other=strategies.rel_paths)
def test_relative_to_refuses_what_lies_elsewhere(one: RelPath, other: RelPath) -> None:
    if one.parts[: len(other.parts)] == other.parts:
        assert other.join(one.relative_to(other)) == one
    else:
        with pytest.raises(BadPathError):
            one.relative_to(other)


def test_joining_stops_at_the_limits() -> None:
    deep = RelPath.parse(b"/".join([b"d"] * MAX_DEPTH))
    with pytest.raises(BadPathError, match="deeper"):
        deep / b"d"
    with pytest.raises(BadPathError, match="deeper"):
        deep.join(RelPath.parse(b"d"))
    long = RelPath.parse(b"/".join([b"n" * 255] * 16))
    assert len(bytes(long)) == MAX_PATH - 1
    for step in (b"d", b"dd"):
        with pytest.raises(BadPathError, match="longer"):
            long / step
        with pytest.raises(BadPathError, match="longer"):
            long.join(RelPath.parse(step))
    with pytest.raises(BadPathError, match="outside"):
        RelPath.parse(b"ab").relative_to(RelPath.parse(b"a"))


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"n" * (MAX_NAME + 1)])
def test_names_that_are_none(name: bytes) -> None:
    with pytest.raises(BadPathError):
        check_name(name)
    with pytest.raises(BadPathError):
        ROOT / name


def test_the_root() -> None:
    assert RelPath.parse(b"") is ROOT
    assert not ROOT
    assert RelPath.parse(b"a")
    assert (bytes(ROOT), str(ROOT), ROOT.name, ROOT.parent) == (b"", "", b"", ROOT)


@given(strategies.rel_paths)
def test_a_shown_path_holds_no_control_characters(path: RelPath) -> None:
    assert str(path).isprintable()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"a/b", "a/b"),
        ("é/日本".encode(), "é/日本"),
        (b"a\x1b[31m", r"a\x1b[31m"),
        (b"a\nb", r"a\nb"),
        (b"\xff", r"\xff"),
        ("a\u202eb".encode(), r"a\u202eb"),
    ],
)
def test_how_paths_are_shown(raw: bytes, shown: str) -> None:
    assert str(RelPath.parse(raw)) == shown


# ---- symlinks ----------------------------------------------------------------------------------------------------

NAMES = [b"a", b"b", b"l", b"m"]
directories = st.lists(st.sampled_from(NAMES[:2]), max_size=3).map(tuple)
targets = st.builds(
    lambda climbs, parts, end: b"/".join([b".."] * climbs + parts) + end,
    st.integers(0, 3),
    st.lists(st.sampled_from([*NAMES, b".", b"", b".."]), max_size=4),
    st.sampled_from([b"", b"", b"/"]),
)
links = st.dictionaries(
    st.tuples(directories, st.sampled_from(NAMES)).map(lambda at: RelPath((*at[0], at[1]))), targets, max_size=8
)
trees = st.tuples(st.lists(directories, max_size=4), links)


def build(root: Path, tree: tuple[list[tuple[bytes, ...]], dict[RelPath, bytes]], *, obeying: bool) -> None:
    """Makes directories first, then links in real directories only: the order in which a client works."""
    made, chosen = tree
    for parts in made:
        os.makedirs(os.path.join(os.fsencode(root), *parts), exist_ok=True)
    for link, target in chosen.items():
        if obeying != link_stays_inside(link, target) or not target:
            continue
        where = os.path.join(os.fsencode(root), *link.parts)
        above = os.path.dirname(where)
        if os.path.isdir(above) and os.path.realpath(above) == above and not os.path.lexists(where):
            os.symlink(target, where)


def escapes(root: Path) -> list[bytes]:
    """Every path of up to four names below `root` that the file system resolves to a place outside."""
    inside = os.fsencode(root)
    found = []
    for count in range(1, 5):
        for parts in itertools.product(NAMES, repeat=count):
            path = os.path.join(inside, *parts)
            real = os.path.realpath(path)
            if real != inside and not real.startswith(inside + b"/"):
                found.append(path)
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.path.realpath(tmp_path_factory.mktemp("links")))


@settings(max_examples=50, deadline=None)
@given(tree=trees)
def test_links_that_obey_the_rule_lead_nowhere_outside(scratch: Path, tree: tuple) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        root = Path(name) / "outer" / "share"
        root.mkdir(parents=True)
        build(root, tree, obeying=True)
        assert escapes(root) == []


def test_the_model_sees_links_that_escape(scratch: Path) -> None:
    """Else the test above could pass for the wrong reason."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        root = Path(name) / "share"
        root.mkdir()
        build(root, ([(b"a", b"b")], {RelPath((b"a", b"l")): b"b/../../../x"}), obeying=False)
        assert os.fsencode(root / "a" / "l") in escapes(root)


@given(depth=st.integers(1, 6), climbs=st.integers(0, 8), rest=st.sampled_from([b"", b"x", b"x/y"]))
def test_a_link_may_climb_as_far_as_it_is_deep(depth: int, climbs: int, rest: bytes) -> None:
    target = b"/".join([b".."] * climbs + ([rest] if rest else []))
    assert link_stays_inside(RelPath((b"d",) * depth), target) == (bool(target) and climbs < depth)


@pytest.mark.parametrize(
    "target",
    [b"", b"/", b"/etc/passwd", b"//x", b"x\0", b"\0", b"..", b"../x", b"a/..", b"a/../b", b"./..", b".//../x"],
)
def test_refused_at_the_root(target: bytes) -> None:
    assert not link_stays_inside(RelPath((b"l",)), target)


@pytest.mark.parametrize("target", [b"x", b"x/y", b".", b"./x", b"x/", b"x//y", b"...", b"..x/y", b"l"])
def test_allowed_at_the_root(target: bytes) -> None:
    assert link_stays_inside(RelPath((b"l",)), target)


def test_other_bounds_of_the_rule() -> None:
    deep = RelPath((b"a", b"b", b"l"))
    assert link_stays_inside(deep, b"../../x")
    assert link_stays_inside(deep, b"./.././/../x")
    assert not link_stays_inside(deep, b"../x/../..")
    assert not link_stays_inside(deep, b"../../..")
    assert link_stays_inside(deep, b"t" * MAX_PATH)
    assert not link_stays_inside(deep, b"t" * (MAX_PATH + 1))
    assert not link_stays_inside(ROOT, b"x")
