"""The accumulator of FLASC: the mean of sparse changes, as one dense vector."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.accumulators import RunningMean
from fedloom.core.records import Update
from fedloom.strategies._low_rank.wire import unpack
from fedloom.strategies.flasc.sparse import KEPT, dense


class Accumulator(RunningMean):
    """A running mean in which unsent entries count as zero."""

    def add(self, update: Update, weight: float, client: int) -> None:
        groups = dict(unpack(update.groups, update.info))
        if KEPT in groups:
            groups[KEPT] = {"change": dense(groups[KEPT], int(update.info["size"]))}
        super().add(replace(update, groups=groups), weight, client)
