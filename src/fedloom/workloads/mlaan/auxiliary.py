"""The auxiliary networks of a mode: heads, and leap augmented copies of later blocks with their averages."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fedloom.core.seeds import generator
from fedloom.workloads._torch.scope import exact
from fedloom.workloads.mlaan import leap
from fedloom.workloads.mlaan.config import Config
from fedloom.workloads.mlaan.heads import (
    ConvHead,
    Decoder,
    Features,
    Head,
    InfoProHead,
    TaskHead,
    augmented_network,
)
from fedloom.workloads.mlaan.modes import Mode
from fedloom.workloads.mlaan.net import Backbone, Classifier, untracked

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Facts from which auxiliary networks are made."""

    config: Config
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int
    seed: int
    """The experiment's: the initial heads are a function of it."""

    @property
    def modules(self) -> tuple[range, ...]:
        """Return the blocks of each module."""
        return leap.partition(self.config.net.blocks, self.config.num_modules)

    def copied(self, mode: Mode) -> tuple[leap.Blocks, ...]:
        """Return the blocks that are copied for each module but the last; none without leaps."""
        settings, modules = self.config.leap, self.modules
        if not mode.leap:
            return tuple(() for _ in modules[:-1])
        stages = len(self.config.net.widths)
        if settings.blocks is not None:
            return leap.check_lists(settings.blocks, modules, stages)
        return leap.chosen_blocks(settings.rule, modules, stages, settings.depth, generator(self.seed, "mlaan", "leap"))

    def width(self, block: int) -> int:
        """Return the channels of a block's output."""
        return self.config.net.widths[block // self.config.net.per_stage]


class Auxiliary(nn.Module):
    """Auxiliary networks of the modules `first` … `stop` - 1 in one mode; the network's last module needs none.

    The copies A are those of `backbone` as it is; heads are drawn by the seed, the same for every range.
    """

    def __init__(self, plan: Plan, mode: Mode, backbone: Backbone, first: int, stop: int) -> None:
        super().__init__()
        self.copied = plan.copied(mode)
        self._heads: dict[str, Head] = {}
        self._chains: dict[int, list[nn.Module]] = {}
        for module in range(first, min(stop, len(plan.modules) - 1)) if mode.is_local else ():
            last, blocks = plan.modules[module][-1], self.copied[module]
            self._add(f"cascade{module}", make_head(plan, mode, module, blocks[-1] if blocks else last, "cascade"))
            if mode.multilaminar:
                self._add(f"independent{module}", make_head(plan, mode, module, last, "independent"))
            self._chains[module] = [untracked(deepcopy(backbone.blocks[number])) for number in blocks]
            for place, block in enumerate(self._chains[module]):
                self.add_module(f"leap{module}_{place}", block)

    def head(self, module: int, path: str) -> Head:
        """Return a module's head: `cascade`, which is the only one without cascades, or `independent`."""
        return self._heads[f"{path}{module}"]

    def chain(self, module: int) -> Sequence[nn.Module]:
        """Return the trainable copies A_1, A_2, … of a module; none without leaps."""
        return self._chains[module]

    def origins(self) -> dict[str, str]:
        """Return the name of each copied parameter here, and of the backbone's parameter it starts from."""
        return {
            f"leap{module}_{place}.{name}": f"blocks.{self.copied[module][place]}.{name}"
            for module, chain in self._chains.items()
            for place, block in enumerate(chain)
            for name, _ in block.named_parameters()
        }

    def _add(self, name: str, head: Head) -> None:
        untracked(head)
        self._heads[name] = head
        self.add_module(name, head)


class Averages:
    """The moving averages E of a mode, one for each averaged block of the backbone: E <- m E + (1 - m) w.

    Two modules that copy the same block share its average: theirs would be equal at all times.
    """

    def __init__(self, plan: Plan, mode: Mode, backbone: Backbone, first: int, stop: int) -> None:
        settings = plan.config.leap
        used = [blocks for blocks in plan.copied(mode)[first:stop] if blocks] if settings.average != "none" else []
        wanted = {b for blocks in used for b in (blocks if settings.wiring == "whole" else blocks[:1])}
        self.blocks = {b: untracked(deepcopy(backbone.blocks[b])).requires_grad_(False) for b in sorted(wanted)}
        self.wiring, self._updates = settings.wiring, settings.average == "updated"
        self._average = get_ema_multi_avg_fn(settings.momentum)

    def update(self, backbone: Backbone) -> None:
        """Set the averages to the backbone's present weights."""
        for number, block in self.blocks.items() if self._updates else ():
            mine, current = list(block.parameters()), list(backbone.blocks[number].parameters())
            self._average(mine, [each.detach() for each in current], 0)

    def arrays(self) -> dict[str, Tensor]:
        """Return the averages by the names of the backbone's parameters."""
        return {
            f"blocks.{number}.{name}": parameter
            for number, block in self.blocks.items()
            for name, parameter in block.named_parameters()
        }

    def leaped(self, z: Tensor, copied: leap.Blocks, chain: Sequence[nn.Module]) -> Tensor:
        """Return features after the leap augmented blocks.

        Args:
            z: features of a module, (b, c, s, s).
            copied: numbers of the copied blocks.
            chain: the trainable copies A.
        """
        if self.wiring == "whole" and self.blocks:
            averaged = z
            for number in copied:
                averaged = self.blocks[number](averaged)
            return _through(chain, z) + averaged
        first, *rest = chain
        start = first(z) + self.blocks[copied[0]](z) if self.blocks else first(z)
        return _through(rest, start)


def make_head(plan: Plan, mode: Mode, module: int, last: int, path: str) -> Head:
    """Return a module's head, its initial weights drawn by the experiment's seed.

    Args:
        plan: network and settings.
        mode: whose.
        module: number of the module, from 0.
        last: block whose output the head reads.
        path: `cascade` or `independent`.
    """
    with exact(_CPU, seed=int(generator(plan.seed, "mlaan", mode.name, module, path).integers(2**63))):
        network = _network(plan, mode, module, last, path)
        if mode.base != "infopro":
            return TaskHead(network)
        settings, shares = plan.config.infopro, module / max(len(plan.modules) - 2, 1)
        ends = (settings.reconstruction, settings.task)
        weights = tuple(start + (end - start) * shares for start, end in ends)
        contrast = settings.loss == "contrast"
        if contrast and isinstance(network, ConvHead | Classifier):
            network = Features(network)
        decoder = Decoder(plan.width(plan.modules[module][-1]), plan.shape, plan.config.net.norm)
        return InfoProHead(network, decoder, (weights[0], weights[1]), settings.temperature if contrast else None)


def _network(plan: Plan, mode: Mode, module: int, last: int, path: str) -> nn.Module:
    config, width, norm = plan.config, plan.width(last), plan.config.net.norm
    if mode.base == "auglocal":
        depth = leap.augmented_depth(module, len(plan.modules), config.auglocal.depth, config.auglocal.decay)
        depth = min(depth, config.net.blocks - 1 - last)
        blocks = leap.augmented_blocks(last, config.net.blocks, depth) if depth else ()
        return augmented_network(width, [plan.width(block) for block in blocks], plan.classes, norm)
    kind = ("linear" if mode.leap else "conv") if config.head == "auto" else config.head
    if mode.base == "greedy" or kind == "linear":
        return Classifier(width, plan.classes)
    after = config.net.widths[min(last // config.net.per_stage + 1, len(config.net.widths) - 1)]
    return ConvHead(width, after, plan.classes, norm)


def _through(chain: Sequence[nn.Module], z: Tensor) -> Tensor:
    for block in chain:
        z = block(z)
    return z
