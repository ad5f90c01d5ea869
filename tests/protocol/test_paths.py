"""Paths cannot leave the share, and neither can symlinks that obey the rule."""

from __future__ import annotations

import errno
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
    short = RelPath(long.parts[:-1]) / (b"n" * 254)
    assert_sound(short / b"d")
    assert len(bytes(short / b"d")) == MAX_PATH
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

NAMES = [b"a", b"l", b"m"]
places = st.builds(
    lambda depth, name: RelPath((b"a",) * depth + (name,)), st.integers(0, 2), st.sampled_from(NAMES[1:])
)
climbs = st.integers(0, 2).map(lambda count: [b".."] * count)
targets = st.builds(
    lambda *parts: b"/".join(part for some in parts for part in some),
    climbs,
    st.lists(st.sampled_from(NAMES), max_size=2),
    climbs,
    st.lists(st.sampled_from([*NAMES, b".", b""]), max_size=2),
)
links = st.dictionaries(places, targets, min_size=2, max_size=6)


def build(root: Path, links: dict[RelPath, bytes]) -> None:
    """Makes the directory a/a, then the links, all of them in real directories: the order in which a client works."""
    os.makedirs(root / "a" / "a")
    for link, target in links.items():
        os.symlink(target, os.path.join(os.fsencode(root), *link.parts))


def is_loop(path: bytes) -> bool:
    """Whether the kernel finds only links that lead to each other: that is nowhere. realpath up to Python 3.12 makes
    `/a` of it when the target is `l//a`."""
    try:
        os.stat(path)
    except OSError as why:
        return why.errno == errno.ELOOP
    return False


def escapes(root: Path) -> list[bytes]:
    """Every path of up to four names below `root` that the file system resolves to a place outside."""
    inside = os.fsencode(root)
    found = []
    for count in range(1, 5):
        for parts in itertools.product(NAMES, repeat=count):
            path = os.path.join(inside, *parts)
            if is_loop(path):
                continue
            real = os.path.realpath(path)
            if real != inside and not real.startswith(inside + b"/"):
                found.append(path)
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.path.realpath(tmp_path_factory.mktemp("links")))


@settings(max_examples=150, deadline=None)
@given(links=links)
@pytest.mark.slow
def test_links_that_obey_the_rule_lead_nowhere_outside(scratch: Path, links: dict[RelPath, bytes]) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        root = Path(name) / "share"
        build(root, {link: target for link, target in links.items() if link_stays_inside(link, target)})
        assert escapes(root) == []


@pytest.mark.parametrize(
    "links",
    [
        {b"a/l": b"../../x"},
        {b"l": b"a/../../x"},
        {b"a/m": b"..", b"a/l": b"m/../x"},  # no more `..` than the link is deep, and yet outside
    ],
    ids=["climbs", "climbs after a name", "climbs after a link"],
)
def test_what_the_rule_is_good_for(scratch: Path, links: dict[bytes, bytes]) -> None:
    """Links that escape are seen by the model above, and refused by the rule."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        root = Path(name) / "share"
        build(root, {RelPath.parse(link): target for link, target in links.items()})
        *_, (link, target) = links.items()
        assert os.path.join(os.fsencode(root), link) in escapes(root)
        assert not link_stays_inside(RelPath.parse(link), target)


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
