"""A node whose policy allows a workload and no code admits every installed strategy, selection and monitor."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_up_clients import COMMON, VARIANTS, Federation

from fedloom.client.guard import Guard
from fedloom.client.policy import Policy, WorkloadPolicy
from fedloom.client.usage import Usage
from fedloom.core import plugins, registry
from fedloom.core.errors import PolicyRefused
from fedloom.core.messages import Group, GroupKey
from fedloom.core.protocols import LocalRule, Measure, Roster, Watch
from fedloom.core.records import ClientReport, Exchange, Mean
from fedloom.core.seeds import generator
from fedloom.strategies.flower.loader import load as load_app
from fedloom.strategies.forgetting.config import Config as ForgettingConfig
from fedloom.strategies.forgetting.strategy import NoisyLabels
from fedloom.testing.records import read_only

WORKLOAD = "image_classification"
APP = Path(__file__).parents[2] / "examples" / "quickstart"
SIZES = tuple(range(10, 90, 10))
ROSTER = Roster(population=8, sizes=SIZES, label_counts=tuple((size // 2, size // 2) for size in SIZES))
STRATEGIES, SELECTIONS = registry.names("strategies"), registry.names("selection")
MONITORS = (None, *registry.names("monitors"))


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(Policy(workloads={WORKLOAD: WorkloadPolicy()}), Usage(tmp_path / "usage.json"))


def exchanges(name: str) -> Iterator[Exchange]:
    """Every exchange of a strategy's first two rounds, for each of the settings it is tested with."""
    if name == "flower_app":
        yield app_exchange()
        return
    if name == "forgetting":
        yield forgetting_exchange()
        return
    for settings in VARIANTS.get(name, [{}]):
        federation = Federation(name, settings)
        federation.run(2)
        yield from {id(exchange): exchange for exchange, _, _ in federation.answers}.values()


def app_exchange() -> Exchange:
    """The first batch of messages of an app's own server half."""
    experiment = load_app(APP, ["clients=8"])
    strategy = plugins.build_strategy(experiment.strategy, experiment)
    try:
        federation = Federation("fedavg", {})
        exchange = strategy.plan(strategy.init(read_only(federation.model)), federation.context(1))
    finally:
        strategy.close()
    assert exchange is not None
    return exchange


def forgetting_exchange() -> Exchange:
    """The exchange of a method that has the client do more than train."""
    strategy, federation = NoisyLabels(ForgettingConfig(method="noisy_labels", client=1)), Federation("fedavg", {})
    return strategy.plan(strategy.init(read_only(federation.model)), federation.context(1))


def measures(name: str) -> set[str | None]:
    """What a selection asks for in its first two rounds: with a probe, and beside the cohort's updates."""
    settings = registry.part("selection", name, "config").Config(name=name)
    selection = plugins.build_selection(settings)
    state = selection.init(ROSTER)
    asked: set[str | None] = {None}
    for round in (1, 2):
        probe = selection.probe(state, ROSTER, 2, generator(1, "probe", round))
        extra = selection.extra_report(state)
        asked |= {probe.measure if probe else None, extra.measure if extra else None}
        probed = [_report(client) for client in (probe.candidates if probe else ())]
        chosen = selection.choose(state, ROSTER, 2, generator(1, "choose", round), probed)
        state = selection.observe(state, [_report(client) for client in chosen], probed)
    return asked


def _report(client: int) -> ClientReport:
    reported = generator(1, "told", client).uniform(-0.5, 0.5, 2).tolist()
    info = {
        "credit": 0.5,
        "gain": reported,
        "norm": 1.0,
        "update": reported,
        "output": reported,
        "activity": reported,
        "widths": [2],
    }
    return ClientReport(
        client=client, num_examples=10, seconds=0.1, metrics={"loss": Mean(1.0 + client, 1.0)}, info=info
    )


def group(exchange: Exchange, measure: str | None) -> Group:
    """The exchange as one group; what the strategy measures itself comes before what a selection asks for."""
    return Group(
        key=GroupKey("run", 1, 0, 0),
        jobs=exchange.jobs,
        knobs=exchange.knobs,
        accumulator=exchange.accumulator,
        rules=exchange.rules,
        updates=exchange.updates,
        measure=exchange.measure or measure,
        park=exchange.park,
        collects=exchange.collects,
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_combination_with_a_strategy_is_admitted_and_has_its_parts_on_the_node(
    strategy: str, guard: Guard
) -> None:
    planned = list(exchanges(strategy))
    assert planned
    wanted = {selection: measures(selection) for selection in SELECTIONS}
    for selection, asked in wanted.items():
        for monitor in MONITORS:
            guard.admit_experiment(
                {
                    "strategy": {"name": strategy, **COMMON.get(strategy, {})},
                    "selection": {"name": selection},
                    "monitor": None if monitor is None else {"name": monitor},
                    "workload": {"name": WORKLOAD},
                }
            )
        for exchange in planned:
            for measure in asked:
                guard.admit_group(group(exchange, measure))
    for exchange in planned:
        rules = plugins.build_rules(exchange.rules)
        assert len(rules) == len(exchange.rules) and all(isinstance(rule, LocalRule) for rule in rules)
        assert plugins.make_accumulator(exchange.accumulator, None).count == 0


def test_every_measure_and_watch_is_made_on_the_node() -> None:
    asked = {measure for selection in SELECTIONS for measure in measures(selection) if measure is not None}
    assert {"firing_credit", "predicted_credit", "update_norm", "divfl", "hics", "spike_activity"} <= asked
    assert all(isinstance(plugins.build_measure(measure), Measure) for measure in asked)
    for monitor in registry.names("monitors"):
        settings = registry.part("monitors", monitor, "config").Config(name=monitor)
        assert isinstance(plugins.build_watch(settings), Watch)
        assert plugins.build_monitor(settings).request(8, np.random.default_rng(1)).clients


@pytest.mark.parametrize("part", ["rules", "accumulator", "measure"])
def test_a_part_from_a_file_is_refused(part: str, guard: Guard, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("", encoding="utf-8")
    named = {"rules": (str(file),)} if part == "rules" else {part: str(file)}
    with pytest.raises(PolicyRefused, match="neither installed here"):
        guard.admit_group(Group(key=GroupKey("run", 1, 0, 0), jobs=(), **named))
