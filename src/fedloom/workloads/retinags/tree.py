"""Boxes that tile space: a KD-tree over the splats' centres, and the boxes' order for a camera."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fedloom.core.errors import ConfigError
from fedloom.workloads.retinags.raster import Box

EVERYWHERE = Box((-np.inf,) * 3, (np.inf,) * 3)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One box, by its number."""

    number: int


@dataclass(frozen=True, slots=True)
class Split:
    """A plane: points with p[axis] <= plane are to the left."""

    axis: int
    plane: float
    left: Tree
    right: Tree


Tree = Leaf | Split


def median_tree(points: np.ndarray, parts: int) -> Tree:
    """Return a tree of `parts` boxes with equal numbers of points, cut across the longest side of their hull.

    Args:
        points: (n, 3).
        parts: K, 1 to n.

    Raises:
        ConfigError: there are more parts than points.
    """
    if not 1 <= parts <= len(points):
        raise ConfigError(f"workload.parts: expected 1 to {len(points)}, the number of splats, got {parts}")
    return _tree(points, parts, 0)


def _tree(points: np.ndarray, parts: int, first: int) -> Tree:
    if parts == 1:
        return Leaf(first)
    lower = parts // 2
    axis = int((points.max(0) - points.min(0)).argmax()) if len(points) else 0
    values = np.sort(points[:, axis])
    plane = float(values[max(len(values) * lower // parts - 1, 0)]) if len(values) else 0.0
    left = points[:, axis] <= plane
    return Split(axis, plane, _tree(points[left], lower, first), _tree(points[~left], parts - lower, first + lower))


def boxes(tree: Tree) -> list[Box]:
    """Return the boxes by their numbers; the outer faces are at infinity."""
    return [box for _, box in sorted(_boxes(tree, EVERYWHERE), key=lambda pair: pair[0])]


def _boxes(tree: Tree, within: Box) -> Iterator[tuple[int, Box]]:
    if isinstance(tree, Leaf):
        yield tree.number, within
        return
    axis, plane = tree.axis, tree.plane  # a plane beside the box leaves one side of it empty
    yield from _boxes(tree.left, replace(within, high=_with(within.high, axis, min(plane, within.high[axis]))))
    yield from _boxes(tree.right, replace(within, low=_with(within.low, axis, max(plane, within.low[axis]))))


def _with(values: tuple[float, float, float], axis: int, value: float) -> tuple[float, float, float]:
    x, y, z = (value if i == axis else each for i, each in enumerate(values))
    return x, y, z


def owners(tree: Tree, points: np.ndarray) -> np.ndarray:
    """Return (n,) the number of the box that each point (n, 3) is in."""
    found = np.zeros(len(points), np.int64)
    for number, box in enumerate(boxes(tree)):
        found[((points > np.array(box.low)) & (points <= np.array(box.high))).all(1)] = number
    return found


def front_to_back(tree: Tree, eye: tuple[float, float, float]) -> list[int]:
    """Return the boxes' numbers, nearest first along every ray from a camera at `eye`."""
    if isinstance(tree, Leaf):
        return [tree.number]
    near, far = (tree.right, tree.left) if eye[tree.axis] > tree.plane else (tree.left, tree.right)
    return front_to_back(near, eye) + front_to_back(far, eye)
