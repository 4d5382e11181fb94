"""A model in adapter rounds: a frozen base that is shared, factors and a head that are trained and travel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedloom.adapters.names import ADAPTERS, LORA_A, LORA_B, LORA_E
from fedloom.core.errors import BadUpdate
from fedloom.core.pinned import Pinned
from fedloom.core.records import MODEL, Arrays, Groups, Record
from fedloom.workloads._adapters.layers import LoraLayer, attach_to, weight_change
from fedloom.workloads._torch.arrays import as_array, as_tensor
from fedloom.workloads._torch.whole import fitting, travelling

_STATISTICS = "running_mean"
"""A module with this buffer changes its buffers while it trains."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A global model record's information about its adapters."""

    modules: tuple[str, ...]
    head: tuple[str, ...]
    frozen_a: bool
    gated: bool
    rank_max: int
    scale: float


@dataclass
class _Attached:
    """Adapters on the model, made for one plan."""

    plan: _Plan
    layers: dict[str, LoraLayer]
    detach: Callable[[], None]
    head: dict[str, Tensor] = field(default_factory=dict)


class Adapted:
    """Sends adapters and head; the other arrays are the base's, as read-only views of its (shared) memory.

    Modules whose weights a merged update changes have separate weights. Normalisation layers with running
    statistics use the base's and do not update them.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._tensors = travelling(model)
        self._attached: _Attached | None = None
        self._base: tuple[str, ...] = ()
        """Digests of the weights and merged updates in the model, in order."""
        self._record: Record | None = None
        self._targets: list[Tensor] = []
        self.trained: Sequence[tuple[str, str]] = []
        self.parameters: list[Tensor] = []
        self.anchor: list[Tensor] = []

    def load(self, inputs: Mapping[str, Record]) -> None:
        record = inputs[MODEL]
        if record is not self._record:
            base = _base(inputs)
            factors = [pinned for pinned in base if set(pinned.groups) == {LORA_A}]
            frozen_a = factors[-1].groups[LORA_A] if factors else None
            plan = _plan(record, frozen_a)
            self._lay([pinned for pinned in base if set(pinned.groups) != {LORA_A}], plan.head)
            self._attach(plan)
            self._take(record, frozen_a)
            self._record = record  # keeps it alive, so its identity is unique
        with torch.no_grad():
            torch._foreach_copy_(self._targets, self.anchor)

    @property
    def tensors(self) -> Sequence[Tensor]:
        return self.parameters

    def train_mode(self) -> None:
        self._model.train()
        for module in self._model.modules():
            if getattr(module, _STATISTICS, None) is not None:
                module.eval()

    def active(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        assert self._attached is not None
        layers = self._attached.layers
        return [
            _active(tensor, group, layers.get(name))
            for tensor, (group, name) in zip(tensors, self.trained, strict=True)
        ]

    def groups(self) -> Groups:
        groups: dict[str, dict[str, Tensor]] = {MODEL: {}}
        for tensor, (group, name) in zip(self.active(self.parameters), self.trained, strict=True):
            groups.setdefault(group, {})[name] = tensor
        return {group: {name: as_array(t.cpu()) for name, t in named.items()} for group, named in groups.items()}

    def end(self) -> None:
        """Restore the model's own memory and remove its adapters; its values are those of the base."""
        if self._attached is not None:
            self._attached.detach()
            self._attached = None
        for tensor in self._tensors.values():
            tensor.data = tensor.data.clone()
        for parameter in self._trainable:
            parameter.requires_grad_(True)

    def _lay(self, base: Sequence[Pinned], head: Sequence[str]) -> None:
        """Set the model to the base's weights, with later changes merged."""
        wanted = tuple(pinned.sha256 for pinned in base)
        if wanted == self._base:
            return
        applied = len(self._base) if self._base and wanted[: len(self._base)] == self._base else 0
        self._base = ()  # should this fail halfway, the next one starts over
        for pinned in base[applied:]:
            if MODEL in pinned.groups:
                self._set(pinned.groups[MODEL], head)
            else:
                self._merge(pinned)
        self._base = wanted

    def _set(self, arrays: Arrays, head: Sequence[str]) -> None:
        want = {name: tensor for name, tensor in self._tensors.items() if name not in head}
        for tensor, value in zip(want.values(), fitting(arrays, want, self._device), strict=True):
            tensor.data = value

    def _merge(self, update: Pinned) -> None:
        for name, b in update.groups[LORA_B].items():
            module, weight = self._model.get_submodule(name), self._tensors[f"{name}.weight"]
            factors = tuple(as_tensor(array).to(self._device) for array in (update.groups[LORA_A][name], b))
            summed = weight.data + weight_change(module, (factors[0], factors[1]), 1.0)  # in float32
            weight.data = summed.to(weight.dtype)

    def _attach(self, plan: _Plan) -> None:
        if self._attached is not None:
            if self._attached.plan == plan:
                return
            self._attached.detach()
        strange = sorted(set(plan.modules) - dict(self._model.named_modules()).keys())
        if strange:
            raise BadUpdate(
                f"adapters: this workload's model has no modules {strange}. "
                "Do server and agent run the same experiment?"
            )
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        layers, detach = attach_to(
            self._model, plan.modules, rank_max=plan.rank_max, scale=plan.scale, gated=plan.gated
        )
        head = {name: self._tensors[name] for name in plan.head}
        for tensor in head.values():
            tensor.data = tensor.data.clone()  # may have been a view of a base
            if tensor.is_floating_point():
                tensor.requires_grad_(True)
        self._attached = _Attached(plan, layers, detach, head)
        groups = {MODEL: head}
        if plan.frozen_a:
            for layer in layers.values():
                layer.a.requires_grad_(False)
        else:
            groups[LORA_A] = {name: layer.a for name, layer in layers.items()}
        groups[LORA_B] = {name: layer.b for name, layer in layers.items()}
        groups |= {LORA_E: {n: layer.e for n, layer in layers.items() if layer.e is not None}} if plan.gated else {}
        self.trained = [(group, name) for group, tensors in groups.items() for name in tensors]
        self.parameters = [tensor for tensors in groups.values() for tensor in tensors.values()]

    def _take(self, record: Record, frozen_a: Arrays | None) -> None:
        """Store the record's values, and set each adapter's rank to theirs."""
        assert self._attached is not None
        attached = self._attached
        for name, layer in attached.layers.items():
            a = record.groups[LORA_A][name] if frozen_a is None else frozen_a[name]
            layer.rank = _rank(name, layer, a.shape, record.groups[LORA_B][name].shape)
            if attached.plan.gated and record.groups[LORA_E][name].shape != (layer.rank,):
                raise BadUpdate(f"adapter of module {name!r}: expected {layer.rank} gates, one for each component")
            if frozen_a is not None:
                with torch.no_grad():
                    layer.active[0].copy_(as_tensor(a))
        fitting(record.groups.get(MODEL, {}), attached.head, self._device)
        self.anchor = [as_tensor(record.groups[group][name]).to(self._device) for group, name in self.trained]
        self._targets = [tensor.detach() for tensor in self.active(self.parameters)]


def _base(inputs: Mapping[str, Record]) -> list[Pinned]:
    """Return the pinned records of the base, in order.

    Raises:
        BadUpdate: one is missing, or differs from the adapters' base.
    """
    found = []
    for name, sha256 in inputs[MODEL].info[ADAPTERS]["base"]:
        record = inputs.get(name)
        got = record.sha256 if isinstance(record, Pinned) else "no digest" if record is not None else "nothing"
        if not isinstance(record, Pinned) or got != sha256:
            raise BadUpdate(
                f"the adapters need input {name!r} with digest {sha256[:16]}…, this agent has {got[:16]}…. "
                "Do server and agent run the same experiment? Nothing was trained on another base"
            )
        found.append(record)
    return found


def _plan(record: Record, frozen_a: Arrays | None) -> _Plan:
    """Return the adapters of a record.

    Raises:
        BadUpdate: its factors do not match its modules.
    """
    reported = record.info[ADAPTERS]
    modules = tuple(reported["modules"])
    groups = {LORA_A: frozen_a or record.groups.get(LORA_A, {}), LORA_B: record.groups.get(LORA_B, {})}
    groups |= {LORA_E: record.groups[LORA_E]} if LORA_E in record.groups else {}
    for group, factors in groups.items():
        missing, left_over = sorted(set(modules) - factors.keys()), sorted(factors.keys() - set(modules))
        if missing or left_over:
            raise BadUpdate(
                f"adapters: group {group!r} lacks factors for modules {missing} and has others for {left_over}; the "
                f"record is for {len(modules)} modules. Nothing was loaded"
            )
    head = tuple(record.groups.get(MODEL, {}))
    return _Plan(modules, head, frozen_a is not None, LORA_E in record.groups, reported["rank_max"], reported["scale"])


def _rank(name: str, layer: LoraLayer, a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Return the rank of a module's factors, whose shapes must match it."""
    room, (rank, width) = layer.a.shape[0], a
    if width != layer.a.shape[1] or b != (layer.b.shape[0], rank) or not 1 <= rank <= room:
        raise BadUpdate(
            f"adapter of module {name!r}: factors A {a} and B {b} do not match; expected A (r, {layer.a.shape[1]}) and "
            f"B ({layer.b.shape[0]}, r) with r from 1 to {room}"
        )
    return int(rank)


def _active(tensor: Tensor, group: str, layer: LoraLayer | None) -> Tensor:
    """Return the part of an adapter's tensor, or of one shaped like it, that its rank uses."""
    if group == MODEL or layer is None:
        return tensor
    return tensor[:, : layer.rank] if group == LORA_B else tensor[: layer.rank]
