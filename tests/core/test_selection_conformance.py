"""Every installed selection keeps to what all do, and uniform selection to what it promises besides."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from fedloom.core import registry
from fedloom.core.config import plugin_schema
from fedloom.core.kinds import Kind
from fedloom.core.plugins import build_selection
from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport, Info, Mean
from fedloom.core.seeds import generator
from fedloom.selection.uniform.selection import Uniform
from fedloom.testing.selection import CLASSES, SelectionConformance


def rates(client: int) -> list[float]:
    return [float(x) for x in generator(1, "rates", client).uniform(-1, 1, CLASSES)]


MEASURED: Mapping[str, Callable[[int], Info]] = {
    "firing_credit": lambda client: {"credit": float(np.abs(rates(client)).sum()), "gain": rates(client)},
    "predicted_credit": lambda client: {"gain": rates(client)},
    "update_norm": lambda client: {"norm": 1.0 + client % 5},
    "divfl": lambda client: {"update": rates(client)},
    "hics": lambda client: {"weights": rates(client) * 2, "bias": rates(client), "classes": float(CLASSES)},
    "spike_activity": lambda client: {"activity": [abs(rate) for rate in rates(client)], "widths": [3, 1]},
}
"""What each measure might report."""


@pytest.mark.parametrize("name", registry.names("selection"))
class TestSelections(SelectionConformance):
    @pytest.fixture(autouse=True)
    def _chosen(self, name: str) -> None:
        self.name = name

    def measured(self, measure: str, client: int) -> Info:
        return MEASURED[measure](client)


def reports(clients: Sequence[int], measure: str | None) -> list[ClientReport]:
    return [
        ClientReport(
            client=client,
            num_examples=10,
            seconds=0.1,
            metrics={"loss": Mean(2.0, 1.0)},
            info=MEASURED[measure](client) if measure else {},
        )
        for client in clients
    ]


def reported(probe: Probe | None) -> list[ClientReport]:
    return reports(probe.candidates, probe.measure) if probe is not None else []


def test_uniform_selection_is_uniform_and_so_is_its_order() -> None:
    clients, size, draws = 20, 5, 4000
    uniform, rng = Uniform(), generator(7, "chi-square")
    roster = Roster(population=clients)
    cohorts = np.array([uniform.choose(uniform.init(roster), roster, size, rng) for _ in range(draws)])
    for counts, expected in (
        (np.bincount(cohorts.ravel(), minlength=clients), draws * size / clients),
        (np.bincount(cohorts[:, 0], minlength=clients), draws / clients),
        (np.bincount(cohorts[:, -1], minlength=clients), draws / clients),
    ):
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        freedom = clients - 1
        assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_uniform_selection_costs_nothing_for_a_large_population() -> None:
    uniform, roster = Uniform(), Roster(population=10**7)
    rng = generator(1, "large")
    uniform.choose(uniform.init(roster), roster, 50, rng)
    tracemalloc.start()
    started = time.process_time()
    cohort = uniform.choose(uniform.init(roster), roster, 200, rng)
    spent = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(cohort)) == 200
    assert peak < 1 << 20  # a list of the population would take 80 MB
    assert spent < 0.05


UNIFORM_CANDIDATES = [
    "local_loss",
    "update_norm",
    "divfl",
    "firing_credit",
    "spike_activity",
]


@pytest.mark.parametrize("name", UNIFORM_CANDIDATES)
def test_selections_among_uniform_candidates_cost_nothing_for_a_large_population(name: str) -> None:
    chooser = build_selection(plugin_schema(Kind.SELECTION, name).model_validate({"name": name}))
    roster = Roster(population=10**7)
    state = chooser.init(roster)
    tracemalloc.start()
    probed = reported(chooser.probe(state, roster, 5, generator(1, "large")))
    chosen = chooser.choose(state, roster, 5, generator(1, "choose"), probed)
    chooser.observe(state, reports(chosen, None), probed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(probed) == 20 and len(chosen) == 5
    assert peak < 1 << 20
