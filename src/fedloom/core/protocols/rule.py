"""A strategy's client half, and several of them in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fedloom.core.records import Info, Job, Record, Update

Inputs: TypeAlias = Mapping[str, Record]
"""The inputs of a job, by name."""
Tensors: TypeAlias = Sequence[Any]
"""One NumPy array or torch tensor per trained array (core imports no torch); a rule uses operators and in-place methods
that both have."""


class LocalRule:
    """Transforms gradients, and the update before it is sent. Every hook returns its input unchanged by default.

    Everything a rule needs arrives in `knobs` (the exchange's and the job's together) or in its own client state. A
    rule object serves one job and may store what it learns in the meantime.
    """

    def restore(self, state: Record | None) -> None:
        """Restore the result of `state` after this client's last job; None before its first.

        Called first, for evaluation jobs as well.
        """

    def incoming(self, inputs: Inputs, job: Job) -> Inputs:
        """Return the inputs as the workload reads them: the reverse of what the server packed."""
        return inputs

    def begin(self, trained: Sequence[tuple[str, str]], knobs: Info) -> None:
        """Receive the (group, name) of each trained array, in the order of the gradients, before training starts."""

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        """Change the gradients in place before a local optimiser step.

        Args:
            gradients: gradient of the local loss, one entry per trained array.
            parameters: local weights w, same order and shapes; read-only.
            anchor: the global weights as received, same order and shapes, or those of the job's input `anchor` if
                it has one; read-only.
            knobs: settings of the exchange and the job.
        """

    def outgoing(self, update: Update, knobs: Info) -> Update:
        """Return the update as it leaves the client."""
        return update

    def state(self) -> Record | None:
        """Return the record `restore` gets at this client's next job; None leaves the stored one. Called last."""
        return None


class RuleChain(LocalRule):
    """Several rules combined. Updates pass them in order on their way out, inputs in reverse order on their way in.

    The first rule is the strategy's; later ones wrap what the strategy sends.

    Args:
        rules: in order, each made for this job.
    """

    def __init__(self, rules: Sequence[LocalRule]) -> None:
        self.rules = tuple(rules)

    def incoming(self, inputs: Inputs, job: Job) -> Inputs:
        for rule in reversed(self.rules):
            inputs = rule.incoming(inputs, job)
        return inputs

    def begin(self, trained: Sequence[tuple[str, str]], knobs: Info) -> None:
        for rule in self.rules:
            rule.begin(trained, knobs)

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        for rule in self.rules:
            rule.adjust_gradients(gradients, parameters, anchor, knobs)

    def outgoing(self, update: Update, knobs: Info) -> Update:
        for rule in self.rules:
            update = rule.outgoing(update, knobs)
        return update
