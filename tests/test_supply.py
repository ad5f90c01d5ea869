"""What headrace depends on: licences that may be used and are listed, and a look for known holes that works offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import supply


def test_licences_are_listed_and_allowed() -> None:
    found = supply.licences()
    assert {"cryptography", "blake3", "msgspec", "click"} <= {one.name for one in found}
    assert [one for one in found if not supply.allowed(one.expression)] == []
    listed = supply.LICENCES.read_text("utf-8").splitlines()
    # Which packages there are depends on the system; what is said of each does not.
    assert [one.row for one in found if one.row not in listed] == [], "run python -m scripts.supply licences"


@pytest.mark.parametrize(
    ("expression", "good"),
    [
        ("MIT", True),
        ("Apache-2.0 OR BSD-3-Clause", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND PSF-2.0", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only", False),
        ("unknown", False),
    ],
)
def test_what_may_be_used(expression: str, good: bool) -> None:
    assert supply.allowed(expression) is good


def hole(folder: Path, name: str, **affected: object) -> None:
    entry = {"id": f"TEST-{name}", "affected": [{"package": {"ecosystem": "PyPI", "name": name}, **affected}]}
    (folder / f"{name}.json").write_text(json.dumps(entry))


def test_known_holes_are_found_without_a_network(tmp_path: Path) -> None:
    said: list[str] = []
    assert supply.audit(supply.ask_files(tmp_path), said.append) == 0
    version = dict(supply.pins())["msgspec"]
    hole(tmp_path, "msgspec", versions=[version])
    hole(tmp_path, "Blake3", ranges=[{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9999"}]}])
    hole(tmp_path, "click", ranges=[{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.0"}]}])
    hole(tmp_path, "no-such-package", versions=["1"])
    said.clear()
    assert supply.audit(supply.ask_files(tmp_path), said.append) == 1
    assert [line.split()[1] for line in said[:-1]] == ["blake3", "msgspec"]
    assert said[-1].endswith("2 with known holes")


def test_where_nobody_can_be_asked_it_is_skipped_with_the_reason() -> None:
    def unreachable(wanted: list[supply.Pin]) -> list[list[str]]:
        raise OSError("no route to host")

    said: list[str] = []
    assert supply.audit(unreachable, said.append) == 0
    assert said == ["audit: skipped, the database of known holes cannot be asked: no route to host"]
