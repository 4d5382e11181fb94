"""Computes the gradients of one minibatch, module by module, as each base and MLAAN do.

Module i is f_i, its parameters theta_i; h_0 is the image (the stem is part of module 0), h_i = f_i(sg(h_{i-1})), sg
stops gradients. Every module's loss is computed and differentiated before the next module runs, so that the
activations of one module, or one window of modules, are alive at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.mlaan import leap
from fedloom.workloads.mlaan.auxiliary import Auxiliary, Averages
from fedloom.workloads.mlaan.config import MultilaminarSettings
from fedloom.workloads.mlaan.heads import Batch
from fedloom.workloads.mlaan.modes import Mode
from fedloom.workloads.mlaan.net import Backbone


class LocalSteps:
    """Gradients of the modules `first` … `stop` - 1 of a backbone. Modules before `first` are run without gradients.

    Args:
        mode: base and parts.
        backbone: the network.
        modules: blocks of each of its modules.
        auxiliary: its heads and copies.
        averages: its moving averages.
        settings: of the cascades.
        trained: the modules `first` and `stop`.
    """

    def __init__(
        self,
        mode: Mode,
        backbone: Backbone,
        modules: Sequence[range],
        auxiliary: Auxiliary,
        averages: Averages,
        settings: MultilaminarSettings,
        trained: tuple[int, int],
    ) -> None:
        self.mode, self.backbone, self.modules = mode, backbone, modules
        self.auxiliary, self.averages, self.settings = auxiliary, averages, settings
        self.first, self.stop = trained
        self._window = settings.window if mode.multilaminar else 1
        self._norms = [
            [layer for part in self._parts(module) for layer in part.modules() if isinstance(layer, nn.BatchNorm2d)]
            for module in range(len(modules))
        ]

    def gradients(self, batch: Batch) -> Tensor:
        """Accumulate the gradients of a minibatch; returns the last trained module's loss, detached."""
        if not self.mode.is_local:
            last = F.cross_entropy(self.backbone(batch.x), batch.y)
            last.backward()
            return last.detach()
        inputs, last = {self.first: self._prefix(batch.x)}, batch.x.new_zeros(())
        for module in range(self.first, self.stop):
            loss, output = self.loss_of(module, inputs, batch)
            if loss is not None:
                loss.backward()
                last = loss.detach()
            inputs[module + 1] = output.detach()
            inputs.pop(module - self._window + 1, None)
        return last

    def end(self) -> None:
        """Take the weights, as they were before the optimiser's step, into the moving averages."""
        self.averages.update(self.backbone)

    def loss_of(self, module: int, inputs: dict[int, Tensor], batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Return a module's loss L_i (None if it has none) and its output.

        Args:
            module: i, from 0.
            inputs: inputs of modules by number, without gradients; those of the module's window.
            batch: the minibatch.
        """
        if not self.mode.multilaminar:
            output = self.run(module, inputs[module])
            return self._cascade_loss(module, output, batch), output
        settings = self.settings
        start = leap.window(module, settings.window, self.first).start
        own = settings.early == "truncated" or module >= min(self.first + settings.window, self.stop) - 1
        if own and settings.independent:
            output = self.run(module, inputs[module])
            loss: Tensor | None = settings.independent * self._independent_loss(module, output, batch)
        else:
            loss = None
            with torch.no_grad():
                output = self.run(module, inputs[module])
        if own and settings.cascade:
            z = inputs[start]
            with self._repeating(range(start, module + 1)):
                for each in range(start, module + 1):
                    z = self.run(each, z)
            cascade = settings.cascade * self._cascade_loss(module, z, batch)
            loss = cascade if loss is None else loss + cascade
        return loss, output

    def run(self, module: int, x: Tensor) -> Tensor:
        """Return f_i(x)."""
        for part in self._parts(module):
            x = part(x)
        return x

    def _prefix(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for module in range(self.first):
                x = self.run(module, x)
        return x

    def _independent_loss(self, module: int, h: Tensor, batch: Batch) -> Tensor:
        if module == len(self.modules) - 1:
            return F.cross_entropy(self.backbone.classifier(h), batch.y)
        return self.auxiliary.head(module, "independent").loss(h, h, batch)

    def _cascade_loss(self, module: int, h: Tensor, batch: Batch) -> Tensor:
        if module == len(self.modules) - 1:
            return F.cross_entropy(self.backbone.classifier(h), batch.y)
        chain, z = self.auxiliary.chain(module), h
        if chain:
            z = self.averages.leaped(h, self.auxiliary.copied[module], chain)
        return self.auxiliary.head(module, "cascade").loss(h, z, batch)

    def _parts(self, module: int) -> list[nn.Module]:
        blocks = [self.backbone.blocks[number] for number in self.modules[module]]
        return blocks if module else [self.backbone.stem, *blocks]

    @contextmanager
    def _repeating(self, window: range) -> Iterator[None]:
        """Leave running statistics as they are, unless each pass is to count."""
        layers = [layer for module in window for layer in self._norms[module]]
        before = [layer.momentum for layer in layers]
        try:
            for layer in layers if self.settings.statistics == "once" else ():
                layer.momentum = 0.0  # running = 1 * running + 0 * batch, exactly
            yield
        finally:
            for layer, momentum in zip(layers, before, strict=True):
                layer.momentum = momentum
