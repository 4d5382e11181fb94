"""A federation in one process with made-up client training, to run a strategy on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from fedloom.core.accumulators import Accumulator
from fedloom.core.config import Experiment, PluginSettings, plugin_schema
from fedloom.core.kinds import Kind
from fedloom.core.plugins import build_rules, build_strategy, chained, make_accumulator
from fedloom.core.protocols import LocalRule, Pending
from fedloom.core.records import MODEL, Array, Exchange, Info, Job, Mean, Record, RoundContext, Update
from fedloom.core.seeds import generator
from fedloom.testing.records import NOTHING, read_only

COHORTS = ((4, 0, 7), (2, 4, 5), (1, 7, 3), (6, 0, 2))
"""Clients of each round of the made-up federation, of eight."""
CLIENTS = 8


def initial_model() -> Record:
    """Make a model with an array of each kind: matrices, a vector, a short float, a scalar, integers, an empty one.

    Its info lists the layers that can have adapters, as a workload's would: `layer`, and the convolution `other`.
    """
    rng = generator(3, "init")
    arrays: dict[str, Array] = {
        "layer.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "layer.bias": rng.normal(size=3).astype(np.float32),
        "half": rng.normal(size=5).astype(np.float16),
        "scalar": np.array(0.5, np.float64),
        "steps": np.array(0, np.int64),
        "empty": np.zeros((0, 2), np.float32),
        "other.weight": rng.normal(size=(5, 3)).astype(np.float32),
        "head.weight": rng.normal(size=(2, 3)).astype(np.float32),
    }
    adaptable = {
        "layer": {"kind": "linear", "weight": "layer.weight", "out": 3, "in": 4},
        "other": {"kind": "conv1d", "weight": "other.weight", "out": 3, "in": 5},
    }
    return Record({MODEL: arrays}, {"adaptable": adaptable, "head": ["head.weight"]})


class MadeUpFederation:
    """A strategy, with a step along made-up gradients in place of clients; its arrays are read-only.

    Args:
        name: the strategy: folder, module or file.
        settings: its settings.
        model: the initial model.
        measured: a client's report if the exchange has a measure.
        rounds: of the run; None leaves their number open.
    """

    def __init__(
        self,
        name: str,
        settings: Info = NOTHING,
        model: Record | None = None,
        measured: Callable[[int], Info] = lambda client: {},
        rounds: int | None = len(COHORTS),
    ) -> None:
        self.name, self.model, self.measured, self.rounds = name, model or initial_model(), measured, rounds
        config = plugin_schema(Kind.STRATEGY, name).model_validate({**settings, "name": name})
        self.experiment = Experiment.model_construct(
            rounds=rounds or "open",
            clients=CLIENTS,
            cohort=len(COHORTS[0]),
            seed=1,
            strategy=config,
            workload=PluginSettings(name="fedloom.testing.linear"),
            selection=PluginSettings.model_validate({"name": config.default_for(Kind.SELECTION)}),
        )
        self.strategy = build_strategy(config, self.experiment)
        self.answers: list[tuple[Exchange, Job, Update]] = []
        """Every update so far, as it left its client, with its job and exchange."""

    def start(self) -> object:
        """Return the state before round 1."""
        return self.strategy.init(read_only(self.model))

    def context(self, round: int) -> RoundContext:
        """Return the facts of a round, counted from 1."""
        return RoundContext(round=round, cohort=COHORTS[round - 1], population=CLIENTS, rounds=self.rounds, seed=1)

    def total(self, exchange: Exchange, clients: int | None = None) -> Accumulator:
        """Aggregate made-up updates of the exchange's jobs, or of the first `clients` of them."""
        total = make_accumulator(exchange.accumulator, None)
        for job in exchange.jobs[:clients]:
            job = replace(job, knobs={**exchange.knobs, **job.knobs})
            update = self.answer(exchange, job, generator(1, "work", job.round, job.client))
            self.answers.append((exchange, job, update))
            if exchange.park:
                update = replace(update, groups={})
            if exchange.measure:
                update = replace(update, info={**update.info, **self.measured(job.client)})
            total.add(update, job.client + 1.0, job.client)
        return total

    def answer(self, exchange: Exchange, job: Job, rng: np.random.Generator) -> Update:
        """Make up a client's update for a job, whose knobs include the exchange's.

        Training is a step along made-up gradients of the model, and of each other input that has a group of the
        input's name. A strategy that uses actions of its workload must override this.
        """
        if job.kind not in ("train", "collect"):
            raise NotImplementedError(f"no update is made up for a job of kind {job.kind!r}; override `answer`")
        return _trained(exchange.inputs, job, chained(build_rules(exchange.rules)) or LocalRule(), rng)

    def round(self, state: object, round: int, clients: int | None = None) -> object:
        """Return the state after a round with updates of all, or only the first `clients`, of the cohort."""
        context = self.context(round)
        exchange = self.strategy.plan(state, context)
        assert exchange is not None, f"plan returned None in round {round} of {len(COHORTS)}"
        step = self.strategy.finish(state, self.total(exchange, clients), context)
        while isinstance(step, Pending):
            step = self.strategy.finish(step.state, self.total(step.exchange, clients), context)
        return step

    def run(self, rounds: int = len(COHORTS)) -> list[object]:
        """Return the states from before round 1 to after round `rounds`."""
        states = [self.start()]
        for round in range(1, rounds + 1):
            states.append(self.round(states[-1], round))
        return states


def declared_arrays(exchange: Exchange) -> dict[str, set[str]] | None:
    """Return the names of the arrays each update contains, by group; None if the accumulator decides."""
    if exchange.updates == "model":
        return {MODEL: set(exchange.inputs[MODEL].groups[MODEL])}
    return None if isinstance(exchange.updates, str) else {g: set(names) for g, names in exchange.updates.items()}


def _trained(inputs: Mapping[str, Record], job: Job, rule: LocalRule, rng: np.random.Generator) -> Update:
    """Take one step along made-up gradients, through the strategy's client half."""
    read = rule.incoming(inputs, job)
    groups = {
        **read[MODEL].groups,
        **{name: record.groups[name] for name, record in read.items() if name in record.groups},
    }
    moved = {group: {name: _moved(array, rng) for name, array in named.items()} for group, named in groups.items()}
    trained = [(group, name) for group, name, array in Record(groups).items() if array.dtype.kind == "f"]
    weights = [groups[group][name] for group, name in trained]
    gradients = [np.asarray(w - moved[group][name]) for w, (group, name) in zip(weights, trained, strict=True)]
    rule.begin(trained, job.knobs)
    rule.adjust_gradients(gradients, weights, weights, job.knobs)
    for gradient, w, (group, name) in zip(gradients, weights, trained, strict=True):
        moved[group][name] = np.asarray(w - gradient)
    update = Update(num_examples=job.client + 1, groups=moved, metrics={"loss": Mean(1.0, 1.0)})
    return rule.outgoing(update, job.knobs)


def _moved(array: Array, rng: np.random.Generator) -> Array:
    if array.dtype.kind in "iu":
        return np.asarray(array + array.dtype.type(7))
    return np.asarray(array + 0.1 * rng.normal(size=array.shape)).astype(array.dtype)
