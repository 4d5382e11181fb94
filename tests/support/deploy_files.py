"""The files of `deploy/` as their readers see them: compose, Kubernetes, Prometheus and Grafana."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import typer.main
import yaml

from fedloom.cli.app import app
from fedloom.server.metrics import PrometheusSink

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "fedloom.json"
DATASOURCE = DEPLOY / "grafana" / "provisioning" / "datasources" / "fedloom.yml"
PROMETHEUS = DEPLOY / "prometheus" / "prometheus.yml"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
_DEFAULT = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


def compose() -> dict[str, Any]:
    """The compose file with the defaults of its variables."""
    text = _DEFAULT.sub(lambda match: match["default"] or "", COMPOSE.read_text(encoding="utf-8"))
    return dict(yaml.safe_load(text))


def objects() -> list[dict[str, Any]]:
    """Every Kubernetes object, without the kustomization itself."""
    files = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [
        each
        for file in files
        for each in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text(encoding="utf-8"))
    ]


def panel_queries() -> list[tuple[str, str]]:
    """Title and PromQL of each target of the dashboard, Grafana's variables filled in."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [(panel["title"], filled(target["expr"])) for panel in panels for target in panel["targets"]]


def filled(query: str) -> str:
    """A query as Grafana sends it for all runs and a rate interval of a minute."""
    return query.replace("$__rate_interval", "1m").replace("$run", ".*")


def metrics() -> dict[str, set[str]]:
    """What a server exposes: names as Prometheus stores them, and their labels."""
    found: dict[str, set[str]] = {}
    for metric in PrometheusSink().registry._collector_to_names:
        name, labels = metric._name, set(metric._labelnames)  # type: ignore[attr-defined]
        match metric._type:  # type: ignore[attr-defined]
            case "counter":
                found[f"{name}_total"] = labels
            case "histogram":
                found |= {f"{name}_sum": labels, f"{name}_count": labels, f"{name}_bucket": labels | {"le"}}
            case _:
                found[name] = labels
    return found


def unknown_names(query: str) -> set[str]:
    """Metrics and labels in a query that no server exposes."""
    there = metrics()
    used = set(re.findall(r"\bfedloom_\w+", query))
    labels = {name for metric in used & there.keys() for name in there[metric]}
    asked = {name for group in re.findall(r"\bby \(([^)]*)\)", query) for name in re.split(r",\s*", group)}
    asked |= set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", query))
    return (used - there.keys()) | (asked - labels)


def parse_command(words: list[str], environment: Mapping[str, str], monkeypatch: Any) -> click.Context:
    """Parse what comes after `fedloom` as it would be in a container; raises where it is wrong."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command: click.Command = typer.main.get_command(app)
    parent = None
    while isinstance(command, click.Group):
        parent = click.Context(command, parent=parent, info_name=words[0])
        _, below, words = command.resolve_command(parent, list(words))
        assert below is not None
        command = below
    return command.make_context(command.name, list(words), parent=parent)
