"""States of clients are taken where a workload or a rule has some, and nowhere else."""

from __future__ import annotations

import pytest

from fedloom.core import registry
from fedloom.core.config import Experiment, plugin_schema
from fedloom.core.records import Exchange, Job
from fedloom.server.fleet.planned import RunFacts

STATELESS = {"image_classification", "text_classification", "causal_lm", "spiking_classification", "torch", "hubert_ee"}
EXCHANGE = Exchange(jobs=(Job(round=1, client=0),))


def facts(workload: str, **values: object) -> RunFacts:
    return RunFacts.of("run", Experiment.parse({"rounds": 1, "strategy": "fedavg", "workload": workload, **values}))


@pytest.mark.parametrize("workload", ["image_classification", "mlaan", "fedloom.testing.linear"])
def test_only_workloads_with_states_and_rules_are_asked(workload: str) -> None:
    has_states = workload != "image_classification"
    assert facts(workload).takes_states(EXCHANGE) == has_states
    assert facts(workload).takes_states(Exchange(jobs=EXCHANGE.jobs, rules=("fedprox",)))
    at_nodes = facts(workload, round={"state_home": "node"})
    assert not at_nodes.takes_states(Exchange(jobs=EXCHANGE.jobs, rules=("fedprox",)))


@pytest.mark.parametrize("name", registry.names("workloads"))
def test_settings_say_of_a_workload_what_its_class_says(name: str) -> None:
    pytest.importorskip("torch")
    module = registry.part("workloads", name, "workload")
    classes = [each for each in vars(module).values() if isinstance(each, type)]
    declares = any(vars(each).get("keeps_client_state") is True for each in classes)
    schema = plugin_schema("workloads", name)
    said = schema.clients_have_state(schema.model_construct())
    assert said or not declares, "its states would be refused"
    assert not (said and name in STATELESS)
