"""Requirements on every strategy."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from fedloom.core import registry
from fedloom.core.accumulators import BUILTIN
from fedloom.core.kinds import Kind
from fedloom.core.pinned import Pinned
from fedloom.core.records import MODEL, Arrays, Info, Record
from fedloom.core.state import dump_state, load_state, pinned_in
from fedloom.testing.explained import assert_explained
from fedloom.testing.federation import COHORTS, MadeUpFederation, declared_arrays, initial_model
from fedloom.testing.records import NOTHING, read_only, record_digest, through_frame


class StrategyConformance:
    """Tests of one strategy; subclass it and set `name`, and `settings` if some have no default."""

    name: str
    """The strategy: folder, module or file."""
    settings: Info = NOTHING
    """Its settings."""
    may_stay: frozenset[str] = frozenset()
    """Arrays of the model that a round need not move."""

    def model(self) -> Record:
        """Make the initial model, the same at every call."""
        return initial_model()

    def measured(self, client: int) -> Info:
        """Make a client's report if the strategy's exchanges have a measure, the same at every call."""
        return {}

    def federation(self) -> MadeUpFederation:
        """Make a fresh strategy with made-up clients."""
        return MadeUpFederation(self.name, self.settings, self.model(), self.measured)

    def test_the_model_keeps_its_names_dtypes_and_shapes(self) -> None:
        """Check that after every round `arrays` has the model's arrays, all finite."""
        federation = self.federation()
        wanted = _form(self.model().groups[MODEL])
        for round, state in enumerate(federation.run()):
            arrays = federation.strategy.arrays(state)
            assert _form(arrays) == wanted, f"round {round}: {_form(arrays)}, expected {wanted}"
            assert all(np.isfinite(array).all() for array in arrays.values()), f"round {round}: not finite"

    def test_the_model_starts_as_the_workload_made_it_and_then_moves(self) -> None:
        """Check that `init` changes nothing, and one round moves every array but those that may stay."""
        federation = self.federation()
        first, second = (federation.strategy.arrays(state) for state in federation.run(1))
        assert record_digest(Record({MODEL: first})) == record_digest(Record({MODEL: self.model().groups[MODEL]}))
        still = {name for name in first if first[name].size and not (first[name] != second[name]).any()}
        assert still <= self.may_stay, f"round 1 did not move {sorted(still - self.may_stay)}"

    def test_plan_has_a_job_for_every_client_of_the_cohort_and_no_other(self) -> None:
        """Check that jobs are of this round and cohort, name existing inputs, and have JSON; all parts can be found."""
        federation = self.federation()
        for round, state in enumerate(federation.run(len(COHORTS) - 1), 1):
            exchange = federation.strategy.plan(state, federation.context(round))
            assert exchange is not None, f"plan returned None in round {round} of {len(COHORTS)}"
            trained = {job.client for job in exchange.jobs}
            assert trained == set(COHORTS[round - 1]), (
                f"round {round} has jobs {trained}, its cohort is {COHORTS[round - 1]}"
            )
            assert all(job.round == round for job in exchange.jobs), f"a job of round {round} has another round"
            lacking = {name for job in exchange.jobs for name in job.inputs if name not in exchange.inputs}
            assert not lacking, f"jobs read inputs that the exchange does not have: {lacking}"
            json.dumps([dict(exchange.knobs), *(dict(job.knobs) for job in exchange.jobs)], allow_nan=False)
            assert all(registry.has_part(Kind.STRATEGY, rule, "rule") for rule in exchange.rules), exchange.rules
            kind = exchange.accumulator
            assert kind in BUILTIN or registry.has_part(Kind.STRATEGY, kind, "accumulator"), f"no accumulator {kind!r}"

    def test_updates_contain_what_their_exchange_declares(self) -> None:
        """Check that clients send what `Exchange.updates` declares, unless that is left to the accumulator."""
        federation = self.federation()
        federation.run(2)
        for exchange, job, update in federation.answers:
            declared = declared_arrays(exchange)
            sent = {group: set(arrays) for group, arrays in update.groups.items()}
            assert declared is None or sent == declared, f"round {job.round}, {job.kind}: {sent}, declared {declared}"

    def test_a_state_saved_between_any_two_rounds_continues_with_the_same_bits(self) -> None:
        """Check that a checkpoint after any round resumes bit for bit."""
        federation = self.federation()
        whole = [state_digest(state) for state in federation.run()]
        state = federation.start()
        for round in range(len(COHORTS) + 1):
            state = federation.round(state, round) if round else state
            saved = through_frame(dump_state(state))
            state = load_state(federation.strategy.State, saved, _reread(pinned_in(state)))
            assert state_digest(state) == whole[round], f"resumed after round {round - 1}, round {round} has other bits"
            read_only(dump_state(state))

    def test_nothing_passed_in_is_changed(self) -> None:
        """Check that states are values: a round reads the previous one and makes another."""
        federation = self.federation()
        states = federation.run()
        before = [state_digest(state) for state in states]
        for round, state in enumerate(states[:-1], 1):
            read_only(dump_state(state))  # a write raises now
            federation.round(state, round)
        assert [state_digest(state) for state in states] == before, "a state was changed in place"

    def test_the_same_arguments_give_the_same_result(self) -> None:
        """Check that no object stores a run: the same rounds give the same bits again, in any order."""
        federation = self.federation()
        once = [state_digest(state) for state in federation.run()]
        assert [state_digest(state) for state in federation.run()] == once, "a second run has other bits"
        state = federation.run(2)[-1]
        again = [state_digest(federation.round(state, 3)) for _ in range(2)]
        assert again == [once[3], once[3]], "the same round done again has other bits"

    def test_a_round_with_an_answer_missing_is_a_round(self) -> None:
        """Check that a round with two of three updates ends, with another result than with all three."""
        federation = self.federation()
        state = federation.start()
        after = federation.round(state, 1, clients=2)
        assert all(np.isfinite(array).all() for array in federation.strategy.arrays(after).values()), "not finite"
        assert state_digest(after) != state_digest(federation.round(state, 1)), "the third update changes nothing"

    def test_it_explains_itself(self) -> None:
        """Check that the docstring's first line is a sentence, and that every setting has a description."""
        assert_explained(Kind.STRATEGY, self.name)


def state_digest(state: object) -> str:
    """Return the digest of a strategy's state; equal for states that are equal bit for bit."""
    return record_digest(dump_state(state))


def _form(arrays: Arrays) -> dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]:
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}


def _reread(pinned: Mapping[str, Pinned]) -> dict[str, Pinned]:
    return {sha256: Pinned.of(through_frame(record)) for sha256, record in pinned.items()}
