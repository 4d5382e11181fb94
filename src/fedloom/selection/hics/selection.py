"""HiCS-style sampling: clusters of like candidates, balanced ones preferred."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.candidates import check_population, draw_uniformly, number_of_candidates
from fedloom.selection._choosing.reports import clients_at, examples, vectors
from fedloom.selection.hics.clusters import clusters, distances, draw, entropies
from fedloom.selection.hics.config import Config
from fedloom.selection.uniform.selection import Nothing


class HeterogeneityClusters:
    """Estimate each candidate's heterogeneity from its output-layer update, cluster, and sample the clusters.

    A reconstruction from the abstract of Chen and Vikalo 2024, "Heterogeneity-Guided Client Sampling: Towards Fast and
    Efficient Non-IID Federated Learning" (HiCS-FL). The abstract says: the server estimates a client's statistical
    heterogeneity from the update of the network's output layer, and relies on it to cluster and sample the clients.
    Ours are: the entropy of the softmax of the change over classes, the distance (angle plus weighted difference
    of entropies), m clusters by average linkage, and the draw (clusters by exp(preference * mean entropy), members by
    n_k), on the d candidates of one round.
    """

    State = Nothing

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Nothing:
        check_population(self._config, roster)
        return Nothing()

    def probe(self, state: Nothing, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        count = number_of_candidates(self._config, roster, size)
        return Probe(
            candidates=draw_uniformly(roster, count, rng),
            kind="train",
            measure="hics",
            knobs={"array": self._config.array},
        )

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        config, changes = self._config, vectors(reports, "output", "hics")
        told = np.flatnonzero(np.isfinite(changes).all(axis=1))
        places = min(size, len(told))
        entropy = entropies(changes[told], config.temperature)
        groups = clusters(distances(changes[told], entropy, config.entropy_weight), places)
        weights = np.maximum(examples(reports)[told], 1e-12)
        picked = told[draw(groups, entropy, weights, places, config.preference, rng)]
        rest = np.setdiff1d(np.arange(len(reports)), told)[: size - places]
        return clients_at(reports, np.concatenate([picked, rest]))

    def observe(self, state: Nothing, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Nothing:
        return state


def build_selection(config: Config) -> HeterogeneityClusters:
    """The selection a `Config` describes."""
    return HeterogeneityClusters(config)
