"""The ten-line loop that stands in for the server, and what the tests build on it."""

import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_job import do_job

from fedloom.core import frames
from fedloom.core.accumulators import BUILTIN
from fedloom.core.config import Experiment
from fedloom.core.plugins import AnyStrategy, build_strategy, build_workload
from fedloom.core.protocols import Pending
from fedloom.core.records import Exchange, Job, Record, RoundContext, Update
from fedloom.core.seeds import generator
from fedloom.core.state import dump_state, load_state

Answer = Callable[[Job, Mapping[str, Record], Record | None, np.random.Generator], Update]


@dataclass
class Run:
    """What a run left behind."""

    strategy: AnyStrategy
    state: Any
    client_states: dict[int, Record] = field(default_factory=dict)
    exchanges: list[list[Exchange]] = field(default_factory=list)
    history: list[Any] = field(default_factory=list)
    """The state after each round."""


def through_a_frame(record: Record) -> Record:
    return frames.decode(bytes(frames.encode(record)))


def drive(experiment: Experiment, initial: Record, answer: Answer, resume_after: int | None = None) -> Run:
    """Plan, act for each job, fold, finish; everything that would cross a wire goes through a frame."""
    strategy = build_strategy(experiment.strategy, experiment)
    run = Run(strategy, strategy.init(initial))
    for number in range(1, (experiment.max_rounds or 1000) + 1):
        context = RoundContext(
            round=number,
            cohort=tuple(range(experiment.cohort_size)),
            population=experiment.num_clients,
            rounds=experiment.max_rounds,
            seed=experiment.seed,
        )
        exchange = run.strategy.plan(run.state, context)
        if exchange is None:
            break
        run.exchanges.append([])
        while True:
            run.exchanges[-1].append(exchange)
            total = BUILTIN[exchange.accumulator]()
            inputs = {name: through_a_frame(record) for name, record in exchange.inputs.items()}
            for place, job in enumerate(exchange.jobs):
                full = replace(job, knobs={**exchange.knobs, **job.knobs})
                rng = generator(experiment.seed, job.kind, number, len(run.exchanges[-1]), job.client)
                update = answer(full, inputs, run.client_states.get(job.client), rng)
                if update.state is not None:
                    run.client_states[job.client] = through_a_frame(update.state)
                total.add(update, update.num_examples, job.client)
                assert place < experiment.num_clients
            step = run.strategy.finish(run.state, type(total).from_record(through_a_frame(total.record())), context)
            if not isinstance(step, Pending):
                run.state = step
                break
            run.state, exchange = step.state, step.exchange
        if number == resume_after:
            saved = through_a_frame(dump_state(run.state))
            run.strategy.close()
            run.strategy = build_strategy(experiment.strategy, experiment)
            run.state = load_state(run.strategy.State, saved)
        run.history.append(run.state)
    return run


@pytest.fixture
def apps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example's app, and those of these tests."""
    folder = tmp_path_factory.mktemp("apps")
    shutil.copytree(Path(__file__).parent / "apps", folder, dirs_exist_ok=True)
    shutil.copytree(Path(__file__).parents[2] / "examples" / "quickstart", folder / "quickstart", dirs_exist_ok=True)
    return folder


@pytest.fixture
def driven() -> Callable[..., Run]:
    return drive


@pytest.fixture
def run_app() -> Callable[..., Run]:
    """Run a Flower app's experiment with its own workload."""

    def run(experiment: Experiment, resume_after: int | None = None) -> Run:
        workload = build_workload(experiment.workload, experiment)
        initial = workload.init(generator(experiment.seed, "init"))
        return drive(experiment, initial, functools.partial(do_job, workload), resume_after)

    return run
