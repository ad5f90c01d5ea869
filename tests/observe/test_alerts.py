"""The alert rules and the dashboard ask for what is exported; each alert fires when it should, and only then."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.observe.metrics import FAMILIES

RULES: Final = resources.files("headrace.observe").joinpath("rules", "alerts.yml").read_text("utf-8")
DASHBOARD: Final[dict[str, Any]] = json.loads(
    resources.files("headrace.observe").joinpath("rules", "dashboard.json").read_text("utf-8")
)
QUERIES: Final = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
RECORDED: Final = set(re.findall(r"- record: (\S+)", RULES))
ALERTS: Final = re.findall(r"- alert: (\S+)", RULES)
PROCESS: Final = {"process_cpu_seconds_total", "process_resident_memory_bytes"}

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here (Debian: prometheus)")


def names_in(query: str) -> set[str]:
    """Metrics and recorded series that a query names."""
    return set(re.findall(r"\b(?:headrace[_:]|process_)[a-z0-9_:A-Z]+", query))


def exported() -> set[str]:
    names = set(PROCESS)
    for family in FAMILIES:
        parts = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        names |= {family.exported + part for part in parts}
    return names


def test_rules_ask_for_what_is_exported_or_recorded():
    expressions = re.sub(r"(?m)^\s*(#|- record:|- alert:|- name:|summary:|needs:|annotations:).*$", "", RULES)
    assert names_in(expressions) <= exported() | RECORDED


@pytest.mark.parametrize("query", QUERIES)
def test_the_dashboard_asks_for_what_is_exported_or_recorded(query):
    assert names_in(query)
    assert names_in(query) <= exported() | RECORDED


def test_the_dashboard_shows_everything_that_is_exported():
    shown = set().union(*map(names_in, QUERIES))
    missing = [family.name for family in FAMILIES if not any(name.startswith(family.exported) for name in shown)]
    assert missing == []


def test_the_dashboard_has_a_place_for_each_panel():
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})


def test_labels_in_queries_are_those_that_the_metrics_have():
    for query in [*QUERIES, RULES]:
        for name, inside in re.findall(r"(headrace_[a-z_]+)\{([^}]*)\}", query):
            family = next(one for one in FAMILIES if name.startswith(one.exported))
            known = set(family.labels) | {"job", "instance", "le"}
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", inside)) <= known, query


# ---- promtool --------------------------------------------------------------------------------------------------------


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_rules(tmp_path: Path):
    (tmp_path / "alerts.yml").write_text(RULES)
    found = promtool("check", "rules", "--lint-fatal", tmp_path / "alerts.yml")

    assert found.returncode == 0, found.stdout + found.stderr


@needs_promtool
def test_promtool_understands_the_dashboards_queries(tmp_path: Path):
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    found = promtool("check", "rules", tmp_path / "queries.yml")

    assert found.returncode == 0, found.stdout + found.stderr


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    inside = ", ".join(f'{key}="{value}"' for key, value in {"job": "headrace", "instance": "a", **labels}.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


def moving(*steps: tuple[float, int]) -> list[dict[str, str]]:
    """A share that is busy, and moves so many bytes a second for so many minutes each."""
    at, values = 0.0, []
    for rate, minutes in steps:
        values += [f"{at:.0f}+{rate * 60:.0f}x{minutes - 1}"]
        at += rate * 60 * minutes
    minutes = sum(minutes for _, minutes in steps)
    return [
        series("headrace_bytes_total", " ".join(values), direction="sent", transport="tcp"),
        series("headrace_stage_seconds_total", f"0+60x{minutes}", stage="sending"),
    ]


def reading(*steps: tuple[str, int]) -> list[dict[str, str]]:
    """Ten small reads a minute, of which each takes as long as the bucket of that name says."""
    bounds = ["0.001", "0.0025", "0.01", "0.02", "0.05", "0.1", "1.0", "+Inf"]
    found = []
    for bound in bounds:
        at, values = 0, []
        for bucket, minutes in steps:
            step = 10 if bounds.index(bucket) <= bounds.index(bound) else 0
            values.append(f"{at}+{step}x{minutes - 1}")
            at += step * minutes
        found.append(series("headrace_random_read_seconds_bucket", " ".join(values), le=bound))
    minutes = sum(minutes for _, minutes in steps)
    return [*found, series("headrace_random_read_seconds_count", f"0+10x{minutes}")]


def first_byte(bucket: str) -> list[dict[str, str]]:
    bounds = ["0.05", "0.1", "0.25", "0.5", "1.0", "+Inf"]
    return [
        series("headrace_first_byte_seconds_bucket", f"{int(bounds.index(bucket) <= number)}x300", le=bound)
        for number, bound in enumerate(bounds)
    ]


def memory(megabytes: int) -> list[dict[str, str]]:
    return [
        series("process_resident_memory_bytes", f"{megabytes}000000x300"),
        series("headrace_build_info", "1x300", version="1"),
    ]


def processor(part: float) -> list[dict[str, str]]:
    """A share that moves 100 MB/s and takes that part of a core for it."""
    return [*moving((100e6, 300)), series("process_cpu_seconds_total", f"0+{part * 60}x300")]


def ring(failed: int) -> list[dict[str, str]]:
    return [
        series("headrace_io_wanted_total", "10x300"),
        series("headrace_io_fallbacks_total", f"{failed}x300", reason="forbidden"),
    ]


def quic(failed: int) -> list[dict[str, str]]:
    return [
        series("headrace_quic_wanted_total", "10x300"),
        series("headrace_quic_fallbacks_total", f"{failed}x300", reason="silent"),
    ]


HOURS: Final = 180  # minutes in which a baseline comes to be
# For each alert: series with which it fires at minute 200, and some with which it does not.
CASES: Final[dict[str, tuple[list[dict[str, str]], list[dict[str, str]]]]] = {
    "HeadraceThroughputBelowBaseline": (moving((1e8, HOURS), (8.5e7, 60)), moving((1e8, HOURS), (9.5e7, 60))),
    "HeadraceThroughputFarBelowBaseline": (moving((1e8, HOURS), (6e7, 60)), moving((1e8, HOURS), (8e7, 60))),
    "HeadraceFirstByteSlow": (first_byte("0.25"), first_byte("0.1")),
    "HeadraceFirstByteVerySlow": (first_byte("1.0"), first_byte("0.5")),
    "HeadraceRandomReadSlow": (reading(("0.05", 240)), reading(("0.02", 240))),
    "HeadraceRandomReadVerySlow": (reading(("0.1", 240)), reading(("0.05", 240))),
    "HeadraceLatencyAboveBaseline": (reading(("0.001", HOURS), ("0.0025", 60)), reading(("0.01", 240))),
    "HeadraceMemoryHigh": (memory(250), memory(150)),
    "HeadraceMemoryVeryHigh": (memory(600), memory(400)),
    "HeadraceCpuAboveGoal": (processor(0.02), processor(0.005)),
    "HeadraceCpuFarAboveGoal": (processor(0.1), processor(0.04)),
    "HeadraceIoUringFallback": (ring(2), ring(1)),
    "HeadraceIoUringFallbackMostly": (ring(6), ring(5)),
    "HeadraceQuicFallback": (quic(3), quic(2)),
    "HeadraceQuicFallbackMostly": (quic(6), quic(5)),
}


def test_every_alert_has_a_case():
    assert list(CASES) == ALERTS


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(tmp_path: Path, alert: str):
    severity = "critical" if re.search(f"alert: {alert}\n(?:.*\n){{1,2}}? *labels: .*critical", RULES) else "warning"
    (tmp_path / "alerts.yml").write_text(re.sub(r"(?m)^ {8}annotations:.*\n(?: {10}\S.*\n)*", "", RULES))
    fired = {"exp_labels": {"severity": severity, "job": "headrace", "instance": "a"}}
    tests = [
        {
            "interval": "1m",
            "input_series": given,
            "alert_rule_test": [{"alertname": alert, "eval_time": "200m", "exp_alerts": expected}],
        }
        for given, expected in zip(CASES[alert], ([fired], []), strict=True)
    ]
    file = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "test.yml").write_text(json.dumps(file))
    found = promtool("test", "rules", tmp_path / "test.yml")

    assert found.returncode == 0, found.stdout + found.stderr


# ---- the document ---------------------------------------------------------------------------------------------------

DOCUMENT: Final = (Path(__file__).parent.parent.parent / "docs" / "monitoring.md").read_text("utf-8")


def test_the_document_has_every_metric_as_it_is():
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| `headrace_")]
    assert rows == [
        f"| `{family.exported}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} "
        f"| {', '.join(family.where)} | {family.help} |"
        for family in FAMILIES
    ]
