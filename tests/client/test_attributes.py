"""What is asked of the host and what is not, how long an answer is believed, and what is left when the host is away."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from headrace.client import attributes as module
from headrace.client.attributes import FEW, FIRST, PATIENCE, TTL, TTL_WATCHED, Attributes
from headrace.client.flights import DOUBT
from headrace.client.looking import TooManyEntriesError
from headrace.errors import HostAwayError, NotFoundError, PermissionRefusedError, ProtocolError
from headrace.protocol.messages import Entry, List, ListPart, Look, Looked, Stat, StatReply
from headrace.protocol.paths import ROOT, RelPath

from .scripted_names import Clock, ScriptedNames, Watched, a_file, path, watch

SOON = 10_000.0
FOLDER = Entry(b"src", "d", mode=0o755)


@pytest.fixture(autouse=True)
def told_by_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Watching", Watched)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def link(clock: Clock) -> ScriptedNames:
    made = ScriptedNames(clock)
    made.directories = {b"": [FOLDER, a_file(b"README")], b"src": [a_file(b"a.c"), a_file(b"b.c")]}
    return made


class Store(dict[bytes, bytes]):
    def put_meta(self, key: bytes, value: bytes) -> None:
        self[key] = value

    def get_meta(self, key: bytes) -> bytes | None:
        return self.get(key)


def make(link: ScriptedNames, **options: Any) -> Attributes:
    return Attributes(link, clock=link.clock, **options)  # type: ignore[arg-type]


def names(entries: Any) -> set[bytes]:
    return {entry.name for entry in entries}


# ---- what is asked -----------------------------------------------------------------------------------------------


def test_one_exchange_answers_everything_about_a_directory(link: ScriptedNames) -> None:
    attributes = make(link)
    assert attributes.stat(path("src/a.c"), SOON) == a_file(b"a.c")
    assert len(link.asked()) == 1
    assert attributes.stat(path("src/b.c"), SOON).size == 1
    for name in ("src/a.h", "src/.git", "src/é"):
        with pytest.raises(NotFoundError):
            attributes.stat(path(name), SOON)
    assert names(attributes.list(path("src"), SOON)) == {b"a.c", b"b.c"}
    assert attributes.list(path("src"), SOON) is attributes.list(path("src"), SOON)
    assert link.asked() == []


def test_the_root_comes_with_its_listing(link: ScriptedNames) -> None:
    attributes = make(link)
    attributes.list(ROOT, SOON)
    assert attributes.stat(ROOT, SOON).kind == "d"
    assert [type(request) for request in link.asked()] == [Look]


def test_below_a_folder_of_the_share(link: ScriptedNames) -> None:
    attributes = make(link, base=path("src"))
    assert attributes.stat(path("a.c"), SOON).name == b"a.c"
    assert attributes.stat(ROOT, SOON).name == b"src"
    assert names(attributes.list(ROOT, SOON)) == {b"a.c", b"b.c"}
    assert {request.path for request in link.asked()} == {b"src"}


def test_a_long_directory_is_not_fetched_for_one_name(link: ScriptedNames) -> None:
    link.directories[b"src"] = [a_file(b"%d" % number) for number in range(FIRST + 5)]
    attributes = make(link)
    assert attributes.stat(path("src/1"), SOON).name == b"1"  # among the first
    assert attributes.stat(path("src/1004"), SOON).name == b"1004"
    assert attributes.stat(path("src/1004"), SOON).name == b"1004"
    assert [(type(request), getattr(request, "limit", 0)) for request in link.asked()] == [(Look, FIRST), (Stat, 0)]
    assert attributes.stat(path("src/1003"), SOON).name == b"1003"
    (request,) = link.asked()
    assert isinstance(request, Look)
    assert request.limit > FIRST + 5
    with pytest.raises(NotFoundError):
        attributes.stat(path("src/none"), SOON)
    assert link.asked() == []


@pytest.mark.parametrize("features", [frozenset[str]()])
def test_a_host_without_these_features(link: ScriptedNames, features: frozenset[str]) -> None:
    link.features = features
    attributes = make(link)
    assert attributes.stat(path("src/a.c"), SOON).name == b"a.c"
    assert attributes.stat(path("src/b.c"), SOON).name == b"b.c"
    with pytest.raises(NotFoundError):
        attributes.stat(path("src/c.c"), SOON)
    assert [type(request) for request in link.asked()] == [Stat, List]
    assert attributes.statfs(SOON) is None
    assert not attributes.watching


def test_what_may_not_be_listed_may_still_be_looked_into(link: ScriptedNames) -> None:
    link.refused[b"src"] = "denied"
    attributes = make(link)
    assert attributes.stat(path("src/a.c"), SOON).name == b"a.c"
    assert attributes.stat(path("src/b.c"), SOON).name == b"b.c"
    assert [type(request) for request in link.asked()] == [Look, Stat, Stat]
    with pytest.raises(PermissionRefusedError):
        attributes.list(path("src"), SOON)


def test_a_directory_with_too_many_entries(link: ScriptedNames) -> None:
    link.directories[b"src"] = [a_file(b"%d" % number) for number in range(20)]
    for features in (link.features, frozenset[str]()):
        link.features = features
        attributes = make(link, most=10)
        with pytest.raises(TooManyEntriesError):
            attributes.list(path("src"), SOON)
        assert attributes.stat(path("src/3"), SOON).name == b"3"
        assert attributes.stat(path("src/19"), SOON).name == b"19"
        with pytest.raises(NotFoundError):
            attributes.stat(path("src/20"), SOON)
        assert attributes._folders.entries < 10


def test_no_more_than_so_many_entries_are_kept(link: ScriptedNames) -> None:
    for number in range(10):
        link.directories[b"d%d" % number] = [a_file(b"%d" % file) for file in range(9)]
    attributes = make(link, most=35)
    for number in (0, 1, 2, 0, 3, 4):
        attributes.list(path(f"d{number}"), SOON)
        assert attributes._folders.entries <= 35
    link.asked()
    attributes.list(path("d0"), SOON)
    assert link.asked() == []
    attributes.list(path("d1"), SOON)
    assert len(link.asked()) == 1


def test_who_wants_the_same_at_the_same_time_shares_one_exchange(link: ScriptedNames) -> None:
    attributes = make(link)
    arrived, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        assert go_on.wait(10)

    link.meanwhile = wait
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(attributes.list(path("src"), SOON))),
        *(threading.Thread(target=lambda: found.append(attributes.stat(path("src/a.c"), SOON))) for _ in range(3)),
    ]
    threads[0].start()
    assert arrived.wait(10)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(found) == 4
    assert len(link.asked()) == 1


def test_an_error_is_not_kept(link: ScriptedNames) -> None:
    attributes = make(link)
    with pytest.raises(NotFoundError):
        attributes.list(path("src/new"), SOON)
    link.directories[b"src/new"] = [a_file(b"x")]
    assert names(attributes.list(path("src/new"), SOON)) == {b"x"}


# ---- how long it is believed -------------------------------------------------------------------------------------


def test_without_a_watch_it_is_believed_for_a_short_time(link: ScriptedNames, clock: Clock) -> None:
    attributes = make(link)
    attributes.list(path("src"), SOON)
    link.directories[b"src"] = [a_file(b"a.c", size=2)]
    clock.now += TTL - 0.01
    assert attributes.stat(path("src/a.c"), SOON).size == 1
    clock.now += 0.02
    assert attributes.stat(path("src/a.c"), SOON).size == 2
    assert names(attributes.list(path("src"), SOON)) == {b"a.c"}


def test_with_a_watch_it_is_believed_longer_and_not_for_ever(link: ScriptedNames, clock: Clock) -> None:
    attributes = make(link)
    watch(attributes, link)
    assert attributes.watching
    attributes.list(path("src"), SOON)
    link.asked()
    clock.now += TTL_WATCHED - 0.01
    attributes.stat(path("src/a.c"), SOON)
    assert link.asked() == []
    clock.now += 0.02
    attributes.stat(path("src/a.c"), SOON)
    assert len(link.asked()) == 1


def test_a_listing_that_is_the_same_again_is_the_same_object(link: ScriptedNames, clock: Clock) -> None:
    attributes = make(link)
    before = attributes.list(path("src"), SOON)
    clock.now += TTL + 1
    assert attributes.list(path("src"), SOON) is before
    assert len(link.asked()) == 2


def test_a_watch_that_is_lost_is_worth_nothing_also_when_it_comes_back(link: ScriptedNames, clock: Clock) -> None:
    attributes = make(link)
    watch(attributes, link, 7)
    attributes.list(path("src"), SOON)
    clock.now += TTL + 1
    link.asked()
    attributes._watching.number = 0  # type: ignore[union-attr]
    attributes.stat(path("src/a.c"), SOON)
    assert len(link.asked()) == 1
    watch(attributes, link, 8)
    clock.now += TTL + 1
    attributes.stat(path("src/a.c"), SOON)
    attributes.list(path("src"), SOON)
    assert len(link.asked()) == 1  # and from here on it is watched again
    clock.now += TTL + 1
    attributes.list(path("src"), SOON)
    assert link.asked() == []


def test_what_the_host_does_not_watch_is_believed_for_a_short_time(link: ScriptedNames, clock: Clock) -> None:
    attributes = make(link)
    tell = watch(attributes, link)
    link.watch = 99
    attributes.list(path("src"), SOON)
    link.watch = 7
    attributes.list(ROOT, SOON)
    clock.now += TTL + 1
    link.asked()
    attributes.list(path("src"), SOON)
    attributes.list(ROOT, SOON)
    assert len(link.asked()) == 1
    tell(unwatched=[b""])
    attributes.list(ROOT, SOON)
    assert len(link.asked()) == 1


# ---- what the host tells -----------------------------------------------------------------------------------------


def test_a_changed_file_is_asked_for_alone(link: ScriptedNames) -> None:
    attributes = make(link)
    tell = watch(attributes, link)
    attributes.list(path("src"), SOON)
    link.asked()
    link.directories[b"src"][0] = a_file(b"a.c", size=2)
    tell(entries=[b"src/a.c"])
    assert attributes.stat(path("src/b.c"), SOON).size == 1
    assert link.asked() == []
    assert attributes.stat(path("src/a.c"), SOON).size == 2
    assert [type(request) for request in link.asked()] == [Stat]
    assert {entry.size for entry in attributes.list(path("src"), SOON)} == {1, 2}
    assert link.asked() == []


def test_names_that_come_and_go(link: ScriptedNames) -> None:
    attributes = make(link)
    tell = watch(attributes, link)
    attributes.list(path("src"), SOON)
    attributes.list(ROOT, SOON)
    before = attributes.list(path("src"), SOON)
    link.asked()
    link.directories[b"src"] = [a_file(b"b.c"), a_file(b"c.c")]
    tell(names=[b"src/a.c", b"src/c.c"])
    assert names(attributes.list(path("src"), SOON)) == {b"b.c", b"c.c"}
    assert attributes.list(path("src"), SOON) is not before
    assert names(before) == {b"a.c", b"b.c"}
    assert {(type(request), request.path) for request in link.asked()} == {(Stat, b"src/a.c"), (Stat, b"src/c.c")}
    attributes.stat(path("src"), SOON)  # its time of change is another now
    assert [request.path for request in link.asked()] == [b"src"]


def test_many_changes_in_a_directory_have_it_listed_anew(link: ScriptedNames) -> None:
    attributes = make(link)
    tell = watch(attributes, link)
    attributes.list(path("src"), SOON)
    link.asked()
    tell(names=[b"src/%d" % number for number in range(FEW + 1)])
    with pytest.raises(NotFoundError):
        attributes.stat(path("src/1"), SOON)
    assert [type(request) for request in link.asked()] == [Look]


def test_a_directory_that_is_moved_takes_all_below_along(link: ScriptedNames) -> None:
    link.directories |= {b"src/x": [a_file(b"1")], b"src/x/y": [a_file(b"2")]}
    attributes = make(link)
    tell = watch(attributes, link)
    for name in ("", "src", "src/x", "src/x/y"):
        attributes.list(path(name), SOON)
    link.asked()
    link.directories = {b"": [a_file(b"README")]}
    tell(names=[b"src"])
    for name in ("src", "src/a.c", "src/x/1", "src/x/y/2"):
        with pytest.raises(NotFoundError):
            attributes.stat(path(name), SOON)
    assert attributes.stat(path("README"), SOON).kind == "f"


def test_missed_changes_make_all_of_it_unknown(link: ScriptedNames) -> None:
    attributes = make(link)
    tell = watch(attributes, link)
    attributes.list(path("src"), SOON)
    attributes.stat(ROOT, SOON)
    link.asked()
    link.clock.now += 1
    tell(overflow=True)
    link.clock.now += 1
    attributes.list(path("src"), SOON)
    attributes.stat(ROOT, SOON)
    assert len(link.asked()) == 2


@pytest.mark.parametrize("what", [{"entries": [b"src/a.c"]}, {"names": [b"src/a.c"]}, {"names": [b"src"]}])
def test_what_changes_while_it_is_asked_for_is_not_kept(link: ScriptedNames, what: dict[str, Any]) -> None:
    attributes = make(link)
    tell = watch(attributes, link)

    def change() -> None:
        link.meanwhile = lambda: None
        link.directories[b"src"][0] = a_file(b"a.c", size=2)
        tell(**what)

    link.meanwhile = change
    attributes.list(path("src"), SOON)
    assert attributes.stat(path("src/a.c"), SOON).size == 2


def test_overflow_while_it_is_asked_for(link: ScriptedNames) -> None:
    attributes = make(link)
    tell = watch(attributes, link)

    def change() -> None:
        link.meanwhile = lambda: None
        link.directories[b"src"] = []
        tell(overflow=True)

    link.meanwhile = change
    attributes.list(path("src"), SOON)
    assert attributes.list(path("src"), SOON) == ()


def test_who_wants_to_know_is_told_of_changes_below_the_base(link: ScriptedNames) -> None:
    attributes = make(link, base=path("src"))
    told: list[RelPath | None] = []
    attributes.on_invalidate(told.append)
    tell = watch(attributes, link)
    tell(entries=[b"src/a.c", b"README"])
    assert told == [path("a.c")]
    tell(names=[b"src/x/y", b"lib/z"])
    assert told[1:] == [path("x/y"), path("x")]
    tell(names=[b"src"])
    tell(overflow=True)
    assert told[3:] == [None, None]
    tell()
    assert len(told) == 5


def test_a_host_that_tells_of_impossible_paths(link: ScriptedNames) -> None:
    attributes = make(link)
    tell = watch(attributes, link)
    for what in ("entries", "names", "unwatched"):
        for raw in (b"../x", b"/etc", b"a\0b"):
            with pytest.raises(ProtocolError):
                tell(**{what: [raw]})


# ---- a host that is away -----------------------------------------------------------------------------------------


def test_what_is_known_is_served_while_the_host_is_away(link: ScriptedNames, clock: Clock) -> None:
    attributes = make(link)
    attributes.list(path("src"), SOON)
    attributes.stat(ROOT, SOON)
    clock.now += 1000
    link.up = False
    asked_at = clock.now
    assert attributes.stat(path("src/a.c"), SOON).size == 1
    assert names(attributes.list(path("src"), SOON)) == {b"a.c", b"b.c"}
    assert attributes.stat(ROOT, SOON).kind == "d"
    with pytest.raises(NotFoundError):
        attributes.stat(path("src/none"), SOON)
    assert clock.now == asked_at
    with pytest.raises(HostAwayError):
        attributes.stat(path("lib/a.c"), SOON)
    link.up = True
    link.asked()
    attributes.stat(path("src/a.c"), SOON)
    assert len(link.asked()) == 1


def test_a_host_that_hangs_is_not_waited_for_where_something_is_known(link: ScriptedNames, clock: Clock) -> None:
    attributes = make(link)
    attributes.list(path("src"), SOON)
    clock.now += 100
    link.hangs = 60.0
    begin = clock.now
    attributes.stat(path("src/a.c"), begin + 30)
    assert clock.now == begin + PATIENCE
    for _ in range(5):
        attributes.stat(path("src/a.c"), begin + 30)
    assert clock.now == begin + PATIENCE
    with pytest.raises(HostAwayError):
        attributes.stat(path("lib/a.c"), begin + 30)
    assert clock.now == begin + 30
    link.hangs = 0.0
    clock.now += DOUBT + 1
    link.asked()
    attributes.stat(path("src/a.c"), clock.now + 30)
    assert len(link.asked()) == 1


def test_a_slow_host_is_given_the_time_that_it_needed_the_last_time(link: ScriptedNames, clock: Clock) -> None:
    attributes = make(link)
    link.hangs = 0.0
    link.meanwhile = lambda: setattr(clock, "now", clock.now + 10)
    attributes.list(path("src"), clock.now + 30)
    clock.now += 100
    link.meanwhile = lambda: None
    link.hangs = 10.0
    link.directories[b"src"] = []
    assert attributes.list(path("src"), clock.now + 30) == ()


def test_offline_there_is_what_was_kept(link: ScriptedNames) -> None:
    store = Store()
    with make(link, meta=store, share="7k2m") as attributes:
        attributes.list(path("src"), SOON)
        attributes.stat(ROOT, SOON)
    link.up = False
    link.asked()
    offline = make(link, meta=store, share="7k2m", offline=True)
    assert offline.stat(path("src/a.c"), SOON) == a_file(b"a.c")
    assert names(offline.list(path("src"), SOON)) == {b"a.c", b"b.c"}
    assert offline.stat(ROOT, SOON).kind == "d"
    assert offline.statfs(SOON) is None
    assert not offline.watching
    with pytest.raises(NotFoundError):
        offline.stat(path("src/none"), SOON)
    with pytest.raises(HostAwayError):
        offline.list(path("lib"), SOON)
    with pytest.raises(HostAwayError):
        offline.stat(path("lib/x"), SOON)
    with pytest.raises(HostAwayError):
        make(link, meta=store, share="other", offline=True).stat(path("src/a.c"), SOON)
    assert link.asked() == []


def test_what_changed_is_kept_as_it_is_now(link: ScriptedNames) -> None:
    store = Store()
    with make(link, meta=store) as attributes:
        tell = watch(attributes, link)
        attributes.list(path("src"), SOON)
        link.directories[b"src"][0] = a_file(b"a.c", size=2)
        tell(entries=[b"src/a.c"])
        attributes.stat(path("src/a.c"), SOON)
    assert make(link, meta=store, offline=True).stat(path("src/a.c"), SOON).size == 2


def test_one_name_of_a_long_directory_is_kept_too(link: ScriptedNames) -> None:
    store = Store()
    link.directories[b"src"] = [a_file(b"%d" % number) for number in range(FIRST + 5)]
    with make(link, meta=store) as attributes:
        attributes.stat(path("src/1004"), SOON)
    assert make(link, meta=store, offline=True).stat(path("src/1004"), SOON).name == b"1004"


@pytest.mark.parametrize("damage", [b"", b"\x00", b"garbage", b"\x91\x82\xa4name\xc4\x02..\xa4kind\xa1d"])
def test_what_was_kept_and_damaged_is_not_there(link: ScriptedNames, damage: bytes) -> None:
    store = Store()
    with make(link, meta=store) as attributes:
        attributes.list(path("src"), SOON)
    for key in store:
        store[key] = damage
    offline = make(link, meta=store, offline=True)
    with pytest.raises(HostAwayError):
        offline.list(path("src"), SOON)


# ---- a host that lies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"a/b", "f", version=b"v" * 16),
        Entry(b"..", "d"),
        Entry(b"a\0b", "d"),
        Entry(b"", "d"),
        Entry(b"x" * 256, "d"),
        Entry(b"x", "f", size=-1, version=b"v" * 16),
        Entry(b"x", "f", size=(1 << 62) + 1, version=b"v" * 16),
        Entry(b"x", "f"),
        Entry(b"x", "l", target=b"t" * 5000),
    ],
)
def test_impossible_entries(link: ScriptedNames, entry: Entry) -> None:
    attributes = make(link)
    link.directories[b"src"].append(entry)
    with pytest.raises(ProtocolError):
        attributes.list(path("src"), SOON)
    with pytest.raises(ProtocolError):
        attributes.stat(path("src/a.c"), SOON)


def test_answers_to_what_was_not_asked(link: ScriptedNames) -> None:
    itself = Entry(b"src", "d")

    def lie(*messages: Any) -> Any:
        return lambda request: messages

    for answer in (
        lie(ListPart(1, b"lib", [a_file(b"x")]), Looked(1, itself)),
        lie(StatReply(1, itself)),
        lie(Looked(1, Entry(b"a/b", "d"))),
    ):
        attributes = make(link)
        link.answer = answer
        with pytest.raises(ProtocolError):
            attributes.list(path("src"), SOON)
    link.answer = lie(StatReply(1, a_file(b"other")))
    link.features = frozenset()
    with pytest.raises(ProtocolError):
        make(link).stat(path("src/a.c"), SOON)


def test_a_directory_that_never_ends(link: ScriptedNames) -> None:
    sent = 0

    def endless(request: Any) -> Any:
        nonlocal sent
        while True:
            sent += 1
            yield ListPart(1, b"src", [a_file(b"%d-%d" % (sent, number)) for number in range(100)])
            if sent > 30:  # of what lies on the way; no more of it is taken than there may be
                return

    link.answer = endless
    with pytest.raises(TooManyEntriesError):
        make(link, most=500).list(path("src"), SOON)
