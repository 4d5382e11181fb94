"""Evaluate: the global model on held-out data, in parts, by the agents; and notices about metrics to watch."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.errors import QuorumNotReached
from fedloom.core.events import Notice
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.rounds.record import evaluated, sum_metrics
from fedloom.server.rounds.request import ExchangeRequest, Phase
from fedloom.server.rounds.site_metrics import SECTION, site_section


class EvaluatePhase(RoundPhase):
    """Measures the global model, in evaluated rounds; a strategy may do that in the platform's place."""

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts
        self._raised: set[str] = set()
        """Watched metrics that are not 0."""

    def run(self, round: OpenRound) -> None:
        strategy = self._parts.strategy
        if strategy.evaluates:
            measured = strategy.evaluation(round.state)
            round.evaluation = dict(measured) if measured is not None else None
        elif self._parts.evaluates_after(round.number):
            begin = self._parts.monotonic()
            round.evaluation = self._evaluate(round)
            round.evaluation_s = self._parts.monotonic() - begin

    def _evaluate(self, round: OpenRound) -> dict[str, float] | None:
        inputs = self._parts.strategy.model_inputs(round.state)
        exchange = replace(self._parts.clients.evaluation(round.number, tuple(inputs)), inputs=inputs)
        parts, settings = len(exchange.jobs), self._parts.experiment.round
        deadline_s = self._parts.experiment.evaluation.deadline_s or settings.deadline_s
        of_sites = self._parts.experiment.of_sites
        quorum = 1 / max(parts, 1) if of_sites else settings.quorum_fraction
        terms = ClosingTerms(quota=parts, quorum_fraction=quorum, deadline_s=deadline_s)
        begin = self._parts.monotonic()
        request = ExchangeRequest(
            round=round.number,
            index=int(Phase.EVALUATE),
            exchange=exchange,
            terms=terms,
            group_size=1,
            emit_progress=False,
        )
        try:
            collected = self._parts.collect(request)
        except QuorumNotReached as exc:
            if not of_sites and (deadline_s is None or self._parts.monotonic() - begin < deadline_s):
                raise
            round.add_section("evaluation", {"parts": 0, "of": parts})
            self._notice(round, f"no evaluation: {exc}")
            return None
        round.counts += replace(collected.counts.beside_training(), waiting_s=0.0)  # it is in `evaluation_s`
        if of_sites:
            failures, roster = collected.counts.failures, round.roster
            round.add_section(SECTION, site_section(roster, collected.reports, failures, round.info.exponentials))
        if len(collected.reports) < parts and not of_sites:
            found = f"{len(collected.reports)} of {parts} pieces of the held-out data"
            round.add_section("evaluation", {"parts": len(collected.reports), "of": parts})
            self._notice(round, f"the evaluation is of {found}; the others are missing (round.quorum_fraction)")
        metrics, round.left_out = sum_metrics(collected.reports)
        return evaluated(metrics, round.info.exponentials)

    def recorded(self, round: OpenRound) -> None:
        """Report when a metric watched by the workload leaves 0, and when it is 0 again."""
        for name, advice in round.info.watch.items():
            if round.evaluation is None:
                return
            value = round.evaluation.get(name, 0.0)
            if (value > 0) == (name in self._raised):
                continue
            self._raised ^= {name}
            message = f"{name} is {value:.3g}: {advice}" if value > 0 else f"{name} is 0 again"
            self._notice(round, message)

    def _notice(self, round: OpenRound, message: str) -> None:
        self._parts.emit(Notice(run_id=self._parts.run_id, message=f"round {round.number}: {message}"))
