"""Imports go down the floors, never up: the layout of the code, checked on its syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "headrace"

# From the bottom up. A module imports only from floors below its own; what shares a line is independent of each other.
FLOORS = (
    {"_version"},
    {"errors"},
    {"config"},
    {"observe"},
    {"protocol"},
    {"transport", "storage"},
    {"engine"},
    {"host", "client"},
    {"doctor"},
    {"", "__main__", "api", "bench", "cli", "mount", "fs", "fs_errors", "fs_write"},  # "" is headrace/__init__.py
)
TOP = len(FLOORS) - 1  # the one line whose packages may use each other: what people and programs touch
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}

# The protocol is bytes in, events out. Whoever calls it brings the sockets, files, threads and clocks.
NOT_IN_PROTOCOL = {"asyncio", "os", "pathlib", "select", "socket", "ssl", "threading", "time"}


def modules(source: Path) -> dict[str, Path]:
    """Every module below `source` by its dotted name, packages by theirs."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = ["headrace", *path.relative_to(source).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


def imports(text: str, name: str, *, is_package: bool, known: set[str]) -> list[tuple[int, str]]:
    """(line, dotted module) of every import in `text`, the source of module `name`, wherever in the file it stands.

    `from headrace import errors` counts as headrace.errors where that is a module, else as headrace.
    """
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")
                package = package[: len(package) - node.level + is_package]
                base = ".".join([*package, *([base] if base else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.append((node.lineno, submodule if submodule in known else base))
    return found


def package_of(module: str) -> str:
    """headrace.storage.chunks -> storage; headrace -> the empty string."""
    return module.partition(".")[2].partition(".")[0]


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "headrace"


def violations(source: Path) -> list[str]:
    found = modules(source)
    bad = []
    for name, path in found.items():
        own = package_of(name)
        if own not in FLOOR:
            bad.append(f"{name}: {own} is on no floor; give it one in FLOORS")
            continue
        is_package = path.name == "__init__.py"
        for line, target in imports(path.read_text("utf-8"), name, is_package=is_package, known=set(found)):
            where = f"{name}:{line} imports {target}"
            if own == "protocol" and target.split(".")[0] in NOT_IN_PROTOCOL:
                bad.append(f"{where}: the protocol touches no socket, file, thread or clock")
            if not is_ours(target):
                continue
            other = package_of(target)
            if other not in FLOOR:
                bad.append(f"{where}: {other} is on no floor")
            elif other != own and FLOOR[other] >= FLOOR[own] and not FLOOR[other] == FLOOR[own] == TOP:
                bad.append(f"{where}: {'sideways' if FLOOR[other] == FLOOR[own] else 'upward'}")
    return bad


def test_imports_only_go_down():
    assert len(modules(SOURCE)) > 1
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("module", "line", "verdict"),
    [
        # upward
        ("storage/tree.py", "import headrace.engine.plan", "upward"),
        ("storage/tree.py", "from headrace.engine import plan", "upward"),
        ("storage/tree.py", "from headrace.engine.plan import Plan", "upward"),
        ("storage/tree.py", "from ..engine import plan", "upward"),
        ("storage/tree.py", "from .. import engine", "upward"),
        ("storage/__init__.py", "from ..engine import plan", "upward"),
        ("storage/tree.py", "def walk():\n    from headrace.engine import plan", "upward"),
        ("storage/tree.py", "from headrace import connect", "upward"),
        ("engine/plan.py", "import headrace", "upward"),
        ("engine/plan.py", "from headrace.client import share", "upward"),
        ("host/serve.py", "from headrace.cli.main import main", "upward"),
        ("client/share.py", "from headrace.api import connect", "upward"),
        ("client/share.py", "from headrace.doctor import checks", "upward"),
        ("doctor/path.py", "from headrace.cli.main import main", "upward"),
        ("protocol/frames.py", "from headrace.observe import metrics", None),
        ("observe/metrics.py", "from headrace.protocol import frames", "upward"),
        ("errors.py", "from headrace.config import Config", "upward"),
        ("config.py", "from headrace.observe import logs", "upward"),
        # sideways
        ("host/serve.py", "from headrace.client import share", "sideways"),
        ("client/share.py", "from headrace.host import serve", "sideways"),
        ("transport/tcp.py", "from headrace.storage import tree", "sideways"),
        ("storage/tree.py", "import headrace.transport.tcp", "sideways"),
        # what the protocol may not touch
        ("protocol/frames.py", "import socket", "no socket, file, thread or clock"),
        ("protocol/frames.py", "import os.path", "no socket, file, thread or clock"),
        ("protocol/frames.py", "from time import monotonic", "no socket, file, thread or clock"),
        ("transport/tcp.py", "import socket", None),
        # unknown
        ("helpers/text.py", "", "on no floor"),
        ("engine/plan.py", "from headrace.helpers import text", "on no floor"),
        # down, or within a package, or at the top
        ("config.py", "from headrace.errors import UsageError", None),
        ("observe/logs.py", "from headrace import config, errors", None),
        ("engine/plan.py", "from .fetch import fetch", None),
        ("engine/plan.py", "from headrace.storage import tree\nfrom headrace.protocol.frames import Frame", None),
        ("cli/main.py", "from headrace import connect\nfrom headrace.api import share", None),
        ("__init__.py", "from headrace.api import connect\nfrom headrace._version import __version__", None),
    ],
)
def test_the_checker_sees(tmp_path, module, line, verdict):
    for name in ("engine/__init__.py", "engine/plan.py", "engine/fetch.py", "errors.py", "config.py", module):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / module).write_text(line)

    found = violations(tmp_path)

    if verdict is None:
        assert found == []
    else:
        assert len(found) == 1
        assert verdict in found[0]
