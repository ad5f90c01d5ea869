"""`headrace alerts`: alert rules and a dashboard for the metrics of `--metrics`."""

from __future__ import annotations

from importlib import resources

import click

from headrace.cli import options, output


@click.command("alerts", cls=options.Command)
@options.of("alerts")
def alerts(dashboard: bool) -> None:
    """Print Prometheus alert rules for what --metrics says; with --dashboard, a dashboard for Grafana.

    \b
    headrace alerts > /etc/prometheus/headrace.yml    # then name it in rule_files
    headrace alerts --dashboard > headrace.json       # then import it
    """
    file = "dashboard.json" if dashboard else "alerts.yml"
    output.write_text(resources.files("headrace.observe").joinpath("rules", file).read_text("utf-8"))
    output.flush()
