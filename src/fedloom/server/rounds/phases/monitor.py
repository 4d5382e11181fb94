"""Monitor: the global model's quality on clients' data without labels, in evaluated rounds."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.core.errors import QuorumNotReached
from fedloom.core.events import Notice
from fedloom.core.protocols import Monitor
from fedloom.core.records import Exchange, Info, Job
from fedloom.core.seeds import generator
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.rounds.request import ExchangeRequest, Phase


class MonitorPhase(RoundPhase):
    """Collects the monitor's reports from clients and passes them to it.

    Args:
        parts: the run's.
        monitor: its name.
        earlier: its conclusions in the rounds before this session.
    """

    def __init__(self, parts: RunParts, monitor: Monitor, earlier: Sequence[Info]) -> None:
        self._parts, self._monitor = parts, monitor
        self._earlier = list(earlier)
        self._warned: set[str] = set()

    def run(self, round: OpenRound) -> None:
        if not self._parts.evaluates_after(round.number):
            return
        exchange = self._exchange(round)
        terms, begin = self._parts.terms(exchange), self._parts.monotonic()
        request = ExchangeRequest(round=round.number, index=int(Phase.MONITOR), exchange=exchange, terms=terms)
        try:
            collected = self._parts.collect(request)
        except QuorumNotReached as exc:
            if terms.deadline_s is None or self._parts.monotonic() - begin < terms.deadline_s:
                raise
            message = f"round {round.number}: nothing monitored: {exc}"
            self._parts.emit(Notice(run_id=self._parts.run_id, message=message))
            return
        round.monitored.extend(collected.reports)
        round.counts += collected.counts.beside_training()
        reported = [report for report in collected.reports if report.has_update]
        if not reported:
            message = f"round {round.number}: nothing monitored: the monitor's clients have no examples"
            self._parts.emit(Notice(run_id=self._parts.run_id, message=message))
            return
        round.reading = self._monitor.read(reported, self._earlier)
        self._earlier.append(round.reading.info)
        round.evaluation = {**(round.evaluation or {}), **round.reading.metrics}

    def _exchange(self, round: OpenRound) -> Exchange:
        rng = generator(self._parts.experiment.seed, "monitor", round.number)
        request = self._monitor.request(round.roster.population, rng)
        inputs = self._parts.strategy.model_inputs(round.state)
        knobs = {} if request.parts is None else {"parts": request.parts}
        jobs = tuple(
            Job(round=round.number, client=client, kind="monitor", inputs=tuple(inputs), knobs=knobs,
                of_client=request.parts is None)
            for client in request.clients
        )  # fmt: skip
        return Exchange(jobs=jobs, inputs=inputs, accumulator="metrics")

    def recorded(self, round: OpenRound) -> None:
        """Report a warning of the monitor that appears, and one that is over."""
        if round.reading is None:
            return
        warnings = round.reading.warnings
        for name in sorted(self._warned - warnings.keys()):
            self._notice(round, name, "over")
        for name in sorted(warnings.keys() - self._warned):
            self._notice(round, name, warnings[name])
        self._warned = set(warnings)

    def _notice(self, round: OpenRound, name: str, text: str) -> None:
        message = f"round {round.number}: {name}: {text}"
        self._parts.emit(Notice(run_id=self._parts.run_id, message=message))
