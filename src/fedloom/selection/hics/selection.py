"""HiCS-FL: clients clustered by their last change of the output layer, balanced clusters preferred at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedloom.core.protocols import ExtraReport, Roster, Selection
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.population import extended
from fedloom.selection._choosing.reports import numbers, vectors
from fedloom.selection._choosing.sampling import Floats, Indices
from fedloom.selection.hics.clusters import cut, distances, draw_balanced, draw_by_weight, entropies, ward
from fedloom.selection.hics.config import Config


@dataclass(frozen=True, slots=True)
class Layers:
    """The clients' output layers; as long as the population, because the rule clusters all of it."""

    round: int
    """Rounds observed so far."""
    weights: Floats
    """Change of the output layer's weights when the client last trained, float64 [N, C n]; 0 before. C n is 0 before
    the first report."""
    bias: Floats
    """Of its bias, float64 [N, C], or [N, 0] without one."""
    classes: int
    """C; 0 before the first report."""
    known: npt.NDArray[np.bool_]
    """Whether the client has reported, bool [N]."""


class Hics(Selection[Layers]):
    """Draw clusters of like clients ∝ exp(gamma (1 - t / T) mean entropy), or by weight where entropies vary much.

    Chen and Vikalo 2024, "Heterogeneity-Guided Client Sampling: Towards Fast and Efficient Non-IID Federated Learning"
    (HiCS-FL), as read in the released code. The first ⌊N / m⌋ rounds go through all clients in order. Each
    client of a cohort reports the change of its output layer; the entropy of the softmax of the mean change of each
    output's weights estimates how balanced its data is. Ward's method clusters the rows of the matrix of distances.
    State O(N C n), a choice O(N³).
    """

    State = Layers

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Layers:
        nothing = np.zeros((roster.population, 0))
        return Layers(0, nothing, nothing, 0, np.zeros(roster.population, np.bool_))

    def extra_report(self, state: Layers) -> ExtraReport:
        """Return the request that every client of the cohort reports the change of its output layer."""
        return ExtraReport(measure="hics", knobs={"array": self._config.array})

    def choose(
        self,
        state: Layers,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        able = _with_examples(roster, size)
        first = state.round * size
        if first + size <= len(able):
            return tuple(int(client) for client in able[first : first + size])
        if not state.known[able].any():
            return tuple(int(client) for client in rng.choice(able, size, replace=False))
        return tuple(int(client) for client in able[self._clustered(state, roster, able, size, rng)])

    def observe(self, state: Layers, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Layers:
        with_layer = [report for report in reports if "weights" in report.info]
        if with_layer:
            state = self._learn(state, with_layer)
        return replace(state, round=state.round + 1)

    def grow(self, state: Layers, roster: Roster) -> Layers:
        n = roster.population
        return replace(
            state,
            weights=extended(state.weights, n, 0.0),
            bias=extended(state.bias, n, 0.0),
            known=extended(state.known, n, False),
        )

    def _clustered(self, state: Layers, roster: Roster, able: Indices, size: int, rng: np.random.Generator) -> Indices:
        """Return places among the able clients, by the rule that their entropies' variance decides."""
        config, weights = self._config, state.weights[able]
        entropy = entropies(weights.reshape(len(able), state.classes, -1).mean(axis=2), config.temperature)
        layers = np.concatenate([weights, state.bias[able]], axis=1)
        tree = ward(distances(layers, entropy, config.entropy_weight))
        if entropy.var() < config.most_variance:
            groups = cut(tree, min(config.clusters or size, len(able)))
            fading = max(0.0, 1.0 - state.round / config.horizon)
            means = np.array([entropy[group].mean() for group in groups])
            return draw_balanced(groups, config.preference * fading * means, size, rng)
        sizes = np.asarray(roster.sizes, np.float64)[able] if len(roster.sizes) else np.ones(len(able))
        return draw_by_weight(tree, sizes / sizes.sum() if sizes.any() else np.ones(len(able)) / len(able), size, rng)

    def _learn(self, state: Layers, with_layer: Sequence[ClientReport]) -> Layers:
        """Return the state with the reported changes, without those that are not finite or of another shape."""
        weights = vectors(with_layer, "weights", "hics", state.weights.shape[1] or None)
        bias = vectors(with_layer, "bias", "hics", state.bias.shape[1] if state.classes else None)
        named = numbers(with_layer, "classes", "hics")
        whole = named[np.isfinite(named) & (named >= 1)]
        classes = state.classes or (int(whole[0]) if len(whole) else 0)
        if not classes or not weights.shape[1] or weights.shape[1] % classes:
            return state
        sane = np.isfinite(weights).all(axis=1) & np.isfinite(bias).all(axis=1) & (named == classes)
        clients = np.array([report.client for report in with_layer])
        if not self._config.refresh:
            sane &= ~state.known[clients]
        wide = state if state.classes else _widened(state, weights.shape[1], bias.shape[1], classes)
        kept, offset, known = wide.weights.copy(), wide.bias.copy(), wide.known.copy()
        kept[clients[sane]], offset[clients[sane]], known[clients[sane]] = weights[sane], bias[sane], True
        return replace(wide, weights=kept, bias=offset, known=known)


def build_selection(config: Config) -> Hics:
    """Return the selection a `Config` describes."""
    return Hics(config)


def _with_examples(roster: Roster, size: int) -> Indices:
    """Return the clients that may be chosen: those not known to be without examples, if these are enough."""
    if len(roster.sizes):
        able = np.flatnonzero(np.asarray(roster.sizes) > 0)
        if len(able) >= size:
            return able
    return np.arange(roster.population)


def _widened(state: Layers, weights: int, bias: int, classes: int) -> Layers:
    n = len(state.known)
    return replace(state, weights=np.zeros((n, weights)), bias=np.zeros((n, bias)), classes=classes)
