"""Forgetting, the server half: which clients do what in its rounds, and the global model they make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment
from fedloom.core.distances import distance
from fedloom.core.errors import BadUpdate, ConfigError
from fedloom.core.protocols import Pending, Strategy
from fedloom.core.records import (
    INITIAL,
    MODEL,
    Array,
    Arrays,
    Exchange,
    Info,
    Job,
    JsonObject,
    Record,
    RoundContext,
)
from fedloom.strategies.forgetting.config import Config

ANCHOR = "anchor"
"""Input with the centre of the ball."""
NORMS = "norms"
"""Key in the info of the model that `calibrate` begins with: for each of its rounds, by number from 1, the length of
each remaining client's stored update, by client."""


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The global model, and what the method has to remember."""

    model: Arrays
    reference: Arrays = field(default_factory=dict)
    """Of `gradient_ascent`: the initial model, then the centre w_ref of the ball."""
    norms: JsonObject = field(default_factory=dict)
    """Of `calibrate`: see `NORMS`."""


class _ByUpdates(Strategy[Forgetting, UpdateList]):
    """What the methods share: updates arrive one by one, and are weighted by examples."""

    State = Forgetting

    def __init__(self, config: Config) -> None:
        self.config = config

    def init(self, model: Record) -> Forgetting:
        return Forgetting(model.groups[MODEL])

    def arrays(self, state: Forgetting) -> Arrays:
        return state.model

    def report(self, state: Forgetting) -> Info:
        return {"method": self.config.method}


class NoisyLabels(_ByUpdates):
    """The leaver trains on random classes, the others on a share of their examples; the weighted mean of all models.

    The federated form of NL-FT of "Erase to Enhance" (MIDL 2024): reconstruction, see the README.
    """

    def plan(self, state: Forgetting, context: RoundContext) -> Exchange:
        leaver = Job(round=context.round, client=self.config.client, kind="forget", knobs={"labels": "random"})
        others = (
            Job(round=context.round, client=client, kind="forget", knobs={"share": self.config.share})
            for client in context.cohort
            if client != self.config.client
        )
        return _exchange((leaver, *others), state.model)

    def finish(self, state: Forgetting, total: UpdateList, context: RoundContext) -> Forgetting:
        counts = [update.num_examples for _, update in total.updates]
        return replace(state, model=_weighted(state.model, total, np.array(counts, np.float64)))


class GradientAscent(_ByUpdates):
    """The leaver maximises its loss within an L2 ball around the model without it (Halimi et al. 2022).

    w_ref = (w - p_k w_k) / (1 - p_k), w_k the leaver's local model, trained once more from w; radius: a fraction of the
    distance of w_ref from the initial model.
    """

    def init(self, model: Record) -> Forgetting:
        if INITIAL not in model.groups:
            raise ConfigError(f"strategy.method: 'gradient_ascent' begins with two models, {MODEL!r} and {INITIAL!r}")
        return Forgetting(model.groups[MODEL], reference=model.groups[INITIAL])

    def plan(self, state: Forgetting, context: RoundContext) -> Exchange:
        if context.round == 1:
            return _exchange((self._job(context, "train"),), state.model)
        return self._uphill(state, context)

    def finish(self, state: Forgetting, total: UpdateList, context: RoundContext) -> Forgetting | Pending[Forgetting]:
        [(_, update)] = total.updates
        trained = update.groups[MODEL]
        if "radius" in state.norms:
            return replace(state, model=trained)
        part = self.config.part
        centre = {
            name: _cast((state.model[name].astype(np.float64) - part * trained[name]) / (1.0 - part), state.model[name])
            for name in state.model
        }
        radius = self.config.radius_fraction * distance(centre, state.reference)
        begun = Forgetting(centre, reference=centre, norms={"radius": radius})
        return Pending(begun, self._uphill(begun, context))

    def _uphill(self, state: Forgetting, context: RoundContext) -> Exchange:
        job = self._job(context, "forget", {"radius": state.norms["radius"]})
        job = replace(job, inputs=(MODEL, ANCHOR))
        return replace(
            _exchange((job,), state.model),
            inputs={MODEL: Record({MODEL: state.model}), ANCHOR: Record({MODEL: state.reference})},
        )

    def _job(self, context: RoundContext, kind: str, knobs: Info | None = None) -> Job:
        return Job(round=context.round, client=self.config.client, kind=kind, knobs=knobs or {})


class Calibrate(_ByUpdates):
    """Repeat stored rounds without the leaver: new directions, stored lengths (FedEraser, Liu et al. 2021, Alg. 1).

    In round t the clients whose updates are stored train from the present model; client c's step is
    ‖U_c^t‖ (w_c - w) / ‖w_c - w‖, U_c^t its stored update, and the model moves by their mean, weighted by examples.
    """

    def init(self, model: Record) -> Forgetting:
        if INITIAL not in model.groups or NORMS not in model.info:
            raise ConfigError("strategy.method: 'calibrate' begins with the lengths of stored updates")
        return Forgetting(model.groups[INITIAL], norms=model.info[NORMS])

    def plan(self, state: Forgetting, context: RoundContext) -> Exchange | None:
        stored = state.norms.get(str(context.round))
        if stored is None:
            return None
        jobs = (Job(round=context.round, client=int(client)) for client in stored if int(client) != self.config.client)
        return _exchange(tuple(jobs), state.model)

    def finish(self, state: Forgetting, total: UpdateList, context: RoundContext) -> Forgetting:
        lengths: JsonObject = state.norms[str(context.round)]
        weights, counts = [], []
        for client, update in total.updates:
            moved = distance(update.groups[MODEL], state.model)
            counts.append(update.num_examples)
            weights.append(lengths[str(client)] / moved if moved > 0 else 0.0)
        shares = np.array(counts, np.float64) / max(sum(counts), 1)
        return replace(state, model=_moved(state.model, total, shares * np.array(weights)))


def _exchange(jobs: tuple[Job, ...], model: Arrays) -> Exchange:
    return Exchange(jobs=jobs, inputs={MODEL: Record({MODEL: model})}, accumulator="separate")


def _weighted(model: Arrays, total: UpdateList, counts: Array) -> Arrays:
    """Return the mean of the updates, weighted by counts."""
    if not counts.sum() > 0:
        raise BadUpdate("none of the clients that make the model forget has an example")
    return _moved(model, total, counts / counts.sum())


def _moved(model: Arrays, total: UpdateList, factors: Array) -> Arrays:
    """Return w + sum_c factors_c (w_c - w), computed in float64; a client without examples, so without w_c, adds 0."""
    moved: dict[str, Array] = {}
    for name, begun in model.items():
        step = np.zeros(begun.shape, np.float64)
        for factor, (_, update) in zip(factors, total.updates, strict=True):
            trained = update.groups.get(MODEL, {}).get(name)
            if trained is not None:
                step += factor * (trained.astype(np.float64) - begun.astype(np.float64))
        moved[name] = _cast(begun.astype(np.float64) + step, begun)
    return moved


def _cast(values: Array, like: Array) -> Array:
    return np.asarray((np.rint(values) if like.dtype.kind in "iub" else values).astype(like.dtype))


def build_strategy(config: Config, experiment: Experiment) -> NoisyLabels | GradientAscent | Calibrate:
    """Return the method that a `Config` names."""
    match config.method:
        case "noisy_labels":
            return NoisyLabels(config)
        case "gradient_ascent":
            return GradientAscent(config)
        case _:
            return Calibrate(config)
