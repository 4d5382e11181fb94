"""SPD-CFL, the client half: factors are tied to the current and previous global ones, the loss is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedloom.core.protocols import Inputs, Tensors
from fedloom.core.records import Array, Info, Job, Record, Update
from fedloom.strategies._low_rank.rule import LowRankRule, Tensor

PREVIOUS = "previous"
"""Name of the input with the global factors a round ago."""
LOSS = "loss"
"""Group, and array in it, of a client's mean training loss: one float32."""


class TwoAnchors(LowRankRule):
    """Knobs: `mu_previous`, besides those of the shared rule."""

    def __init__(self) -> None:
        super().__init__()
        self._previous: Record | None = None
        self._trained: Sequence[tuple[str, str]] = ()

    def incoming(self, inputs: Inputs, job: Job) -> Inputs:
        self._previous = inputs[PREVIOUS] if PREVIOUS in job.inputs else None
        return super().incoming(inputs, job)

    def begin(self, trained: Sequence[tuple[str, str]], knobs: Info) -> None:
        self._trained = trained

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        """Add mu (w - w_t), and mu_previous (w - w_{t-1}) for factors."""
        super().adjust_gradients(gradients, parameters, anchor, knobs)
        if self._previous is None or not knobs["mu_previous"]:
            return
        for place, (group, name) in enumerate(self._trained):
            before = self._previous.groups.get(group, {}).get(name)
            if before is not None:
                gradients[place][...] += knobs["mu_previous"] * (parameters[place] - _like(before, parameters[place]))

    def outgoing(self, update: Update, knobs: Info) -> Update:
        loss = {LOSS: np.array(update.metrics["loss"].value, np.float32)}
        return super().outgoing(replace(update, groups={**update.groups, LOSS: loss}), knobs)


def build_rule() -> TwoAnchors:
    """Return the client half of SPD-CFL."""
    return TwoAnchors()


def _like(array: Array, other: Tensor) -> Tensor:
    """Return the array as the other's type: NumPy's, or torch's on its device."""
    if isinstance(other, np.ndarray):
        return array
    import torch  # here, so that a server or a NumPy workload never pays for it

    return torch.from_numpy(np.array(array)).to(other.device)
