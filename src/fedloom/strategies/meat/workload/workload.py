"""Adversarial training on an agent: local training, statistics for ensembles, and attacks on any model it is given.

Besides `train` and `evaluate` it does three actions, on inputs of any name:

- `statistics`: batch normalisation's statistics for each input, over the client's clean training images. The update has
  a group for every input.
- `robustness`: for one input and one part of the images, how many are right clean and under PGD. In `info`.
- `attack`: for one input and one part, which images are correct under each attack of the table. In `info`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import Action, Inputs, LocalRule
from fedloom.core.records import MODEL, Arrays, Info, Job, JsonObject, Mean, Metrics, Record, Update
from fedloom.strategies.meat.workload.averaging import MovingAverage
from fedloom.strategies.meat.workload.config import Config
from fedloom.strategies.meat.workload.defenses import loss_of, perturbed
from fedloom.strategies.meat.workload.images import Pixels, prepare
from fedloom.strategies.meat.workload.robustness import counted, right_under, table
from fedloom.strategies.meat.workload.statistics import check_batches, reestimate
from fedloom.strategies.meat.workload.weights import perturbation, shift
from fedloom.workloads._attacks.auto import require_auto_attack
from fedloom.workloads._base.images import image_rows
from fedloom.workloads._base.rows import RowData
from fedloom.workloads._base.workload import TorchWorkload
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.arrays import as_array
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._vision.augment import augmented
from fedloom.workloads._vision.models import build_model

SEAT = "seat"
"""Group of an update with the moving average."""
_VELOCITY = "velocity"


class AdversarialTraining(TorchWorkload[Config]):
    """Local adversarial training; a client's momentum and moving average are stored between rounds."""

    keeps_client_state = True
    own_training = True

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._rounds = experiment.rounds_known("workload meat")
        self._num_faulty = round(config.faulty_clients * experiment.num_clients)
        self._loss = loss_of(config.defense)
        self._perturbation: dict[str, Tensor] = {}
        self._source = load_images(config.data)
        super().__init__(config, experiment)
        batches = -(-int(self.shards.sizes.min()) // config.training.batch_size)
        check_batches(experiment.strategy.wanted_actions().get("statistics", {}).get("rule"), batches)

    def dataset(self) -> RowData:
        experiment, data = self.experiment, self._source
        self._images = images = prepare(self.config, data, experiment.num_clients, experiment.seed, self.device)
        used = {"num_train": len(images.train), "num_validation": len(images.validation)}
        return replace(
            image_rows(data, images.train, images.test),
            info={**data.info, **used},
            labels=images.train.y.cpu().numpy(),
            shards=images.shards,
        )

    def model(self) -> nn.Module:
        return build_model(self.config.model, self._source.shape, self._source.num_labels)

    def initial_info(self, model: nn.Module) -> Info:
        return {}

    def train(
        self,
        job: Job,
        inputs: Inputs,
        shard: RowShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
        state: Record | None = None,
    ) -> Update:
        """Train one client; the update includes its new state, and the moving average if enabled."""
        stored = state or Record()
        self.trainer.load(inputs)  # so that a first average begins with these weights
        average = None
        if self.config.seat:
            average = MovingAverage(
                lambda: self.trainer.arrays, stored.groups.get(SEAT), int(stored.info.get("steps", 0))
            )
        perturbs = self.config.defense.awp_gamma > 0 and job.round > self.config.defense.awp_warmup

        def after_step() -> None:
            if perturbs:
                shift(self.network, self._perturbation, -1.0)
            if average is not None:
                average.update()

        local = replace(
            self.local_training(self.network, job, shard, rule),
            loss_of=lambda rows: self._batch_loss(rows, perturbs),
            rate=self.learning_rate(job.round),
            velocity=stored.groups.get(_VELOCITY),
            after_step=after_step,
        )
        update = self.trainer.train(inputs, local, rng)
        groups: dict[str, Arrays] = {MODEL: self.trainer.arrays}
        remembered: dict[str, Arrays] = {}
        if self.config.keep_momentum:
            remembered[_VELOCITY] = self.trainer.velocity
        if average is not None:
            groups[SEAT] = remembered[SEAT] = average.arrays
        if job.client < self._num_faulty:
            groups = {name: _with_outliers(arrays, self.config.faulty_scale, rng) for name, arrays in groups.items()}
        info = {"steps": average.steps} if average is not None else {}
        return replace(update, groups=groups, state=Record(remembered, info) if remembered else None)

    def evaluate(self, inputs: Inputs, shard: RowShard, state: Record | None = None) -> Metrics:
        """`loss` and `accuracy` on all images; `robust_accuracy` under PGD on the first of them, as settings say."""
        images = self._images.test if shard.held_out else self._images.train
        rows = torch.from_numpy(shard.rows).to(self.device)
        attacked = rows[rows < self.config.measure.examples] if shard.held_out else rows
        with self._using(inputs[MODEL], seed=0):
            pieces = [_rows(images, part) for part in torch.split(rows, self.evaluation_batch) if len(part)]
            with torch.no_grad():
                logits = [(self.network(piece.x), piece.y) for piece in pieces]
            loss = sum(float(F.cross_entropy(z, y, reduction="sum")) for z, y in logits)
            right = sum(int((z.argmax(1) == y).sum()) for z, y in logits)
            robust = right_under(self.network, _rows(images, attacked), self._pgd, self.config.attack.epsilon)
        return {
            "loss": Mean(loss, float(len(rows))),
            "accuracy": Mean(float(right), float(len(rows))),
            "robust_accuracy": Mean(float(robust.sum()), float(len(attacked))),
        }

    @property
    def actions(self) -> Mapping[str, Action]:
        """Return `statistics`, `robustness` and `attack`, as described above."""
        return {
            **super().actions,
            "statistics": self._statistics,
            "robustness": self._robustness,
            "attack": self._attack,
        }

    def learning_rate(self, round: int) -> float:
        """Return the step size of a round (from 1): piecewise linear in the fraction of the run it completes."""
        shares, factors = zip(*self.config.schedule, strict=True)
        return self.config.training.learning_rate * float(np.interp(round / self._rounds, shares, factors))

    def _batch_loss(self, rows: Tensor, perturbs: bool) -> Tensor:
        config, model = self.config, self.network
        batch = _rows(self._images.train, rows)
        x = augmented(batch.x, config.augment)
        moved = perturbed(model, x, batch.y, config.attack, config.defense)
        if perturbs:
            self._perturbation = perturbation(
                model, lambda: self._loss(model, x, moved, batch.y), config.defense.awp_gamma
            )
            shift(model, self._perturbation, 1.0)
        return self._loss(model, x, moved, batch.y)

    def _statistics(self, job: Job, inputs: Inputs, state: Record | None, rng: np.random.Generator) -> Update:
        shard = self.shard(job.client)
        order = torch.from_numpy(shard.rows[rng.permutation(len(shard.rows))]).to(self.device)
        batches = torch.split(order, self.config.training.batch_size)
        seed, groups = int(rng.integers(2**63)), dict[str, Arrays]()
        for name in job.inputs:
            with self._using(inputs[name], seed):
                images = (augmented(_rows(self._images.train, rows).x, self.config.augment) for rows in batches)
                found = reestimate(self.network, images, job.knobs["rule"])
                groups[name] = {buffer: np.array(as_array(tensor.cpu())) for buffer, tensor in found.items()}
        return Update(num_examples=shard.num_examples, groups=groups)

    def _robustness(self, job: Job, inputs: Inputs, state: Record | None, rng: np.random.Generator) -> Update:
        return self._on_images(job, inputs, rng, self._measured)

    def _attack(self, job: Job, inputs: Inputs, state: Record | None, rng: np.random.Generator) -> Update:
        return self._on_images(job, inputs, rng, self._attacked)

    def _on_images(
        self,
        job: Job,
        inputs: Inputs,
        rng: np.random.Generator,
        measure: Callable[[Job, int], JsonObject],
    ) -> Update:
        """Return a measurement of one input. It counts no examples, because nothing was trained on them."""
        (name,) = job.inputs
        with self._using(inputs[name], seed=int(rng.integers(2**63))):
            return Update(num_examples=0, info={"model": name, **measure(job, int(rng.integers(2**31)))})

    def _measured(self, job: Job, seed: int) -> JsonObject:
        settings, epsilon = self.config.measure, self.config.attack.epsilon
        sets = {
            "test": self._images.test.first(settings.examples),
            "validation": self._images.validation.first(settings.validation_examples),
        }
        part, parts = int(job.knobs["part"]), int(job.knobs["parts"])
        return {
            name: counted(self.network, images.part(part, parts), settings.steps, epsilon)
            for name, images in sets.items()
        }

    def _attacked(self, job: Job, seed: int) -> JsonObject:
        images = self._images.test.first(self.config.measure.table_examples)
        piece = images.part(int(job.knobs["part"]), int(job.knobs["parts"]))
        return table(self.network, piece, self.config.measure, self.config.attack.epsilon, seed)

    @contextmanager
    def _using(self, record: Record, seed: int) -> Iterator[None]:
        """Load arrays into the model, in evaluation mode, in a reproducible scope."""
        with exact(self.device, seed):
            self.trainer.load({MODEL: record})
            self.network.eval()
            yield

    @property
    def _pgd(self) -> str:
        return f"pgd-{self.config.measure.steps}"


def _rows(images: Pixels, rows: Tensor) -> Pixels:
    return Pixels(images.x.index_select(0, rows), images.y.index_select(0, rows))


def _with_outliers(arrays: Arrays, scale: float, rng: np.random.Generator) -> Arrays:
    """Return every weight plus N(0, (scale * mean |w|)^2), mean over its array; statistics of batches are unchanged."""
    return {
        name: array
        if "running_" in name or not array.size
        else (array + rng.normal(0.0, scale * float(np.abs(array).mean()), array.shape)).astype(array.dtype)
        for name, array in arrays.items()
    }


def build_workload(config: Config, experiment: Experiment) -> AdversarialTraining:
    """Return the workload a `Config` describes, for the experiment's clients, rounds and seed.

    Raises:
        DataMissing: the data is missing on this machine, or invalid.
        ConfigError: a client has no examples, a required GPU is missing, or there are too few batches
            for the strategy's treatment of batch normalisation.
        UsageError: AutoAttack is enabled and its package is not installed.
    """
    wanted = experiment.strategy.wanted_actions()
    if {"apgd", "autoattack"} & set(config.measure.table) and "attack" in wanted:
        require_auto_attack()
    return AdversarialTraining(config, experiment)
