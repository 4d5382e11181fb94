"""A user's own model on the user's own rows: training and evaluation on an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, FedloomError, PluginInvalid, UsageError
from fedloom.core.plugin_faults import plugin_fault, raised_in
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.python_objects import objects_of
from fedloom.core.text import shown
from fedloom.workloads._base.checks import check_classes, check_labels, check_loss, check_metrics, check_outputs
from fedloom.workloads._base.classes import all_targets
from fedloom.workloads._base.examples import Found
from fedloom.workloads._base.loading import fill, saved_arrays
from fedloom.workloads._base.workload import TorchWorkload
from fedloom.workloads._torch.trainer import Trainer
from fedloom.workloads._torch.wrapped import WrappedOptimizer
from fedloom.workloads._vision.augment import augment_images
from fedloom.workloads.torch.config import Config
from fedloom.workloads.torch.data import model_inputs
from fedloom.workloads.torch.parts import Parts, call_fault
from fedloom.workloads.torch.tasks import TASK_METRICS, predictions, task_loss


class OwnModel(TorchWorkload[Config]):
    """A model, a loss and metrics that a user gives, or the defaults of the model's task."""

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self.parts = find_parts(config)
        super().__init__(config, experiment)
        self._try_out()

    @property
    def has_own_loss(self) -> bool:
        return self.parts.loss is not None or self.parts.task != "classification"

    @property
    def data_place(self) -> str:
        return self.parts.data_place

    def new_trainer(self, model: nn.Module, device: torch.device) -> Trainer:
        make = self.parts.optimizer
        wrapped = None if make is None else lambda parameters: WrappedOptimizer(parameters, make)
        return Trainer(model, self.config.training, device, wrapped)

    def model(self) -> nn.Module:
        return self.parts.new_model()

    def initial(self) -> nn.Module:
        if self.config.pretrained is None:
            return self.model()
        return fill(self.model(), saved_arrays(self.config.pretrained), self.config.pretrained)

    def dataset(self) -> Found:
        return self.parts.examples

    def describe(self) -> WorkloadInfo:
        info = super().describe()
        held = info.data.get("held_out")
        remarks = [*self.parts.notes, *([f"no test set was given: held out {held}"] if held else [])]
        facts = {**self.parts.facts, **({"remarks": remarks} if remarks else {})}
        return replace(info, data={**info.data, **facts}) if facts else info

    def augment(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        settings = self.config.augment
        if not settings.changes:
            return inputs
        images, *others = inputs
        return augment_images(images, settings), *others

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.parts.loss is not None:
            return self.parts.loss(outputs, targets)
        return task_loss(self.parts.task, outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        count, given = self.count(targets), self.parts.metrics or TASK_METRICS[self.parts.task]
        means: dict[str, object] = {"loss": self.loss(outputs, targets)}
        means |= {name: each(outputs, targets) for name, each in given.items()}
        for name, mean in means.items():
            if not isinstance(mean, Tensor | int | float | np.generic):
                raise PluginInvalid(
                    f"metrics: {name!r} returned {shown(mean)}, expected a number, the mean over the minibatch"
                )
        return {name: torch.as_tensor(mean) * count for name, mean in means.items()}

    def prepared(self, inputs: object) -> object:
        return model_inputs(inputs, self.parts.columns, self.parts.transform, self.parts.moments)

    def predicted(self, outputs: Tensor) -> Tensor:
        return predictions(self.parts.task, outputs)

    def _try_out(self) -> None:
        """Compute loss and metrics of two examples, so that a mistake is found before the first round.

        Raises:
            PluginInvalid: there is one; the message says where.
        """
        if not self.data.sha256:  # each client's examples are loaded, and checked, where the client is
            return
        train, place = self.data.train, self.parts.place
        inputs, targets = train.batch(torch.arange(min(2, len(train)), device=self.device))
        if self.config.augment.changes and inputs[0].dim() != 4:
            raise ConfigError(
                f"workload.augment: changes images, expected inputs of shape (n, channels, height, width), found "
                f"(n, {', '.join(map(str, inputs[0].shape[1:]))}); remove it"
            )
        self.network.eval()
        outputs = self._called(place, inputs, len(targets))
        if self.parts.task == "classification" and self.parts.loss is None:
            if not len(self.data.labels):
                check_labels(all_targets(train), self.data_place)
            check_classes(outputs, max(self.data.num_labels, 1), place)
        try:
            check_loss(self.loss(outputs, targets), self.parts.loss_place)
            check_metrics(self.metrics(outputs.detach(), targets), "metrics")
        except FedloomError:
            raise
        except Exception as exc:
            if not raised_in(exc):
                raise PluginInvalid(f"{self.parts.loss_place}: loss or metrics: {type(exc).__name__}: {exc}") from exc
            raise plugin_fault("loss or metrics", exc) from exc

    def _called(self, place: str, inputs: tuple[Tensor, ...], examples: int) -> Tensor:
        shapes = ", ".join(f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}" for each in inputs)
        try:
            outputs = self.outputs(self.network, *inputs)
        except Exception as exc:
            raise call_fault(exc, self.network, place, shapes) from exc
        return check_outputs(outputs, examples, place)


def find_parts(config: Config) -> Parts:
    """Return the model and the data that the settings refer to.

    Raises:
        UsageError: they are Python objects of another process.
    """
    if config.objects is None:
        from fedloom.workloads.torch.from_settings import parts_of_settings

        return parts_of_settings(config)
    found = objects_of(config.objects_key())
    if not isinstance(found, Parts):
        raise UsageError(f"workload.objects: expected the parts of a run, found a {type(found).__name__}")
    return found


def build_workload(config: Config, experiment: Experiment) -> OwnModel:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        UsageError: its Python objects are not in this process.
        PluginInvalid: model, data or a function given with them is not what it should be.
        ConfigError: the partition leaves a client without examples, or a required GPU is missing.
    """
    return OwnModel(config, experiment)
