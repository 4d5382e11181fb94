"""The dashboard and the alerts ask for metrics and labels that a server exposes."""

from __future__ import annotations

import json

import pytest
import yaml
from deploy_files import ALERTS, DASHBOARD, DATASOURCE, DEPLOY, compose, panel_queries, unknown_names

BOARD = json.loads(DASHBOARD.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("title", "query"), panel_queries())
def test_panels_ask_for_what_there_is(title: str, query: str) -> None:
    assert "fedloom_" in query and "$" not in query
    assert not unknown_names(query), title


def test_alerts_ask_for_what_there_is() -> None:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) == 3
    for rule in rules:
        assert not unknown_names(rule["expr"].replace('up{job="fedloom"}', "")), rule["alert"]


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("sum(fedloom_rounds)", {"fedloom_rounds"}),
        ('fedloom_nodes{status="online"}', {"status"}),
        ("sum by (run, node) (fedloom_wire_bytes_total)", {"run"}),
        ("rate(fedloom_round_seconds_bucket[1m])", set()),
    ],
)
def test_a_wrong_name_is_noticed(query: str, wrong: set[str]) -> None:
    assert unknown_names(query) == wrong


def test_every_kind_of_metric_is_on_the_board() -> None:
    """One panel at least for rounds, nodes, bytes, failures, latency, aggregation and evaluation."""
    asked = " ".join(query for _, query in panel_queries())
    for part in (
        "fedloom_round",
        "nodes",
        "wire_bytes",
        "federated_bytes",
        "failures",
        "refusals",
        "latency",
        "aggregation",
    ):
        assert part in asked
    assert "fedloom_evaluation" in asked and "fedloom_late_results" in asked


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_the_datasource_is_the_provisioned_one() -> None:
    (source,) = yaml.safe_load(DATASOURCE.read_text(encoding="utf-8"))["datasources"]
    used = {
        (target["datasource"]["type"], target["datasource"]["uid"]) for p in BOARD["panels"] for target in p["targets"]
    }
    assert used == {(source["type"], source["uid"])}
    service = source["url"].removeprefix("http://").partition(":")[0]
    assert service in compose()["services"]


def test_the_provider_reads_the_folder_that_is_mounted() -> None:
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/fedloom.yml").read_text(encoding="utf-8"))[
        "providers"
    ]
    mounts = dict(volume.split(":")[:2] for volume in compose()["services"]["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = compose()["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"
