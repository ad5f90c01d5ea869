"""`config.toml` in the headrace home: the same names as the options, and a table for what holds for one command only.

protocol = 8
on-exist = "rename"

[share]
port = 7500
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from headrace.errors import LocalDiskError, UsageError

FILE: Final = "config.toml"


def defaults(file: Path, command: str, options: Mapping[str, Sequence[click.Option]]) -> dict[str, Any]:
    """What the file says for `command`, by parameter name. options: of every command, by the command's name.

    The whole file is checked, whichever command runs, so that a mistake shows at once. Raises UsageError, which names
    the file and the key, and LocalDiskError.
    """
    found: dict[str, Any] = {}
    known = {str(option.name): option for some in options.values() for option in some}
    own = {str(option.name) for option in options[command]}
    tables: list[tuple[str, dict[str, Any]]] = []
    for key, value in _read(file).items():
        if isinstance(value, dict):
            tables.append((key, value))
            continue
        name, checked = _checked(file, key, key, value, known)
        if name in own:
            found[name] = checked
    for table, body in tables:
        if table not in options:
            raise _error(file, f"[{table}]", "is no command", f"The tables are {_listed(options)}.")
        theirs = {str(option.name): option for option in options[table]}
        for key, value in body.items():
            name, checked = _checked(file, f"{table}.{key}", key, value, theirs)
            if table == command:
                found[name] = checked
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as why:
        raise LocalDiskError(f"{file} cannot be read ({why.strerror})", hint="Check its permissions.") from why
    except UnicodeDecodeError as why:
        raise UsageError(f"{file} is not UTF-8", hint="Correct it, or move it away.") from why
    import tomllib  # most people have no such file

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise UsageError(f"{file} is not valid TOML: {why}", hint="Correct it, or move it away.") from why


def _checked(file: Path, shown: str, key: str, value: Any, known: Mapping[str, click.Option]) -> tuple[str, Any]:
    """The parameter's name and its value, as the option itself would take it."""
    name = key.replace("-", "_")
    option = known.get(name)
    if option is None:
        keys = ", ".join(sorted(other.replace("_", "-") for other in known))
        raise _error(file, shown, "is no option", f"The keys are: {keys}.")
    try:
        return name, _converted(option, value)
    except click.BadParameter as why:
        raise _error(file, shown, f"cannot be {value!r}: {why.message.rstrip('.')}", "Correct it there.") from why


def _converted(option: click.Option, value: Any) -> Any:
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.BadParameter("it is true or false")
        return value
    if option.multiple:
        many = [value] if isinstance(value, str) else value
        if not isinstance(many, list) or not all(isinstance(one, str) for one in many):
            raise click.BadParameter("it is a text or a list of texts")
        return tuple(option.type.convert(one, option, None) for one in many)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise click.BadParameter("it is a text or a number")
    if option.count and (not isinstance(value, int) or value < 0):
        raise click.BadParameter("it is a number from 0")
    return option.type.convert(value if option.count else str(value), option, None)


def _error(file: Path, key: str, what: str, hint: str) -> UsageError:
    return UsageError(f"{file}: {key} {what}", hint=hint)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f"[{name}]" for name in names)
