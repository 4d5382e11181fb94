"""The client half of the low-rank strategies: unpack what comes, pull towards the anchor, pack what goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedloom.core.records import ADAPTERS, LORA_A, LORA_B, MODEL, Info, Job, Record, Update
from fedloom.strategies._low_rank.layers import fresh_a, zero_b
from fedloom.strategies._low_rank.wire import pack, unpacked
from fedloom.strategies.fedprox.rule import ProximalTerm

FRESH = "fresh"
"""Key of the adapters' info where their factors do not travel: each client makes them from the seed it names."""


class LowRankRule:
    """What every client of a low-rank strategy does beside training. Knobs: `mu` and `wire`."""

    def __init__(self) -> None:
        self._proximal = ProximalTerm()

    def incoming(self, inputs: Mapping[str, Record], job: Job) -> Mapping[str, Record]:
        """The job's inputs, the first of which is the client's model, under whatever name it was sent."""
        name, *beside = job.inputs
        return {MODEL: _with_factors(unpacked(inputs[name])), **{other: inputs[other] for other in beside}}

    def begin(self, trained: Sequence[tuple[str, str]], knobs: Info) -> None:
        """Nothing to get ready; rules that tell arrays apart look here."""

    def adjust_gradients(
        self, gradients: Sequence[Any], parameters: Sequence[Any], anchor: Sequence[Any], knobs: Info
    ) -> None:
        """Add the gradient of mu/2 ||w - a||², which is mu (w - a); see `fedprox`."""
        self._proximal.adjust_gradients(gradients, parameters, anchor, knobs)

    def outgoing(self, update: Update, knobs: Info) -> Update:
        """The update in the wire's dtype."""
        groups, told = pack(update.groups, knobs["wire"])
        return replace(update, groups=groups, info={**update.info, **told}) if told else update


def build_rule() -> LowRankRule:
    """The shared client half."""
    return LowRankRule()


def _with_factors(record: Record) -> Record:
    """The record with factors made here, where the server left that to the clients."""
    told = record.info.get(ADAPTERS, {}).get(FRESH)
    if told is None:
        return record
    shapes: Mapping[str, Sequence[int]] = told["shapes"]
    a = fresh_a(told["seed"], told["restart"], {name: (rank, in_) for name, (rank, _, in_) in shapes.items()})
    b = zero_b({name: (out, rank) for name, (rank, out, _) in shapes.items()})
    return Record({**record.groups, LORA_A: a, LORA_B: b}, record.info)
