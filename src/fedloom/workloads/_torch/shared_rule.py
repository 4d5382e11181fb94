"""A strategy's client half beside arrays that never leave their client."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fedloom.core.protocols import LocalRule, Tensors
from fedloom.core.records import Info


class SharedOnly(LocalRule):
    """Shows a rule the shared arrays alone.

    Args:
        rule: the strategy's.
        shared: their names.
    """

    def __init__(self, rule: LocalRule, shared: Collection[str]) -> None:
        self._rule, self._shared = rule, shared
        self._places: list[int] = []

    def begin(self, trained: Sequence[tuple[str, str]], knobs: Info) -> None:
        self._places = [place for place, (_, name) in enumerate(trained) if name in self._shared]
        self._rule.begin([trained[place] for place in self._places], knobs)

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        shown = [[each[place] for place in self._places] for each in (gradients, parameters, anchor)]
        self._rule.adjust_gradients(shown[0], shown[1], shown[2], knobs)
