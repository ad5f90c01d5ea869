"""Every option of every command, once. Each has an environment variable and a key in the config file.

Flags win over the environment, the environment over the config file.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, Final

import click

from headrace import config
from headrace.cli import settings
from headrace.observe import logs

PREFIX: Final = "HEADRACE_"


@dataclass(slots=True)
class Common:
    """What holds whatever the command: how much it says, and how it reaches a share. Filled while parsing.

    code_file_given: --code-file stood on the command line itself, so it wins over HEADRACE_CODE.
    leave_at_once: a signal ended the command; threads that hang somewhere must not delay the end of the process.
    """

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    log_json: bool = False
    protocol: str = "auto"
    transport: str = "auto"
    congestion: str = "bbr"
    limit_rate: int | None = None
    code_file: str | None = None
    code_file_given: bool = False
    metrics: str | None = None
    trace: str | None = None
    leave_at_once: bool = False


class Command(click.Command):
    """A command whose options come from this module. Its arguments are click's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--help" not in args and not ctx.resilient_parsing:  # help must come even when the config file is broken
            ctx.default_map = settings.defaults(config.home() / settings.FILE, self.config_name(ctx), OPTIONS)
        return super().parse_args(ctx, args)

    def config_name(self, ctx: click.Context) -> str:
        """The command's name in the config file: its own, also when it was called by an alias."""
        return str(self.name)

    def invoke(self, ctx: click.Context) -> Any:
        common = ctx.ensure_object(Common)
        logs.setup(common.verbose, json=common.log_json, quiet=common.quiet)
        return super().invoke(ctx)


class Patterns(click.types.StringParamType):
    """A gitignore pattern. In the environment variable there may be several, one a line."""

    name = "glob"

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line for line in rv.splitlines() if line]


class Size(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """Bytes, with K, M, G and T as powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().removesuffix("IB").removesuffix("B")
        power = " KMGT".find(text[-1:]) if text[-1:].isalpha() else 0
        try:
            if power < 0:
                raise ValueError
            return int(float(text.rstrip("KMGT")) * 1024**power)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no size; write something like 64M", param, ctx)


class Rate(Size):
    """Bytes a second, or off."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value).strip().lower() == "off":
            return None
        rate = super().convert(value, param, ctx)
        if rate < 1:
            self.fail("a rate must be at least 1 byte a second; off takes the limit away", param, ctx)
        return rate


class Duration(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """Seconds, or a number with s, m, h or d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().lower()
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * unit if unit else float(text)
            if not 0 <= seconds < 1e9:
                raise ValueError
        except ValueError:
            self.fail(f"{value!r} is no time; write something like 90s, 5m or 2h", param, ctx)
        return seconds


class Streams(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """auto (None), or a number of requests."""

    name = "streams"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if str(value).lower() == "auto":
            return None
        return click.IntRange(1, 256).convert(value, param, ctx)


class Level(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """auto, off or a level of zstd, as engine.compress.parse_level."""

    name = "level"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from headrace.engine.compress import parse_level
        from headrace.errors import UsageError

        try:
            return value if isinstance(value, int) else parse_level(str(value))
        except UsageError as why:
            self.fail(f"{why.message}; {(why.hint or '').lower()}".rstrip("."), param, ctx)


# A path of this machine. Whether it can be read is for the command to find out, and to say in its own words.
PATH: Final = click.Path(readable=False)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Stores an option in Common instead of passing it to the command."""
    common = ctx.ensure_object(Common)
    setattr(common, str(param.name), value)
    if param.name == "code_file":
        common.code_file_given = ctx.get_parameter_source("code_file") is click.core.ParameterSource.COMMANDLINE


def _option(*flags: str, to_common: bool = False, name: str = "", **more: Any) -> click.Option:
    if not name:
        long = next(flag for flag in flags if flag.startswith("--"))
        name = long.removeprefix("--").split("/")[0].replace("-", "_")
    if to_common:
        more |= {"expose_value": False, "callback": _keep}
    return click.Option([*flags, name], envvar=PREFIX + name.upper(), **more)


def _limit(flag: str, default: int, help: str) -> click.Option:
    return _option(flag, type=click.IntRange(min=1), default=default, show_default=True, metavar="N", help=help)


PROTOCOL: Final = _option(
    "--protocol",
    to_common=True,
    type=click.Choice(["auto", "7", "8"]),
    default="auto",
    show_default=True,
    help="Protocol version; 7 forces the baseline.",
)
TRANSPORT: Final = _option(
    "--transport",
    to_common=True,
    type=click.Choice(["auto", "quic", "tcp"]),
    default="auto",
    show_default=True,
    help="How bytes travel. auto: whichever is up first and faster; it says which and why.",
)
CONGESTION: Final = _option(
    "--congestion",
    to_common=True,
    type=click.Choice(["bbr", "cubic"]),
    default="bbr",
    show_default=True,
    help="Congestion control of QUIC.",
)
IO: Final = _option(
    "--io",
    type=click.Choice(["auto", "uring", "posix", "plain"]),
    default="auto",
    show_default=True,
    help="How files are read and written. plain: no zero-copy either, to find out what is at fault.",
)
DATA_PLANE: Final = _option(
    "--data-plane",
    type=click.Choice(["tls", "clear"]),
    default="tls",
    show_default=True,
    help="clear: chunks are not encrypted, only checked. Faster; for networks that you trust; both sides must say it.",
)
BUFFERS: Final = _option(
    "--buffers",
    type=Size(),
    default="64M",
    show_default=True,
    metavar="SIZE",
    help="Memory for chunks on their way, at least 4M.",
)
LIMIT_RATE: Final = _option(
    "--limit-rate",
    "--bwlimit",
    to_common=True,
    type=Rate(),
    metavar="RATE",
    help="Bytes a second at most, as in 20M, in each direction; off for no limit. On share: of all clients together.",
)
LIMIT_PEER: Final = _option(
    "--limit-peer",
    type=Rate(),
    metavar="RATE",
    help="Bytes a second at most to and from each client; off for no limit.",
)
# Those of a program that runs. Not in Common, as other commands have them: there they are about the command itself.
NEW_LIMIT_RATE: Final = _option(
    "--limit-rate",
    "--bwlimit",
    type=Rate(),
    metavar="RATE",
    help="Change the limit of one that runs: bytes a second in each direction, as in 20M; off lifts it.",
)
NEW_LIMIT_PEER: Final = _option(
    "--limit-peer", type=Rate(), metavar="RATE", help="Change the limit for each peer of a share that runs."
)
WATCH: Final = _option("--watch", is_flag=True, help="Draw it anew every second, until Ctrl-C.")
CODE_FILE: Final = _option(
    "--code-file",
    to_common=True,
    type=click.Path(),
    metavar="FILE",
    help="Read the code from this file, so that it is not in the process list. - is standard input.",
)
JSON: Final = _option("--json", to_common=True, is_flag=True, help="One JSON object a line on standard output.")
QUIET: Final = _option("-q", "--quiet", to_common=True, is_flag=True, help="Only errors and results.")
VERBOSE: Final = _option("-v", "--verbose", to_common=True, count=True, help="Say more; -vv for debugging.")
LOG_JSON: Final = _option("--log-json", to_common=True, is_flag=True, help="Logs on standard error as JSON lines.")
METRICS: Final = _option(
    "--metrics",
    to_common=True,
    metavar="ADDR:PORT",
    help="Prometheus metrics there while it runs; 127.0.0.1 without ADDR. Whoever can reach it can read them.",
)
TRACE: Final = _option(
    "--trace",
    to_common=True,
    type=click.Path(resolve_path=True),  # a mount in the background has another folder
    metavar="FILE",
    help="Append spans to this file, one JSON object each.",
)
DASHBOARD: Final = _option("--dashboard", is_flag=True, help="The dashboard for Grafana instead, as JSON.")

PORT: Final = _option(
    "--port",
    type=click.IntRange(0, 65535),
    default=config.DEFAULT_PORT,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
BIND: Final = _option("--bind", default="", metavar="ADDR", help="Listen on this address only.")
CODE: Final = _option(
    "--code",
    metavar="CODE",
    help="Use this code, not a fresh one. Better in HEADRACE_CODE or --code-file: the process list shows options.",
)
ALLOW: Final = _option(
    "--allow",
    type=Patterns(),
    multiple=True,
    metavar="CIDR",
    help="Take connections from this network only, as in 192.168.1.0/24. Repeatable.",
)
MAX_CLIENTS: Final = _option(
    "--max-clients", type=click.IntRange(min=1), metavar="N", help="Clients that may be connected at once."
)
MAX_CONNECTIONS: Final = _limit("--max-connections", 1024, "Connections in all; further ones are turned away.")
MAX_PER_ADDRESS: Final = _limit("--max-per-address", 512, "Connections from one address.")
MAX_PER_PEER: Final = _limit("--max-per-peer", 64, "Connections of one paired client.")
MAX_HANDSHAKES: Final = _limit("--max-handshakes", 192, "Connections that said too little to be let in yet.")
MAX_HANDSHAKES_PER_ADDRESS: Final = _limit(
    "--max-handshakes-per-address", 64, "Of those, from one address. The oldest makes room for the newest."
)
HANDSHAKE_TIMEOUT: Final = _option(
    "--handshake-timeout",
    type=Duration(),
    default="10s",
    show_default=True,
    metavar="TIME",
    help="How long a connection may take until it is let in.",
)
IDLE_TIMEOUT: Final = _option(
    "--idle-timeout",
    type=Duration(),
    metavar="TIME",
    help="Cut a client off when nothing travels for this long. Without: it may rest, as a mount does.",
)
WORKERS: Final = _option(
    "--workers",
    type=click.IntRange(0, 64),
    default=0,
    show_default=True,
    metavar="N",
    help="Processes that serve bulk beside the first, for machines with many cores and many clients at once.",
)
EXPIRE: Final = _option("--expire", type=Duration(), metavar="TIME", help="Stop sharing after this time, as in 2h.")
NO_DISCOVERY: Final = _option(
    "--no-discovery", is_flag=True, help="Do not announce the share on the LAN; CODE alone does not find it then."
)
WRITE: Final = _option("--write", is_flag=True, help="Let clients put files into the folder that is shared.")
LAN: Final = _option("--lan", is_flag=True, help="The shares that announce themselves on the LAN, instead.")
NAME: Final = _option("--name", metavar="NAME", help="The share's name, as others see it.")

ON_EXIST: Final = _option(
    "--on-exist",
    type=click.Choice(["skip-same", "rename", "overwrite", "fail"]),
    default="skip-same",
    show_default=True,
    help="What to do where a file exists. skip-same: identical is skipped, different is an error for that file.",
)
INCLUDE: Final = _option(
    "--include", type=Patterns(), multiple=True, help="Only files that match this gitignore pattern. Repeatable."
)
EXCLUDE: Final = _option(
    "--exclude", type=Patterns(), multiple=True, help="No files that match this gitignore pattern. Repeatable."
)
LINKS: Final = _option(
    "--links",
    type=click.Choice(["safe", "all", "skip"]),
    default="safe",
    show_default=True,
    help="Which symlinks to make. safe: those that stay inside DEST.",
)
PUT_LINKS: Final = _option(
    "--links",
    type=click.Choice(["safe", "skip"]),
    default="safe",
    show_default=True,
    help="Which symlinks to send. safe: those that stay inside their folder.",
)
CHECKSUM: Final = _option("--checksum", is_flag=True, help="Compare contents, not sizes and times.")
DRY_RUN: Final = _option("--dry-run", is_flag=True, help="Plan and figures, nothing written.")
CONNECTIONS: Final = _option(
    "--connections", type=click.IntRange(1, 16), help="Connections for bulk data. By default found by trial."
)
STREAMS: Final = _option(
    "--streams",
    type=Streams(),
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Chunk requests in flight. auto: as many as the path holds.",
)
RETRY_FOR: Final = _option(
    "--retry-for",
    type=Duration(),
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long to try again when the host is gone in the middle of a transfer; 0 gives up at once.",
)

FSYNC: Final = _option(
    "--fsync",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="auto: what came is on disk before it counts as done. off: faster on slow disks; a power cut may undo it.",
)
LONG: Final = _option("-l", "--long", is_flag=True, help="Mode, size and time as well.")
RECURSIVE: Final = _option("-R", "--recursive", is_flag=True, help="Everything below as well.")
OFFSET: Final = _option("--offset", type=click.IntRange(min=0), default=0, metavar="N", help="Start at this byte.")
LENGTH: Final = _option("--length", type=click.IntRange(min=0), metavar="N", help="At most this many bytes.")

CACHE_ENTRIES: Final = _option(
    "--cache-entries",
    type=click.IntRange(min=100),
    default=1_000_000,
    show_default=True,
    metavar="N",
    help="Chunks that the index remembers at most; about 100 bytes of disk each.",
)
CONTENT_ADDRESSING: Final = _option(
    "--content-addressing/--no-content-addressing",
    default=True,
    show_default=True,
    help="Check chunks by their hashes, and take from this disk what is here. Without: neither, TLS alone protects.",
)
OFFERS: Final = _option(
    "--content-addressing/--no-content-addressing",
    default=True,
    show_default=True,
    help="Do not send chunks that the host has, by their hashes. Without: all of what is missing is sent.",
)
COMPRESS: Final = _option(
    "--compress",
    type=Level(),
    default="auto",
    show_default=True,
    metavar="auto|off|LEVEL",
    help="zstd on the way. auto: where the network is slower than compressing. On share, LEVEL is the highest that "
    "anybody gets.",
)
READ_DATA: Final = _option("--read-data", is_flag=True, help="Read all indexed chunks, and compare their hashes.")

FOREGROUND: Final = _option("--foreground", is_flag=True, help="Stay, and unmount at Ctrl-C.")
ALLOW_OTHER: Final = _option(
    "--allow-other", is_flag=True, help="Let other users of this machine in, as far as the files' modes do."
)
FUSE_OPTIONS: Final = _option(
    "-o",
    "--fuse-options",
    multiple=True,
    metavar="OPTS",
    help="Mount options, separated by commas, as of mount(8). nonempty: also on a folder that is not empty.",
)
TIMEOUT: Final = _option(
    "--timeout",
    type=Duration(),
    default="30s",
    show_default=True,
    metavar="TIME",
    help="The most that one call of a program may wait for the host; then it gets an error.",
)
CACHE_RAM: Final = _option(
    "--cache-ram", type=Size(), default="256M", show_default=True, metavar="SIZE", help="Memory for what was read."
)
CACHE_DISK: Final = _option(
    "--cache-disk",
    type=Size(),
    default="10G",
    show_default=True,
    metavar="SIZE",
    help="Disk for what was read, below HEADRACE_HOME; 0 for none.",
)
OFFLINE: Final = _option("--offline", is_flag=True, help="Only what is cached; the host is never asked.")
DEBUG_IO: Final = _option(
    "--debug-io",
    is_flag=True,
    help="Every read is one plain request, nothing is cached: to tell a fast path's fault from a slow disk.",
)

SUITE: Final = _option(
    "--suite",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="How much is measured. quick: at most 90 seconds. full: half an hour.",
)
ONLY: Final = _option("--only", metavar="CASE,CASE", help="Only these cases; --list-cases says which there are.")
BENCH_PEERS: Final = _option(
    "--peers", metavar="NAME,NAME", help="Beside these only, or none: scp, rsync-daemon and so on. Default: all."
)
ROUNDS: Final = _option("--rounds", type=click.IntRange(1, 99), metavar="N", help="Rounds that count, at most.")
FOLDER: Final = _option(
    "--folder",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Where to work. Default: memory (/dev/shm), so that no disk sets the pace.",
)
CALLS: Final = _option("--calls", is_flag=True, help="Count system calls as well, with strace; --suite full does.")
BENCH_JSON: Final = _option(
    "--json", name="bench_json", type=click.Path(dir_okay=False), metavar="FILE", help="Write every round to this file."
)
PLOT: Final = _option(
    "--plot", type=click.Path(file_okay=False), metavar="DIR", help="Draw the results there, as SVG and PNG."
)
PROFILE: Final = _option(
    "--profile",
    is_flag=False,
    flag_value="headrace-profile",
    type=click.Path(file_okay=False),
    metavar="[DIR]",
    help="Instead: where the time of both ends goes in a bulk copy, by py-spy, pyinstrument and perf, as far as they "
    "are here. DIR: for the files; without it headrace-profile.",
)
LIST_CASES: Final = _option("--list-cases", is_flag=True, help="Print the names of all cases, and do nothing.")
BAND: Final = _option(
    "--band",
    type=click.FloatRange(0, 10),
    default=0.10,
    show_default=True,
    metavar="SHARE",
    help="A change of less than this share is no news.",
)
OF_SUITES: Final = (*(SUITE, ONLY, BENCH_PEERS, ROUNDS, FOLDER, CALLS, BENCH_JSON, PLOT, PROFILE, LIST_CASES),)

_LOGS: Final = (QUIET, VERBOSE, LOG_JSON)
_WATCHED: Final = (METRICS, TRACE)
_REACH: Final = (CODE_FILE, PROTOCOL, TRANSPORT, CONGESTION)

# By the command's name, in the order of its help.
OPTIONS: Final[Mapping[str, tuple[click.Option, ...]]] = {
    "share": (
        WRITE,
        PORT,
        BIND,
        NO_DISCOVERY,
        ALLOW,
        MAX_CLIENTS,
        MAX_CONNECTIONS,
        MAX_PER_ADDRESS,
        MAX_PER_PEER,
        MAX_HANDSHAKES,
        MAX_HANDSHAKES_PER_ADDRESS,
        HANDSHAKE_TIMEOUT,
        IDLE_TIMEOUT,
        EXPIRE,
        NAME,
        CODE,
        CODE_FILE,
        PROTOCOL,
        TRANSPORT,
        LIMIT_RATE,
        LIMIT_PEER,
        IO,
        DATA_PLANE,
        BUFFERS,
        WORKERS,
        COMPRESS,
        *_WATCHED,
        JSON,
        *_LOGS,
    ),
    "ls": (LONG, RECURSIVE, *_REACH, JSON, *_LOGS),
    "get": (
        *(ON_EXIST, INCLUDE, EXCLUDE, LINKS, CHECKSUM, DRY_RUN, FSYNC, STREAMS, CONNECTIONS, RETRY_FOR, LIMIT_RATE),
        *(*_REACH, IO, DATA_PLANE, COMPRESS, CONTENT_ADDRESSING, CACHE_ENTRIES, BUFFERS, *_WATCHED, JSON, *_LOGS),
    ),
    "put": (
        *(ON_EXIST, INCLUDE, EXCLUDE, PUT_LINKS, CHECKSUM, DRY_RUN, FSYNC, STREAMS, CONNECTIONS, RETRY_FOR, LIMIT_RATE),
        *(*_REACH, IO, COMPRESS, OFFERS, BUFFERS, *_WATCHED, JSON, *_LOGS),
    ),
    "cat": (OFFSET, LENGTH, LIMIT_RATE, *_REACH, *_LOGS),
    "mount": (
        *(FOREGROUND, ALLOW_OTHER, FUSE_OPTIONS, TIMEOUT, CACHE_RAM, CACHE_DISK, OFFLINE, DEBUG_IO, LIMIT_RATE),
        *(*_REACH, *_WATCHED, JSON, *_LOGS),
    ),
    "unmount": (JSON, *_LOGS),
    "cache": (CACHE_ENTRIES, READ_DATA, JSON, *_LOGS),
    "status": (WATCH, LAN, NEW_LIMIT_RATE, NEW_LIMIT_PEER, JSON, *_LOGS),
    "peers": (JSON, *_LOGS),
    "doctor": (*_REACH, JSON, *_LOGS),
    "bench": (*OF_SUITES, BAND, *_LOGS),
    "alerts": (DASHBOARD, *_LOGS),
}


def of[F: Callable[..., Any]](command: str, *, without: Container[click.Option] = ()) -> Callable[[F], F]:
    """A decorator, to stand below `@click.command`: gives the function this command's options.

    without: those that another part of the command has.
    """

    def attach(function: F) -> F:
        declared: list[click.Parameter] = getattr(function, "__click_params__", [])
        chosen = [option for option in OPTIONS[command] if option not in without]
        # click collects them from the bottom up.
        function.__click_params__ = [*reversed(chosen), *declared]  # type: ignore[attr-defined]
        return function

    return attach
