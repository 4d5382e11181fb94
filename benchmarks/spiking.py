"""A group of clients of a spiking MLP, as one program and one after the other: time per client, and how far apart.

`python -m benchmarks.spiking`: digits, 50 clients, 20 in the group, 8 time steps, 64-64-10, batches of 32, 3 epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedloom.core.config import Experiment
from fedloom.core.records import MODEL, Array, Arrays, Job, Record
from fedloom.core.seeds import generator
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads.spiking_classification.config import Config
from fedloom.workloads.spiking_classification.workload import SpikingClassification, build_workload

CLIENTS, GROUP = 50, 20
CASES: Mapping[str, Mapping[str, Any]] = {
    "IID": {"partition": {"scheme": "iid"}},
    "2 shards": {"partition": {"scheme": "shards", "shards_per_client": 2}},
    "Dirichlet(0.3)": {"partition": {"scheme": "dirichlet", "alpha": 0.3}},
    "IID, Poisson": {"partition": {"scheme": "iid"}, "encoder": {"name": "poisson"}},
}


def build(case: str, program: str) -> SpikingClassification:
    """The workload of a case."""
    training = {"learning_rate": 0.02, "epochs": 3, "batch_size": 32, "device": "cpu"}
    workload = {"name": "spiking_classification", "loss": "count", "time_steps": 8, "program": program, **CASES[case]}
    workload["training"] = training
    experiment = Experiment.parse({"rounds": 1, "clients": CLIENTS, "strategy": "fedavg", "workload": workload})
    assert isinstance(experiment.workload, Config)
    return build_workload(experiment.workload, experiment)


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """What `act` returns, and its CPU milliseconds for each client of the group."""
    begin = time.process_time()
    value = act()
    return value, (time.process_time() - begin) * 1e3 / GROUP


def apart(left: Sequence[Mapping[str, Array]], right: Sequence[Mapping[str, Array]]) -> float:
    """Largest difference of any element."""
    pairs = zip(left, right, strict=True)
    return max(float(np.abs(a - other[name]).max()) for one, other in pairs for name, a in one.items())


def train_one_by_one(work: SpikingClassification, model: Record, cohort: Sequence[int], round: int) -> list[Arrays]:
    """Trained arrays of each client, by the plain loop."""
    trained: list[Arrays] = []
    for client in cohort:
        rng = generator(1, "train", round, client)
        update = work.train(Job(round=round, client=client), {MODEL: model}, work.shard(client), None, rng)
        trained.append({name: array.copy() for name, array in update.groups[MODEL].items()})
    return trained


def train_together(work: SpikingClassification, model: Record, cohort: Sequence[int], round: int) -> list[Arrays]:
    """The same as one program."""
    jobs = [Job(round=round, client=client) for client in cohort]
    rngs = [generator(1, "train", round, client) for client in cohort]
    updates = work.train_group(jobs, {MODEL: model}, [work.shard(client) for client in cohort], rngs)
    return [update.groups[MODEL] for update in updates]


def rates_one_by_one(
    work: SpikingClassification,
    models: Sequence[Arrays],
    shards: Sequence[RowShard],
    rngs: Sequence[np.random.Generator],
) -> list[dict[str, Array]]:
    """Output firing rates of each client."""
    return [work.firing_rates(*client) for client in zip(models, shards, rngs, strict=True)]


def measure(case: str, rounds: int) -> dict[str, Any]:
    """Median CPU per client of both programs, for training and for firing rates, over rounds of federated averaging."""
    work, plain = build(case, "group"), build(case, "loop")
    model = work.init(generator(1, "model"))
    spent: dict[str, list[float]] = {"loop": [], "group": [], "rates loop": [], "rates group": []}
    trained_apart = rates_apart = 0.0
    for round in range(rounds + 1):
        cohort = generator(1, "cohort", round).choice(CLIENTS, GROUP, replace=False).tolist()
        shards = [work.shard(client) for client in cohort]
        rngs = [generator(1, "rates", round, client) for client in cohort]
        loop, loop_ms = timed(partial(train_one_by_one, work, model, cohort, round))
        group, group_ms = timed(partial(train_together, work, model, cohort, round))
        single, single_ms = timed(partial(rates_one_by_one, plain, group, shards, rngs))
        many, many_ms = timed(partial(work.firing_rates_group, group, shards, rngs))
        trained_apart, rates_apart = max(trained_apart, apart(loop, group)), max(rates_apart, apart(single, many))
        if round > 0:  # the first warms up
            for name, value in zip(spent, (loop_ms, group_ms, single_ms, many_ms), strict=True):
                spent[name].append(value)
        model = average(group, [shard.num_examples for shard in shards])
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return {"case": case, **medians, "apart": trained_apart, "rates apart": rates_apart}


def average(trained: Sequence[Arrays], weights: Sequence[int]) -> Record:
    """The example-weighted mean of the clients' arrays."""
    shares = np.array(weights, np.float32) / np.float32(sum(weights))
    means = {name: np.tensordot(shares, np.stack([arrays[name] for arrays in trained]), 1) for name in trained[0]}
    return Record({MODEL: means})


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text; milliseconds of CPU for each client."""
    heads = ("loop ms", "group ms", "ratio", "apart", "rates loop ms", "rates group ms", "ratio", "apart")
    lines = [f"{'training and firing rates, CPU per client':44}" + "".join(f"{head:>15}" for head in heads)]
    for row in rows:
        cells = [f"{row['loop']:.2f}", f"{row['group']:.2f}", f"{row['loop'] / row['group']:.1f}x"]
        cells += [f"{row['apart']:.1e}", f"{row['rates loop']:.2f}", f"{row['rates group']:.2f}"]
        cells += [f"{row['rates loop'] / row['rates group']:.1f}x", f"{row['rates apart']:.1e}"]
        lines.append(f"  {row['case']:42}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spiking", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="rounds that are timed, after one that warms up")
    parser.add_argument("--out", type=Path, help="folder for result.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [measure(case, options.rounds) for case in CASES]
    print(table(rows))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "result.json").write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
