"""Parts of the clients' side that break a promise each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from suites_of_parts import CountsReports, Drawn, OfMeasure, OfMonitor, OfRule, OfWatch, OfWorkload, breaks

from fedloom.core.protocols import (
    LocalRule,
    Measure,
    MonitorReading,
    MonitorRequest,
    Observation,
    Watch,
    WorkloadInfo,
)
from fedloom.core.records import MODEL, Record, Update
from fedloom.testing import linear


@breaks(OfRule, "it_does_not_write_what_it_only_reads")
class WritesWeights(LocalRule):
    def adjust_gradients(self, gradients: Any, parameters: Any, anchor: Any, knobs: Any) -> None:
        parameters[0][...] = 0


@breaks(OfRule, "gradients_keep_their_shapes_and_stay_finite")
class Divides(LocalRule):
    def adjust_gradients(self, gradients: Any, parameters: Any, anchor: Any, knobs: Any) -> None:
        gradients[0][...] = np.nan


@breaks(OfRule, "what_leaves_is_an_update_that_can_be_sent")
class Understates(LocalRule):
    def outgoing(self, update: Update, knobs: Any) -> Update:
        return replace(update, num_examples=1)


@breaks(OfRule, "what_leaves_can_be_aggregated")
class OneArrayMoreEachTime(LocalRule):
    calls = itertools.count()

    def outgoing(self, update: Update, knobs: Any) -> Update:
        extra = {f"extra-{next(self.calls)}": np.zeros(1, np.float32)}
        return replace(update, groups={**update.groups, "more": extra})


@breaks(OfRule, "a_rule_object_serves_one_job")
class Counts(LocalRule):
    calls = itertools.count()

    def outgoing(self, update: Update, knobs: Any) -> Update:
        return replace(update, info={"call": next(self.calls)})


@breaks(OfRule, "its_state_survives_a_frame")
class KeepsATuple(LocalRule):
    def __init__(self) -> None:
        self.given: Record | None = None

    def restore(self, state: Record | None) -> None:
        self.given = state

    def outgoing(self, update: Update, knobs: Any) -> Update:
        return replace(update, info={"tuple": self.given is not None and isinstance(self.given.info["at"], tuple)})

    def state(self) -> Record | None:
        return Record(info={"at": (1, 2)})


@breaks(OfMeasure, "it_reports_numbers")
class NotANumber(Measure):
    def __call__(self, workload: object, model: Record, update: Update, shard: Any, rng: Any, knobs: Any) -> Any:
        return {"drawn": float("nan")}


@breaks(OfMeasure, "the_same_randomness_gives_the_same_report")
class OfItsOwn(Measure):
    calls = itertools.count()

    def __call__(self, workload: object, model: Record, update: Update, shard: Any, rng: Any, knobs: Any) -> Any:
        return {"drawn": float(next(self.calls))}


@breaks(OfMeasure, "a_group_at_once_is_its_clients_one_by_one")
class Another(Drawn):
    def together(self, workload: object, model: Any, updates: Any, shards: Any, rngs: Any, knobs: Any) -> Any:
        return [{"drawn": 1.5} for _ in updates]


@breaks(OfWorkload, "its_description_is_json")
class OtherSizes(linear.Linear):
    def describe(self) -> WorkloadInfo:
        return replace(super().describe(), client_sizes=[1] * self.clients)


@breaks(OfWorkload, "the_initial_model_follows_from_the_generator")
class OwnRandomness(linear.Linear):
    def init(self, rng: np.random.Generator) -> Record:
        return super().init(np.random.default_rng())


@breaks(OfWorkload, "training_gives_an_update_of_the_models_form")
class WrongCount(linear.Linear):
    def train(self, job: Any, inputs: Any, shard: Any, rule: Any, rng: Any) -> Update:
        return replace(super().train(job, inputs, shard, rule, rng), num_examples=1)


@breaks(OfWorkload, "training_depends_on_its_arguments_alone")
class LeavesSomethingBehind(linear.Linear):
    trained = 0

    def train(self, job: Any, inputs: Any, shard: Any, rule: Any, rng: Any) -> Update:
        update = super().train(job, inputs, shard, rule, rng)
        update.groups[MODEL]["w"][0] += self.trained
        self.trained += 1
        return update


@breaks(OfWorkload, "a_rule_sees_every_step")
class ForgetsTheRule(linear.Linear):
    def train(self, job: Any, inputs: Any, shard: Any, rule: Any, rng: Any) -> Update:
        return super().train(job, inputs, shard, None, rng)


@breaks(OfWorkload, "parts_of_the_held_out_data_are_the_whole")
class EveryPartIsAll(linear.Linear):
    def held_out(self, part: int, parts: int) -> Any:
        return super().held_out(0, 1)


@breaks(OfWorkload, "logits_are_one_row_per_example")
class TooFewLogits(linear.Linear):
    def logits(self, inputs: Any, shard: Any) -> Any:
        return np.zeros((1, 2)), None


@breaks(OfWorkload, "a_group_at_once_is_its_clients_one_by_one")
class GroupsDiffer(linear.Linear):
    program = "group"

    def train_group(self, jobs: Any, inputs: Any, shards: Any, rngs: Any) -> list[Update]:
        trained = [
            self.train(job, inputs, shard, None, rng) for job, shard, rng in zip(jobs, shards, rngs, strict=True)
        ]
        for update in trained:
            update.groups[MODEL]["w"][...] += 0.01
        return trained


@breaks(OfMonitor, "it_watches_distinct_clients_of_the_federation")
class OneTwice(CountsReports):
    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        return MonitorRequest(clients=(3, 3))


@breaks(OfWatch, "what_a_client_sends_is_json")
class SendsAnArray(Watch):
    def __call__(self, workload: Any, inputs: Any, shard: Any, rng: np.random.Generator) -> Observation:
        return Observation(num_examples=shard.num_examples, info={"top": np.zeros(3)})


@breaks(OfMonitor, "a_reading_follows_from_the_reports")
class ReadsNothing(CountsReports):
    def read(self, reports: Sequence[Any], earlier: Sequence[Any]) -> MonitorReading:
        return MonitorReading(metrics={"n": float("inf")}, info={})


@breaks(OfMonitor, "it_continues_from_what_is_in_the_records")
class ExpectsATuple(CountsReports):
    def read(self, reports: Sequence[Any], earlier: Sequence[Any]) -> MonitorReading:
        tuples = sum(isinstance(each["at"], tuple) for each in earlier)
        return MonitorReading(metrics={"n": float(tuples)}, info={"at": (1, 2)})


@breaks(OfMonitor, "missing_clients_are_no_trouble")
class NeedsTwoReports(CountsReports):
    def read(self, reports: Sequence[Any], earlier: Sequence[Any]) -> MonitorReading:
        return MonitorReading(metrics={}, info={"second": reports[1].client})
