"""Requirements on every measure: the client half of a selection."""

from __future__ import annotations

import json

import numpy as np

from fedloom.core.config import Experiment, plugin_schema
from fedloom.core.kinds import Kind
from fedloom.core.plugins import AnyWorkload, build_measure, build_selection, build_workload
from fedloom.core.protocols import Measure, Shard
from fedloom.core.records import MODEL, Array, Info, Job, Record, Update
from fedloom.core.seeds import generator
from fedloom.testing.records import NOTHING, read_only
from fedloom.testing.selection import ROSTER

LINEAR: Info = {"name": "fedloom.testing.linear"}


class MeasureConformance:
    """Tests of a selection's measure; subclass it and set `name`, and a `workload` that can be measured."""

    name: str
    """The selection: folder, module or file."""
    settings: Info = NOTHING
    """Its settings; those without a default."""
    workload: Info = LINEAR
    """The workload's section of an experiment; its training should take milliseconds."""
    tolerance: float = 1e-4
    """Tolerance of `together` against one client after another, relative."""

    def build(self, name: str) -> Measure:
        """Build the measure of a name: the plug-in's by default."""
        return build_measure(name)

    def asked(self) -> tuple[str, Info]:
        """Return the measure and its knobs: by default those of the selection's probe, or of its extra report.

        Raises:
            LookupError: it has none.
        """
        schema = plugin_schema(Kind.SELECTION, self.name)
        selection = build_selection(schema.model_validate({**self.settings, "name": self.name}))
        state = selection.init(ROSTER)
        for asked in (selection.probe(state, ROSTER, 3, generator(1, "probe")), selection.extra_report(state)):
            if asked is not None and asked.measure is not None:
                return asked.measure, dict(asked.knobs)
        raise LookupError(f"selection {self.name!r} has no measure before or in round 1")

    def test_it_reports_numbers(self) -> None:
        """Check that a report is JSON of finite floats and lists of them."""
        for client, report in enumerate(self._reports()):
            json.dumps(dict(report), allow_nan=False)
            assert report, f"client {client} reports nothing"
            assert np.isfinite(_numbers(report)).all(), f"client {client} reports {report}"

    def test_the_same_randomness_gives_the_same_report(self) -> None:
        """Check that a report does not depend on which clients were measured before, or how often."""
        assert self._reports() == self._reports(), "a second measurement reports other numbers"

    def test_a_group_at_once_is_its_clients_one_by_one(self) -> None:
        """Check that `together` reports the same as individual calls, unless it returns None."""
        name, knobs = self.asked()
        workload, model, shards, updates = self._trained(knobs)
        rngs = [generator(1, "measure", client) for client in range(len(shards))]
        reported = self.build(name).together(workload, model, updates, shards, rngs, [knobs] * len(shards))
        if reported is None:
            return
        for client, (mine, alone) in enumerate(zip(reported, self._reports(), strict=True)):
            assert mine.keys() == alone.keys(), f"client {client}: {sorted(mine)}, one by one {sorted(alone)}"
            close = np.allclose(_numbers(mine), _numbers(alone), rtol=self.tolerance, atol=self.tolerance)
            assert close, f"client {client}: {mine}, one by one {alone}"

    def _trained(self, knobs: Info) -> tuple[AnyWorkload, Record, list[Shard], list[Update]]:
        """Return three clients, trained once from a read-only model."""
        values = {"rounds": 2, "clients": 4, "strategy": "fedavg", "workload": dict(self.workload)}
        experiment = Experiment.parse(values)
        workload = build_workload(experiment.workload, experiment)
        model = read_only(workload.init(generator(1, "init")))
        shards = [workload.shard(client) for client in range(3)]
        updates = []
        for client, shard in enumerate(shards):
            job = Job(round=1, client=client, knobs=knobs)
            update = workload.train(job, {MODEL: model}, shard, None, generator(1, "train", client))
            own = {group: {name: np.array(a) for name, a in named.items()} for group, named in update.groups.items()}
            traces = {name: np.array(array) for name, array in update.traces.items()}
            kept = read_only(Record(own))
            updates.append(Update(num_examples=update.num_examples, groups=kept.groups, traces=traces))
        return workload, model, shards, updates

    def _reports(self) -> list[Info]:
        name, knobs = self.asked()
        workload, model, shards, updates = self._trained(knobs)
        return [
            self.build(name)(workload, model, update, shard, generator(1, "measure", client), knobs)
            for client, (update, shard) in enumerate(zip(updates, shards, strict=True))
        ]


def _numbers(report: Info) -> Array:
    """Return every number of a report, in order of keys."""
    flat = [np.asarray(report[key], np.float64).reshape(-1) for key in sorted(report)]
    return np.concatenate(flat) if flat else np.zeros(0)
