"""Requirements on every workload."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from fedloom.core import run_files
from fedloom.core.config import Experiment
from fedloom.core.kinds import Kind
from fedloom.core.plugins import AnyWorkload, build_workload
from fedloom.core.protocols import HasLogits, LocalRule, Tensors, TrainsGroups
from fedloom.core.records import MODEL, Arrays, Info, Job, Metrics, Record, Update, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.testing.explained import assert_explained
from fedloom.testing.records import NOTHING, read_only, record_digest, through_frame


class Spy(LocalRule):
    """A rule that changes nothing and records its arguments."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, str]] = []
        """(group, name) of each trained array."""
        self.steps: list[int] = []
        """Gradients shown in each step."""

    def begin(self, trained: Sequence[tuple[str, str]], knobs: Info) -> None:
        self.trained += trained

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        assert len(parameters) == len(anchor) == len(gradients), "not one weight and one anchor for each gradient"
        self.steps.append(len(gradients))


class WorkloadConformance:
    """Tests of one workload; subclass it and set `name`, and `settings` that make its training take milliseconds."""

    name: str
    """The workload: folder, module or file."""
    settings: Info = NOTHING
    """Its settings."""
    clients: int = 4
    """Clients in the federation."""
    tolerance: float = 1e-4
    """Tolerance of `train_group` against `train`: the largest difference of two weights, absolute."""

    def test_its_description_is_json(self) -> None:
        """Check that `describe` survives JSON, and that the sizes it declares are those of the shards."""
        workload = self.build()
        info = workload.describe()
        crossed = run_files.workload_of(json.loads(json.dumps(run_files.workload_values(info), allow_nan=False)))
        assert run_files.workload_values(crossed) == json.loads(json.dumps(run_files.workload_values(info)))
        if info.client_sizes:
            sizes = [workload.shard(client).num_examples for client in range(self.clients)]
            assert list(info.client_sizes) == sizes, f"describes sizes {info.client_sizes}, the shards have {sizes}"

    def test_the_initial_model_follows_from_the_generator(self) -> None:
        """Check that `init` gives a finite group `model` for a frame; the same generator gives the same bits."""
        one, again = (self.build().init(generator(1, "init")) for _ in range(2))
        assert list(one.groups) == [MODEL], f"the initial record has groups {list(one.groups)}, expected ['model']"
        assert record_digest(one) == record_digest(again), "two models of one generator differ"
        assert record_digest(through_frame(one)) == record_digest(one), "a frame changes the model"
        _check_finite(one.groups[MODEL], "the initial model")

    def test_training_gives_an_update_of_the_models_form(self) -> None:
        """Check that an update has the model's arrays, finite, the shard's size, and weighted means as metrics."""
        workload = self.build()
        model = self._model(workload)
        update = self._train(workload, model, 1)
        wanted = {name: (array.dtype, array.shape) for name, array in model.groups[MODEL].items()}
        found = {name: (array.dtype, array.shape) for name, array in update.groups[MODEL].items()}
        assert found == wanted, f"the update is {found}, the model {wanted}"
        _check_finite(update.groups[MODEL], "the update")
        size = workload.shard(1).num_examples
        assert update.num_examples == size, f"num_examples is {update.num_examples}, the shard has {size}"
        _check_metrics(update.metrics, "training")

    def test_training_depends_on_its_arguments_alone(self) -> None:
        """Check that a client's bits are repeatable, whichever clients trained before; the model is read-only."""
        workload = self.build()
        model = read_only(self._model(workload))  # a write raises
        alone = _digest(self._train(self.build(), model, 2))
        after_others = [_digest(self._train(workload, model, client)) for client in (0, 1, 2, 2)]
        assert after_others[2] == after_others[3] == alone, "the same job has other bits after other jobs"

    def test_a_rule_sees_every_step(self) -> None:
        """Check that `begin` comes first and names arrays of the model, and each step shows a gradient for each."""
        workload, spy = self.build(), Spy()
        model = self._model(workload)
        seen = _digest(self._train(workload, model, 0, spy))
        assert spy.trained, "the rule's begin was not called, or named no array"
        strangers = set(spy.trained) - {(group, name) for group, name, _ in model.items()}
        assert not strangers, f"begin names arrays that the model does not have: {strangers}"
        assert spy.steps, "the rule's adjust_gradients was not called"
        assert set(spy.steps) == {len(spy.trained)}, f"{len(spy.trained)} arrays, but steps with {set(spy.steps)}"
        assert seen == _digest(self._train(workload, model, 0)), "a rule that does nothing changes the bits"

    def test_parts_of_the_held_out_data_are_the_whole(self) -> None:
        """Check that the examples and metrics of the held-out data add up to the same in any number of parts."""
        workload = self.build()
        inputs = {MODEL: read_only(self._model(workload))}
        totals = []
        for parts in (1, 3):
            shards = [workload.held_out(part, parts) for part in range(parts)]
            held_out = [shard for shard in shards if shard is not None]
            if not held_out:
                return
            metrics = [workload.evaluate(inputs, shard) for shard in held_out]
            for each in metrics:
                _check_metrics(each, "evaluation")
            totals.append((sum(shard.num_examples for shard in held_out), _summed(metrics)))
        (whole, metrics_of_whole), (cut, metrics_of_parts) = totals
        assert whole == cut, f"{whole} held-out examples in one part, {cut} in three"
        for name, value in metrics_of_whole.items():
            other = metrics_of_parts[name]
            assert np.isclose(value, other, rtol=1e-3), f"{name} is {value} in one part, {other} in three"

    def test_logits_are_one_row_per_example(self) -> None:
        """Check that logits are (n, K) and finite, with n labels below K if known."""
        workload = self.build()
        if not isinstance(workload, HasLogits):
            return
        shard = workload.shard(0)
        logits, labels = workload.logits({MODEL: self._model(workload)}, shard)
        assert logits.ndim == 2 and len(logits) == shard.num_examples, f"{logits.shape} for {shard.num_examples}"
        assert np.isfinite(logits).all(), "logits are not finite"
        if labels is not None:
            assert labels.shape == (len(logits),) and (labels >= 0).all() and (labels < logits.shape[1]).all()

    def test_a_group_at_once_is_its_clients_one_by_one(self) -> None:
        """Check that `train_group` is `train` within the tolerance, and a client's bits do not depend on the others."""
        workload = self.build()
        if not isinstance(workload, TrainsGroups):
            return
        inputs = {MODEL: read_only(self._model(workload))}

        def together(clients: Sequence[int]) -> list[Update]:
            shards = [workload.shard(client) for client in clients]
            rngs = [generator(1, "train", client) for client in clients]
            return workload.train_group([_job(client) for client in clients], inputs, shards, rngs)

        group = together([0, 1, 2])
        assert _digest(together([2, 1])[1]) == _digest(group[1]), "a client's bits depend on who is in its group"
        for client, update in enumerate(group):
            alone = self._train(workload, inputs[MODEL], client)
            for name, array in alone.groups[MODEL].items():
                gap = float(np.abs(array.astype(np.float64) - update.groups[MODEL][name]).max(initial=0.0))
                assert gap <= self.tolerance, f"client {client}: {name} is {gap} from its own training"

    def test_it_explains_itself(self) -> None:
        """Check that the docstring's first line is a sentence, and that every setting has a description."""
        assert_explained(Kind.WORKLOAD, self.name)

    def build(self) -> AnyWorkload:
        """Build the workload: the plug-in `name` by default, for `clients` clients."""
        table = {**self.settings, "name": self.name}
        experiment = Experiment.parse({"rounds": 2, "clients": self.clients, "strategy": "fedavg", "workload": table})
        return build_workload(experiment.workload, experiment)

    def _model(self, workload: AnyWorkload) -> Record:
        return workload.init(generator(1, "init"))

    def _train(self, workload: AnyWorkload, model: Record, client: int, rule: LocalRule | None = None) -> Update:
        shard = workload.shard(client)
        return workload.train(_job(client), {MODEL: model}, shard, rule, generator(1, "train", client))


def _job(client: int) -> Job:
    return Job(round=1, client=client)


def _digest(update: Update) -> str:
    return arrays_sha256(update.groups[MODEL])


def _check_finite(arrays: Arrays, what: str) -> None:
    for name, array in arrays.items():
        assert array.dtype.kind in "iub" or np.isfinite(array).all(), f"{what}: {name} is not finite"


def _check_metrics(metrics: Metrics, what: str) -> None:
    assert metrics, f"{what} gives no metric"
    for name, mean in metrics.items():
        assert mean.weight > 0 and np.isfinite(mean.sum), f"{what}: metric {name!r} is {mean}"


def _summed(metrics: Sequence[Metrics]) -> Mapping[str, float]:
    names = metrics[0]
    return {
        name: sum(each[name].sum for each in metrics) / sum(each[name].weight for each in metrics) for name in names
    }
