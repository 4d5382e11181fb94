"""Requirements on every run store."""

from __future__ import annotations

import numpy as np

from fedloom.core.config import Experiment
from fedloom.core.history import Choice, ReportLine, RosterLine, RoundRecord, SiteLine, Timing, Traffic
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import MODEL, Record
from fedloom.server.store.run_store import Checkpoint, RunStore
from fedloom.testing.records import assert_same_record, records_of_every_dtype


def small_experiment(rounds: int = 4) -> Experiment:
    """Make an experiment of `fedavg` on `fedloom.testing.linear`."""
    workload = {"name": "fedloom.testing.linear"}
    return Experiment.parse({"rounds": rounds, "clients": 12, "cohort": 6, "strategy": "fedavg", "workload": workload})


def checkpoint_of(round: int) -> Checkpoint:
    """Make the checkpoint after a round; no two rounds have the same."""
    strategy = Record({MODEL: {"w": np.full(1000, round, np.float32)}}, {"momentum": {"json": 0.9}})
    return Checkpoint(round, strategy, Record(info={"nothing": {"json": None}}), round * 1.5)


def record_of(round: int) -> RoundRecord:
    """Make a round's record."""
    return RoundRecord(
        round=round, cohort=[1, 2], num_examples=3, metrics={"loss": 0.5}, traffic=Traffic(bytes_up=7), timing=Timing()
    )


class RunStoreConformance:
    """Tests of one kind of run store; subclass it and define `make`."""

    def make(self) -> RunStore:
        """Make an empty store."""
        raise NotImplementedError(f"{type(self).__name__} defines no make()")

    def test_the_experiment_is_kept(self) -> None:
        """Check that the experiment is restored as it was begun."""
        store = self.make()
        store.begin(small_experiment(rounds=7))
        assert store.experiment() == small_experiment(rounds=7)

    def test_a_fresh_store_has_nothing(self) -> None:
        """Check that there are no rounds, choices, checkpoint, workload or client."""
        store = self.make()
        assert store.rounds() == [] and store.choices() == [] and store.rosters() == []
        assert store.latest_checkpoint() is None and store.workload() is None
        assert store.client(3, (9, 9)) is None

    def test_what_a_run_begins_with_is_kept(self) -> None:
        """Check that a store has no start of its own, and restores one bit for bit."""
        store = self.make()
        assert store.start() is None
        for record in records_of_every_dtype(100):
            store.save_start(record)
            found = store.start()
            assert found is not None
            assert_same_record(found, record)

    def test_the_workloads_facts_are_kept(self) -> None:
        """Check that every field of the workload's description is restored."""
        store, info = (
            self.make(),
            WorkloadInfo(
                data={"kind": "synthetic"},
                client_sizes=[3, 4],
                label_counts=[[1, 2]],
                label_names=["a", "b"],
                watch={"skipped": "some rows were skipped"},
                exponentials={"perplexity": "loss"},
            ),
        )
        store.save_workload(info)
        assert store.workload() == info

    def test_the_newest_checkpoint_comes_back_whole(self) -> None:
        """Check that the last of several checkpoints is restored, bit for bit."""
        store = self.make()
        for round in (1, 2, 3):
            store.save_checkpoint(checkpoint_of(round), keep=2)
        found = store.latest_checkpoint()
        assert found is not None and (found.round, found.seconds) == (3, 4.5)
        assert_same_record(found.strategy, checkpoint_of(3).strategy)
        assert_same_record(found.selection, checkpoint_of(3).selection)

    def test_rounds_are_kept_in_order_and_truncated_for_good(self) -> None:
        """Check that `rounds(upto)` deletes later rounds."""
        store = self.make()
        for round in (1, 2, 3):
            store.append_round(record_of(round))
        assert [record.round for record in store.rounds()] == [1, 2, 3]
        assert [record.round for record in store.rounds(upto=2)] == [1, 2]
        assert store.rounds() == [record_of(1), record_of(2)]

    def test_choices_are_kept_in_order_and_truncated_for_good(self) -> None:
        """Check that `choices(upto)` deletes later choices."""
        store = self.make()
        reported = ReportLine(
            client=3, num_examples=9, seconds=0.5, num_trained=1, metrics={"loss": (4.5, 9.0)}, info={"g": [0.5]}
        )
        made = [Choice(round=round, cohort=[3, round], trained=[reported], missed=[8]) for round in (1, 2, 3)]
        for choice in made:
            store.append_choice(choice)
        assert store.choices() == made
        assert store.choices(upto=2) == made[:2] == store.choices()

    def test_rosters_are_kept_in_order(self) -> None:
        """Check that every roster is restored as it was added, also after rounds were truncated."""
        store = self.make()
        site = SiteLine(client=0, name="b", member="7f", size=9, label_counts=[4, 5], data={"sha256": "00"})
        made = [RosterLine(round=0, joined=[site], online=[0], settings=["round.weighting='uniform'"]),
                RosterLine(round=3, online=[])]  # fmt: skip
        for line in made:
            store.append_roster(line)
        store.rounds(upto=1)
        assert store.rosters() == made

    def test_a_client_gets_what_it_left_before_the_exchange(self) -> None:
        """Check that a state counts from the exchange after the one that made it."""
        store = self.make()
        one, two, three = records_of_every_dtype(100)[:3]
        store.save_client(5, 1, 0, one)
        store.save_client(5, 2, 0, two)
        store.save_client(5, 2, 1, three)
        assert store.client(5, (1, 0)) is None
        for before, want in (((1, 1), one), ((2, 0), one), ((2, 1), two), ((3, 0), three)):
            found = store.client(5, before)
            assert found is not None, f"no state before {before}"
            assert_same_record(found, want)

    def test_a_state_saved_again_replaces_the_one_before(self) -> None:
        """Check that a repeated exchange replaces its state."""
        store = self.make()
        one, two = records_of_every_dtype(100)[:2]
        store.save_client(5, 1, 0, one)
        store.save_client(5, 1, 0, two)
        found = store.client(5, (2, 0))
        assert found is not None
        assert_same_record(found, two)

    def test_pruning_keeps_what_a_resume_from_that_round_needs(self) -> None:
        """Check that after `prune_clients(2)` each client's newest state up to round 2 is there, and all later ones."""
        store = self.make()
        states = {round: Record(info={"round": round}) for round in (1, 2, 3, 4)}
        for round, state in states.items():
            store.save_client(5, round, 0, state)
        store.save_client(6, 1, 0, states[1])
        store.prune_clients(2)
        for client, before, want in ((5, (3, 0), 2), (5, (4, 0), 3), (5, (9, 0), 4), (6, (3, 0), 1)):
            found = store.client(client, before)
            assert found is not None and found.info == {"round": want}, f"client {client} before {before}: {found}"
        assert store.client(5, (2, 0)) is None, "round 1's is not needed any more"

    def test_discarding_leaves_nothing(self) -> None:
        """Check that a discarded store is like a fresh one; its folder, if it had one, is deleted."""
        store = self.make()
        store.append_round(record_of(1))
        store.save_checkpoint(checkpoint_of(1), keep=1)
        store.discard()
        assert store.rounds() == [] and store.latest_checkpoint() is None
        assert store.folder is None or not store.folder.exists()
