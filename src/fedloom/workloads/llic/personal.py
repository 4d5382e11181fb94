"""What of a codec never leaves a client: the entropy model, or everything."""

from __future__ import annotations

import numpy as np

from fedloom.core.protocols import Inputs, LocalRule
from fedloom.core.records import MODEL, Arrays, Record, Update
from fedloom.workloads._torch.shared_rule import SharedOnly
from fedloom.workloads._torch.whole import ANCHOR
from fedloom.workloads.llic.net import ENTROPY

PERSONAL = "personal"
"""Group of a client's state with its own arrays."""


class PersonalArrays:
    """Puts a client's own arrays beside the global ones, and takes them out of what is sent.

    Args:
        what: the setting `personal`.
        initial: all arrays of a client that has none of its own yet.
    """

    def __init__(self, what: str, initial: Arrays) -> None:
        self._what = what
        self._own = {name: np.array(array) for name, array in initial.items() if name.startswith(ENTROPY)}

    @property
    def shares_all(self) -> bool:
        """Return whether nothing is personal."""
        return self._what == "nothing"

    def shared(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Return the arrays of the global model."""
        hidden = self._own if self._what == "entropy" else {}
        return {name: array for name, array in arrays.items() if name not in hidden}

    def joined(self, inputs: Inputs, state: Record | None) -> Inputs:
        """Return the inputs with whole models: the global arrays, the client's own, or the initial ones."""
        if self.shares_all:
            return inputs
        own = {} if state is None else state.groups[PERSONAL]
        if self._what == "entropy":
            own = {**self._own, **own}
        found = dict(inputs)
        for name in (MODEL, ANCHOR):
            if name in inputs:
                arrays = {**inputs[name].groups[MODEL], **own}
                found[name] = Record({MODEL: arrays}, inputs[name].info)
        return found

    def update(self, update: Update, inputs: Inputs) -> tuple[Arrays, Record | None]:
        """Return what is sent after training, and the client's state.

        Where everything is personal the global arrays are sent back as they came.
        """
        arrays = update.groups[MODEL]
        if self.shares_all:
            return arrays, None
        if self._what == "everything":
            own = {name: np.array(array) for name, array in arrays.items()}
            return inputs[MODEL].groups[MODEL], Record({PERSONAL: own})
        return self.shared(arrays), Record({PERSONAL: {name: np.array(arrays[name]) for name in self._own}})

    def rule(self, rule: LocalRule | None, inputs: Inputs) -> LocalRule | None:
        """Return a rule that sees the shared arrays alone."""
        if rule is None or self.shares_all:
            return rule
        return SharedOnly(rule, {*inputs[MODEL].groups[MODEL]})
