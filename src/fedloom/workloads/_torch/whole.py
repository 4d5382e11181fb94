"""A model all of whose arrays are sent: trained arrays, sent arrays, loading of a global model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fedloom.core.errors import BadUpdate
from fedloom.core.records import MODEL, Array, Arrays, Groups, Record
from fedloom.workloads._torch.arrays import as_array, as_tensor

ANCHOR = "anchor"
"""Name of the input with a rule's anchor model, if it is not the initial one of the training."""


class Federated(Protocol):
    """A model's part in a federation: which of its tensors are trained and sent."""

    trained: Sequence[tuple[str, str]]
    """Group and name of each trained array."""
    parameters: list[Tensor]
    """The tensors an optimiser changes, in the order of `trained`; leaves that accumulate gradients."""
    anchor: list[Tensor]
    """Anchors of a rule, in the order and (active) shapes of `trained`."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Return all that training changes: parameters, and buffers such as batch normalisation's statistics."""

    def load(self, inputs: Mapping[str, Record]) -> None:
        """Set the model to the global one.

        Raises:
            BadUpdate: the arrays are not this model's.
        """

    def train_mode(self) -> None:
        """Switch the trained modules to training mode."""

    def active(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the active parts of tensors shaped like `parameters`, as seen by a rule."""

    def groups(self) -> Groups:
        """Return the arrays to send: views of the model's memory on a CPU, copies from a GPU."""


def travelling(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model that are sent: trained parameters, and buffers such as batch statistics.

    All of `model.state_dict()`, minus parameters that need no gradient. A tensor with several names (an
    output layer tied to the embedding) is sent once, under the first.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    return {name: tensor for key, (name, tensor) in found.items() if key not in frozen}


class Whole:
    """A model whose arrays are all sent, whole; see `travelling`."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.trained: Sequence[tuple[str, str]] = [(MODEL, name) for name in trained]
        self.parameters: list[Tensor] = list(trained.values())
        self.anchor: list[Tensor] = []
        self._tensors = {name: tensor.detach() for name, tensor in travelling(model).items()}
        self._targets = list(self._tensors.values())
        self._views = {name: as_array(tensor) for name, tensor in self._tensors.items()} if device.type == "cpu" else {}
        self._sources: tuple[Record, Record | None] | None = None
        self._globals: list[Tensor] = []

    def load(self, inputs: Mapping[str, Record]) -> None:
        record, anchor = inputs[MODEL], inputs.get(ANCHOR)
        if self._sources is None or record is not self._sources[0] or anchor is not self._sources[1]:
            self._globals = self._checked(record.groups.get(MODEL, {}))
            pulled = self._globals if anchor is None else self._checked(anchor.groups.get(MODEL, {}))
            by_name = dict(zip(self._tensors, pulled, strict=True))
            self.anchor = [by_name[name] for _, name in self.trained]
            self._sources = (record, anchor)  # keeps them alive, so their identities are unique
        with torch.no_grad():
            torch._foreach_copy_(self._targets, self._globals)

    @property
    def tensors(self) -> Sequence[Tensor]:
        return self._targets

    def train_mode(self) -> None:
        self._model.train()

    def active(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)

    def groups(self) -> Groups:
        return {MODEL: self.arrays}

    @property
    def arrays(self) -> dict[str, Array]:
        """Return the model's arrays by name."""
        return dict(self._views) or {name: as_array(tensor.cpu()) for name, tensor in self._tensors.items()}

    def _checked(self, arrays: Arrays) -> list[Tensor]:
        """Return the arrays as tensors in the model's order."""
        return fitting(arrays, self._tensors, self._device)


def fitting(arrays: Arrays, tensors: Mapping[str, Tensor], device: torch.device) -> list[Tensor]:
    """Return the arrays as tensors in the order of `tensors`, whose names, shapes and dtypes they must have.

    Raises:
        BadUpdate: they differ; the message names the first.
    """
    want = {name: (tuple(tensor.shape), _dtype_name(tensor)) for name, tensor in tensors.items()}
    got = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    if want != got:
        odd = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
        name = odd[0]
        raise BadUpdate(
            f"the global model does not fit this workload in {len(odd)} arrays, first {name!r}: it is "
            f"{_shown(got.get(name))}, the workload has {_shown(want.get(name))}. "
            "Do server and agent run the same experiment?"
        )
    return [as_tensor(arrays[name]).to(device) for name in want]


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shown(found: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if found is None else f"{found[1]} of shape {found[0]}"
