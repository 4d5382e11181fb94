"""MRI reconstruction on an agent: data, the models side by side, unlearning, and its audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, UnsupportedFeature
from fedloom.core.protocols import Inputs, LocalRule
from fedloom.core.records import MODEL, Arrays, Info, Job, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator
from fedloom.workloads._base.forgetting import share_of, uphill
from fedloom.workloads._base.rows import RowData
from fedloom.workloads._base.task import RowTask, minibatches
from fedloom.workloads._data import cache
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.scope import choose_device, exact
from fedloom.workloads._torch.trainer import LocalTraining, Trainer
from fedloom.workloads.mri_unlearning.acquisitions import Acquisitions
from fedloom.workloads.mri_unlearning.config import Config, Simulated
from fedloom.workloads.mri_unlearning.fastmri_files import fastmri
from fedloom.workloads.mri_unlearning.learning import Objective, rows_for, slice_losses
from fedloom.workloads.mri_unlearning.measuring import measured
from fedloom.workloads.mri_unlearning.members import Members, OneModelsRule, named, one_of
from fedloom.workloads.mri_unlearning.nets import cropped, make_net
from fedloom.workloads.mri_unlearning.procedures import PROCEDURES, TRAINING, Procedure, procedure_of
from fedloom.workloads.mri_unlearning.simulate import simulated


class MriUnlearning(RowTask[Config]):
    """Models of one architecture: the original, the oracle, and one per procedure that continues the original."""

    own_training = True
    evaluation_batch = 8

    def __init__(self, config: Config, experiment: Experiment) -> None:
        if config.procedures:
            rounds = experiment.rounds_known(config.rounds_needed_by())
            if rounds <= config.unlearning.rounds:
                raise ConfigError(
                    f"workload.unlearning.rounds: expected fewer than rounds = {rounds}, got "
                    f"{config.unlearning.rounds}: the original needs rounds to be trained in"
                )
            self._last_training = rounds - config.unlearning.rounds
        data = config.data
        self._set = simulated(data, experiment.seed) if isinstance(data, Simulated) else fastmri(data)
        device = choose_device(config.training.device)
        known = [each for each in self._set.train if each.forget]
        self.train_rows = Acquisitions(self._set.train, self._set.anatomies, config.mask, device)
        self.test_rows = Acquisitions((*self._set.test, *known), self._set.anatomies, config.mask, device)
        self._trained_on = frozenset(range(len(self._set.test), len(self._set.test) + len(known)))
        super().__init__(config, experiment)
        with exact(self.device, seed=0):
            self.single = Trainer(make_net(config.net), config.training, self.device)

    def dataset(self) -> RowData:
        rows, names = self.train_rows, self._set.anatomies
        files = cache.digest_of_files(self._set.files)
        return RowData(
            train=rows,
            test=self.test_rows,
            info={**self._set.info, "num_labels": len(names), "label_names": list(names)},
            sha256=cache.digest_of([self.config.data.model_dump(mode="json"), files, self.experiment.seed]),
            labels=rows.labels,
            num_labels=len(names),
            label_names=names,
            groups=rows.sites,
        )

    def model(self) -> nn.Module:
        return Members(self.config.members, self.config.net)

    def initial_info(self, model: nn.Module) -> Info:
        return {}

    def held_out(self, part: int, parts: int) -> RowShard | None:
        """Return all held-out volumes as the first part: the audit compares models on whole sets, so none is cut."""
        return RowShard.test_part(len(self.test_rows), 0, 1) if part == 0 else None

    def active(self, round_number: int) -> Sequence[str]:
        """Return the models that are trained in a round: first the original and the oracle, then the procedures'."""
        if not self.config.procedures or round_number <= self._last_training:
            return [name for name in self.config.members if name in TRAINING]
        return self.config.procedures

    def train(
        self, job: Job, inputs: Inputs, shard: RowShard, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        """Train one client's models of this round; metrics are `loss_<model>`, and `loss`, the last one's.

        In a federation it sends the arrays of the models it trained, alone.
        """
        seed, metrics, count = int(rng.integers(2**62)), dict[str, Mean](), 0
        sent: Arrays = {} if self._sends_part else inputs[MODEL].groups[MODEL]
        found = dict(sent)
        for member in self.active(job.round):
            update = self._train_one(member, job, inputs, shard, rule, seed)
            if not update.num_examples:
                continue
            count = max(count, update.num_examples)
            found |= named({name: np.array(array) for name, array in update.groups[MODEL].items()}, member)
            metrics |= {f"loss_{member}": update.metrics["loss"], "loss": update.metrics["loss"]}
        if not count:
            return Update(num_examples=0, groups={MODEL: found})
        return Update(num_examples=count, groups={MODEL: found}, metrics=metrics)

    @property
    def _sends_part(self) -> bool:
        return len(self.config.members) > 1 and (self.experiment.of_sites or self.experiment.num_clients > 1)

    def _train_one(
        self, member: str, job: Job, inputs: Inputs, shard: RowShard, rule: LocalRule | None, seed: int
    ) -> Update:
        unlearning, procedure = self.config.unlearning, procedure_of(member)
        rows = rows_for(procedure, shard.rows, self.train_rows, unlearning.retain_share, self.experiment.seed)
        seen = None if rule is None else OneModelsRule(rule, member)
        begun, local = member, self._local(procedure, job, rows, seen)
        if member in PROCEDURES:
            if job.round == self._last_training + 1:
                begun = "original"
            local = replace(local, rate=unlearning.learning_rate or self.config.training.learning_rate, factor=1.0)
        return self.single.train(one_of(inputs, begun), local, generator(seed, "mri", member))

    def _local(self, procedure: Procedure, job: Job, rows: np.ndarray, rule: LocalRule | None) -> LocalTraining:
        net, config = self.single.model, self.config
        local = super().local_training(net, job, RowShard(rows), rule)
        return replace(
            local,
            loss_of=Objective(procedure, net, self.train_rows, config.unlearning, config.l1_weight),
            validate=None,
        )

    def _forget(self, job: Job, inputs: Inputs, state: Record | None, rng: np.random.Generator) -> Update:
        if self.config.members != ("original",):
            raise UnsupportedFeature(
                f"workload 'mri_unlearning': a run of the models {list(self.config.members)} unlearns by itself. To "
                "forget a client, train one model: oracle = false, procedures = []"
            )
        shard, knobs = self.shard(job.client), job.knobs
        noisy = knobs.get("labels") == "random"
        procedure = Procedure("forget", "all", "noisy" if noisy else "plain")
        objective = Objective(
            procedure, self.single.model, self.train_rows, self.config.unlearning, self.config.l1_weight, noisy
        )
        rows = shard.rows if "share" not in knobs else share_of(shard.rows, knobs, self.experiment.seed, job.client)
        local = replace(self._local(procedure, job, rows, None), loss_of=objective)
        if "radius" in knobs:
            local = uphill(local, self.single, float(knobs["radius"]))
        update = self.single.train(one_of(inputs, "original"), local, rng)
        return replace(update, groups={MODEL: named(update.groups[MODEL], "original")})

    def evaluate(self, inputs: Inputs, shard: RowShard) -> Metrics:
        """Return the metrics of `measuring.measured` for held-out volumes; without a name they are the last model's.

        On a client's own slices it is the original's `loss`, under one mask for each volume.
        """
        with self.evaluating(inputs):
            nets = {name: self._members.nets[name] for name in self.config.members}
            if not shard.held_out:
                return self._own_loss(nets["original"], shard)
            volumes = sorted({int(each) for each in self.test_rows.volume_of[shard.rows]})
            found = dict(measured(nets, self.test_rows, volumes, self._trained_on))
        last = f"_{self.config.members[-1]}"
        return found | {name.removesuffix(last): mean for name, mean in found.items() if name.endswith(last)}

    def _own_loss(self, net: nn.Module, shard: RowShard) -> Metrics:
        total, rows = 0.0, self.train_rows
        for volume in np.unique(rows.volume_of[shard.rows]).tolist():
            own = shard.rows[rows.volume_of[shard.rows] == volume]
            for batch in minibatches(own, self.evaluation_batch, self.device):
                sample = rows.held_out(batch)
                image: Tensor = cropped(net(sample.measured, sample.mask, sample.centre), sample.target)
                total += float(slice_losses(image, sample.target, sample.ranges, self.config.l1_weight).sum())
        return {"loss": Mean(total, float(len(shard.rows)))} if len(shard.rows) else {}

    @property
    def _members(self) -> Members:
        if not isinstance(self.network, Members):
            raise ConfigError(f"workload mri_unlearning: expected its own model, got a {type(self.network).__name__}")
        return self.network


def build_workload(config: Config, experiment: Experiment) -> MriUnlearning:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: a volume is missing on this machine, or damaged; the message says which.
        ConfigError: the settings do not fit the data, the rounds or the strategy.
        PackageMissing: the extra `mri` is not installed.
    """
    many = experiment.of_sites or experiment.num_clients > 1
    if many and len(config.members) > 1 and experiment.strategy.name != "partial":
        raise ConfigError(
            f"strategy.name: clients train different ones of the models {list(config.members)}, which needs 'partial', "
            f"got {experiment.strategy.name!r}. Or train one model: oracle = false, procedures = []"
        )
    return MriUnlearning(config, experiment)
