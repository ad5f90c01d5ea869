#!/usr/bin/env python3
"""What headrace is made of besides itself: the licences of its dependencies, and holes that are known in them.

python -m scripts.supply licences             writes docs/licences.md
python -m scripts.supply audit                asks osv.dev about every locked version; see scripts/audit
python -m scripts.supply audit --database D   looks into a folder of OSV files instead, without a network
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT: Final = Path(__file__).parent.parent
LICENCES: Final = ROOT / "docs" / "licences.md"
ASK: Final = "https://api.osv.dev/v1/querybatch"
PATIENCE: Final = 20.0  # seconds
# What may be shipped beside code under Apache-2.0 without asking anybody.
ALLOWED: Final = frozenset(
    {
        *("MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "ISC", "PSF-2.0", "CC0-1.0", "Unlicense"),
        *("LGPL-2.1-or-later", "MPL-2.0"),  # used as they are, and replaceable
    }
)
# What old packages say instead of an SPDX expression.
_WORDS: Final = {
    "MIT License": "MIT",
    "MIT": "MIT",
    "BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 3-Clause License": "BSD-3-Clause",
    "LGPL-2.1-or-later": "LGPL-2.1-or-later",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
}


def locked(name: str = "runtime.txt") -> list[Requirement]:
    """Every requirement of a lock file, for whatever platform."""
    text = (ROOT / "requirements" / name).read_text("utf-8")
    return [Requirement(line.removesuffix(" \\")) for line in re.findall(r"^[A-Za-z0-9][^\n]*", text, re.MULTILINE)]


def version_of(requirement: Requirement) -> str:
    return next(iter(requirement.specifier)).version


# ---- licences ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Licence:
    """Of one package. expression: SPDX."""

    name: str
    expression: str
    wants: str

    @property
    def row(self) -> str:
        return f"| {self.name} | {self.expression} | {self.wants} |"


def licences() -> list[Licence]:
    """Of every locked package that is installed here; on other systems it may be one more or less."""
    found: list[Licence] = []
    wanted_by = {canonicalize_name(Requirement(line).name) for line in distribution("headrace").requires or ()}
    for requirement in locked():
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        name = canonicalize_name(requirement.name)
        found.append(Licence(name, expression(package), "headrace" if name in wanted_by else "a dependency"))
    return sorted(found, key=lambda one: one.name)


def expression(package: Distribution) -> str:
    """The licence as SPDX; what it says itself where that is not known."""
    meta = package.metadata
    if said := meta.get("License-Expression"):
        return str(said)
    for classifier in map(str, meta.get_all("Classifier") or ()):
        if classifier.startswith("License :: OSI Approved :: "):
            word = classifier.rpartition(" :: ")[2]
            return _WORDS.get(word, word)
    word = str(meta.get("License") or "unknown").strip().splitlines()[0]
    return _WORDS.get(word, word)


def allowed(expression: str) -> bool:
    """Whether it may be used: every part of an `AND`, one of an `OR`."""
    return any(
        all(part.strip("() ") in ALLOWED for part in choice.split(" AND ")) for choice in expression.split(" OR ")
    )


def licences_page(found: Iterable[Licence]) -> str:
    return "\n".join(
        [
            "# Licences of the dependencies",
            "",
            "headrace is under the [Apache License 2.0](https://www.apache.org/licenses/LICENSE-2.0). It uses these",
            "packages, which are installed beside it and not copied into it. This page is written by",
            "`python -m scripts.supply licences`; a test checks it, and that each of them may be used.",
            "",
            "| package | licence | wanted by |",
            "|---|---|---|",
            *[one.row for one in found],
            "",
        ]
    )


# ---- holes ---------------------------------------------------------------------------------------------------------

Pin = tuple[str, str]  # name, version
Ask = Callable[[list[Pin]], list[list[str]]]


def pins() -> list[Pin]:
    """Everything that is locked, for users and for those who build and test it."""
    found = {
        (canonicalize_name(one.name), version_of(one))
        for path in sorted((ROOT / "requirements").glob("*.txt"))
        for one in locked(path.name)
    }
    return sorted(found)


def ask_osv(wanted: list[Pin]) -> list[list[str]]:
    """The ids of the known holes of each. Raises OSError: nobody can be asked."""
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in wanted]
    request = urllib.request.Request(
        ASK, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        results = json.load(answer)["results"]
    return [[hole["id"] for hole in one.get("vulns", ())] for one in results]


def ask_files(folder: Path) -> Ask:
    """The same from a folder of OSV files, as osv.dev gives them out; no network."""
    known = [json.loads(path.read_text("utf-8")) for path in sorted(folder.rglob("*.json"))]

    def ask(wanted: list[Pin]) -> list[list[str]]:
        return [[hole["id"] for hole in known if not hole.get("withdrawn") and _is_hit(hole, *pin)] for pin in wanted]

    return ask


def _is_hit(hole: dict[str, Any], name: str, version: str) -> bool:
    for affected in hole.get("affected", ()):
        package = affected.get("package", {})
        if package.get("ecosystem") != "PyPI" or canonicalize_name(package.get("name", "")) != name:
            continue
        if version in affected.get("versions", ()):
            return True
        if any(_in_range(each, version) for each in affected.get("ranges", ()) if each.get("type") == "ECOSYSTEM"):
            return True
    return False


def _in_range(each: dict[str, Any], version: str) -> bool:
    hit = False
    with_numbers = sorted(_events(each), key=lambda event: event[0])
    for at, kind in with_numbers:
        if Version(version) >= at and kind == "introduced":
            hit = True
        elif (Version(version) >= at and kind == "fixed") or (Version(version) > at and kind == "last_affected"):
            hit = False
    return hit


def _events(each: dict[str, Any]) -> Iterator[tuple[Version, str]]:
    for event in each.get("events", ()):
        for kind, at in event.items():
            try:
                yield Version("0" if at == "0" else at), kind
            except InvalidVersion:
                continue


def audit(ask: Ask, tell: Callable[[str], None]) -> int:
    """0: no hole is known, or nobody could be asked, which is told. 1: there are some."""
    wanted = pins()
    try:
        answers = ask(wanted)
    except (OSError, ValueError, KeyError) as why:
        reason = why.reason if isinstance(why, urllib.error.URLError) else why
        tell(f"audit: skipped, the database of known holes cannot be asked: {reason}")
        return 0
    holes = [(pin, ids) for pin, ids in zip(wanted, answers, strict=True) if ids]
    for (name, version), ids in holes:
        tell(f"audit: {name} {version}: {', '.join(ids)}")
    tell(f"audit: {len(wanted)} locked packages, {len(holes)} with known holes")
    return 1 if holes else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Licences and known holes of the dependencies.")
    parser.add_argument("what", choices=["licences", "audit"])
    parser.add_argument("--database", type=Path, help="a folder of OSV files to look into, without a network")
    options = parser.parse_args()
    if options.what == "licences":
        LICENCES.write_text(licences_page(licences()), "utf-8")
        return 0
    return audit(ask_files(options.database) if options.database else ask_osv, print)


if __name__ == "__main__":
    sys.exit(main())
