"""Parts of the server's side that break a promise each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from suites_of_parts import FirstCandidates, OfAccumulator, OfChannel, OfSelection, OfStore, OfStrategy, Seen, breaks

from fedloom.core.accumulators import RunningMean
from fedloom.core.messages import PayloadRef
from fedloom.core.protocols import (
    Probe,
    Roster,
)
from fedloom.core.records import MODEL, Exchange, Record, RoundContext, Update
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.strategies.fedavg.strategy import FedAvg, GlobalModel
from fedloom.testing.faults import ForwardingChannel


@breaks(OfStrategy, "the_model_keeps_its_names_dtypes_and_shapes")
class Wider(FedAvg):
    def finish(self, state: GlobalModel, total: Any, context: RoundContext) -> GlobalModel:
        after = super().finish(state, total, context)
        return GlobalModel({name: array.astype(np.float64) for name, array in after.model.items()})


@breaks(OfStrategy, "the_model_starts_as_the_workload_made_it_and_then_moves")
@breaks(OfStrategy, "a_round_with_an_answer_missing_is_a_round")
class Still(FedAvg):
    def finish(self, state: GlobalModel, total: Any, context: RoundContext) -> GlobalModel:
        return state


@breaks(OfStrategy, "plan_has_a_job_for_every_client_of_the_cohort_and_no_other")
class AsksFewer(FedAvg):
    def plan(self, state: GlobalModel, context: RoundContext) -> Exchange:
        exchange = super().plan(state, context)
        assert exchange is not None
        return replace(exchange, jobs=exchange.jobs[1:])


@breaks(OfStrategy, "updates_contain_what_their_exchange_declares")
class DeclaresLess(FedAvg):
    def plan(self, state: GlobalModel, context: RoundContext) -> Exchange:
        exchange = super().plan(state, context)
        assert exchange is not None
        return replace(exchange, updates={MODEL: ("layer.weight",)})


@breaks(OfStrategy, "a_state_saved_between_any_two_rounds_continues_with_the_same_bits")
class RemembersTheStart(FedAvg):
    def init(self, model: Record) -> GlobalModel:
        self.last = super().init(model)
        return self.last

    def finish(self, state: GlobalModel, total: Any, context: RoundContext) -> GlobalModel:
        known, self.last = state is self.last, super().finish(state, total, context)
        if not known:
            self.last = GlobalModel({name: np.asarray(array * 2) for name, array in self.last.model.items()})
        return self.last


@breaks(OfStrategy, "nothing_passed_in_is_changed")
class WritesIntoTheState(FedAvg):
    def finish(self, state: GlobalModel, total: Any, context: RoundContext) -> GlobalModel:
        if context.round > 1:
            state.model["layer.weight"][...] += 1
        return super().finish(state, total, context)


@breaks(OfStrategy, "the_same_arguments_give_the_same_result")
class CountsItsCalls(FedAvg):
    def __init__(self) -> None:
        self.calls = itertools.count()

    def finish(self, state: GlobalModel, total: Any, context: RoundContext) -> GlobalModel:
        factor = 1 + 0.1 * next(self.calls)
        after = super().finish(state, total, context).model
        return GlobalModel({name: np.asarray(array * factor).astype(array.dtype) for name, array in after.items()})


@breaks(OfSelection, "a_cohort_is_of_distinct_clients_of_the_federation")
class OneManyTimes(FirstCandidates):
    def choose(self, state: Seen, roster: Roster, size: int, rng: Any, reports: Any = ()) -> tuple[int, ...]:
        return (reports[0].client,) * size


@breaks(OfSelection, "the_same_randomness_gives_the_same_cohorts_across_saving")
class RemembersAnObject(FirstCandidates):
    first: Seen | None = None

    def choose(self, state: Seen, roster: Roster, size: int, rng: Any, reports: Any = ()) -> tuple[int, ...]:
        self.first = self.first or state
        return super().choose(state, roster, size, rng, reports if self.first is state else reports[::-1])


@breaks(OfSelection, "a_federation_of_one")
class NeedsTwo(FirstCandidates):
    def choose(self, state: Seen, roster: Roster, size: int, rng: Any, reports: Any = ()) -> tuple[int, ...]:
        return super().choose(state, roster, size, rng, reports) if reports[1] else ()


@breaks(OfSelection, "a_probe_asks_distinct_clients_at_least_the_cohort")
class ProbesTooFew(FirstCandidates):
    def probe(self, state: Seen, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        return Probe(candidates=(0,), kind="measure", measure="update_norm")


@breaks(OfSelection, "only_candidates_that_answered_are_chosen")
class IgnoresAnswers(FirstCandidates):
    def choose(self, state: Seen, roster: Roster, size: int, rng: Any, reports: Any = ()) -> tuple[int, ...]:
        return tuple(range(size))


@breaks(OfSelection, "no_number_a_candidate_makes_up_breaks_the_choice")
class TrustsNumbers(FirstCandidates):
    def choose(self, state: Seen, roster: Roster, size: int, rng: Any, reports: Any = ()) -> tuple[int, ...]:
        return super().choose(state, roster, size, rng, sorted(reports, key=lambda report: report.info["norm"] + 0.0))


@breaks(OfSelection, "clients_that_did_not_answer_are_no_trouble")
class MissesNobody(FirstCandidates):
    def missed(self, state: Seen, clients: Sequence[int]) -> Seen:
        raise KeyError(clients)


@breaks(OfSelection, "a_federation_may_grow")
class ForgetsWhenItGrows(FirstCandidates):
    def observe(self, state: Seen, reports: Sequence[Any], probed: Sequence[Any] = ()) -> Seen:
        return Seen(state.times + 1)

    def grow(self, state: Seen, roster: Roster) -> Seen:
        return self.init(roster)


@breaks(OfSelection, "a_federation_may_grow")
class DoesNotGrow(FirstCandidates):
    def choose(self, state: Seen, roster: Roster, size: int, rng: Any, reports: Any = ()) -> tuple[int, ...]:
        new = [report for report in reports if state.times[report.client] == 0]
        return super().choose(state, roster, size, rng, new)


@breaks(OfAccumulator, "it_starts_empty_and_counts")
class CountsDouble(RunningMean):
    def add(self, update: Update, weight: float, client: int) -> None:
        super().add(update, weight, client)
        self.count += 1


@breaks(OfAccumulator, "an_allocator_changes_nothing")
class RoundsInAllocatedMemory(RunningMean):
    def __init__(self, allocate: Any = None) -> None:
        super().__init__(allocate)
        self.factor = 1.0 if allocate is None else 2.0

    def add(self, update: Update, weight: float, client: int) -> None:
        super().add(update, weight * self.factor, client)


@breaks(OfAccumulator, "a_frame_carries_it")
@breaks(OfAccumulator, "merging_in_order_gives_the_same_bits")
@breaks(OfAccumulator, "it_continues_after_a_frame_and_writes_into_nothing_borrowed")
class LosesWeight(RunningMean):
    @classmethod
    def from_record(cls, record: Record) -> Any:
        made = super().from_record(record)
        made.weight *= 2
        return made


@breaks(OfAccumulator, "an_empty_one_merges_without_effect")
class CountsMerges(RunningMean):
    def merge(self, other: Any) -> None:
        super().merge(other)
        self.weight += 1


@breaks(OfAccumulator, "updates_are_neither_changed_nor_kept")
class KeepsTheUpdate(RunningMean):
    kept: Any = None

    def add(self, update: Update, weight: float, client: int) -> None:
        super().add(update, weight, client)
        self.kept = self.kept or update.groups[MODEL]

    def record(self) -> Record:
        record = super().record()
        return Record({**record.groups, "kept": self.kept}, record.info) if self.kept else record


@breaks(OfStore, "rounds_are_kept_in_order_and_truncated_for_good")
class ForgetsToTruncate(MemoryRunStore):
    def rounds(self, upto: int | None = None) -> Any:
        return [record for record in super().rounds() if upto is None or record.round <= upto]


@breaks(OfStore, "a_client_gets_what_it_left_before_the_exchange")
class GivesTheNewest(MemoryRunStore):
    def client(self, client: int, before: tuple[int, int]) -> Any:
        return super().client(client, (99, 0))


@breaks(OfChannel, "what_is_fetched_is_read_only")
class FetchesCopies(ForwardingChannel):
    def fetch(self, ref: PayloadRef) -> Record:
        record = self.inner.fetch(ref)
        return Record(
            {group: {name: np.array(a) for name, a in named.items()} for group, named in record.groups.items()}
        )


@breaks(OfChannel, "records_of_every_dtype_cross_bit_for_bit")
@breaks(OfChannel, "an_abandoned_lease_is_never_taken_for_another_record")
class Halves(ForwardingChannel):
    def store(self, record: Record, run_id: str) -> PayloadRef:
        groups = {
            g: {n: np.asarray(a // 2).astype(a.dtype) for n, a in named.items()} for g, named in record.groups.items()
        }
        return self.inner.store(Record(groups, record.info), run_id)
