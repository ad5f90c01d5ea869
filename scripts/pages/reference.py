"""The site's reference, written by the code itself: `python -m scripts.pages.reference FOLDER`.

What the code does not say of itself, in a few words each, stands here: events and their fields. A new event or field
that has no words here ends the build, so that none is forgotten.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

import headrace
from headrace.client.get import GetResult
from headrace.observe.metrics import FAMILIES
from headrace.protocol.messages import BY_TYPE
from scripts.pages.commands import EXIT_CODES, Option, Page, classes, pages

SOURCE: Final = Path(headrace.__file__).parent
MADE: Final = "*This page is made from the code.*"


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "commands.md": commands_page(),
        "settings.md": settings_page(),
        "events.md": events_page(),
        "exit-codes.md": exit_codes_page(),
        "metrics.md": metrics_page(),
        "messages.md": messages_page(),
        "python.md": python_page(),
        **{f"{page.name.replace(' ', '-')}.md": command_page(page) for page in pages()},
    }
    for old in set(folder.glob("*.md")) - {folder / name for name in made}:
        old.unlink()
    for name, text in made.items():
        file = folder / name
        if not file.exists() or file.read_text("utf-8") != text:  # what is as it was need not be read again
            file.write_text(text, "utf-8")
    return 0


# ---- the command line ------------------------------------------------------------------------------------------------


def commands_page() -> str:
    rows = [(f"[{page.name}]({page.name.replace(' ', '-')}.md)", text(page.short + ".")) for page in pages()]
    listed = "\n".join(page.name.replace(" ", "-") for page in pages())
    return joined(
        "# Commands",
        MADE,
        table(("command", "what it does"), rows),
        "`headrace COMMAND --help` says the same, and so do the manual pages that the package brings.",
        f"```{{toctree}}\n:hidden:\n\n{listed}\n```",
    )


def command_page(page: Page, level: int = 1) -> str:
    parts = [f"{'#' * level} {page.name}", f"```\n{page.usage}\n```"]
    if page.aliases:
        parts.append(f"Also: {', '.join(f'`headrace {alias}`' for alias in page.aliases)}.")
    parts += [text(paragraph) for paragraph in page.text]
    if page.examples:
        parts.append("```sh\n" + "\n".join(page.examples) + "\n```")
    if page.options:
        rows = [(flags(option), says(option)) for option in page.options]
        parts.append(table(("option", "meaning"), rows))
    parts += [command_page(part, level + 1) for part in page.parts]
    return joined(*parts)


def flags(option: Option) -> str:
    return ", ".join(f"`{flag}`" for flag in option.flags) + (f" `{option.value}`" if option.value else "")


def says(option: Option) -> str:
    return text(option.help) + (f" Default: `{option.default}`." if option.default else "")


def settings_page() -> str:
    found: dict[str, tuple[Option, list[str]]] = {}
    for page in pages():
        for option in [*page.options, *(one for part in page.parts for one in part.options)]:
            if option.variable:
                commands = found.setdefault(option.variable, (option, []))[1]
                name = page.name.removeprefix("headrace ")
                if name not in commands:
                    commands.append(name)
    rows = [
        (f"`{variable}`", f"`{option.key}`", ", ".join(commands), says(option))
        for variable, (option, commands) in sorted(found.items())
    ]
    return joined(
        "# Settings",
        MADE,
        "Every option has a variable and a key in `config.toml`, in the folder that `HEADRACE_HOME` names. Flags win "
        "over variables, variables over the file. A table with a command's name holds what is for that command alone:",
        '```toml\nlimit-rate = "20M"\n\n[share]\nport = 7500\nno-discovery = true\n```',
        table(("variable", "key", "commands", "meaning"), rows),
    )


def exit_codes_page() -> str:
    words = [
        (f"`{one.code}`", str(one.exit_code), text(first_sentence(one.__doc__)), text(one.default_hint))
        for one in sorted(classes(), key=lambda one: one.exit_code)
        if "code" in vars(one)
    ]
    return joined(
        "# Exit codes and errors",
        MADE,
        table(("code", "meaning"), EXIT_CODES.items()),
        "An error is one line on standard error: what happened, to what, and what to do next. `-vv` adds the "
        "traceback. With `--json` it is also an `error` event, whose `code` is one of these words. They stay.",
        table(("word", "exit code", "meaning", "what it says to do, where nothing fits better"), words),
    )


# ---- events ----------------------------------------------------------------------------------------------------------

EVENTS: Final = {
    ("cache", "done"): "`add`, `verify`, `gc` or `clear` is over.",
    ("cache", "error"): "A file could not be added.",
    ("cache", "info"): "What the index holds, and what it saved.",
    ("doctor", "check"): "One check of this machine.",
    ("doctor", "done"): "How many checks ended how.",
    ("doctor", "path"): "One step on the way to the target.",
    ("get, put", "connected"): "The host let us in.",
    ("get, put", "done"): "The last one: what came, or was sent. Files may have failed.",
    ("get, put", "error"): "A file failed; the others go on.",
    ("get, put", "file"): "A file is there, or would be.",
    ("get, put", "plan"): "Everything is listed. Chunks may have come before.",
    ("get, put", "progress"): "Twice a second, and once at the end.",
    ("get, put", "times"): "With `-v`: where the time went.",
    ("get, put", "transport"): "Chunks go another way from here on.",
    ("get, put", "warning"): "Something to know that is no failure.",
    ("mount", "ready"): "The folder can be used.",
    ("any", "error"): "What ended the command.",
    ("share", "error"): "Somebody was refused, or the share locked itself.",
    ("share", "expired"): "The time of `--expire` is over.",
    ("share", "peer"): "A peer came, or went.",
    ("share", "ready"): "Others can connect.",
    ("share", "transfer"): "A stream of a peer's is over, and these bytes were sent or received on it.",
    ("share, get, put, mount", "limit"): "A limit of this program was changed by `headrace status`.",
    ("share, get, put, mount", "metrics"): "Where `--metrics` can be read.",
    ("status", "found"): "With `--lan`: a share on this network.",
    ("status", "limit"): "A limit was changed.",
    ("status", "status"): "One running program: [status.md](../status.md#for-programs) has its fields.",
    ("unmount", "unmounted"): "The mount is gone from there.",
}

FIELDS: Final = {
    "aborted": "true where calls that waited for an answer were ended with an error",
    "action": "`fetched`, `sent`, `same`, `link`, `would-fetch` and the like",
    "address": "of the peer",
    "metrics.address": "HOST:PORT",
    "addresses": "of the machine that shares, the best first",
    "agent": "what the peer calls itself",
    "bottleneck": "the name of the slowest part",
    "bytes": "of what was asked for",
    "file.bytes": "of this file",
    "transfer.bytes": "of files, as they crossed the network",
    "bytes_done": "of files that are here, fetched or found",
    "bytes_received": "of chunks, as they crossed the network; with `put`, to the host",
    "bytes_reused": "that were there already",
    "bytes_saved": "that compression kept off the network",
    "bytes_wire": "that crossed the network in both directions, everything counted",
    "code": "a word: [exit codes](exit-codes.md)",
    "ready.code": "of the share, whole: a secret",
    "compression": "how many answers came compressed, or why not",
    "data_plane": "`tls` or `clear`",
    "dir": "the folder",
    "direction": "`out`: sent; `in`: received, by a share with `--write`",
    "entries": "chunks of the index that were forgotten",
    "errno": "what the system called it, such as `ENOSPC`; null where it was not the system",
    "failed": "how many files failed",
    "fallback_reason": "why not the other transport; null where nothing was in its way",
    "files": "how many",
    "files_done": "how many are over",
    "files_failed": "how many failed so far",
    "transfer.files": "that got their names; with `in` only",
    "first_byte_ms": "from the start to the first byte, or null",
    "hint": "what to do next",
    "io": "how files were written: `posix`, `uring` or `plain`",
    "kind": "`share`, `get`, `put` or `mount`",
    "lazy": "true where the mount was in use and had to be detached",
    "message": "a sentence",
    "name": "of the share",
    "paired": "whether this machine knows the share already",
    "parts": "each with `name`, `share` (of 1) and `seconds`",
    "path": "relative to the share; with `path_b64` beside it where it is not UTF-8. null or empty: about no one file",
    "pid": "of the process; of the one that is left, or null",
    "planned": "whether everything is listed",
    "port": "TCP and UDP",
    "protocol": "version, 7 or 8",
    "rate": "bytes a second, over the last five seconds",
    "read_ahead_kib": "what the kernel reads ahead",
    "reason": "why",
    "retry_after": "seconds until the share takes codes again",
    "retryable": "whether the same command may work later",
    "rtt_ms": "round trip in milliseconds, or null",
    "seconds": "how long it took, or takes so far",
    "expired.seconds": "what `--expire` said",
    "seconds_left": "an estimate, or null",
    "share": "the first group of its code",
    "stale": "files that changed or are gone",
    "state": "`connected` or `gone`",
    "step": "`name`, `connect`, `tls`, `handshake`, `ping`, `read` or `stream`",
    "streams": "requests that were in flight at most",
    "target": "CODE@HOST:PORT",
    "transport": "`tcp` or `quic`",
    "write": "whether clients may put files into the share",
}

# Of events that are put together elsewhere: (module, what stands there after `**`) and the fields that come of it, or
# the page that has them.
SPREAD: Final[dict[tuple[str, str], tuple[str, ...] | str]] = {
    ("cli/cache.py", "_figures(stats)"): "cache.md",
    ("cli/cache.py", "_figures_kept(kept)"): "cache.md",
    ("cli/cache.py", "figures"): "cache.md",
    ("cli/cache.py", "fields"): ("code", "path", "message", "hint"),
    ("cli/cache.py", "asdict(done)"): "cache.md",
    ("cli/doctor.py", "fields"): "doctor.md#events",
    ("cli/doctor.py", "counts"): "doctor.md#events",
    ("cli/doctor.py", "step.figures"): "doctor.md#events",
    ("cli/transferring.py", "figures"): tuple(one.name for one in dataclasses.fields(GetResult) if one.name != "error"),
    ("cli/live.py", "changed"): "status.md#for-programs",
    ("cli/live.py", "self._limits()"): "status.md#for-programs",
    ("cli/mount.py", "{name: status[name] for name in wanted}"): "mount.md",
    ("cli/status.py", "now"): "status.md#for-programs",
    ("cli/status.py", "snapshot"): "status.md#for-programs",
    ("client/running.py", "path_fields(job.dest)"): ("path",),
    ("client/running.py", "path_fields(path)"): ("path",),
    ("host/session.py", "peer"): ("address",),
    ("host/session.py", "seconds"): ("seconds",),
}

COMMAND_OF: Final = {
    "cli/lan.py": "status",
    "cli/live.py": "share, get, put, mount",
    "cli/output.py": "any",
    "cli/progress.py": "get, put",
    "cli/times.py": "get, put",
    "cli/transferring.py": "get, put",
    "cli/watching.py": "share, get, put, mount",
}


class NoWordsError(Exception):
    """Something new has no words on the page yet; the message says where to write them."""


def found_events() -> dict[tuple[str, str], dict[str, None]]:
    """(command, event): its fields in order, and `page.md` where others are described. As dictionaries in the source
    have them. Raises NoWordsError for a `**` that this module does not know."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Dict):
                continue
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            value = node.values[keys.index("event")] if "event" in keys else None
            if not isinstance(value, ast.Constant):
                continue
            fields = found.setdefault((command_of(module), str(value.value)), {})
            for key, given in zip(keys, node.values, strict=True):
                if key is None:
                    fields.update(dict.fromkeys(spread(module, ast.unparse(given))))
                elif key not in ("event", "schema"):
                    fields[str(key)] = None
    return found


def command_of(module: str) -> str:
    floor, _, name = module.partition("/")
    return COMMAND_OF.get(module) or {"cli": name.removesuffix(".py"), "host": "share"}.get(floor, "get, put")


def spread(module: str, what: str) -> tuple[str, ...]:
    found = SPREAD.get((module, what))
    if found is None:
        raise NoWordsError(f"an event in {module} has **{what}: say in SPREAD of {__file__} which fields that are")
    return (found,) if isinstance(found, str) else found


def events_page() -> str:
    found = found_events()
    if set(found) != set(EVENTS):
        raise NoWordsError(f"EVENTS of {__file__} is not what the code has: {sorted(set(found) ^ set(EVENTS))}")
    unknown = {name for fields in found.values() for name in fields if ".md" not in name} - set(FIELDS)
    if unknown:
        raise NoWordsError(f"FIELDS of {__file__} lacks {sorted(unknown)}")
    parts = [
        "# Events",
        MADE,
        "With `--json` a command writes one JSON object a line on standard output. Each has `event`, and `schema`, "
        "which is 1. Fields may be added; what is there stays.",
    ]
    for command in sorted({command for command, _ in found}):
        parts.append(f"## {'Any command' if command == 'any' else command}")
        for (whose, event), fields in sorted(found.items()):
            if whose != command:
                continue
            parts += [f"### `{event}`" if whose == "any" else f"### {whose}: `{event}`", EVENTS[whose, event]]
            rows = [
                (f"`{name}`", FIELDS.get(f"{event}.{name}") or FIELDS[name]) for name in fields if ".md" not in name
            ]
            if rows:
                parts.append(table(("field", "meaning"), rows))
            elsewhere = sorted({name for name in fields if ".md" in name})
            if elsewhere:
                also = ", ".join(f"[{name.partition('#')[0]}](../{name})" for name in elsewhere)
                parts.append(f"{'Further fields' if rows else 'Its fields'}: {also}.")
    return joined(*parts)


# ---- metrics, messages, Python --------------------------------------------------------------------------------------


def metrics_page() -> str:
    rows = [
        (
            f"`{one.exported}`",
            one.kind,
            ", ".join(f"`{label}`: {', '.join(values) or 'the version'}" for label, values in one.labels.items()),
            ", ".join(one.where),
            text(one.help),
        )
        for one in FAMILIES
    ]
    return joined(
        "# Metrics",
        MADE,
        "What `--metrics` serves. [Watching headrace](../monitoring.md) says how, and what to do with it. No other "
        "value of a label than these is ever served.",
        table(("metric", "type", "labels", "commands", "meaning"), rows),
    )


def messages_page() -> str:
    parts = [
        "# Messages",
        MADE,
        "The header of each frame is one of these, in MessagePack. [The protocol](../protocol.md) says when which is "
        "sent, and what its limits are.",
    ]
    for name, message in BY_TYPE.items():
        parts += [f"## `{name}`", text(" ".join((message.__doc__ or "").split()))]
        rows = [
            (f"`{field.encode_name}`", f"`{type_word(field.type)}`", "" if field.required else f"`{default(field)}`")
            for field in msgspec.structs.fields(message)
        ]
        if rows:
            parts.append(table(("field", "type", "default"), rows))
    return joined(*parts)


def type_word(annotation: Any) -> str:
    return re.sub(r"\b(\w+\.)+", "", annotation.__name__ if isinstance(annotation, type) else str(annotation))


def default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else []


def python_page() -> str:
    parts = ["# Python", MADE, text("Public is what `headrace` itself has. The rest may change with any version.")]
    for name in headrace.__all__:
        thing = getattr(headrace, name)
        if inspect.isclass(thing):
            parts += class_parts(name, thing)
        elif callable(thing):
            parts += [f"## {name}", code(f"headrace.{name}", thing), *doc(thing)]
    return joined(*parts)


def class_parts(name: str, thing: type) -> list[str]:
    parts = [f"## {name}", *doc(thing)]
    if dataclasses.is_dataclass(thing):
        rows = [(f"`{one.name}`", f"`{one.type}`") for one in dataclasses.fields(thing)]
        parts.append(table(("field", "type"), rows))
    for member, value in vars(thing).items():
        if member.startswith("_") or dataclasses.is_dataclass(thing) and member in thing.__dataclass_fields__:
            continue
        if isinstance(value, property):
            parts += [f"### {name}.{member}", f"```python\n{name}.{member}: {annotation(value)}\n```", *doc(value)]
        elif isinstance(value, classmethod | staticmethod):
            parts += [f"### {name}.{member}", code(f"{name}.{member}", value.__func__), *doc(value.__func__)]
        elif inspect.isfunction(value):
            parts += [f"### {name}.{member}", code(f"{name}.{member}", value), *doc(value)]
    return parts


def annotation(value: property) -> str:
    return str(inspect.signature(value.fget).return_annotation) if value.fget else "Any"


def code(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    wanted = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    shown = str(signature.replace(parameters=wanted)).replace("'", "")
    if len(shown) > 80:
        shown = "(\n" + "".join(f"    {one},\n" for one in map(str, wanted)).replace("'", "") + ")"
        shown += f" -> {signature.return_annotation}"
    return f"```python\n{name}{shown}\n```"


def doc(thing: Any) -> list[str]:
    """Its own words; what it has from classes of Python is described there."""
    own = inspect.cleandoc(thing.__doc__ or "")
    return [text(" ".join(block.split())) for block in re.split(r"\n\s*\n", own) if block.strip()]


# ---- Markdown --------------------------------------------------------------------------------------------------------


def first_sentence(docstring: str | None) -> str:
    return " ".join((docstring or "").split()).split(". ")[0].rstrip(".") + "."


def text(plain: str) -> str:
    """Words of ours as they are: what is between backticks is code, elsewhere Markdown's own characters are escaped."""
    pieces = re.split(r"(`[^`]+`)", plain)
    return "".join(one if one.startswith("`") else re.sub(r"([\\*_<>\[\]{}#$|])", r"\\\1", one) for one in pieces)


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, rows)])


def joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    sys.exit(main())
