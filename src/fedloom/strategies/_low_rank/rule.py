"""The client half of the low-rank strategies: unpack inputs, pull towards the anchor, pack updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from fedloom.adapters.names import ADAPTERS, LORA_A, LORA_B
from fedloom.core.protocols import Inputs, LocalRule, Tensors
from fedloom.core.records import MODEL, Info, Job, Mean, Record, Update
from fedloom.strategies._low_rank.layers import fresh_a, zero_b
from fedloom.strategies._low_rank.wire import pack, unpacked
from fedloom.strategies._proximal.rule import ProximalTerm

Tensor: TypeAlias = Any
"""A NumPy array or a torch tensor: one of `Tensors`."""
DISTANCE = "distance_squared"
"""Name of the metric with the distance of a client's model from the anchor."""
FRESH = "fresh"
"""Key of the adapters' info if their factors are not sent: each client draws its own A, from the seed it names."""


class LowRankRule(LocalRule):
    """The common client half of low-rank strategies. Knobs: `mu` and `wire`, and `tell_distance`."""

    def __init__(self) -> None:
        self._proximal = ProximalTerm()
        self._apart: tuple[Tensors, Tensors] | None = None

    def incoming(self, inputs: Inputs, job: Job) -> Inputs:
        """Return the job's inputs, the first of which is the client's model, under any name."""
        name, *beside = job.inputs
        return {MODEL: _with_factors(unpacked(inputs[name]), job.client), **{other: inputs[other] for other in beside}}

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        """Add the gradient of mu/2 ||w - a||², which is mu (w - a); see `fedprox`."""
        self._proximal.adjust_gradients(gradients, parameters, anchor, knobs)
        self._apart = (parameters, anchor) if knobs.get("tell_distance") else None

    def outgoing(self, update: Update, knobs: Info) -> Update:
        """Return the update in the wire's dtype; on request with the metric `distance_squared`, ‖w - a‖²."""
        if self._apart is not None:
            weight = float(update.num_examples)
            distance = Mean(_distance_squared(*self._apart) * weight, weight)
            update = replace(update, metrics={**update.metrics, DISTANCE: distance})
        groups, reported = pack(update.groups, knobs["wire"])
        return replace(update, groups=groups, info={**update.info, **reported}) if reported else update


def build_rule() -> LowRankRule:
    """Return the shared client half."""
    return LowRankRule()


def _distance_squared(parameters: Tensors, anchor: Tensors) -> float:
    """‖w - a‖² over all arrays, NumPy's or torch's."""
    if not parameters or isinstance(parameters[0], np.ndarray):
        return sum(float(np.square(w - a, dtype=np.float64).sum()) for w, a in zip(parameters, anchor, strict=True))
    import torch  # here, so that a server or a NumPy workload never pays for it

    with torch.no_grad():
        norms = torch._foreach_norm(torch._foreach_sub(list(parameters), list(anchor)))
        return float(torch.stack(norms).double().square().sum())


def _with_factors(record: Record, client: int) -> Record:
    """Return the record with the client's own first factors, if the server left them to the clients."""
    reported = record.info.get(ADAPTERS, {}).get(FRESH)
    if reported is None:
        return record
    shapes: Mapping[str, Sequence[int]] = reported["shapes"]
    rows = {name: (rank, in_) for name, (rank, _, in_) in shapes.items()}
    a = fresh_a(reported["seed"], reported["restart"], rows, client)
    b = zero_b({name: (out, rank) for name, (rank, out, _) in shapes.items()})
    return Record({**record.groups, LORA_A: a, LORA_B: b}, record.info)
