"""The commands by name, each loaded when it is called, and what becomes of an error."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import click

from headrace._version import __version__
from headrace.cli import output, signals
from headrace.cli.main import leave
from headrace.cli.options import Common
from headrace.errors import HeadraceError, UsageError, printable
from headrace.observe import logs
from headrace.protocol.codes import BadCodeError, Code

PROGRAM: Final = "headrace"
DESCRIPTORS: Final = 8192  # a share with its 1,024 connections needs half of them
COMPLETION_VARIABLE: Final = "_HEADRACE_COMPLETE"  # what click's completion scripts set


@dataclass(frozen=True, slots=True)
class Listed:
    """A command as the list of commands shows it, without its module being loaded."""

    help: str
    aliases: tuple[str, ...] = ()


# The command's name is also that of its module, and of the command in it.
COMMANDS: Final = {
    "share": Listed("Share folders or files until Ctrl-C.", ("send", "serve")),
    "ls": Listed("List what is in a share."),
    "get": Listed("Fetch a file or a tree; resumes by default.", ("receive",)),
    "put": Listed("Send files into a share that may be written to."),
    "cat": Listed("Write a file's bytes to standard output."),
    "mount": Listed("Show a share as a folder of this machine."),
    "unmount": Listed("End a mount; it never hangs.", ("umount",)),
    "doctor": Listed("What this machine can do for transfers, and where the time goes on the way to a share."),
    "cache": Listed("What lies on this machine's disks already, and is not fetched again."),
    "status": Listed("What runs on this machine: shares, their peers, transfers, rates; and new limits for them."),
    "peers": Listed("The hosts and peers this machine knows, and how to forget one."),
    "bench": Listed("Side by side with scp, rsync, sshfs and others on this machine, as ratios."),
    "alerts": Listed("Alert rules for Prometheus, and a dashboard for Grafana."),
    "completion": Listed("Print a shell's completion script."),
}
# What others call it.
_ELSEWHERE: Final = {
    **dict.fromkeys(("copy", "cp", "scp", "download", "fetch", "pull", "sync", "rsync"), "get"),
    **dict.fromkeys(("host", "offer", "publish"), "share"),
    **dict.fromkeys(("list", "dir"), "ls"),
    **dict.fromkeys(("help",), "--help"),
}
ALIASES: Final = {alias: name for name, listed in COMMANDS.items() for alias in listed.aliases}


class Commands(click.Group):
    """Loads a command's module when the command is called by its name or an alias."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"headrace.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Whoever has no command of ours in mind types what they want of it: a path, or a code that they were given."""
        word = args[0]
        if not word.startswith("-") and self.get_command(ctx, word) is None:
            raise UsageError(f"there is no command {printable(_without_code(word))}", hint=_meant(word))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, listed.help + (f" Also: {', '.join(listed.aliases)}." if listed.aliases else ""))
                    for name, listed in COMMANDS.items()
                ]
            )


def _without_code(word: str) -> str:
    """A code does not belong in messages, which end up in logs."""
    code, at, rest = word.rpartition("@")
    if at:
        return f"…@{rest}"
    return "with a code for a name" if _is_code(word) else word


def _is_code(word: str) -> bool:
    try:
        Code.parse(word.partition("/")[0])
    except BadCodeError:
        return False
    return any(char.isdigit() for char in word) and "-" in word  # words of eight letters are no codes


def _meant(word: str) -> str:
    import difflib  # only for who typed something else

    if "@" in word or _is_code(word):
        return "To fetch from a share: headrace get CODE@HOST:PORT"
    if os.path.lexists(word):
        return f"To share it: headrace share {printable(word)}"
    close = difflib.get_close_matches(word.lower(), [*COMMANDS, *ALIASES, *_ELSEWHERE], n=1, cutoff=0.6)
    if close:
        return f"Did you mean headrace {_ELSEWHERE.get(close[0], close[0])}?"
    return "See headrace --help."


@click.group(PROGRAM, cls=Commands, invoke_without_command=True, epilog="headrace COMMAND --help says more.")
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def headrace(context: click.Context) -> int:
    """Share a folder, and list it or copy from it elsewhere, with nothing between but a short code."""
    if context.invoked_subcommand is None:
        output.note_all(context.get_help())
        return UsageError.exit_code
    return 0


def run(arguments: Sequence[str]) -> int:
    """Runs one command; the exit code. Everything that goes wrong ends as one line on standard error."""
    complete(arguments)
    common = Common()
    _allow_descriptors()
    # The commands note signals themselves while they work; this is for the moments before and between.
    before = signal.signal(signal.SIGTERM, signals.stop_at_once)
    try:
        code = _run(arguments, common)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if common.leave_at_once:
        leave(code)  # without waiting for threads that sit in a system call
    return code


def _allow_descriptors() -> None:
    """As many files and sockets as this process may give itself, up to DESCRIPTORS: the usual 1,024, or 256 on macOS,
    are there for programs that use select(2), and this one does not. A share takes a quarter of them as connections.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then it is as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def complete(arguments: Sequence[str]) -> None:
    """Answers the shell when it asks for completions, and ends the process."""
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(headrace, {}, PROGRAM, COMPLETION_VARIABLE, instruction))


def _run(arguments: Sequence[str], common: Common) -> int:
    try:
        with headrace.make_context(PROGRAM, list(arguments), obj=common) as context:
            result = headrace.invoke(context)
        output.flush()
    except click.exceptions.Exit as why:  # --help and the like
        return why.exit_code
    except output.ReaderGoneError:
        output.forget_standard_output()
        return 0
    except (signals.Stopped, KeyboardInterrupt) as why:
        common.leave_at_once = True
        return why.exit_code if isinstance(why, signals.Stopped) else 128 + signal.SIGINT
    except click.ClickException as why:
        if common.log_json or "--log-json" in arguments:  # what is wrong may stand before it
            logs.setup(common.verbose, json=True, quiet=common.quiet)
        return _usage(why)
    except HeadraceError as why:
        return _failed(why, common)
    except Exception as why:  # noqa: BLE001  # the last line of defence: no traceback without -vv
        return _failed(output.unexpected(why), common)
    return result if isinstance(result, int) else 0


def _failed(why: HeadraceError, common: Common) -> int:
    output.complain(why)
    if common.verbose >= 2:
        import traceback

        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(traceback.format_exc())
    return why.exit_code


def _usage(why: click.ClickException) -> int:
    context = why.ctx if isinstance(why, click.UsageError) else None
    where = context.command_path if context else PROGRAM
    message = why.format_message()
    if isinstance(why, click.MissingParameter) and why.param and why.param.name == "target":
        message = f"{message.rstrip('.')}, such as 7k2m-xq4c-9dht@192.168.1.20:7420"
    end = "" if message.endswith("?") else "."
    output.say(f"{message[:1].lower()}{message[1:].rstrip('.')}{end} See {where} --help.", {"code": UsageError.code})
    return why.exit_code
