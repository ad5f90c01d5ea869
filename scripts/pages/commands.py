"""What the command line says about itself, as data, and as manual pages. The site's reference is made of the same data.

Everything comes from the commands themselves: their help, their options, their examples. It needs click and msgspec
beside headrace, so that a build of the package can write the pages (`hatch_build.py`).
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import Final

import click

from headrace._version import __version__
from headrace.cli.app import COMMANDS, COMPLETION_VARIABLE, PROGRAM, headrace
from headrace.cli.completion import SHELLS
from headrace.errors import HeadraceError

# In words for people; tests compare it with the codes of the classes in headrace.errors, and with the README.
EXIT_CODES: Final = {
    "0": "done",
    "1": "another error",
    "2": "wrong usage",
    "3": "no such share or path",
    "4": "code, pin or permission refused",
    "5": "host not reachable",
    "6": "connection lost on the way; run the same command again to resume",
    "7": "no protocol version in common",
    "8": "local disk: full, read-only or failing; for a single file also no permission and the like",
    "9": "data arrived that do not match their hash",
    "10": "done, but some files failed",
    "11": "the destination exists",
    "130, 143": "stopped by a signal",
}


@dataclass(frozen=True, slots=True)
class Option:
    """flags: as they are typed. value: what stands for its value, empty for a switch. default: empty where there is
    none. variable: the environment variable. key: that of the config file."""

    flags: tuple[str, ...]
    value: str
    help: str
    default: str
    variable: str
    key: str


@dataclass(frozen=True, slots=True)
class Page:
    """One command. text: paragraphs. examples: lines to type. parts: the commands below it."""

    name: str
    short: str
    usage: str
    text: tuple[str, ...]
    examples: tuple[str, ...]
    options: tuple[Option, ...]
    aliases: tuple[str, ...] = ()
    parts: tuple[Page, ...] = field(default=())


def pages() -> list[Page]:
    """A page for each command, in the order of `headrace --help`."""
    context = click.Context(headrace, info_name=PROGRAM)
    found = []
    for name, listed in COMMANDS.items():
        command = headrace.get_command(context, name)
        assert command is not None
        found.append(_page(command, context, listed.help, listed.aliases))
    return found


def _page(command: click.Command, parent: click.Context, short: str = "", aliases: tuple[str, ...] = ()) -> Page:
    context = click.Context(command, info_name=command.name, parent=parent)
    text, examples = _help(command)
    parts = command.commands.values() if isinstance(command, click.Group) else ()
    return Page(
        name=context.command_path,
        short=(short or text[0]).rstrip("."),
        usage=" ".join(command.get_usage(context).removeprefix("Usage: ").split()),
        text=text,
        examples=examples,
        options=tuple(_option(one, context) for one in command.params if isinstance(one, click.Option)),
        aliases=aliases,
        parts=tuple(_page(part, context) for part in parts),
    )


def _help(command: click.Command) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paragraphs, and the lines of those that click is told not to wrap: these are examples."""
    text: list[str] = []
    examples: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        lines = block.splitlines()
        if lines and lines[0].strip() == "\b":
            examples += lines[1:]
        elif lines:
            text.append(" ".join(line.strip() for line in lines))
    return tuple(text), tuple(examples)


def _option(option: click.Option, context: click.Context) -> Option:
    switch = option.is_flag or option.count
    default = "" if option.default is None or not option.show_default else option.to_info_dict()["default"]
    return Option(
        flags=tuple(sorted((*option.opts, *option.secondary_opts), key=lambda flag: flag.startswith("--"))),
        value="" if switch else option.make_metavar(context),
        help=option.help or "",
        default={True: "on", False: "off"}.get(default, str(default)) if isinstance(default, bool) else str(default),
        variable=option.envvar if isinstance(option.envvar, str) else "",
        key=str(option.name).replace("_", "-") if option.envvar else "",
    )


# ---- completions -----------------------------------------------------------------------------------------------------


def completions() -> dict[str, str]:
    """Where a shell looks below a prefix, and the script for there."""
    from click.shell_completion import ShellComplete, get_completion_class

    places = {
        "bash": "share/bash-completion/completions/headrace",
        "zsh": "share/zsh/site-functions/_headrace",
        "fish": "share/fish/vendor_completions.d/headrace.fish",
    }
    found = {}
    for shell in SHELLS:
        made = get_completion_class(shell)
        assert made is not None
        # Not bash's own: that one asks the bash of the machine for its version.
        found[places[shell]] = ShellComplete.source(made(headrace, {}, PROGRAM, COMPLETION_VARIABLE)) + "\n"
    return found


# ---- manual pages ----------------------------------------------------------------------------------------------------


def manual() -> dict[str, str]:
    """Manual pages in man(7)'s language, by their place below a prefix: one of the whole, one for each command."""
    found = pages()
    files = {page.name.replace(" ", "-"): _manual_of(page) for page in found}
    files[PROGRAM] = _overview(found)
    return {f"share/man/man1/{name}.1": text for name, text in sorted(files.items())}


def _overview(found: list[Page]) -> str:
    lines = [*_title(PROGRAM), ".SH NAME", f"{PROGRAM} \\- {_roff(headrace.help or '').rstrip('.')}"]
    lines += [".SH SYNOPSIS", f".B {PROGRAM}", ".I COMMAND", "[OPTIONS] [ARGUMENTS]", ".SH COMMANDS"]
    for page in found:
        lines += [".TP", rf".BR {_roff(page.name).replace(' ', r'\-')} (1)", _roff(page.short + ".")]
    lines += [".SH TARGETS", "A target names a share, and a path in it:", ".PP", ".nf"]
    lines += [_roff(form) for form in ("CODE@HOST:PORT/path", "CODE/path            (found on the LAN)")]
    lines += [_roff("HOST:PORT/path       (the code is in HEADRACE_CODE or --code-file, or is asked for)")]
    lines += [_roff("headrace://CODE@HOST:PORT/path"), ".fi", *_exit_status(), *_files()]
    see = ",\n".join(rf".BR {_roff(page.name).replace(' ', r'\-')} (1)" for page in found)
    return "\n".join([*lines, ".SH SEE ALSO", see]) + "\n"


def _manual_of(page: Page) -> str:
    name = page.name.replace(" ", "-")
    lines = [*_title(name), ".SH NAME", f"{_roff(name)} \\- {_roff(page.short)}", ".SH SYNOPSIS", *_synopsis(page)]
    if page.aliases:
        lines += [".PP", f"Also: {', '.join(rf'\fB{PROGRAM} {alias}\fR' for alias in page.aliases)}."]
    lines += [".SH DESCRIPTION", *_body(page)]
    for part in page.parts:
        lines += [f".SH {_roff(part.name.removeprefix(PROGRAM + ' ').upper())}", *_synopsis(part), ".PP", *_body(part)]
        lines += [line for option in part.options for line in _option_lines(option)]
    if page.options:
        lines += [".SH OPTIONS", *(line for option in page.options for line in _option_lines(option))]
    lines += [*_exit_status(), *_files(), ".SH SEE ALSO", f".BR {PROGRAM} (1)"]
    return "\n".join(lines) + "\n"


def _title(name: str) -> list[str]:
    return [f'.TH "{name.upper()}" "1" "" "headrace {__version__}" "headrace"']


def _synopsis(page: Page) -> list[str]:
    return [f".B {_roff(page.name)}", _roff(page.usage.removeprefix(page.name).strip() or "")]


def _body(page: Page) -> list[str]:
    lines = [line for number, text in enumerate(page.text) for line in ([".PP"] if number else []) + [_roff(text)]]
    if page.examples:
        lines += [".PP", ".RS", ".nf", *(_roff(example) or r"\&" for example in page.examples), ".fi", ".RE"]
    return lines


def _option_lines(option: Option) -> list[str]:
    flags = ", ".join(rf"\fB{_roff(flag)}\fR" for flag in option.flags)
    lines = [".TP", f"{flags} \\fI{_roff(option.value)}\\fR" if option.value else flags, _roff(option.help)]
    if option.default:
        lines.append(_roff(f"Default: {option.default}."))
    if option.variable:
        lines.append(_roff(f"Environment: {option.variable}."))
    return lines


def _exit_status() -> list[str]:
    lines = [".SH EXIT STATUS"]
    for code, meaning in EXIT_CODES.items():
        lines += [".TP", rf"\fB{code}\fR", _roff(meaning)]
    return lines


def _files() -> list[str]:
    return [
        ".SH FILES",
        "Identity, pins, caches and",
        ".I config.toml",
        "lie in the folder that the variable HEADRACE_HOME names; on Linux it is",
        r".I ~/.local/state/headrace",
        "otherwise.",
    ]


def _roff(text: str) -> str:
    """`text` as it is: man(7) reads backslashes, dashes, and lines that begin with a dot or an apostrophe."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text[:1] in (".", "'") else text


def classes(root: type[HeadraceError] = HeadraceError) -> list[type[HeadraceError]]:
    """Every class of errors, each before those below it."""
    return [root] + [found for child in root.__subclasses__() for found in classes(child)]
