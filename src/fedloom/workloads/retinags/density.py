"""Densification and pruning: splats that the picture pulls at are cloned or split into the rows of pruned ones.

The rows are of a fixed number, so that a model's arrays keep their shapes. A free row is a splat too transparent to be
drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedloom.workloads.retinags.splats import OPACITIES, POSITIONS, ROTATIONS, SCALES
from fedloom.workloads.retinags.state import STATISTICS, Rows

FREE = -30.0
"""Logit of the opacity in a free row."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Thresholds of 3DGS."""

    slope: float = 2e-4
    """Mean norm of the gradient of the loss with respect to a splat's centre, in halves of the picture's size."""
    size: float = 0.01
    """Largest scale that is cloned instead of split, in extents of the scene."""
    opacity: float = 0.005
    """Less opaque splats are removed."""


def free_rows(rows: Rows) -> np.ndarray:
    """Return (n,) which rows hold no splat."""
    free: np.ndarray = rows.values[OPACITIES] <= FREE + 1
    return free


def densified(rows: Rows, growth: Growth, extent: float, noise: np.ndarray) -> Rows:
    """Return the splats after one round of pruning, cloning and splitting; the statistics start again.

    Args:
        rows: all splats, whichever box they are in.
        growth: thresholds.
        extent: of the scene, its units.
        noise: (n, 2, 3), standard normal: row i's is for splat i, so that a split does not depend on who does it.
    """
    values = {name: value.copy() for name, value in rows.values.items()}
    moments = [{name: value.copy() for name, value in table.items()} for table in (rows.first, rows.second)]
    logit = np.log(growth.opacity / (1 - growth.opacity))
    free = (values[OPACITIES] < logit) | free_rows(rows)
    values[OPACITIES][free] = FREE
    mean = rows.statistics["slopes"] / np.maximum(rows.statistics["views"], 1)
    grown = np.nonzero((mean > growth.slope) & ~free)[0]
    grown = grown[np.argsort(-mean[grown], kind="stable")]
    rows_free = np.nonzero(free)[0]
    count = min(len(grown), len(rows_free))
    parents, children = grown[:count], rows_free[:count]
    split = np.exp(values[SCALES][parents]).max(1) > growth.size * extent
    for name in values:
        values[name][children] = values[name][parents]
    for offset, whole in ((0, parents), (1, children)):
        some = whole[split]
        moved = noise[parents[split], offset] * np.exp(values[SCALES][some])
        turned = np.einsum("nij,nj->ni", rotations(values[ROTATIONS][some]), moved)
        values[POSITIONS][some] += turned.astype(values[POSITIONS].dtype)
        values[SCALES][some] -= np.log(1.6).astype(values[SCALES].dtype)
    for table in moments:
        for value in table.values():
            value[children] = 0
            value[parents[split]] = 0
            value[rows_free] = 0
    statistics = {name: np.zeros(len(rows.ids)) for name in STATISTICS}
    return Rows(rows.ids, values, moments[0], moments[1], statistics)


def rotations(quaternions: np.ndarray) -> np.ndarray:
    """Return rotation matrices (n, 3, 3) of quaternions (n, 4)."""
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    return np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        axis=1,
    )
