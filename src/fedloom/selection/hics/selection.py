"""HiCS-style sampling: clusters of like candidates, balanced ones preferred."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fedloom.core.records import ClientReport
from fedloom.selection._choosing.measured import Measured, among_told
from fedloom.selection._choosing.reports import examples, vectors
from fedloom.selection._choosing.sampling import Indices
from fedloom.selection.hics.clusters import clusters, distances, draw, entropies
from fedloom.selection.hics.config import Config


def pick(reports: Sequence[ClientReport], size: int, rng: np.random.Generator, *, config: Config) -> Indices:
    """Estimate each candidate's heterogeneity from its output-layer update, cluster, and sample the clusters.

    A reconstruction from the abstract of Chen and Vikalo 2024, "Heterogeneity-Guided Client Sampling: Towards Fast and
    Efficient Non-IID Federated Learning" (HiCS-FL). The abstract says: the server estimates a client's statistical
    heterogeneity from the update of the network's output layer, and relies on it to cluster and sample the clients.
    Ours are: the entropy of the softmax of the change over classes, the distance (angle plus weighted difference
    of entropies), m clusters by average linkage, and the draw (clusters by exp(preference * mean entropy), members by
    n_k), on the d candidates of one round.
    """
    changes = vectors(reports, "output", "hics")

    def drawn(reported: Indices, places: int) -> Indices:
        entropy = entropies(changes[reported], config.temperature)
        groups = clusters(distances(changes[reported], entropy, config.entropy_weight), places)
        weights = np.maximum(examples(reports)[reported], 1e-12)
        return draw(groups, entropy, weights, places, config.preference, rng)

    return among_told(changes, size, drawn)


def build_selection(config: Config) -> Measured:
    """Return the selection a `Config` describes."""
    chosen = partial(pick, config=config)
    return Measured(settings=config, kind="train", measure="hics", knobs={"array": config.array}, pick=chosen)
