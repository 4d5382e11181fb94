"""The models of a run, side by side, all of one architecture and with the same initial weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fedloom.core.protocols import Inputs, LocalRule, Tensors
from fedloom.core.records import MODEL, Array, Arrays, Info, Record
from fedloom.workloads.mri_unlearning.config import NetSettings
from fedloom.workloads.mri_unlearning.nets import make_net


class Members(nn.Module):
    """Networks by name; the output is the first one's.

    Args:
        names: of the models.
        settings: the architecture.
    """

    def __init__(self, names: Sequence[str], settings: NetSettings) -> None:
        super().__init__()
        nets = {name: make_net(settings) for name in names}
        for net in nets.values():
            net.load_state_dict(nets[names[0]].state_dict())
        self.nets = nn.ModuleDict(nets)
        self._first = names[0]

    def forward(self, measured: Tensor, mask: Tensor, centre: Tensor) -> Tensor:
        """Return the first network's image, (b, h, w)."""
        found: Tensor = self.nets[self._first](measured, mask, centre)
        return found


def one_of(inputs: Inputs, member: str) -> dict[str, Record]:
    """Return a job's inputs with the arrays of one model alone, under the names they have in it."""
    start, found = prefix(member), dict[str, Record]()
    for name, record in inputs.items():
        arrays = record.groups.get(MODEL, {})
        own = {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
        found[name] = Record({MODEL: own})
    return found


def named(arrays: Mapping[str, Array], member: str) -> Arrays:
    """Return one model's arrays under the names they have in the run's model."""
    return {f"{prefix(member)}{name}": array for name, array in arrays.items()}


class OneModelsRule(LocalRule):
    """A strategy's client half that sees one model of several, by the names in the run's model.

    Args:
        rule: the client half.
        member: the model.
    """

    def __init__(self, rule: LocalRule, member: str) -> None:
        self._rule, self._prefix = rule, prefix(member)

    def begin(self, trained: Sequence[tuple[str, str]], knobs: Info) -> None:
        self._rule.begin([(group, f"{self._prefix}{name}") for group, name in trained], knobs)

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        self._rule.adjust_gradients(gradients, parameters, anchor, knobs)


def prefix(member: str) -> str:
    """Return the beginning of the names of a model's arrays."""
    return f"nets.{member}."
