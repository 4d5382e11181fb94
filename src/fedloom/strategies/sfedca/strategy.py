"""SFedCA, the server half: two exchanges in a round, credits from all candidates and models from the chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedloom.core.accumulators import RunningMean, UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import Pending, Roster, Strategy
from fedloom.core.records import MODEL, Arrays, ClientReport, Exchange, Info, Job, Record, RoundContext
from fedloom.selection.firing_credit.config import Config as CreditConfig
from fedloom.selection.firing_credit.selection import Credited, FiringCredit
from fedloom.strategies.sfedca.config import Config


@dataclass(frozen=True, slots=True)
class Credits:
    """The global model w_t, and the result of the last round's credits."""

    model: Arrays
    flagged: Mapping[str, int] = field(default_factory=dict)
    """The number of impossible credits of each client."""
    outputs: int = 0
    """Output neurons C if the workload declares them with its initial model; 0 if only the gains tell."""
    credits: Mapping[str, float] = field(default_factory=dict)
    """The last round's credits as claimed, kappa_k, by candidate."""


class SFedCA(Strategy[Credits, RunningMean | UpdateList]):
    """Candidates train and report credits; the m chosen by them hand their models over; w_{t+1} is their mean.

    A reconstruction from the abstract of "SFedCA: Credit Assignment-Based Active Client Selection Strategy for Spiking
    Federated Learning" (Zhan et al., arXiv 2406.12200). The cohort A_t that the run's selection draws are the
    candidates, d = |A_t|. Exchange 1: each trains from w_t and reports its credit (`selection/firing_credit`); its
    model w_k stays with it. Exchange 2: the chosen S_t send theirs, w_{t+1} = sum_{k in S_t} (n_k / n) w_k. A candidate
    that was not chosen has no influence but through its credit.
    """

    State = Credits

    def __init__(self, config: Config, cohort: int) -> None:
        self._config = config
        self._select = config.select or -(-cohort // 4)
        if self._select > cohort:
            raise ConfigError(
                f"strategy.select: {self._select} clients to aggregate, but only cohort = {cohort} candidates are "
                "sampled. Raise cohort or lower strategy.select"
            )
        shared = set(CreditConfig.model_fields) & set(Config.model_fields) - {"name"}
        self._settings = CreditConfig(**{name: getattr(config, name) for name in shared})
        self._credit = FiringCredit(self._settings)

    def init(self, model: Record) -> Credits:
        return Credits(model.groups[MODEL], outputs=int(model.info.get("outputs", 0)))

    def plan(self, state: Credits, context: RoundContext) -> Exchange | None:
        knobs = self._settings.knobs(gain=self._credit.asks_gains(_credited(state)))
        return Exchange(
            jobs=context.jobs(),
            inputs={MODEL: Record({MODEL: state.model})},
            knobs=knobs,
            accumulator="separate",
            measure="firing_credit",
            park=True,
        )

    def finish(
        self, state: Credits, total: RunningMean | UpdateList, context: RoundContext
    ) -> Credits | Pending[Credits]:
        if isinstance(total, RunningMean):
            return replace(state, model=total.value()[MODEL])
        reports = [
            ClientReport(client=client, num_examples=update.num_examples, seconds=0.0, info=update.info)
            for client, update in total.updates
        ]
        before = _credited(state)
        chosen = self._credit.choose(before, Roster(context.population), self._select, context.rng("choose"), reports)
        after = self._credit.observe(before, reports, reports)
        credits = {str(report.client): float(report.info["credit"]) for report in reports if "credit" in report.info}
        jobs = tuple(Job(round=context.round, client=client, kind="collect") for client in chosen)
        inputs = {MODEL: Record({MODEL: state.model})}
        return Pending(
            replace(state, flagged=after.flagged, credits=credits), Exchange(jobs=jobs, inputs=inputs, collects=0)
        )

    def arrays(self, state: Credits) -> Arrays:
        return state.model

    def report(self, state: Credits) -> Info:
        """Return the round's credits, and credits flagged so far."""
        return {"credits": dict(state.credits), "flagged_credits": sum(state.flagged.values())}


def _credited(state: Credits) -> Credited:
    """Return the state in the selection's form."""
    return Credited(classes=state.outputs, flagged=state.flagged)


def build_strategy(config: Config, experiment: Experiment) -> SFedCA:
    """Return the strategy a `Config` describes."""
    return SFedCA(config, experiment.cohort_size)
