"""`--metrics` and `--trace` on real processes, and a real Prometheus that looks at them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.observe.metrics import FAMILIES

from .support import (
    CHUNK,
    CODE,
    Host,
    call_get,
    finish,
    free_port,
    noise,
    run,
    run_get,
    start_get,
    wait_until,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "large").write_bytes(noise(2 * CHUNK + 5))
    (folder / "small").write_bytes(b"small")
    return folder


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def value(text: str, name: str) -> float:
    """The sum of a metric over its labels."""
    found = re.findall(rf"(?m)^{name}(?:{{[^}}]*}})? (\S+)$", text)
    assert found, f"no {name}"
    return sum(map(float, found))


def exported(text: str, where: str) -> None:
    """Asserts that what belongs to this command is there, unless it only comes with something that did not happen."""
    rare = {"worker_fallbacks", "handshakes", "quic_fallbacks", "io_fallbacks", "rtt_baseline_seconds", "rtt_seconds"}
    for family in FAMILIES:
        if where in family.where and family.name not in rare:
            assert re.search(rf"(?m)^{family.exported}(_count)?[{{ ]", text), family.name
    assert set(re.findall(r"(?m)^(headrace_\w+)", text)) <= {
        family.exported + part for family in FAMILIES for part in ("", "_bucket", "_count", "_sum")
    }


@pytest.mark.slow
def test_a_share_and_a_get_say_what_they_did(tmp_path, source):
    with Host(source, home=tmp_path / "host", options=["--metrics", "127.0.0.1:0", "--no-discovery"]) as host:
        address = host.of("metrics")[0]["address"]
        outcome = call_get(host.address, tmp_path / "dest", "--metrics", "127.0.0.1:0", home=tmp_path / "client")
        outcome.check_ok()
        text = scrape(address)

    exported(text, "share")
    assert value(text, "headrace_bytes_total") > 2 * CHUNK
    assert value(text, "headrace_handshakes_total") >= 1
    assert value(text, "headrace_stage_seconds_total") > 0
    assert CODE not in text and "large" not in text and str(tmp_path) not in text
    assert len(outcome.of("metrics")) == 1


@pytest.mark.slow
def test_a_get_is_watched_while_it_runs(tmp_path, source):
    with (
        Host(source, home=tmp_path / "host", options=["--limit-rate", "6M", "--no-discovery"]) as host,
        start_get(host.address, tmp_path / "dest", "--metrics", "127.0.0.1:0", home=tmp_path / "client") as get,
    ):
        address = get.wait_event("metrics")["address"]

        def look() -> str:
            with contextlib.suppress(AssertionError, urllib.error.URLError):
                text = scrape(address)
                return text if value(text, "headrace_received_bytes_total") > 0 else ""
            return ""

        text = get.wait_for("bytes in the metrics", look)
        finish(get).check_ok()

    exported(text, "get")
    assert value(text, "headrace_target_reason") == 1


def test_a_metrics_port_in_use_is_told_before_anything_is_shared(tmp_path, source):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        outcome = run("share", str(source), "--json", "--port", "0", "--metrics", where, home=tmp_path / "host")

    outcome.check_failed(2)
    assert outcome.of("ready") == []
    assert "for metrics is in use" in outcome.stderr


def test_both_peers_spans_are_one_trace_and_hold_no_secret(tmp_path, source):
    here, there = tmp_path / "here", tmp_path / "there"
    with Host(source, home=tmp_path / "host", options=["--trace", str(there), "--no-discovery"]) as host:
        call_get(host.address, tmp_path / "dest", "--trace", str(here), home=tmp_path / "client").check_ok()
        ours = [json.loads(line) for line in here.read_text().splitlines()]
        theirs = wait_until(
            lambda: [span for line in there.read_text().splitlines() if (span := json.loads(line))["name"] == "serve"],
            "a span of the host",
        )

    (root,) = (span for span in ours if span["name"] == "get")
    assert {"connect", "handshake", "plan", "fetch", "verify", "write", "finish"} <= {span["name"] for span in ours}
    assert {span["trace_id"] for span in ours} == {root["trace_id"]}
    known = {span["span_id"] for span in ours}
    assert any(span["trace_id"] == root["trace_id"] and span["parent_id"] in known for span in theirs)
    text = here.read_text() + there.read_text()
    secrets = [CODE, CODE.replace("-", ""), CODE[5:], "large", str(tmp_path)]
    secrets += re.findall(r"[0-9a-f]{64}", (tmp_path / "client" / "pins.json").read_text())
    assert [secret for secret in secrets if secret in text] == []


@pytest.mark.slow
def test_a_host_of_before_gets_no_trace(tmp_path, source, monkeypatch):
    with Host(source, home=tmp_path / "host", options=["--protocol", "7", "--no-discovery"]) as host:
        trace = tmp_path / "trace"
        call_get(host.address, tmp_path / "dest", "--trace", str(trace), home=tmp_path / "client").check_ok()

    assert "fetch" in {json.loads(line)["name"] for line in trace.read_text().splitlines()}


# ---- a collector, and Prometheus -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_spans_go_to_the_collector_that_the_environment_names(tmp_path, source):
    """One that takes one request, and looks for the names in what it was sent."""
    with socket.create_server(("127.0.0.1", 0)) as collector, Host(source, home=tmp_path / "host") as host:
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}"
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        with start_get(host.address, tmp_path / "dest", home=tmp_path / "client", env=env) as get:
            collector.settimeout(20)
            sock, _ = collector.accept()
            with sock, sock.makefile("rb") as incoming:
                assert incoming.readline().startswith(b"POST /v1/traces ")
                length = 0
                while (line := incoming.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = incoming.read(length)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            finish(get).check_ok()

    assert b"headrace get" in body and b"handshake" in body and b"fetch" in body
    assert CODE.encode() not in body


@contextlib.contextmanager
def prometheus(tmp_path: Path, target: str) -> Iterator[str]:
    """Debian's, with the package's rules, looking at `target` twice a second; where it answers."""
    rules = run("alerts", home=tmp_path / "alerts-home").stdout
    (tmp_path / "alerts.yml").write_bytes(rules)
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [{"job_name": "headrace", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    where = f"127.0.0.1:{free_port()}"
    with open(tmp_path / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={where}"],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )
    try:
        yield where
    finally:
        process.kill()
        process.wait()


def ask(where: str, path: str) -> Any:
    """None while it does not answer yet."""
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(f"http://{where}{path}", timeout=5) as answer:
        return json.load(answer)["data"]
    return None


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus here (Debian: prometheus)")
def test_prometheus_raises_the_alert_of_a_share_that_had_to_do_without_quic(tmp_path, source):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        options = ["--metrics", "127.0.0.1:0", "--no-discovery"]
        with Host(source, home=tmp_path / "host", port=port, options=options) as host:
            address = host.of("metrics")[0]["address"]
            run_get(host.address, tmp_path / "dest", home=tmp_path / "client").check_ok()
            with prometheus(tmp_path, address) as where:

                def firing() -> set[str]:
                    alerts = (ask(where, "/api/v1/alerts") or {"alerts": []})["alerts"]
                    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

                wait_until(lambda: "HeadraceQuicFallbackMostly" in firing(), "the alert")
                found = firing()
                seen = ask(where, "/api/v1/query?query=headrace_bytes_total")["result"]

    assert found == {"HeadraceQuicFallback", "HeadraceQuicFallbackMostly"}
    assert sum(float(one["value"][1]) for one in seen) > 2 * CHUNK
