"""The median ensemble, the server half: w continues, an ensemble of past w is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedloom.core.accumulators import RunningMean, UpdateList
from fedloom.core.config import EvaluationSettings, Experiment
from fedloom.core.errors import RunFailed
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import Pending, Strategy
from fedloom.core.records import MODEL, Arrays, Contents, Exchange, Groups, Info, Job, Record, RoundContext, Update
from fedloom.strategies._accumulators import wrong_accumulator
from fedloom.strategies.meat import ensembles, measurement_totals
from fedloom.strategies.meat.config import Config
from fedloom.strategies.meat.outliers import spread

SEAT = "seat"
"""Group of updates, and name of the compared model, with the clients' moving average over steps."""
ENSEMBLE = "ensemble"
"""Name of the published model among the compared ones."""
_COMBINED = ("mean", "trimmed", "ema", "median", ENSEMBLE)
"""Models never used as such in training: their statistics may be recomputed by the clients."""
_LEAST_SPREAD = 3
"""Minimum number of snapshots to identify an outlier."""
Total = RunningMean | UpdateList
"""Training is aggregated by mean or, for a median over clients, as separate updates; all else as separate updates."""


@dataclass(frozen=True, slots=True)
class History:
    """The model w, its past, and the models computed from it."""

    model: Arrays
    """w, the start of the next round."""
    published: Arrays
    """The ensemble as of the last evaluated round; w before there are snapshots."""
    snapshots: tuple[Pinned, ...] = ()
    """Past w, oldest first; each is written to the run's folder once, however many checkpoints refer to it."""
    rounds: tuple[int, ...] = ()
    """Rounds of the snapshots."""
    seat: Arrays = field(default_factory=dict)
    """Mean over the clients of their moving average over steps, if they have one."""
    best: Arrays = field(default_factory=dict)
    """The most robust w on validation images so far, if models are compared."""
    best_validation: float = -1.0
    stage: str = "train"
    """Purpose of the current exchange."""
    names: tuple[str, ...] = ()
    """The compared models, during a round's exchanges."""
    models: tuple[Arrays, ...] = ()
    """Likewise, their arrays."""
    rates: Info = field(default_factory=dict)
    """The last evaluated round's, by model."""
    reported: Info = field(default_factory=dict)
    """Entries of the round's record."""


class MedianEnsemble(Strategy[History, Total]):
    """MEAT: training continues from w; the ensemble is the coordinate-wise median of snapshots of w from round e_0 on.

    "Enhancing Adversarial Robustness of Deep Neural Networks Through Median-Ensemble Adversarial Training" (MEAT, arXiv
    2406.14259); a reconstruction from its abstract and released code. With one client w is that client's model after
    each epoch, as in the paper. With many, w is their mean, or their coordinate-wise median: the same robust statistic
    over clients instead of rounds.

    A round is up to four exchanges: training; if required, statistics of batch normalisation for combined models;
    clean and attacked images counted for the compared models; in the last round the table of attacks.
    """

    State = History

    def __init__(self, config: Config, rounds: int, evaluation: EvaluationSettings) -> None:
        self._config, self._evaluation = config, evaluation
        self._start = config.start if config.start is not None else -(-5 * rounds // 8)
        self._combinations = ensembles.combinations(config.trim, config.ema_decay)
        self.evaluates = bool(config.compare)

    def init(self, model: Record) -> History:
        return History(model.groups[MODEL], model.groups[MODEL])

    def plan(self, state: History, context: RoundContext) -> Exchange | None:
        return Exchange(
            jobs=context.jobs(),
            inputs={MODEL: Record({MODEL: state.model})},
            accumulator="mean" if self._config.clients == "mean" else "separate",
            updates=_trained_contents(state, context),
        )

    def finish(self, state: History, total: Total, context: RoundContext) -> History | Pending[History]:
        """Process the exchange of a stage; returns the next stage, or the end of the round."""
        if state.stage == "train":
            state = self._trained(replace(state, reported={}, rates={}), total, context)
            if not self._due(context):
                return state
            state = self._combined(state, context)
            if self._config.batch_norm != "history" and self._without_statistics(state):
                return self._ask_statistics(state, context)
        elif state.stage == "statistics":
            state = self._with_statistics(state, _apart(total))
        elif state.stage == "robustness":
            state = self._measured(state, _apart(total))
            if self._config.table and context.is_last:
                return self._ask(state, context, "attack")
            return _ended(state)
        else:
            found = measurement_totals.table(update.info for update in _apart(total))
            state = replace(state, reported={**state.reported, **found})
            return _ended(state)
        return self._ask(state, context, "robustness") if self._config.compare else _ended(state)

    def arrays(self, state: History) -> Arrays:
        return state.published

    def report(self, state: History) -> Info:
        """Return the compared models' rates, the window, the spread of its weights, and in the last round the table."""
        return {"meat": state.reported} if state.reported else {}

    def evaluation(self, state: History) -> Mapping[str, float] | None:
        """Return the published model's rates; None in rounds without them."""
        found = state.rates.get(ENSEMBLE)
        return {"accuracy": found["clean"], "robust_accuracy": found["robust"]} if found else None

    def _due(self, context: RoundContext) -> bool:
        every = self._evaluation.every
        return context.is_last or (every > 0 and context.round % every == 0)

    def _trained(self, state: History, total: Total, context: RoundContext) -> History:
        """Return the state with the next w, and its snapshot."""
        groups = _one(total)
        model = groups[MODEL]
        state = replace(state, model=model, seat=groups.get(SEAT, {}))
        if context.round < self._start:
            return replace(state, published=model)
        snapshot: Arrays = model
        if context.round in self._config.planted:
            snapshot = ensembles.with_outliers(model, self._config.planted_scale, context.rng("planted"))
        snapshot = ensembles.stored(snapshot, half=self._config.precision == "half")
        first = -self._config.window if self._config.window else None
        return replace(
            state,
            snapshots=(*state.snapshots, Pinned.of(Record({MODEL: snapshot})))[first:],
            rounds=(*state.rounds, context.round)[first:],
        )

    def _combined(self, state: History, context: RoundContext) -> History:
        """Return the state with the published ensemble, and the models it is compared with."""
        found: dict[str, Arrays] = {ENSEMBLE: self._combine(self._config.ensemble, state)}
        for name in dict.fromkeys(self._config.compare):
            if name == SEAT and not state.seat:
                raise RunFailed(
                    'strategy.compare names "seat", but the clients have no such average; set workload.seat = true'
                )
            if name == SEAT:
                found[name] = state.seat
            elif name == "best":
                found[name] = state.best or state.model
            elif name == "last":
                found[name] = state.model
            elif state.snapshots and name != self._config.ensemble:
                found[name] = self._combine(name, state)
        reported: dict[str, object] = {"ensemble": self._config.ensemble, "window": list(state.rounds)}
        if len(state.snapshots) >= _LEAST_SPREAD and context.is_last:
            reported["spread"] = spread(_past(state)).to_json()
        return replace(
            state, published=found[ENSEMBLE], names=tuple(found), models=tuple(found.values()), reported=reported
        )

    def _combine(self, name: str, state: History) -> Arrays:
        return self._combinations[name](_past(state), state.model) if state.snapshots else state.model

    def _without_statistics(self, state: History) -> tuple[str, ...]:
        """Return the models whose statistics the clients have to compute."""
        if not state.snapshots:
            return ()
        of_ensemble = self._config.ensemble in _COMBINED
        return tuple(name for name in state.names if name in _COMBINED and (name != ENSEMBLE or of_ensemble))

    def _ask_statistics(self, state: History, context: RoundContext) -> Pending[History]:
        names = self._without_statistics(state)
        models = dict(zip(state.names, state.models, strict=True))
        return Pending(
            replace(state, stage="statistics"),
            Exchange(
                jobs=context.jobs("statistics", inputs=names),
                inputs={name: Record({MODEL: models[name]}) for name in names},
                knobs={"rule": self._config.batch_norm},
                accumulator="separate",
                updates="accumulator",
            ),
        )

    def _with_statistics(self, state: History, updates: list[Update]) -> History:
        """Return the combined models with the clients' statistics: mean by examples, or median, as for weights."""
        groups = _over_clients(updates, median=self._config.clients == "median")
        models = tuple(
            {**arrays, **groups.get(name, {})} for name, arrays in zip(state.names, state.models, strict=True)
        )
        return replace(state, models=models, published=models[0])

    def _ask(self, state: History, context: RoundContext, kind: str) -> Pending[History]:
        """Return one job for each model and part of the images; where clients are sites, for each site's images."""
        parts = self._evaluation.parts
        jobs = tuple(
            Job(
                round=context.round,
                client=index * parts + part,
                kind=kind,
                inputs=(name,),
                knobs={"part": part, "parts": parts},
                of_client=False,
            )
            for index, name in enumerate(state.names)
            for part in range(parts)
        )
        inputs = {name: Record({MODEL: arrays}) for name, arrays in zip(state.names, state.models, strict=True)}
        return Pending(
            replace(state, stage=kind),
            Exchange(jobs=jobs, inputs=inputs, accumulator="separate", updates={}, quorum_fraction=1.0),
        )

    def _measured(self, state: History, updates: list[Update]) -> History:
        """Return the state with the rates, and the best w by validation."""
        rates = measurement_totals.rates(update.info for update in updates)
        state = replace(state, rates=rates, reported={**state.reported, "rates": rates})
        own = rates.get("last", rates[ENSEMBLE] if not state.snapshots else {})
        if own and own["validation"] > state.best_validation:
            return replace(state, best=state.model, best_validation=own["validation"])
        return state


def _past(state: History) -> list[Arrays]:
    return [snapshot.groups[MODEL] for snapshot in state.snapshots]


def _trained_contents(state: History, context: RoundContext) -> Contents:
    """Return a trained update's content; the first round's updates show whether clients have a moving average."""
    if context.round == 1:
        return "accumulator"
    groups = (MODEL, SEAT) if state.seat else (MODEL,)
    return {group: frozenset(state.model) for group in groups}


def _one(total: Total) -> Groups:
    """Return the clients' weights as one set, by mean or median."""
    return total.value() if isinstance(total, RunningMean) else _over_clients(_apart(total), median=True)


def _apart(total: Total) -> list[Update]:
    """Return the updates of an exchange that are aggregated separately."""
    if not isinstance(total, UpdateList):
        raise wrong_accumulator("meat", UpdateList, total)
    return [update for _, update in total.updates]


def _over_clients(updates: list[Update], *, median: bool) -> dict[str, Arrays]:
    """Return each group's coordinate-wise median or mean by examples over the updates."""
    sizes = np.array([update.num_examples for update in updates], np.float64)
    shares = sizes / sizes.sum() if sizes.sum() else np.full(len(updates), 1.0 / len(updates))
    found: dict[str, Arrays] = {}
    for group, like in updates[0].groups.items():
        each = [update.groups[group] for update in updates]
        found[group] = ensembles.median(each, like) if median else ensembles.weighted(each, like, shares.tolist())
    return found


def _ended(state: History) -> History:
    return replace(state, stage="train", names=(), models=())


def build_strategy(config: Config, experiment: Experiment) -> MedianEnsemble:
    """Return the strategy a `Config` describes."""
    return MedianEnsemble(config, experiment.rounds_known("strategy 'meat'"), experiment.evaluation)
