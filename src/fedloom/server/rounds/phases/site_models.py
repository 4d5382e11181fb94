"""Site models: the global model after local training on each site, and, at the end, sites' models at all sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedloom.core.accumulators import UpdateList
from fedloom.core.records import MODEL, Exchange, Groups, Record
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.counts import Collected
from fedloom.server.rounds.cross_sites import CROSS_SITES, Reasons, cross_section
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.rounds.record import evaluated
from fedloom.server.rounds.request import ExchangeRequest, Phase
from fedloom.server.rounds.site_metrics import FINE_TUNED, SECTION, site_section

Inputs = Mapping[str, Record]
Measured = dict[int, dict[str, float]]
"""Metrics of one model, by site."""
_AWAY = "the site is not connected"
_PRIVATE = "its policy does not share a model that was trained there alone (share_local_model)"
_UNFIT = "it has no examples to train on, or its model has other arrays than the global one"


class SiteModelsPhase(RoundPhase):
    """Evaluates the global model after local training, if clients are sites and the platform evaluates."""

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts

    def run(self, round: OpenRound) -> None:
        parts = self._parts
        if not parts.experiment.of_sites or parts.strategy.evaluates or not parts.evaluates_after(round.number):
            return
        inputs, times = parts.strategy.model_inputs(round.state), parts.experiment.evaluation.fine_tune
        if times:
            collected = self._ask(round, Phase.FINE_TUNE, self._exchange(round, inputs, "tuned", times))
            failures, exponentials = collected.counts.failures, round.info.exponentials
            section = site_section(round.roster, collected.reports, failures, exponentials)
            round.add_section(FINE_TUNED, {**section, "times": times})
        if round.number == parts.experiment.max_rounds:
            self._cross(round, inputs, times or 1)

    def _cross(self, round: OpenRound, inputs: Inputs, times: int) -> None:
        """Evaluate the models of the sites that share theirs at every site."""
        reasons = Reasons(sites=dict.fromkeys(round.roster.offline, _AWAY))
        models = self._shared_models(round, inputs, times, reasons)
        columns = {
            client: self._evaluate(round, {**inputs, MODEL: Record(groups, inputs[MODEL].info)}, client, reasons)
            for client, groups in models.items()
        }
        measured = round.sections.get(SECTION, {"sites": (), "missing": {}})
        of_global = {row["client"]: row["metrics"] for row in measured["sites"]}
        for client in range(round.roster.population):
            if (why := measured["missing"].get(round.roster.name(client))) is not None:
                reasons.sites.setdefault(client, why)
        round.add_section(CROSS_SITES, cross_section(round.roster, of_global, columns, reasons))

    def _shared_models(self, round: OpenRound, inputs: Inputs, times: int, reasons: Reasons) -> dict[int, Groups]:
        """Return the models of the sites that share theirs, and note why others have none."""
        exchange = self._exchange(round, inputs, "local", times)
        sharing = self._parts.clients.sharing()
        exchange = replace(exchange, jobs=tuple(job for job in exchange.jobs if job.client in sharing))
        here, models = {job.client for job in exchange.jobs}, dict[int, Groups]()
        if here:
            collected = self._ask(round, Phase.LOCAL_MODELS, replace(exchange, accumulator="separate"))
            updates = collected.total.updates if isinstance(collected.total, UpdateList) else []
            models = {client: update.groups for client, update in updates if _fits(update.groups, inputs[MODEL])}
            reasons.models.update((failure.client, failure.words) for failure in collected.counts.failures)
        for client in range(round.roster.population):
            if client not in models:
                absent = _AWAY if client in sharing else _PRIVATE
                reasons.models.setdefault(client, _UNFIT if client in here else absent)
        return models

    def _evaluate(self, round: OpenRound, inputs: Inputs, owner: int, reasons: Reasons) -> Measured:
        """Return the metrics of a site's model at every site."""
        exchange = replace(self._parts.clients.evaluation(round.number, tuple(inputs)), inputs=inputs)
        collected = self._ask(round, int(Phase.CROSS_SITES) + owner, exchange)
        for failure in collected.counts.failures:
            reasons.sites.setdefault(failure.client, failure.words)
        exponentials = round.info.exponentials
        return {report.client: evaluated(report.metrics, exponentials) or {} for report in collected.reports}

    def _exchange(self, round: OpenRound, inputs: Inputs, kind: str, times: int) -> Exchange:
        exchange = self._parts.clients.evaluation(round.number, tuple(inputs))
        jobs = tuple(replace(job, kind=kind, knobs={"times": times}) for job in exchange.jobs)
        return replace(exchange, jobs=jobs, inputs=inputs)

    def _ask(self, round: OpenRound, index: int, exchange: Exchange) -> Collected:
        """Run an exchange of which any part may be missing."""
        settings = self._parts.experiment
        deadline_s = settings.evaluation.deadline_s or settings.round.deadline_s
        terms = ClosingTerms(quota=len(exchange.jobs), quorum_fraction=0.0, deadline_s=deadline_s)
        collected = self._parts.collect(
            ExchangeRequest(
                round=round.number,
                index=int(index),
                exchange=exchange,
                terms=terms,
                group_size=1,
                emit_progress=False,
            )
        )
        round.counts += collected.counts.beside_training()
        return collected


def _fits(groups: Groups, model: Record) -> bool:
    """Return whether a model has the arrays of the global one."""

    def form(record: Record) -> dict[tuple[str, str], tuple[object, ...]]:
        return {(group, name): (array.shape, array.dtype) for group, name, array in record.items()}

    return form(Record(groups)) == form(model)
