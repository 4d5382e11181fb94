"""Evaluate: the global model on held-out data, in parts, by the agents; and notices about metrics to watch."""

from __future__ import annotations

from fedloom.core.events import Notice
from fedloom.core.records import Exchange, Job
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.rounds.record import evaluated, sum_metrics
from fedloom.server.rounds.request import ExchangeRequest, Phase


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
        parts, inputs = self._parts.experiment.evaluation.parts, self._parts.strategy.model_inputs(round.state)
        jobs = tuple(
            Job(round=round.number, client=part, kind="held_out", inputs=tuple(inputs), knobs={"parts": parts})
            for part in range(parts)
        )
        exchange = Exchange(jobs=jobs, inputs=inputs, accumulator="metrics")
        request = ExchangeRequest(
            round=round.number,
            index=int(Phase.EVALUATE),
            exchange=exchange,
            terms=ClosingTerms(quota=parts),
            group_size=1,
            emit_progress=False,
        )
        collected = self._parts.collect(request)
        round.counts += collected.counts.beside_training()
        return evaluated(sum_metrics(collected.reports), round.info.exponentials)

    def recorded(self, round: OpenRound) -> None:
        """Report a metric the workload wants watched that leaves 0, and one that is 0 again."""
        for name, advice in round.info.watch.items():
            if round.evaluation is None:
                return
            value = round.evaluation.get(name, 0.0)
            if (value > 0) == (name in self._raised):
                continue
            self._raised ^= {name}
            message = f"{name} is {value:.3g}: {advice}" if value > 0 else f"{name} is 0 again"
            self._parts.emit(Notice(run_id=self._parts.run_id, message=f"round {round.number}: {message}"))
