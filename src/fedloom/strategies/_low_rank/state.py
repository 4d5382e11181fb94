"""The state of every low-rank strategy, and the records made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedloom.adapters.names import ADAPTERS, LORA_A, LORA_B, LORA_E
from fedloom.core.pinned import Pinned
from fedloom.core.records import MODEL, Array, Arrays, Info, Record
from fedloom.strategies._low_rank.layers import Layer, layer_of, merged

BASE = "base"
"""Name of the input with the frozen weights."""
FACTORS = "factors"
"""Name of the input with untrained factors A."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """The global model: whole in the initiating stage, then head and factors on a frozen base."""

    model: Arrays
    """Every array in the initiating stage; afterwards the head's, if it is trained."""
    layers: Mapping[str, Info]
    """The layers with adapters, as JSON; see `layers.Layer`."""
    head: tuple[str, ...] = ()
    """Names of the arrays trained besides the adapters."""
    lora_a: Arrays = field(default_factory=dict)
    lora_b: Arrays = field(default_factory=dict)
    lora_e: Arrays = field(default_factory=dict)
    """Gates between the factors, if a method has them: W + s·B diag(e) A."""
    base: Pinned | None = None
    """Every other array, once it is frozen."""
    folds: tuple[Pinned, ...] = ()
    """Changes merged into the base so far, in order: factors with the scale in B."""
    frozen_a: Pinned | None = None
    """The factors A, if they are shared and not trained."""
    anchor: Pinned | None = None
    """The pretrained model, if the regulariser pulls towards it."""
    rank: int = 0
    """r_t of the last adapter round; 0 before the first."""
    restarts: int = 0
    """The number of times the factors were reinitialised."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Numbers a method carries from round to round."""
    scores: Arrays = field(default_factory=dict)
    """Importance of each component in the last round, (r,) by layer, if a method measures it."""
    before_a: Arrays = field(default_factory=dict)
    """A and B before the last round, if a method needs them; empty if their rank was different."""
    before_b: Arrays = field(default_factory=dict)
    reported: Info = field(default_factory=dict)
    """Entries of the round's record."""

    def shapes(self) -> dict[str, Layer]:
        """Return the layers with adapters."""
        return {name: layer_of(reported) for name, reported in self.layers.items()}

    @property
    def factors(self) -> dict[str, tuple[Array, Array]]:
        """Return A and B by layer, wherever A is stored."""
        a = self.lora_a if self.frozen_a is None else self.frozen_a.groups[LORA_A]
        return {name: (a[name], b) for name, b in self.lora_b.items()}

    def beneath(self) -> dict[str, Pinned]:
        """Return the pinned inputs beneath the adapters, by input name, in order."""
        assert self.base is not None
        inputs = {BASE: self.base}
        inputs |= {f"fold-{number}": fold for number, fold in enumerate(self.folds, 1)}
        return inputs if self.frozen_a is None else {**inputs, FACTORS: self.frozen_a}

    def folded(self, fold: Pinned) -> Adapters:
        """Return the state with one more change merged into the base.

        Once the changes together have more elements than the base, a new base includes all of them, which
        all clients read again. So a late client reads at most twice a base, and a client present from the
        beginning at most twice the size of the changes alone.
        """
        assert self.base is not None
        state = replace(self, folds=(*self.folds, fold))
        if sum(each.num_elements for each in state.folds) <= self.base.num_elements:
            return state
        return replace(state, base=Pinned.of(Record({MODEL: state.frozen()}, self.base.info)), folds=())

    def record(self, scale: float, rank_max: int) -> Record:
        """Return the trained arrays, as one record that names its base."""
        groups = {MODEL: self.model, LORA_A: self.lora_a, LORA_B: self.lora_b}
        if self.frozen_a is not None:
            del groups[LORA_A]
        groups |= {LORA_E: self.lora_e} if self.lora_e else {}
        base = [[name, pinned.sha256] for name, pinned in self.beneath().items()]
        adapters = {"modules": list(self.lora_b), "scale": scale, "rank_max": rank_max, "base": base}
        return Record(groups, {ADAPTERS: adapters})

    def whole(self, scale: float) -> Arrays:
        """Return the model as one set of arrays, adapters and changes merged, in the workload's names."""
        if self.base is None:
            return self.model
        a, b = self.product()
        arrays = merged({**self.frozen(), **self.model}, self.shapes(), a, b, scale)
        order = self.base.info["order"]
        return {name: arrays[name] for name in order}

    def frozen(self) -> Arrays:
        """Return the base of the adapters, changes merged: every array but the trained head's."""
        assert self.base is not None
        arrays, layers = self.base.groups[MODEL], self.shapes()
        for fold in self.folds:
            arrays = merged(arrays, layers, fold.groups[LORA_A], fold.groups[LORA_B], 1.0)
        return arrays

    def product(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Factors A and B by layer whose product is the change but for s: gates are in B."""
        a = {name: a for name, (a, _) in self.factors.items()}
        return a, {name: b * self.lora_e[name] if self.lora_e else b for name, b in self.lora_b.items()}
