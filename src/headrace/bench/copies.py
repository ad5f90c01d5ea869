"""Cases that copy: one source, everybody who can copy it, in turn."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.bench import calls
from headrace.bench.context import Bench, note_failure, short
from headrace.bench.entries import LIMITS, PEERS, Entry, headrace
from headrace.bench.far import LOOPBACK, Across
from headrace.bench.measure import Result, compare, run
from headrace.bench.netlab import Lab, LabError, Profile, why_not
from headrace.bench.peers import Peer
from headrace.bench.process import BenchError
from headrace.bench.results import Case, Kind, Row
from headrace.bench.together import Crowd
from headrace.bench.workspace import GIB, MIB, checker, random_file, random_tree, text_file, tree_size

NAME: Final = "data"
FILE_SIZE: Final = 10 << 10  # bytes of a small file
BLOCK: Final = 4096
CHUNK: Final = 4 * MIB
OLD: Final = 1_600_000_000  # seconds since 1970: when the old version was changed last
WAN: Final = Profile(rate=100e6, delay=0.025)
GIGABIT: Final = Profile(rate=1e9, delay=0.0005, offload=True)

# Who takes part in one round only: in the quick suite, and with many files.
SLOW: Final = ("headrace-cold", "scp", "rclone", "wormhole")
SLOW_WITH_FILES: Final = ("scp", "scp-gcm", "sshfs", "rclone")

Change = Callable[[Path, int], None]


def insert(file: Path, size: int) -> None:
    """1 KiB more at the front."""
    new = file.with_suffix(".new")
    with file.open("rb") as old, new.open("wb") as out:
        out.write(os.urandom(1024))
        shutil.copyfileobj(old, out, MIB)
    new.replace(file)


def tenth(file: Path, size: int) -> None:
    """Other bytes in one chunk of ten, at least in one."""
    with file.open("r+b") as out:
        for start in range(0, size, 10 * CHUNK):
            out.seek(start)
            out.write(os.urandom(min(CHUNK, size // 10)))


@dataclass(frozen=True, slots=True)
class Copy:
    """A case. size, quick: bytes of the file, or with `files` how many files. own: headrace's rows. peers, limits: of
    the others, by name; None: all that can. make: writes the source. change: the destination holds what the source was
    before it. again: what each has copied once is there. clients: at once. at: where it lies on the plots' axes."""

    name: str
    title: str
    size: int
    quick: int
    own: Sequence[Entry]
    peers: Sequence[str] | None = None
    quick_peers: Sequence[str] | None = None
    limits: Sequence[str] | None = None
    link: Profile | None = None
    files: bool = False
    make: Callable[[Path, int], None] = random_file
    change: Change | None = None
    again: bool = False
    clients: int = 1
    at: dict[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of the full suite."""
        return self.size * (FILE_SIZE + BLOCK) if self.files else self.size

    def needs(self, bench: Bench) -> int:
        """Bytes of room."""
        size = bench.size(self.size, self.quick)
        each = size * (FILE_SIZE + BLOCK) if self.files else size
        copies = self.clients + 1 + (self.change is not None) + self.again * (len(PEERS) + 3)
        return copies * each + 32 * MIB

    def why_not(self) -> str:
        """Why it cannot be run here, or nothing."""
        if self.link and (why := why_not()):
            return f"it needs a link of its own: {why}"
        return ""

    def run(self, bench: Bench) -> Case:
        """In turn, with what each round cost."""
        size = bench.size(self.size, self.quick)
        source = bench.folder / "source" / NAME
        source.parent.mkdir()
        self._write(source, size)
        files, total = tree_size(source) if self.files else (1, source.stat().st_size)
        moved = total * self.clients
        at = {"bytes": float(total), "files": float(files)} | self._at()
        case = Case(self.name, self._title(size), "files/s" if self.files else "MB/s", True, size=moved, at=at)
        prepare = self._old(source, size) if self.change else None
        entries = self._entries(bench)
        amount = files if self.files else moved
        own = {entry.name for entry in self.own}
        with self._peers(entries, bench.folder) as peers:
            results = compare(
                peers,
                source,
                amount=amount,
                rounds=bench.rounds,
                folder=bench.folder,
                check=self._checker(source),
                tell=bench.tell,
                again=self.again,
                prepare=prepare,
                until=bench.ends,
                once=SLOW_WITH_FILES if self.files else SLOW if bench.quick else (),
                # In the quick suite only headrace has what a first run changes: hashes, and a paired client.
                warm=lambda name: not bench.quick or name in own,
                failed=note_failure,
            )
            scale = 1 if self.files else 1e6
            case.rows = [_row(entry.kind, one, scale) for entry, one in zip(entries, results, strict=True)]
        if bench.calls and not calls.why_not():
            with self._peers(entries, bench.folder / "traced") as peers:
                for row, peer in zip(case.rows, peers, strict=True):
                    if row.values:
                        _count(row, peer, source, bench, moved, prepare)
        return case

    def _at(self) -> dict[str, float]:
        link = {"rtt_ms": 2000 * self.link.delay, "loss": self.link.loss} if self.link else {"rtt_ms": 0.0, "loss": 0.0}
        return link | self.at

    def _title(self, size: int) -> str:
        what = f"{size:,} files of 10 KiB" if self.files else f"{size / MIB:,.0f} MiB"
        return self.title.replace("SIZE", what)

    def _write(self, source: Path, size: int) -> None:
        if self.files:
            random_tree(source, size, FILE_SIZE)
        else:
            self.make(source, size)

    def _old(self, source: Path, size: int) -> Callable[[Path], None]:
        """Keeps the source as the old version and changes it; what lays the old one."""
        old = source.parent.with_name("old")
        shutil.copyfile(source, old)
        os.utime(old, (OLD, OLD))
        assert self.change
        self.change(source, size)
        os.utime(source, (OLD + 1, OLD + 1))

        def lay(copy: Path) -> None:
            shutil.copy2(old, copy)

        return lay

    def _checker(self, source: Path) -> Callable[[Path], None]:
        right = checker(source)
        if self.clients == 1:
            return right

        def all_right(copy: Path) -> None:
            for number in range(self.clients):
                right(copy.parent / str(number) / copy.name)

        return all_right

    def _entries(self, bench: Bench) -> list[Entry]:
        def fits(entry: Entry, wanted: Sequence[str] | None) -> bool:
            able = (entry.trees or not self.files) and (entry.far or not self.link)
            able = able and (entry.many or self.clients == 1)
            return able and (wanted is None or entry.name in wanted)

        wanted = self.quick_peers if bench.quick and self.quick_peers is not None else self.peers
        peers = [entry for entry in PEERS if fits(entry, wanted) and entry.name in bench.peers]
        limits = [] if self.change or self.again else [entry for entry in LIMITS if fits(entry, self.limits)]
        return [*self.own, *peers, *limits]

    @contextlib.contextmanager
    def _peers(self, entries: Sequence[Entry], folder: Path) -> Iterator[list[Peer]]:
        folder.mkdir(exist_ok=True)
        if not self.link:
            made = [entry.make(folder / entry.name.replace(" ", "-"), LOOPBACK) for entry in entries]
            if self.clients > 1:
                made = [Crowd(peer, self.clients, folder / f"{peer.name}-clients") for peer in made]
            yield made
            return
        if why := why_not():
            raise LabError(why)
        with Lab(self.link) as lab:
            here = [entry.make(folder / entry.name.replace(" ", "-"), lab.b.address) for entry in entries]
            yield [Across(lab, peer) for peer in here]


def _row(kind: Kind, result: Result, scale: float) -> Row:
    return Row(
        result.name,
        kind,
        values=[rate / scale for rate in result.rates],
        client_cpu=[sample.client_cpu for sample in result.samples],
        server_cpu=[sample.server_cpu for sample in result.samples],
        client_rss=[sample.client_rss for sample in result.samples],
        server_rss=[sample.server_rss for sample in result.samples],
        missing=result.missing,
        failed=result.missing.startswith("failed"),
    )


def _count(row: Row, peer: Peer, source: Path, bench: Bench, size: int, prepare: Callable[[Path], None] | None) -> None:
    """One run more, traced. What cannot be traced has no count, and says so."""
    dest = bench.folder / "traced-copies"
    try:
        peer.start(source.parent)
        for traced in (False, True):  # a first one, so that hashes are remembered and clients paired, as in the rounds
            shutil.rmtree(dest, ignore_errors=True)
            dest.mkdir()
            if prepare:
                prepare(dest / source.name)
            peer.before_run()
            command = peer.command(source.name, dest)
            if traced:
                row.calls = calls.count(command, bench.folder, peer.server) / (size / MIB)
            else:
                run(command, log=bench.folder / "command.log")
    except BenchError as why:
        bench.tell(f"{row.name}: its system calls could not be counted: {short(why)}")
    finally:
        peer.stop()
        shutil.rmtree(dest, ignore_errors=True)


# ---- the cases ------------------------------------------------------------------------------------------------------

CLEAR: Final = ("--data-plane", "clear")
SEVEN: Final = ("--protocol", "7")
_BOTH: Final = (headrace("headrace"), headrace("headrace-7", *SEVEN))
_BULK: Final = (
    headrace("headrace"),
    headrace("headrace-cold", cold=True),
    headrace("headrace-clear", *CLEAR, share=CLEAR),
    headrace("headrace-7", *SEVEN),
)
_ON_LINK: Final = ("scp-gcm", "rsync-ssh", "rsync-daemon", "curl-https", "nfs-ganesha")
_RSYNC: Final = ("rsync-ssh", "rsync-daemon")
_SWEEP: Final = ("scp-gcm", "rsync-daemon", "curl-https")


def variants(option: str, words: Sequence[str], *, share: bool = False) -> tuple[Entry, ...]:
    """headrace with each value of an option, by protocol 8 and by 7."""
    made = []
    for word in words:
        both = (option, word)
        made.append(headrace(f"{word}", *both, share=both if share else ()))
        made.append(headrace(f"{word}, protocol 7", *both, *SEVEN, share=both if share else ()))
    return tuple(made)


def _own(name: str, title: str, own: Sequence[Entry], make: Callable[[Path, int], None] = random_file) -> Copy:
    """A case of headrace beside itself."""
    return Copy(name, title, 512 * MIB, 96 * MIB, own, peers=(), limits=("sendfile",), make=make)


_CHANGED: Final = (headrace("headrace", changed=True), headrace("headrace-7", *SEVEN, changed=True))
_DELTA: Final = ("rsync-ssh", "rsync-daemon", "scp-gcm")
_AUTO_OFF: Final = (
    headrace("compress auto", "--compress", "auto"),
    headrace("compress off", "--compress", "off"),
    headrace("protocol 7", *SEVEN),
)

COPIES: Final = (
    Copy("bulk", "one file of SIZE, random bytes, loopback", GIB, 64 * MIB, _BULK),
    Copy("small-files", "a tree of SIZE, loopback", 20_000, 2_000, _BOTH, quick_peers=_RSYNC, files=True),
    Copy("identical", "one file of SIZE that is there already", 512 * MIB, 64 * MIB, _BOTH, _DELTA, again=True),
    Copy(
        "changed",
        "one file of SIZE, a tenth of its chunks changed",
        512 * MIB,
        64 * MIB,
        _CHANGED,
        _DELTA,
        quick_peers=_RSYNC,
        change=tenth,
    ),
    Copy(
        "inserted",
        "one file of SIZE, 1 KiB inserted at its front",
        512 * MIB,
        64 * MIB,
        _CHANGED,
        _DELTA,
        change=insert,
    ),
    Copy("gigabit", "one file of SIZE, 1 Gbit/s, 1 ms", 512 * MIB, 64 * MIB, _BOTH, _ON_LINK, link=GIGABIT),
    Copy(
        "wan",
        "one file of SIZE, 100 Mbit/s, 50 ms, no loss",
        60 * MIB,
        8 * MIB,
        _BOTH,
        _ON_LINK,
        quick_peers=("scp-gcm", "rsync-daemon"),
        limits=("sendfile",),
        link=WAN,
    ),
    *(
        Copy(
            f"wan-loss-{loss:g}",
            f"one file of SIZE, 100 Mbit/s, 50 ms, {loss:g} % loss",
            60 * MIB,
            12 * MIB,
            _BOTH,
            _ON_LINK,
            link=Profile(rate=WAN.rate, delay=WAN.delay, loss=loss / 100),
        )
        for loss in (0.1, 1.0)
    ),
    Copy(
        "clients",
        "4 clients at once, each one file of SIZE, loopback",
        256 * MIB,
        48 * MIB,
        _BOTH,
        ("scp-gcm", "rsync-ssh", "rsync-daemon", "curl-https"),
        ("sendfile",),
        clients=4,
    ),
    _own("streams", "requests in flight: one file of SIZE, loopback", variants("--streams", ("1", "4", "16", "64"))),
    _own(
        "io",
        "file backends of both ends: one file of SIZE, loopback",
        variants("--io", ("posix", "uring", "plain"), share=True),
    ),
    _own(
        "data-plane",
        "encrypted or not: one file of SIZE, loopback",
        (headrace("tls"), headrace("clear", *CLEAR, share=CLEAR), headrace("protocol 7", *SEVEN)),
    ),
    _own("text", "compression of text: one file of SIZE, loopback", _AUTO_OFF, text_file),
    _own("noise", "compression of noise: one file of SIZE, loopback", _AUTO_OFF),
    _own(
        "hashing",
        "with hashes or without: one file of SIZE, loopback",
        (headrace("hashes"), headrace("no hashes", "--no-content-addressing"), headrace("protocol 7", *SEVEN)),
    ),
)

# For the plots: one thing grows. Only in the full suite.
SWEEPS: Final = (
    *(
        Copy(
            f"rtt-{rtt}",
            f"one file of SIZE, 100 Mbit/s, {rtt} ms",
            24 * MIB,
            MIB,
            _BOTH[:1],
            _SWEEP,
            ("sendfile",),
            link=Profile(rate=100e6, delay=rtt / 2000),
        )
        for rtt in (2, 20, 100, 200)
    ),
    *(
        Copy(
            f"loss-{loss:g}",
            f"one file of SIZE, 100 Mbit/s, 50 ms, {loss:g} % loss",
            24 * MIB,
            MIB,
            _BOTH[:1],
            _SWEEP,
            ("sendfile",),
            link=Profile(rate=100e6, delay=0.025, loss=loss / 100),
        )
        for loss in (0.0, 0.1, 0.5, 1.0, 2.0)
    ),
    *(
        Copy(f"size-{size // MIB}", "one file of SIZE, loopback", size, MIB, _BOTH[:1], ("rsync-daemon",), ("cp",))
        for size in (MIB, 16 * MIB, 128 * MIB, GIB, 4 * GIB, 10 * GIB)
    ),
    *(
        Copy(f"files-{files}", "a tree of SIZE, loopback", files, 10, _BOTH[:1], ("rsync-daemon",), ("cp",), files=True)
        for files in (100, 1_000, 10_000, 100_000)
    ),
)
