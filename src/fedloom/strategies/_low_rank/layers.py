"""The layers with adapters: chosen by pattern from the workload's list, and their first factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.adapters.matching import match_modules
from fedloom.core.errors import ConfigError
from fedloom.core.records import Array, Arrays, Info
from fedloom.core.seeds import generator


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weight as a matrix W (o, i)."""

    weight: str
    """Name of the weight among the model's arrays."""
    out: int
    in_: int
    kind: str
    """`linear`, `conv1d` (transformers'), `conv2d` or `embedding`."""
    kernel: tuple[int, int] | None = None
    """Height and width of a convolution's filters; i is their area times the input channels."""

    @property
    def transposed(self) -> bool:
        """Return whether the weight is stored as (i, o)."""
        return self.kind in ("conv1d", "embedding")

    @property
    def width(self) -> int:
        """O + i: elements of a component."""
        return self.out + self.in_

    def change(self, a: Array, b: Array, scale: float, like: Array) -> Array:
        """s·B A in the stored weight's shape and dtype."""
        product = (b.astype(np.float32) @ a.astype(np.float32)) * np.float32(scale)
        return (product.T if self.transposed else product).reshape(like.shape).astype(like.dtype)


def chosen_layers(info: Info, targets: Sequence[str], rank_max: int) -> dict[str, Layer]:
    """Return the layers the patterns match, in the model's order.

    Args:
        info: of the workload's initial record; `adaptable` lists the layers that can have an adapter.
        targets: patterns of `adapters.matching`.
        rank_max: the largest rank a layer will get.

    Raises:
        ConfigError: a pattern means no layer, or a layer is too small for the rank.
    """
    known: Mapping[str, Info] = info.get("adaptable", {})
    layers = {name: layer_of(known[name]) for name in match_modules(targets, list(known), "strategy.targets")}
    small = [name for name, layer in layers.items() if rank_max > min(layer.out, layer.in_)]
    if small:
        layer = layers[small[0]]
        raise ConfigError(
            f"rank {rank_max} is above min(out, in) = {min(layer.out, layer.in_)} of layer {small[0]!r} "
            f"({layer.out} x {layer.in_}); lower the rank, or remove the layer from strategy.targets"
        )
    return layers


def layer_of(reported: Info) -> Layer:
    """Return a layer from its JSON."""
    kernel = reported.get("kernel")
    return Layer(
        reported["weight"],
        int(reported["out"]),
        int(reported["in"]),
        reported["kind"],
        (kernel[0], kernel[1]) if kernel else None,
    )


def layer_info(layer: Layer) -> Info:
    """Return a layer as JSON (inverse of `layer_of`)."""
    reported = {"kind": layer.kind, "weight": layer.weight, "out": layer.out, "in": layer.in_}
    return {**reported, "kernel": list(layer.kernel)} if layer.kernel else reported


def fresh_a(
    seed: int, restart: int, shapes: Mapping[str, tuple[int, int]], client: int | None = None
) -> dict[str, Array]:
    """Return the first factors A, the same for the same arguments: uniform on ±1/√i, as PEFT draws them.

    Args:
        seed: of the run.
        restart: 0 at first; a method that reinitialises its adapters counts up.
        shapes: rank r and columns i by layer.
        client: whose own factors they are; None draws those that all clients share.

    Returns:
        A (r, i) by layer, float32. Fewer rows are the first of more rows.
    """
    whose = () if client is None else (client,)
    return {
        name: generator(seed, "lora_a", restart, name, *whose).uniform(-1.0, 1.0, (rank, in_)).astype(np.float32)
        / np.float32(np.sqrt(in_))
        for name, (rank, in_) in shapes.items()
    }


def zero_b(shapes: Mapping[str, tuple[int, int]]) -> dict[str, Array]:
    """Return second factors B of zeros, (o, r) for each layer's (o, r)."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def merged(arrays: Arrays, layers: Mapping[str, Layer], a: Arrays, b: Arrays, scale: float) -> dict[str, Array]:
    """Return the arrays with s·B A added to the layers' weights; others unchanged."""
    changed = {
        layer.weight: _added(arrays[layer.weight], layer, a[name], b[name], scale)
        for name, layer in layers.items()
        if name in b
    }
    return {**arrays, **changed}


def _added(weight: Array, layer: Layer, a: Array, b: Array, scale: float) -> Array:
    """Return a weight with its layer's change, in its dtype; weights of 16 bits are added to in float32."""
    wide = weight.astype(np.float32) if weight.dtype.itemsize < 4 else weight
    return (wide + layer.change(a, b, scale, wide)).astype(weight.dtype, copy=False)
