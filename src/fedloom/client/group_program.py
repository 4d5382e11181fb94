"""Trains a whole group with the workload's own vectorised program, if it has one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedloom.client.input_cache import InputsGone
from fedloom.client.turn import Turn
from fedloom.core.errors import PolicyRefused, ServerUnreachable
from fedloom.core.messages import GroupKey
from fedloom.core.plugins import build_measure
from fedloom.core.protocols import Shard, TrainsGroups, is_empty
from fedloom.core.records import MODEL, Info, Update


def group_program(turn: Turn) -> TrainsGroups[Shard] | None:
    """Return the workload as a trainer of groups, if it supports this job and no rule needs to see every step."""
    if turn.job.kind != "train" or turn.group.rules or turn.run.abilities.keeps_state is not None:
        return None
    trainer = turn.run.abilities.trains_groups
    return trainer if trainer is not None and trainer.program == "group" else None


@dataclass
class GroupProgram:
    """Runs the program for one group after another, and stores the results of the last one."""

    _key: GroupKey | None = None
    _updates: dict[int, Update] = field(default_factory=dict)
    _measured: dict[int, Info] = field(default_factory=dict)
    _share_s: float = 0.0

    def run(self, turns: Sequence[Turn]) -> None:
        """Train a group together, if its workload can. If the program fails, the clients are trained one by one.

        Raises:
            ServerUnreachable, InputsGone, PolicyRefused: the group cannot be done now.
        """
        key = turns[0].group.key if turns else None
        if key is None or key == self._key or any(turn.job.kind != "train" for turn in turns):
            return
        try:
            program = group_program(turns[0])
        except KeyboardInterrupt:
            raise
        except BaseException:  # a workload that cannot be loaded fails each client's own job, with the reason
            return
        if program is None:
            return
        self._key, self._updates, self._measured = key, {}, {}
        begin = time.perf_counter()
        try:
            self._train(program, turns)
        except (ServerUnreachable, InputsGone, PolicyRefused):
            self._key = None
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            what = "measured" if self._updates else "trained"
            turns[0].run.warn_once(
                f"not {what} together",
                f"workload {turns[0].run.experiment.workload.name!r}: a group cannot be {what} together in round "
                f"{key.round}, so its clients are {what} one by one, which is slower",
                exc,
            )
        self._share_s = (time.perf_counter() - begin) / len(turns)

    def update(self, turn: Turn) -> tuple[Update, float] | None:
        """Return the program's result for a client, and the client's share of its time; seconds."""
        made = self._updates.get(turn.job.client) if turn.group.key == self._key else None
        return (made, self._share_s) if made is not None else None

    def measured(self, turn: Turn) -> Info | None:
        """Return the group measure's report on a client, if it was measured with its group."""
        return self._measured.get(turn.job.client) if turn.group.key == self._key else None

    def forget(self, run_id: str) -> None:
        """Drop the results of a run that is over."""
        if self._key is not None and self._key.run_id == run_id:
            self._key, self._updates, self._measured = None, {}, {}

    def _train(self, program: TrainsGroups[Shard], turns: Sequence[Turn]) -> None:
        workload, group = turns[0].run.workload, turns[0].group
        found = [(turn, workload.shard(turn.own_job.client)) for turn in turns]
        turns = [turn for turn, shard in found if not is_empty(shard)]
        shards = [shard for _, shard in found if not is_empty(shard)]
        if not turns:
            return
        clients = [turn.job.client for turn in turns]
        inputs = turns[0].inputs
        updates = program.train_group([turn.own_job for turn in turns], inputs, shards, [turn.rng() for turn in turns])
        self._updates = dict(zip(clients, updates, strict=True))
        if group.measure is None:
            return
        knobs, noise = [turn.job.knobs for turn in turns], [turn.rng("measure") for turn in turns]
        reported = build_measure(group.measure).together(workload, inputs[MODEL], updates, shards, noise, knobs)
        self._measured = dict(zip(clients, reported, strict=True)) if reported is not None else {}
