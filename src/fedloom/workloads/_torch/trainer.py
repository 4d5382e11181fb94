"""The plain local loop: one model instance, reused for every client, trained from the global weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.errors import BadUpdate
from fedloom.core.protocols import LocalRule
from fedloom.core.records import MODEL, Array, Arrays, Info, Mean, Record, Update
from fedloom.workloads._torch.arrays import as_array, as_tensor
from fedloom.workloads._torch.optimizers import Sgd, clip_by_norm, make_optimizer
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.settings import TrainingSettings

Loss = Callable[[Tensor], Tensor]
"""Mean loss of the minibatch that holds these rows (int64, shape (b,)): a tensor with no dimensions."""


class Trainer:
    """A model whose arrays are the federation's, and the loop that trains them.

    What travels is what `model.state_dict()` holds, minus parameters that need no gradient: trained parameters, and
    buffers such as batch normalisation's statistics. Not thread-safe: one model, one client at a time.
    """

    def __init__(self, model: nn.Module, settings: TrainingSettings, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self._settings = settings
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
        self._names, self._parameters = list(trained), list(trained.values())
        self._tensors = {name: tensor for name, tensor in self.model.state_dict().items() if name not in frozen}
        self._targets = list(self._tensors.values())
        self._views = {name: as_array(tensor) for name, tensor in self._tensors.items()} if device.type == "cpu" else {}
        self._optimizer = make_optimizer([p.detach() for p in self._parameters], settings)
        self._source: Record | None = None
        self._globals: list[Tensor] = []
        self._anchor: list[Tensor] = []

    @property
    def arrays(self) -> dict[str, Array]:
        """The model's arrays by name: views of its memory on a CPU, copies from a GPU."""
        return dict(self._views) or {name: as_array(tensor.cpu()) for name, tensor in self._tensors.items()}

    @property
    def velocity(self) -> dict[str, Array]:
        """The momentum `sgd` ended its last training with, by parameter; empty for other optimisers and without any."""
        kept = self._optimizer.velocity if isinstance(self._optimizer, Sgd) else []
        return {name: np.array(as_array(tensor.cpu())) for name, tensor in zip(self._names, kept, strict=False)}

    def load(self, record: Record) -> None:
        """Set the model to the record's group `model`.

        Raises:
            BadUpdate: the arrays are not this model's.
        """
        if record is not self._source:
            self._globals = self._checked(record.groups.get(MODEL, {}))
            by_name = dict(zip(self._tensors, self._globals, strict=True))
            self._anchor = [by_name[name] for name in self._names]
            self._source = record  # keeps it alive, so its identity stays its own
        with torch.no_grad():
            torch._foreach_copy_(self._targets, self._globals)

    def train(
        self,
        rows: Array,
        loss_of: Loss,
        record: Record,
        rule: LocalRule | None,
        knobs: Info,
        rng: np.random.Generator,
        *,
        rate: float | None = None,
        velocity: Arrays | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> Update:
        """Train from a global model on one client's examples.

        Args:
            rows: the client's row numbers, shape (n,), int64, n >= 1.
            loss_of: mean loss of a minibatch, differentiable in the model's parameters.
            record: the global model.
            rule: the strategy's client half, or None.
            knobs: what the rule reads.
            rng: the job's own randomness: it seeds torch, then gives each epoch's order.
            rate: step size of this training; None takes the settings'.
            velocity: `sgd`'s momentum to go on with, by parameter; None or nothing starts from zero.
            after_step: called after every optimiser step.

        Returns:
            The trained arrays (views of the model's memory on a CPU), and the mean training loss.
        """
        seed = int(rng.integers(2**63))
        with exact(self.device, seed):
            self.load(record)
            self.model.train()
            self._optimizer.reset()
            self._optimizer.rate = self._settings.learning_rate if rate is None else rate
            if velocity:
                assert isinstance(self._optimizer, Sgd)
                self._optimizer.resume([as_tensor(velocity[name]).to(self.device) for name in self._names])
            for parameter in self._parameters:
                parameter.grad = None  # a client that failed halfway may have left one
            losses, counts = [], []
            for batch in self._batches(rows, rng):
                losses.append(self._step(loss_of, batch, rule, knobs))
                if after_step is not None:
                    after_step()
                counts.append(len(batch))
            sums = torch.stack(losses).to("cpu", torch.float64).numpy() @ np.array(counts, np.float64)
        return Update(
            num_examples=len(rows),
            groups={MODEL: self._views or self.arrays},
            metrics={"loss": Mean(float(sums), float(sum(counts)))},
        )

    def _batches(self, rows: Array, rng: np.random.Generator) -> list[Tensor]:
        """Row numbers of every step, in order."""
        size, limit = self._settings.batch_size, self._settings.max_steps
        batches: list[Tensor] = []
        for _ in range(self._settings.epochs):
            order = torch.from_numpy(rows[rng.permutation(len(rows))]).to(self.device)
            batches.extend(torch.split(order, size))
            if limit is not None and len(batches) >= limit:
                return batches[:limit]
        return batches

    def _step(self, loss_of: Loss, batch: Tensor, rule: LocalRule | None, knobs: Info) -> Tensor:
        """One optimiser step; returns the minibatch's loss, detached."""
        loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = []
        for parameter in self._parameters:
            gradient = parameter.grad
            gradients.append(torch.zeros_like(parameter) if gradient is None else gradient)
            parameter.grad = None
        with torch.no_grad():
            if rule is not None:
                rule.adjust_gradients(gradients, self._parameters, self._anchor, knobs)
            if self._settings.clip_norm is not None:
                clip_by_norm(gradients, self._settings.clip_norm)
            self._optimizer.step(gradients)
        return loss.detach()

    def _checked(self, arrays: Arrays) -> list[Tensor]:
        """The arrays as tensors in the model's order."""
        want = {name: (tuple(tensor.shape), _dtype_name(tensor)) for name, tensor in self._tensors.items()}
        got = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
        if want != got:
            odd = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
            name = odd[0]
            raise BadUpdate(
                f"the global model does not fit this workload in {len(odd)} arrays, first {name!r}: it came as "
                f"{_shown(got.get(name))}, the workload has {_shown(want.get(name))}. "
                "Do server and agent run the same experiment?"
            )
        return [as_tensor(arrays[name]).to(self.device) for name in want]


def evaluate_in_batches(
    num_examples: int, batch_size: int, measure: Callable[[slice], Sequence[Tensor]], names: Sequence[str]
) -> Mapping[str, Mean]:
    """Metrics over consecutive batches.

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


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shown(found: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if found is None else f"{found[1]} of shape {found[0]}"
