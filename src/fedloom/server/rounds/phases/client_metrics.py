"""Client metrics: the global model evaluated on each virtual client's own data."""

from __future__ import annotations

from fedloom.core.records import Exchange, Job
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.rounds.request import ExchangeRequest, Phase
from fedloom.server.rounds.site_metrics import ON_CLIENTS, site_section


class ClientMetricsPhase(RoundPhase):
    """Evaluates the global model on every virtual client, in evaluated rounds (`evaluation.on_clients`)."""

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts

    def run(self, round: OpenRound) -> None:
        if not self._parts.evaluates_after(round.number):
            return
        exchange = self._exchange(round)
        settings = self._parts.experiment
        deadline_s = settings.evaluation.deadline_s or settings.round.deadline_s
        terms = ClosingTerms(quota=len(exchange.jobs), quorum_fraction=0.0, deadline_s=deadline_s)
        request = ExchangeRequest(
            round=round.number,
            index=int(Phase.ON_CLIENTS),
            exchange=exchange,
            terms=terms,
            emit_progress=False,
        )
        collected = self._parts.collect(request)
        round.counts += collected.counts.beside_training()
        section = site_section(round.roster, collected.reports, collected.counts.failures, round.info.exponentials)
        round.add_section(ON_CLIENTS, section)

    def _exchange(self, round: OpenRound) -> Exchange:
        """Return the exchange that evaluates the model after the round on all clients that are not excluded."""
        inputs = self._parts.strategy.model_inputs(round.state)
        excluded = self._parts.experiment.excluded_numbers
        jobs = (
            Job(round=round.number, client=client, kind="evaluate", inputs=tuple(inputs))
            for client in range(round.roster.population)
            if client not in excluded
        )
        return Exchange(jobs=tuple(jobs), inputs=inputs, accumulator="metrics")
