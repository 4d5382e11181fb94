"""Clients that have the first layers only, and which arrays these are."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.workloads.hubert_ee.net import EarlyExit


def depth_of(depths: Sequence[int], client: int) -> int | None:
    """Return the layers a client has; None for all."""
    return depths[client % len(depths)] if depths else None


def is_held(net: EarlyExit, name: str, depth: int) -> bool:
    """Return whether a client with the first `depth` layers has an array.

    It has the front, the layers and branches up to `depth`, and no final head unless these are all layers.
    """
    if depth >= net.num_layers:
        return True
    parts = name.split(".")
    match parts:
        case ["branches", number, *_]:
            return int(number) <= depth
        case ["hubert", "encoder", "layers", number, *_]:
            return int(number) < depth
        case ["hubert", "encoder", "layer_norm", *_]:
            return not net.hubert.config.do_stable_layer_norm  # behind the last layer, or before the first
        case ["final", *_]:
            return False
        case _:
            return True
