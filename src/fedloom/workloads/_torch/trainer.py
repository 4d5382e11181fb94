"""The plain local loop: one model instance, reused for every client, trained from the global weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.adapters.names import ADAPTERS
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import LocalRule
from fedloom.core.records import MODEL, Array, Arrays, Info, Mean, Record, Update
from fedloom.workloads._torch.arrays import as_array, as_tensor
from fedloom.workloads._torch.batches import epochs
from fedloom.workloads._torch.optimizers import Optimizer, Sgd, clip_by_norm, make_optimizer
from fedloom.workloads._torch.scope import computing, exact
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads._torch.stopping import Stopper
from fedloom.workloads._torch.whole import Federated, Whole

if TYPE_CHECKING:
    from fedloom.workloads._adapters.adapted import Adapted

_ONE_VALUE = "Expected more than 1 value per channel when training"
"""How PyTorch's batch normalisation says that it cannot normalise a single value."""
Loss = Callable[[Tensor], Tensor]
"""Mean loss of the minibatch with these rows (int64, shape (b,)): a tensor without dimensions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTraining:
    """Arguments of one client's training besides the global model."""

    rows: Array
    """The client's row numbers, shape (n,), int64; with none nothing is trained."""
    loss_of: Loss
    """Mean loss of a minibatch, differentiable in the model's parameters."""
    rule: LocalRule | None = None
    """The strategy's client half."""
    knobs: Info = field(default_factory=dict)
    """Knobs of the rule; here `rate_factor`, which multiplies the settings' step size, is read too."""
    rate: float | None = None
    """Step size of this training; None uses the settings'."""
    factor: float = 1.0
    """What the step size is multiplied by: the round's place in a schedule."""
    validate: Callable[[], float] | None = None
    """Loss on what is held back, called after each epoch, for early stopping; None takes the epoch's training loss."""
    velocity: Arrays | None = None
    """Momentum of `sgd` to continue with, by parameter; None or nothing starts from zero."""
    after_step: Callable[[], None] | None = None
    """Called after every optimiser step."""


class Trainer:
    """A model whose arrays are the federation's, and the loop that trains them.

    All of the model's arrays are sent (`whole.Whole`), or, if the global model is adapters on a frozen base,
    only the adapters' and the head's (`_adapters.adapted.Adapted`). Not thread-safe: one model, one client at a
    time.

    Args:
        model: the model.
        settings: how it is trained.
        device: where.
        optimizer: makes an optimiser of the parameters; None takes the settings'.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        device: torch.device,
        optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
    ) -> None:
        self.model = model.to(device)
        self.device = device
        self._settings = settings
        self._make_optimizer = optimizer or partial(make_optimizer, settings=settings)
        self._part: Federated = Whole(self.model, device)
        self._adapted: Adapted | None = None
        self._prepare_optimizer()

    @property
    def arrays(self) -> dict[str, Array]:
        """Return the model's arrays by name: views of its memory on a CPU, copies from a GPU."""
        return dict(self._part.groups()[MODEL])

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The tensors that are trained, as the optimiser moves them."""
        return self._part.parameters

    @property
    def anchor(self) -> Sequence[Tensor]:
        """The values a rule ties them to, in the same order: those of the input `anchor`, or of the global model."""
        return self._part.anchor

    @property
    def untrained(self) -> list[str]:
        """Return the names of the arrays that no optimiser steps, such as running statistics."""
        trained = {name for group, name in self._part.trained if group == MODEL}
        return [name for name in self.arrays if name not in trained]

    @property
    def velocity(self) -> dict[str, Array]:
        """Return the momentum `sgd` ended its last training with, by parameter; otherwise empty."""
        velocity = self._optimizer.velocity if isinstance(self._optimizer, Sgd) else []
        names = [name for _, name in self._part.trained]
        return {name: np.array(as_array(tensor.cpu())) for name, tensor in zip(names, velocity, strict=False)}

    def load(self, inputs: Mapping[str, Record]) -> None:
        """Set the model to the global one in `inputs`.

        Raises:
            BadUpdate: the arrays are not this model's.
        """
        with torch.inference_mode(False):  # what an evaluation makes here, training will use
            self._become(adapters=ADAPTERS in inputs[MODEL].info)
            self._part.load(inputs)
            if self._optimized is not self._part.parameters:
                self._prepare_optimizer()

    def train(self, inputs: Mapping[str, Record], local: LocalTraining, rng: np.random.Generator) -> Update:
        """Train from a global model on one client's examples.

        Args:
            inputs: the global model, and the other inputs.
            local: the client's examples, and how it learns from them.
            rng: the job's own randomness: it seeds torch, then gives each epoch's order.

        Returns:
            The trained arrays (views of the model's memory on a CPU), and the mean training loss; the global model's
            arrays and no metrics if there are no examples.
        """
        seed = int(rng.integers(2**63))
        with exact(self.device, seed), torch.enable_grad():
            self.load(inputs)
            if not len(local.rows):
                return Update(num_examples=0, groups=self._part.groups())
            self._begin(local)
            steps = self._train(local, rng)
            losses = torch.stack([loss for loss, _ in steps]).to("cpu", torch.float64).numpy()
            counts = np.array([count for _, count in steps], np.float64)
        return Update(
            num_examples=len(local.rows),
            groups=self._part.groups(),
            metrics={"loss": Mean(float(losses @ counts), float(counts.sum()))},
        )

    def _train(self, local: LocalTraining, rng: np.random.Generator) -> list[tuple[Tensor, int]]:
        """Do a client's steps; returns the loss and the number of examples of each."""
        settings, steps = self._settings, list[tuple[Tensor, int]]()
        total, base = settings.steps_of(len(local.rows)), self._optimizer.rate
        stopper = None if settings.early_stopping is None else Stopper(settings.early_stopping, self._part.tensors)
        for batches in epochs(local.rows, settings, rng, self.device):
            begun = len(steps)
            for batch in batches:
                if settings.step_schedule.varies:
                    self._optimizer.rate = base * settings.step_schedule.factor(len(steps), total)
                loss = self._step(local, batch)
                if loss is None:
                    continue
                steps.append((loss, len(batch)))
                if local.after_step is not None:
                    local.after_step()
            if stopper is not None and stopper.stops(self._validated(local, steps[begun:])):
                break
        if stopper is not None:
            stopper.restore()
        return steps

    def _validated(self, local: LocalTraining, epoch: Sequence[tuple[Tensor, int]]) -> float:
        """Return the loss for early stopping."""
        if local.validate is None:
            return sum(float(loss) * count for loss, count in epoch) / sum(count for _, count in epoch)
        try:
            self.model.eval()
            return local.validate()
        finally:
            self._part.train_mode()

    def _begin(self, local: LocalTraining) -> None:
        """Prepare model, optimiser and rule for a client."""
        self._part.train_mode()
        self._optimizer.reset()
        self._optimizer.rate = (self._rate(local.knobs) if local.rate is None else local.rate) * local.factor
        if local.velocity:
            self._resume(local.velocity)
        for parameter in self._part.parameters:
            parameter.grad = None  # a client that failed halfway may have left one
        if local.rule is not None:
            local.rule.begin(self._part.trained, local.knobs)

    def _resume(self, velocity: Arrays) -> None:
        """Continue with the momentum at the end of an earlier training."""
        if not isinstance(self._optimizer, Sgd):
            raise ConfigError(
                f"workload.training.optimizer: {self._settings.optimizer!r} cannot continue with a client's earlier "
                'momentum; set it to "sgd"'
            )
        self._optimizer.resume([as_tensor(velocity[name]).to(self.device) for _, name in self._part.trained])

    def _rate(self, knobs: Info) -> float:
        return float(self._optimizer.base_rate * knobs.get("rate_factor", 1.0))

    def _step(self, local: LocalTraining, batch: Tensor) -> Tensor | None:
        """Take one optimiser step; returns the minibatch's loss, detached, or None if it is skipped."""
        loss = self._loss(local, batch)
        if loss is None:
            return None
        loss.backward()
        part, gradients = self._part, []
        for parameter in part.parameters:
            gradient = parameter.grad
            gradients.append(torch.zeros_like(parameter) if gradient is None else gradient)
            parameter.grad = None
        with torch.no_grad():
            if local.rule is not None:
                active, weights = part.active(gradients), part.active(part.parameters)
                local.rule.adjust_gradients(active, weights, part.anchor, local.knobs)
            if self._settings.clip_norm is not None:
                clip_by_norm(gradients, self._settings.clip_norm)
            self._optimizer.step(gradients)
        return loss.detach()

    def _loss(self, local: LocalTraining, batch: Tensor) -> Tensor | None:
        """Return a minibatch's loss; None for a last one of a single example that cannot be normalised."""
        loss_of = local.loss_of if len(batch) > 1 else partial(self._loss_of_one, local)
        if self._settings.precision == "float32":
            return loss_of(batch)
        with computing(self._settings, self.device):
            return loss_of(batch)

    def _loss_of_one(self, local: LocalTraining, batch: Tensor) -> Tensor | None:
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        try:
            return local.loss_of(batch)
        except ValueError as exc:
            if _ONE_VALUE not in str(exc):
                raise
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)  # layers before the one that raised have counted the example
            if len(local.rows) > 1 and self._settings.batch_size > 1:
                return None
            raise ConfigError(
                f"workload.training.batch_size: batch normalisation needs two examples in a minibatch; the client has "
                f"{len(local.rows)}, batch_size is {self._settings.batch_size}. Set a larger batch_size, a partition "
                "that leaves each client two, or a model with other normalisation"
            ) from exc

    def _become(self, *, adapters: bool) -> None:
        """Switch to sending all of the model's arrays, or adapters only."""
        if adapters == (self._adapted is not None):
            return
        if self._adapted is None:
            from fedloom.workloads._adapters.adapted import Adapted  # here, so that it is loaded only on demand

            self._part = self._adapted = Adapted(self.model, self.device)
        else:
            self._adapted.end()
            self._part, self._adapted = Whole(self.model, self.device), None

    def _prepare_optimizer(self) -> None:
        """Make an optimiser for the tensors that are trained now."""
        self._optimized = self._part.parameters
        self._optimizer: Optimizer = self._make_optimizer([p.detach() for p in self._optimized])


def evaluate_in_batches(
    num_examples: int, batch_size: int, measure: Callable[[slice], Sequence[Tensor]], names: Sequence[str]
) -> Mapping[str, Mean]:
    """Return metrics over consecutive batches.

    Args:
        num_examples: examples n; with none every metric has weight 0.
        batch_size: largest batch.
        measure: sums over the examples of a slice, one scalar tensor for each name.
        names: the metrics' names.
    """
    sums = np.zeros(len(names), np.float64)
    for start in range(0, num_examples, batch_size):
        batch = measure(slice(start, min(start + batch_size, num_examples)))
        sums += np.array([float(value) for value in batch])
    return {name: Mean(float(total), float(num_examples)) for name, total in zip(names, sums, strict=True)}
