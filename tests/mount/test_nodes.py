"""What the kernel knows by number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.mount.nodes import Nodes, ino_of
from headrace.protocol.messages import Entry
from headrace.protocol.paths import ROOT, RelPath

FOLDER = Entry(b"d", "d")


def file(name: bytes, version: bytes) -> Entry:
    return Entry(name, "f", 1, version=version)


def test_another_version_is_another_node_with_the_same_inode_number():
    nodes = Nodes(Entry(b"", "d"))
    one = nodes.tell(nodes.root, file(b"a", b"1"))
    assert nodes.tell(nodes.root, file(b"a", b"1")) is one
    two = nodes.tell(nodes.root, file(b"a", b"2"))
    assert two.number != one.number and two.ino == one.ino
    assert nodes.at(RelPath((b"a",))) is two
    assert nodes.get(one.number) is one, "who has the old one open still asks for it"


def test_a_directory_stays_the_same_node_whatever_its_times_are():
    nodes = Nodes(Entry(b"", "d"))
    one = nodes.tell(nodes.root, Entry(b"d", "d", mtime_ns=1))
    assert nodes.tell(nodes.root, Entry(b"d", "d", mtime_ns=2)) is one
    assert one.entry.mtime_ns == 2


def test_a_file_in_the_place_of_a_directory_is_another_node():
    nodes = Nodes(Entry(b"", "d"))
    assert nodes.tell(nodes.root, FOLDER) is not nodes.tell(nodes.root, file(b"d", b"1"))


def test_paths_outlive_the_kernel_s_memory_of_what_is_above():
    nodes = Nodes(Entry(b"", "d"))
    folder = nodes.tell(nodes.root, FOLDER)
    inside = nodes.tell(folder, file(b"f", b"1"))
    nodes.forget(folder.number, 1)
    assert inside.path == RelPath((b"d", b"f"))
    assert nodes.get(folder.number) is None and nodes.at(inside.path) is None
    again = nodes.tell(nodes.root, FOLDER)
    assert again.number != folder.number and again.ino == folder.ino


def test_the_root_is_never_forgotten():
    nodes = Nodes(Entry(b"", "d"))
    nodes.forget(1, 10)
    assert nodes.get(1) is nodes.root and nodes.at(ROOT) is nodes.root


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([b"1", b"2"]))))
def test_what_was_told_and_forgotten_leaves_nothing(told):
    nodes = Nodes(Entry(b"", "d"))
    counts: dict[int, int] = {}
    for name, version in told:
        number = nodes.tell(nodes.root, file(name, version)).number
        counts[number] = counts.get(number, 0) + 1
    for number, count in counts.items():
        if count > 1:
            nodes.forget(number, count - 1)
            assert nodes.get(number)
        nodes.forget(number, 1)
    assert len(nodes) == 1
    assert all(nodes.at(RelPath((name,))) is None for name in (b"a", b"b", b"c"))


def test_inode_numbers_stay():
    # They are shown to programs, which may have written them down: a change of the formula is a change for users.
    assert ino_of(1, b"notes.txt") == 5407650264323866076
    assert ino_of(1, b"a") != ino_of(2, b"a") != ino_of(2, b"b")
