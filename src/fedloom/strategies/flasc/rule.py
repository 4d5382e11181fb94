"""FLASC, the client half: fill sparse factors up with zeros, train them dense, send the change's largest entries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedloom.adapters.names import ADAPTERS
from fedloom.core.protocols import Inputs
from fedloom.core.records import MODEL, Array, Info, Job, Record, Update
from fedloom.strategies._low_rank.rule import LowRankRule
from fedloom.strategies.flasc.sparse import KEPT, dense, factors, flat, sparse

SPARSE = "sparse"
"""Key of the adapters' info: the shapes of the factors sent as one sparse vector."""


class SparseFactors(LowRankRule):
    """Knobs: `density_up`."""

    def __init__(self) -> None:
        super().__init__()
        self._received = np.zeros(0, np.float32)

    def incoming(self, inputs: Inputs, job: Job) -> Inputs:
        inputs = super().incoming(inputs, job)
        record = inputs[MODEL]
        shapes = record.info[ADAPTERS][SPARSE]
        size = sum(rank * (out + in_) for rank, out, in_ in shapes.values())
        self._received = dense(record.groups[KEPT], size)
        groups = {MODEL: record.groups[MODEL], **factors(self._received, shapes)}
        return {**inputs, MODEL: Record(groups, record.info)}

    def outgoing(self, update: Update, knobs: Info) -> Update:
        change: Array = flat(update.groups) - self._received
        groups = {MODEL: update.groups[MODEL], KEPT: sparse(change, knobs["density_up"])}
        return super().outgoing(replace(update, groups=groups, info={**update.info, "size": change.size}), knobs)


def build_rule() -> SparseFactors:
    """Return the client half of FLASC."""
    return SparseFactors()
