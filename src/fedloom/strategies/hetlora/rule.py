"""HetLoRA, the client half: a penalty on the last components, and a client that prunes them when they shrink."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.core.protocols import Tensors
from fedloom.core.records import Groups, Info, Update
from fedloom.strategies._low_rank.rule import LowRankRule, Tensor


class SelfPruning(LowRankRule):
    """Knobs: `gamma`, `penalty`. The tail of a pair of rank r are its components from ⌊γ r⌋ on; one always remains."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs: list[tuple[int, int]] = []
        self._start = math.nan

    def begin(self, trained: Sequence[tuple[str, str]], knobs: Info) -> None:
        places = {key: place for place, key in enumerate(trained)}
        names = [name for group, name in trained if group == LORA_B]
        self._pairs = [(places[LORA_A, name], places[LORA_B, name]) for name in names]

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        """Add λ times the gradient of Σ ‖B_tail‖_F ‖A_tail‖_F over the layers, and the proximal term."""
        super().adjust_gradients(gradients, parameters, anchor, knobs)
        if math.isnan(self._start):
            self._start = sum(_tail_norm(anchor[at], anchor[bt], knobs["gamma"]) for at, bt in self._pairs)
        for at, bt in self._pairs if knobs["penalty"] else ():
            a, b = parameters[at], parameters[bt]
            kept = kept_rank(len(a), knobs["gamma"])
            norm_a, norm_b = float((a[kept:] ** 2).sum()) ** 0.5, float((b[:, kept:] ** 2).sum()) ** 0.5
            if norm_a > 0.0 and norm_b > 0.0:
                gradients[at][kept:] += a[kept:] * (knobs["penalty"] * norm_b / norm_a)
                gradients[bt][:, kept:] += b[:, kept:] * (knobs["penalty"] * norm_a / norm_b)

    def outgoing(self, update: Update, knobs: Info) -> Update:
        """Return the update, with tails cut off if they became smaller in training."""
        return super().outgoing(replace(update, groups=self._pruned(update.groups, knobs["gamma"])), knobs)

    def _pruned(self, groups: Groups, gamma: float) -> Groups:
        a, b = groups[LORA_A], groups[LORA_B]
        end = sum(_tail_norm(a[name], b[name], gamma) for name in b)
        if not end < self._start:
            return groups
        kept = {name: kept_rank(len(a[name]), gamma) for name in a}
        cut_a = {name: np.ascontiguousarray(a[name][: kept[name]]) for name in a}
        return {**groups, LORA_A: cut_a, LORA_B: {n: np.ascontiguousarray(b[n][:, : kept[n]]) for n in b}}


def kept_rank(rank: int, gamma: float) -> int:
    """⌊γ r⌋, at least 1."""
    return max(1, math.floor(gamma * rank))


def build_rule() -> SelfPruning:
    """Return the client half of HetLoRA."""
    return SelfPruning()


def _tail_norm(a: Tensor, b: Tensor, gamma: float) -> float:
    """‖B_tail‖_F ‖A_tail‖_F."""
    kept = kept_rank(len(a), gamma)
    squares: float = float((a[kept:] ** 2).sum()) * float((b[:, kept:] ** 2).sum())
    return math.sqrt(squares)
