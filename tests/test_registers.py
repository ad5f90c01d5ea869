"""Documents that promise something name the test that proves it and the metric that watches it: those have to exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from headrace.observe.metrics import FAMILIES

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
DOCUMENTS = ["docs/reliability.md", "docs/limits.md", "docs/risks.md", "SECURITY.md"]


def functions_in(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


def proofs_named(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`([\w/]+\.py)::(\w+)`", text)


def metrics_named(text: str) -> list[str]:
    return re.findall(r"`(headrace_\w+)`", text)


def missing(text: str) -> list[str]:
    """The tests and metrics that it names and that there are not."""
    gone = [
        f"{file}::{name}"
        for file, name in proofs_named(text)
        if not (TESTS / file).is_file() or name not in functions_in(TESTS / file)
    ]
    known = {family.exported for family in FAMILIES}
    return gone + [name for name in metrics_named(text) if name not in known]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = {number for number, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    assert len(proofs_named(text)) >= 5
    assert missing(text) == []


def test_what_does_not_exist_is_found() -> None:
    assert missing("`test_registers.py::test_nothing` `no/test_file.py::test_x` `headrace_gremlins_total`") == [
        "test_registers.py::test_nothing",
        "no/test_file.py::test_x",
        "headrace_gremlins_total",
    ]


@pytest.mark.parametrize("document", ["docs/reliability.md", "docs/limits.md"])
def test_every_row_has_a_test(document: str) -> None:
    bare = [row[0] for row in rows((ROOT / document).read_text("utf-8")) if not proofs_named(row[-1])]
    assert bare == []


# ---- the risk register -------------------------------------------------------------------------------------------

LEVELS = {"low", "medium", "high", "critical"}


def risks() -> list[list[str]]:
    return [row for row in rows((ROOT / "docs" / "risks.md").read_text("utf-8")) if len(row) == 7]


@pytest.mark.parametrize("risk", risks(), ids=lambda risk: risk[0][:40])
def test_a_risk_is_met_as_its_level_demands(risk: list[str]) -> None:
    """critical and high: mended, and tested. medium: a fallback is written down. low: may wait."""
    name, likelihood, impact, level, mitigation, test, metric = risk
    assert name and {likelihood, impact, level} <= LEVELS
    if level in ("critical", "high"):
        assert proofs_named(test), "high and critical need a test"
    if level != "low":
        assert len(mitigation) > 20
        assert metrics_named(metric) or metric.startswith("none:"), "a metric that watches it, or why there is none"
    assert level != "critical", "a critical risk blocks a release"


def test_the_register_has_the_risks_that_were_named_at_the_start() -> None:
    told = " ".join(risk[0].lower() for risk in risks())
    for word in ("io_uring", "macos", "windows", "bufferbloat", "blake3", "memory", "udp", "latency", "protocol"):
        assert word in told
    assert "zero-copy" in told and len(risks()) >= 15
