"""Entries from a host: the quick look at many of them lets nothing through that the careful one refuses."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from headrace.client.session import _are_usual
from headrace.protocol.messages import MAX_FILE_SIZE, VERSION_SIZE, Entry

V = b"v" * VERSION_SIZE
USUAL = Entry(b"usual", "f", size=1, mtime_ns=1, mode=0o644, version=V)

any_entry = st.builds(
    Entry,
    name=st.binary(max_size=4) | st.sampled_from([b".", b"..", b"a/b", b"a\0b", b"n" * 255, b"n" * 256]),
    kind=st.sampled_from(["f", "d", "l", "o"]),
    size=st.sampled_from([0, 1, -1, MAX_FILE_SIZE, MAX_FILE_SIZE + 1]),
    mtime_ns=st.sampled_from([0, -1, (1 << 63) - 1, 1 << 63]),
    mode=st.sampled_from([0, 0o644, 0o7777, 0o10000, -1]),
    target=st.sampled_from([b"", b"there"]),
    version=st.sampled_from([b"", V, V + b"v", V[1:]]),
)


@given(st.lists(any_entry, max_size=4))
@example([Entry(b"a", "f", version=V), Entry(b"", "d")])
def test_what_looks_usual_passes_the_check(entries: list[Entry]) -> None:
    if _are_usual(entries):
        for entry in entries:
            assert entry.check() is entry


def test_files_and_folders_are_usual() -> None:
    assert _are_usual([])
    assert _are_usual([USUAL, Entry(b"folder", "d", mtime_ns=1, mode=0o755), Entry(b"pipe", "o")])
