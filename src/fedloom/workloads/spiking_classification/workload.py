"""Spiking classification: data, model, local training and firing rates on an agent."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import Inputs, LocalRule, WorkloadInfo
from fedloom.core.records import Array, Arrays, Info, Job, Mean, Metrics, Update
from fedloom.core.seeds import integer_seed
from fedloom.workloads._base.images import image_rows
from fedloom.workloads._base.rows import RowData, TensorRows
from fedloom.workloads._base.workload import TorchWorkload
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._spiking.encoders import Encoder, Pixels, row_noise
from fedloom.workloads._spiking.energy import energy_sum, rate_sums, spike_sum
from fedloom.workloads._spiking.group import GroupTrainer
from fedloom.workloads._spiking.layers import Trace
from fedloom.workloads._spiking.losses import Loss, masked_means
from fedloom.workloads._spiking.networks import Network, Plan, build_network
from fedloom.workloads._spiking.neurons import Dynamics
from fedloom.workloads._spiking.rates import Layers, RateMeter
from fedloom.workloads._spiking.traces import RateTrace
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.trainer import evaluate_in_batches
from fedloom.workloads._vision.augment import augment_images
from fedloom.workloads.spiking_classification.config import Config


class SpikingClassification(TorchWorkload[Config]):
    """Classification of images by the spikes of an output layer."""

    own_training = True

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._images = images = load_images(config.data)
        pixels = Pixels.of(images.x_train, images.info["mean"], images.info["std"])
        self._encoder = Encoder(config.encoder, config.time_steps, images.shape, pixels)
        self._loss = Loss(config.loss, config.correct_rate, config.incorrect_rate)
        self._dynamics = Dynamics.of(config.neuron)
        self._evaluation_seed = integer_seed(experiment.seed, "spiking_classification", "evaluate")
        super().__init__(config, experiment)
        self._padded_size = min(config.training.batch_size, int(self.shards.sizes.max()))
        with exact(self.device, seed=0):
            self._meter = RateMeter(
                self.model().to(self.device),
                config.time_steps,
                lambda rows, noise: self._encoded("train", rows, noise),
                self.evaluation_batch,
            )
        self._group = GroupTrainer(
            settings=config.training,
            dynamics=self._dynamics,
            encoder=self._encoder,
            loss=self._loss,
            time_steps=config.time_steps,
            images=self._parts["train"].inputs[0],
            labels=self._parts["train"].targets,
            padded_size=self._padded_size,
        )

    def dataset(self) -> RowData:
        images = self._images
        self._parts = {
            "train": TensorRows.of(images.x_train, images.y_train, self.device),
            "test": TensorRows.of(images.x_test, images.y_test, self.device),
        }
        return image_rows(images, self._parts["train"], self._parts["test"])

    def model(self) -> Network:
        config = self.config
        return build_network(
            Plan(
                model=config.model,
                neuron=config.neuron,
                time_steps=config.time_steps,
                shape=self._encoder.step_shape,
                num_labels=self._images.num_labels,
                twin=config.twin,
            )
        )

    def initial_info(self, model: nn.Module) -> Info:
        return {"outputs": self._images.num_labels}

    @property
    def program(self) -> Literal["group", "loop"]:
        """Return how a group of clients is trained: by `train_group`, or one by one."""
        return "group" if self.config.batched else "loop"

    def describe(self) -> WorkloadInfo:
        return replace(super().describe(), watch={} if self.config.twin else {"dead": self.config.advice_when_dead})

    def train(
        self,
        job: Job,
        inputs: Inputs,
        shard: RowShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        """Train one client; the metrics include `loss` and for each spiking layer `rate/<layer>`."""
        tally: dict[str, Tensor] = {}
        traced = RateTrace.of(len(shard.rows), self.config.training, self.config.time_steps)
        steps = itertools.count()

        def loss(rows: Tensor) -> Tensor:
            mean, trace = self._minibatch(rows)
            for name, rate in rate_sums(trace, len(rows)).items():
                tally[name] = tally[name] + rate if name in tally else rate
            if _is_traced(job):
                spikes = {name: s.detach()[:, : len(rows)].sum((0, 1)) for name, s in trace.spikes.items()}
                traced.add(next(steps), [(n, s.flatten().cpu().numpy()) for n, s in spikes.items()], len(rows))
            return mean

        local = replace(self.local_training(self.network, job, shard, rule), loss_of=loss)
        update = self.trainer.train(inputs, local, rng)
        weight = update.metrics["loss"].weight
        rates = {f"rate/{name}": Mean(float(rate), weight) for name, rate in tally.items()}
        return replace(update, metrics={**update.metrics, **rates}, traces=traced.rates())

    def train_group(
        self,
        jobs: Sequence[Job],
        inputs: Inputs,
        shards: Sequence[RowShard],
        rngs: Sequence[np.random.Generator],
    ) -> list[Update]:
        """Train every job's client without a rule, as one program if `program` is `group`.

        Args:
            jobs: the group's jobs; each reads `inputs["model"]`.
            inputs: the exchange's inputs.
            shards: each job's training data; sizes may differ.
            rngs: each job's own randomness, as `train` would get it.

        Returns:
            An update for each job, in order. Equal to `train`'s but for rounding; arrays are the updates' own. A
            job's bits do not depend on which others are in its group.
        """
        if self.program == "loop":
            one_by_one = zip(jobs, shards, rngs, strict=True)
            return [_copied(self.train(job, inputs, shard, None, rng)) for job, shard, rng in one_by_one]
        self.trainer.load(inputs)
        rows, trace = [_rows(shard) for shard in shards], any(map(_is_traced, jobs))
        return self._group.train(self.trainer.arrays, rows, rngs, trace=trace)

    def evaluate(self, inputs: Inputs, shard: RowShard) -> Metrics:
        """Return metrics on a test part, or on a client's own data.

        `loss`, `accuracy` (of equal counts the first class wins); and if neurons spike, per example: `rate/<layer>`,
        `spikes` (of all layers, over all steps), `dead` (fraction of layers whose rate is below `dead_rate_floor`); and
        `energy_pj`, an estimate (see `_spiking/energy.py`). A Poisson encoder's noise is the same in every evaluation.
        """
        part = "test" if shard.held_out else "train"
        labels = self._parts[part].targets
        rows = torch.from_numpy(shard.rows).to(self.device)
        layers = [] if self.config.twin else self._meter.layers
        names = ["loss", "accuracy", "energy_pj", *(["spikes"] if layers else []), *(f"rate/{n}" for n in layers)]

        def measure(batch: slice) -> list[Tensor]:
            truth, trace = labels.index_select(0, rows[batch]), Trace()
            outputs = self.network(self._encoded(part, shard.rows[batch], self._evaluation_seed), trace)
            right = (outputs.sum(0).argmax(1) == truth).sum()
            sums = [self._loss(outputs, truth).sum(), right, energy_sum(trace, spiking_input=self._encoder.spikes)]
            return [*sums, spike_sum(trace), *rate_sums(trace).values()] if layers else sums

        with exact(self.device), torch.inference_mode():
            self.trainer.load(inputs)
            self.network.eval()
            metrics = dict(evaluate_in_batches(len(rows), self.evaluation_batch, measure, names))
        if layers and len(rows):
            dead = np.mean([metrics[f"rate/{name}"].value < self.config.dead_rate_floor for name in layers])
            metrics["dead"] = Mean(float(dead) * len(rows), float(len(rows)))
        return metrics

    def logits(self, inputs: Inputs, shard: RowShard) -> tuple[Array, Array]:
        """Return pseudo-logits: counts of output spikes, or for the loss `rate` counts over steps, (n, K) float32.

        The labels follow, (n,). A Poisson encoder's noise is the same in every evaluation.
        """
        part = "test" if shard.held_out else "train"
        steps = self.config.time_steps if self.config.loss == "rate" else 1
        parts = []
        with exact(self.device), torch.inference_mode():
            self.trainer.load(inputs)
            self.network.eval()
            for start in range(0, len(shard.rows), self.evaluation_batch):
                rows = shard.rows[start : start + self.evaluation_batch]
                outputs = self.network(self._encoded(part, rows, self._evaluation_seed), Trace())
                parts.append(outputs.sum(0) / steps)
        labels = self._parts[part].targets.cpu().numpy()[shard.rows]
        return torch.cat(parts).cpu().numpy(), labels

    def firing_rates(
        self,
        arrays: Arrays,
        shard: RowShard,
        rng: np.random.Generator,
        *,
        layers: Layers = "output",
        per_sample: bool = False,
    ) -> dict[str, Array]:
        """Return the mean firing rate of every neuron on a client's data, in evaluation mode.

        Independent of the order of the examples. Noise of the encoder follows from the generator's state, which is
        read and not advanced: two calls with the same generator see the same spikes going in.

        Args:
            arrays: a model of this workload; it is not retained.
            shard: the client's training data, n examples.
            rng: for a Poisson encoder's noise.
            layers: the output layer alone, or every spiking layer.
            per_sample: rates of each example instead of their mean.

        Returns:
            For each layer its rates, float64 in [0, 1], shape (neurons,), or (n, neurons) and then multiples of
            1 / time_steps. The output layer is `output` and has a neuron for each class.

        Raises:
            ConfigError: the workload is a non-spiking twin.
            BadUpdate: the arrays are not this network's.
        """
        if self.program == "group":
            return self.firing_rates_group([arrays], [shard], [rng], layers=layers, per_sample=per_sample)[0]
        self._require_spikes()
        with exact(self.device):
            return self._meter.measure(arrays, _rows(shard), rng, layers, per_sample=per_sample)

    def firing_rates_group(
        self,
        models: Sequence[Arrays],
        shards: Sequence[RowShard],
        rngs: Sequence[np.random.Generator],
        *,
        layers: Layers = "output",
        per_sample: bool = False,
    ) -> list[dict[str, Array]]:
        """Return `firing_rates` of many models, each on its own shard; as one program if `program` is `group`."""
        self._require_spikes()
        if self.program == "loop":
            each = zip(models, shards, rngs, strict=True)
            return [self.firing_rates(m, s, rng, layers=layers, per_sample=per_sample) for m, s, rng in each]
        rows = [_rows(shard) for shard in shards]
        with exact(self.device):
            return self._meter.measure_group(models, rows, rngs, layers, self._dynamics, per_sample=per_sample)

    def class_errors(self, arrays: Arrays, shard: RowShard, rng: np.random.Generator) -> Array:
        """Return the predicted gain of a client's examples for each class: the loss's mean negative gradient.

        Args:
            arrays: the model's.
            shard: the client's training data, n examples.
            rng: for a Poisson encoder's noise; read, not advanced.

        Returns:
            Mean over the examples of `Loss.errors`, float64 in [-1, 1], shape (classes,).
        """
        rows = _rows(shard)
        labels = self._parts["train"].targets.index_select(0, torch.from_numpy(rows).to(self.device))
        with exact(self.device):
            outputs = self._meter.outputs(arrays, rows, rng, self._dynamics if self.program == "group" else None)
            return np.asarray(self._loss.errors(outputs, labels).mean(0).cpu().numpy())

    def _minibatch(self, rows: Tensor) -> tuple[Tensor, Trace]:
        """Return the mean loss of these training rows, and the pass that gave it; rows beyond theirs are padding.

        An MLP's minibatch is padded as in a group, so that both programs do the same sums in the same order. (With
        batch statistics padding would be wrong, and groups have none.)
        """
        images, labels = self._parts["train"].inputs[0], self._parts["train"].targets
        count = len(rows)
        noise: Tensor | None = None
        if self._encoder.noisy:
            noise = torch.rand((count, *self._encoder.noise_shape), device=self.device)
        if self.config.model.name == "mlp" and count < self._padded_size:
            missing = self._padded_size - count
            rows = torch.cat([rows, rows[-1:].expand(missing)])
            noise = None if noise is None else torch.cat([noise, noise.new_zeros(missing, *noise.shape[1:])])
        trace = Trace()
        shown = augment_images(images.index_select(0, rows), self.config.augment)
        outputs = self.network(self._encoder(shown, noise), trace)
        losses = self._loss(outputs, labels.index_select(0, rows))
        mask = (torch.arange(len(rows), device=self.device) < count).to(losses)
        return masked_means(losses.unsqueeze(0), mask.unsqueeze(0))[0], trace

    def _encoded(self, part: str, rows: Array, seed: int) -> Tensor:
        """Return rows of the training or test set, encoded with noise that follows from seed and row alone."""
        noise = row_noise(seed, part, rows, self._encoder.noise_shape).to(self.device) if self._encoder.noisy else None
        index = torch.from_numpy(rows).to(self.device)
        return self._encoder(self._parts[part].inputs[0].index_select(0, index), noise)

    def _require_spikes(self) -> None:
        if self.config.twin:
            raise ConfigError(
                "workload.twin: true, but a non-spiking twin has no firing rates. Set it to false, or use a selection "
                "that does not need them"
            )


def _is_traced(job: Job) -> bool:
    """Return whether a measure uses rates observed in training (`knobs["measurement"]`)."""
    return job.knobs.get("measurement") == "training"


def _rows(shard: RowShard) -> Array:
    return shard.rows


def _copied(update: Update) -> Update:
    """Return the update with copies of its arrays."""
    groups = {group: {name: array.copy() for name, array in arrays.items()} for group, arrays in update.groups.items()}
    return replace(update, groups=groups)


def build_workload(config: Config, experiment: Experiment) -> SpikingClassification:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: the data is missing on this machine, or invalid.
        ConfigError: the partition leaves a client without examples, the encoder or network does not fit the data, or a
            required GPU is missing.
    """
    return SpikingClassification(config, experiment)
