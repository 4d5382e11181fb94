"""Hosts a Flower `ServerApp`: messages of its `main` become exchanges, clients' updates become replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import RunFailed, UnsupportedFeature
from fedloom.core.protocols import Pending, Strategy
from fedloom.core.records import Arrays, Exchange, Info, Record, RoundContext
from fedloom.core.seeds import generator
from fedloom.strategies.flower import apps, script
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower.messages import TRAIN, Batch, category
from fedloom.strategies.flower.seeding import Streams
from fedloom.strategies.flower_app.config import Config
from fedloom.strategies.flower_app.journal import flatten, unflatten
from fedloom.strategies.flower_app.measured import Measured
from fedloom.strategies.flower_app.observed import refuse_secure_aggregation
from fedloom.strategies.flower_app.older_api import host_server
from fedloom.strategies.flower_app.session import Recording, Session
from fedloom.strategies.flower_app.start import host_start


@dataclass(frozen=True, slots=True)
class AppState:
    """The newest model, and the journal for a resumed `main`."""

    model: Arrays = field(default_factory=dict)
    begun_with: tuple[int, ...] = ()
    """Clients that there were when `main` began; empty where they are always the same."""
    exchanges: int = 0
    """Number of finished exchanges."""
    journal_arrays: Arrays = field(default_factory=dict)
    journal: tuple[Info, ...] = ()
    trained: tuple[str, ...] = ()
    """Types of the training messages that the round has had."""
    server_round: int | None = None
    """`server-round` of the round's training messages, if they have one."""
    report: Info = field(default_factory=dict)
    evaluation: Info | None = None


class FlowerApp(Strategy[AppState, UpdateList]):
    """A `ServerApp` as a strategy.

    `main` runs in a thread until it waits for clients; the batch it waits for is the exchange. A round ends where the
    next training batch begins: evaluations and queries are part of the round before, those before the first training of
    round 1. Two training batches that carry the same `server-round` are one round.
    """

    State = AppState
    evaluates = True

    def __init__(self, app: flwr.ServerApp, config: Config, experiment: Experiment) -> None:
        self._app, self._config = app, config
        self._clients = None if experiment.of_sites else experiment.num_clients
        self._seed = experiment.seed
        self._app_decides = config.decides_about_failures() and experiment.round.quorum_fraction == 1.0
        self._session: Session | None = None
        self._live: AppState | None = None

    def init(self, model: Record) -> AppState:
        """Return an empty state: the app creates its own model."""
        return AppState()

    def plan(self, state: AppState, context: RoundContext) -> Exchange | None:
        session = self._resumed(state, context)
        while session.batch is not None:
            exchange = self._exchange(session, context)
            if exchange.jobs or self._clients is not None:
                return exchange
            session.answer(())  # all of the sites it asks have gone
        return None

    def finish(self, state: AppState, total: UpdateList, context: RoundContext) -> AppState | Pending[AppState]:
        session = self._resumed(state, context)
        answered, trained, server_round = _waiting(session), state.trained, state.server_round
        if types := _training(answered):
            trained, server_round = tuple(sorted({*trained, *types})), _server_round(answered)
        self._live = None
        if self._clients is None:
            session.meet(context.cohort)
        session.answer(total.updates)
        over = session.batch is None or _begins_round(session.batch, trained, server_round)
        arrays, journal = flatten(session.journal)
        measured, evaluation = session.measured, session.measured.evaluation()
        errors = {"errors": float(measured.errors)} if measured.errors else {}
        after = AppState(
            model=session.model,
            begun_with=state.begun_with or self._members(context) if self._clients is None else (),
            exchanges=state.exchanges + 1,
            journal_arrays=arrays,
            journal=journal,
            trained=() if over else trained,
            server_round=None if over else server_round,
            report={**measured.train(), **measured.queries(), **errors},
            evaluation=evaluation,
        )
        if over:
            session.measured = Measured()
        self._live = after
        return after if over else Pending(after, self._exchange(session, context))

    def arrays(self, state: AppState) -> Arrays:
        """Return the model `Strategy.start` aggregated last, or, for an app's own loop, the one it sent last."""
        return state.model

    def report(self, state: AppState) -> Mapping[str, float]:
        """Return training metrics of the last round, as the app aggregated them; queries; error replies."""
        return dict(state.report)

    def evaluation(self, state: AppState) -> Mapping[str, float] | None:
        """Return evaluation metrics of the last round: the app's `evaluate_fn`, and the clients', aggregated."""
        return None if state.evaluation is None else dict(state.evaluation)

    def unfinished(self, state: AppState) -> str:
        """Return why the run is not complete after its last round; empty if `main` has returned."""
        session = self._session
        if session is None or not session.running:
            program = apps.program_of(Path(self._config.app), self._config.serverapp)
            return "" if program is None else script.rest_of(program)
        return (
            f"stopped after {state.exchanges} exchanges, the app had not finished: its main still waits for clients. "
            "Raise `rounds`, or leave it out: then the run ends when main returns"
        )

    def close(self) -> None:
        """End the app's thread, wherever it waits."""
        if self._session is not None:
            self._session.close()
            self._session = self._live = None

    def _members(self, context: RoundContext) -> tuple[int, ...]:
        """Return the clients that there are, ascending."""
        return tuple(sorted(context.cohort)) if self._clients is None else tuple(range(self._clients))

    def _resumed(self, state: AppState, context: RoundContext) -> Session:
        """Return the app, at its position when `state` was made."""
        if self._session is not None and self._live is state:
            return self._session
        if state.exchanges and self._config.resume == "none":
            raise UnsupportedFeature(
                'this run cannot be resumed: it was started with strategy.resume = "none". Start a new run'
            )
        self.close()
        self._session = Session(
            self._app,
            Path(self._config.app),
            state.begun_with or self._members(context),
            self._config.run_config,
            Streams.seeded(generator(self._seed, "strategy", 0, "main")),
            unflatten(state.journal_arrays, state.journal),
            run_id=self._config.run_id,
            recording=Recording(
                journal=self._config.resume != "none",
                snapshots=self._config.resume == "snapshot",
                app_decides=self._app_decides,
                of_sites=self._clients is None,
            ),
        )
        self._session.begin()
        self._session.measured = Measured()  # of rounds that are over
        self._live = state
        return self._session

    def _exchange(self, session: Session, context: RoundContext) -> Exchange:
        return _waiting(session).exchange(
            context.round,
            session.deadline_s,
            run_id=self._config.run_id,
            app_decides=self._app_decides,
            present=context.cohort if self._clients is None else None,
        )


def _waiting(session: Session) -> Batch:
    """Return the messages the app waits for replies to."""
    if session.batch is None:
        raise RunFailed(
            "the Flower app's main has returned, so it waits for no replies; this round has nothing left to do"
        )
    return session.batch


def _training(batch: Batch) -> frozenset[str]:
    """Return the types of a batch's training messages."""
    return frozenset(each for each in batch.types if category(each) == TRAIN)


def _begins_round(batch: Batch, trained: Sequence[str], server_round: int | None) -> bool:
    """Return whether a batch is the first of another round than the one with these training types."""
    types = _training(batch)
    if not types or not trained:
        return False
    number = _server_round(batch)
    return number != server_round or (number is None and not types.isdisjoint(trained))


def _server_round(batch: Batch) -> int | None:
    first = next(iter(batch.messages.values()))
    for record in first.content.config_records.values():
        value = record.get("server-round")
        if isinstance(value, int):
            return value
    return None


def build_strategy(config: Config, experiment: Experiment) -> FlowerApp:
    """Return the strategy a `Config` describes."""
    if experiment.workload.name != "flower":
        raise UnsupportedFeature(
            f'strategy.name = "flower_app" sends Flower messages, which workload {experiment.workload.name!r} does '
            'not understand; use workload.name = "flower"'
        )
    if experiment.cohort is not None and (experiment.of_sites or experiment.cohort != experiment.num_clients):
        raise UnsupportedFeature(
            f"cohort = {experiment.cohort}: a Flower ServerApp chooses clients itself. Omit `cohort` and set "
            "the app's own fraction (such as run_config.fraction-train)"
        )
    app = apps.load_component(Path(config.app), config.serverapp, "strategy.serverapp")
    apps.check_component(app, flwr.ServerApp, "strategy.serverapp", config.serverapp)
    host_start()
    refuse_secure_aggregation()
    if flwr.is_older_server(app):
        host_server()
    return FlowerApp(app, config, experiment)
