"""A fedloom strategy as a Flower `Strategy`: the other direction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.errors import BadUpdate, UnsupportedFeature
from fedloom.core.plugins import build_strategy, make_accumulator
from fedloom.core.protocols import Pending
from fedloom.core.records import MODEL, Arrays, Exchange, Info, Job, Mean, Record, RoundContext, Update
from fedloom.core.seeds import generator
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import records

_POLL_S = 1.0
"""Seconds between two queries of the number of connected nodes: a Grid can only be polled."""


class OursInFlower(flwr.Strategy):  # type: ignore[misc]  # flwr's classes are untyped here
    """Drives `plan` and `finish` from Flower's `configure_train` and `aggregate_train`.

    One exchange per round: which is all Flower's loop supports. Updates are aggregated in ascending order of node id,
    so the result does not depend on the order of arrival.
    """

    def __init__(
        self,
        name: str,
        options: Info,
        *,
        fraction_train: float,
        fraction_evaluate: float,
        min_nodes: int,
        seed: int,
        weighted_by: str,
    ) -> None:
        experiment = Experiment.parse(
            {
                "rounds": 1,
                "seed": seed,
                "strategy": {"name": name, **options},
                "workload": PluginSettings(name="flower"),
            }
        )
        self._ours = build_strategy(experiment.strategy, experiment)
        self._name, self._seed, self._weighted_by = name, seed, weighted_by
        self._fractions = {"train": fraction_train, "evaluate": fraction_evaluate}
        self._min_nodes = min_nodes
        self._state: object = None
        self._exchange: Exchange | None = None
        self._context: RoundContext | None = None
        self._nodes: list[int] = []

    def summary(self) -> None:
        """Do nothing: the strategy's settings are in the app's code."""

    def configure_train(
        self, server_round: int, arrays: flwr.ArrayRecord, config: flwr.ConfigRecord, grid: flwr.Grid
    ) -> Iterable[flwr.Message]:
        if self._state is None:
            self._state = self._ours.init(Record({MODEL: records.from_array_record(arrays)}))
        self._nodes, population = self._sample(server_round, grid, "train")
        self._context = RoundContext(
            round=server_round,
            cohort=tuple(range(len(self._nodes))),
            population=population,
            rounds=None,  # Flower does not pass the total to its strategies
            seed=self._seed,
        )
        self._exchange = self._ours.plan(self._state, self._context)
        if self._exchange is None:
            return []
        if self._exchange.rules not in ((), ("fedprox",)):
            raise UnsupportedFeature(
                f"strategy {self._name!r} has a client half ({self._exchange.rules[0]}/rule.py), which Flower's "
                "clients do not run; run the app with `fedloom run` instead"
            )
        encoded = {name: _array_records(name, record) for name, record in self._exchange.inputs.items()}
        return [
            self._message(self._exchange, job, encoded, {**config, "server-round": server_round})
            for job in self._exchange.jobs
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[flwr.Message]
    ) -> tuple[flwr.ArrayRecord | None, flwr.MetricRecord | None]:
        answers = self._valid(replies)
        if not answers or self._exchange is None or self._context is None:
            return None, None
        total = make_accumulator(self._exchange.accumulator, None)
        for client, content in answers:
            update = self._update(client, content)
            total.add(update, float(update.num_examples), client)
        step = self._ours.finish(self._state, total, self._context)
        if isinstance(step, Pending):
            raise UnsupportedFeature(
                f"strategy {self._name!r} needs a second exchange in round {server_round}; Flower's rounds have one. "
                "Run the app with `fedloom run` instead"
            )
        self._state, self._exchange = step, None
        return records.to_array_record(self._ours.arrays(self._state)), self._mean_metrics(answers)

    def configure_evaluate(
        self, server_round: int, arrays: flwr.ArrayRecord, config: flwr.ConfigRecord, grid: flwr.Grid
    ) -> Iterable[flwr.Message]:
        if self._fractions["evaluate"] == 0.0:
            return []
        self._nodes, _ = self._sample(server_round, grid, "evaluate")
        settings = flwr.ConfigRecord(dict(config) | {"server-round": server_round})
        content = flwr.RecordDict({records.ARRAYS: arrays, records.CONFIG: settings})
        return [flwr.Message(content, dst_node_id=node, message_type="evaluate") for node in self._nodes]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[flwr.Message]) -> flwr.MetricRecord | None:
        answers = self._valid(replies)
        return self._mean_metrics(answers) if answers else None

    def _sample(self, server_round: int, grid: flwr.Grid, purpose: str) -> tuple[list[int], int]:
        """Return the nodes to sample, ascending, and how many there are."""
        nodes = sorted(grid.get_node_ids())
        while len(nodes) < self._min_nodes:
            time.sleep(_POLL_S)
            nodes = sorted(grid.get_node_ids())
        size = min(len(nodes), max(self._min_nodes, int(len(nodes) * self._fractions[purpose])))
        rng = generator(self._seed, "selection", server_round, purpose)
        return [nodes[place] for place in sorted(rng.choice(len(nodes), size, replace=False))], len(nodes)

    def _message(
        self, exchange: Exchange, job: Job, encoded: Mapping[str, Mapping[str, flwr.ArrayRecord]], settings: Info
    ) -> flwr.Message:
        content = flwr.RecordDict()
        for name in job.inputs:
            for key, record in encoded[name].items():
                content[key] = record
        knobs: Info = {**exchange.knobs, **job.knobs}
        if exchange.rules == ("fedprox",):  # Flower's name for the coefficient, which its clients look for
            settings = {**settings, "proximal-mu": float(knobs["mu"])}
        try:
            content[records.CONFIG] = flwr.ConfigRecord({**settings, **knobs})
        except TypeError as exc:
            raise UnsupportedFeature(
                f"strategy {self._name!r} sends knobs {dict(knobs)}, which a Flower ConfigRecord cannot contain: {exc}"
            ) from exc
        return flwr.Message(content, dst_node_id=self._nodes[job.client], message_type=job.kind)

    def _valid(self, replies: Iterable[flwr.Message]) -> list[tuple[int, flwr.RecordDict]]:
        """Contents of the replies that have one, by client in the cohort's order."""
        places = {node: client for client, node in enumerate(self._nodes)}
        answers = [(places[each.metadata.src_node_id], each.content) for each in replies if not each.has_error()]
        return sorted(answers, key=lambda answer: answer[0])

    def _update(self, client: int, content: flwr.RecordDict) -> Update:
        weight = self._weight(content)
        if weight is None:
            raise BadUpdate(
                f"node {self._nodes[client]}: its reply has no metric {self._weighted_by!r} to weight its update by"
            )
        groups: dict[str, Arrays] = {
            name: records.from_array_record(record) for name, record in content.array_records.items()
        }
        if len(groups) == 1:
            groups = {MODEL: next(iter(groups.values()))}
        numbers = {
            name: Mean(value * weight, weight)
            for record in content.metric_records.values()
            for name, value in records.scalars(record).items()
        }
        return Update(num_examples=int(weight), groups=groups, metrics=numbers)

    def _weight(self, content: flwr.RecordDict) -> float | None:
        for record in content.metric_records.values():
            if isinstance(record.get(self._weighted_by), int | float):
                return float(record[self._weighted_by])
        return None

    def _mean_metrics(self, answers: list[tuple[int, flwr.RecordDict]]) -> flwr.MetricRecord:
        weights = np.array([self._weight(content) or 1.0 for _, content in answers])
        rows = []
        for _, content in answers:
            row: dict[str, float] = {}
            for record in content.metric_records.values():
                row |= records.scalars(record)
            row.pop(self._weighted_by, None)
            rows.append(row)
        shared = [name for name in rows[0] if all(name in row for row in rows)]
        return flwr.MetricRecord(
            {name: float(np.average([row[name] for row in rows], weights=weights)) for name in shared}
        )


def _array_records(name: str, record: Record) -> dict[str, flwr.ArrayRecord]:
    """Return an input as ArrayRecords: the model under Flower's usual key, other groups under theirs."""
    return {
        records.ARRAYS if name == MODEL and group == MODEL else group: records.to_array_record(arrays)
        for group, arrays in record.groups.items()
    }
