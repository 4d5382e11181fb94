"""A set of splats: arrays of parameters by name, their checks, and what they are made of at the start."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from fedloom.core.errors import DataMissing

Splats = Mapping[str, Tensor]
"""Parameters of n splats by name, see `SHAPES`; `scales` are logarithms, `opacities` are logits."""
POSITIONS, COLORS, HARMONICS, OPACITIES, SCALES, ROTATIONS = (
    "positions",
    "colors",
    "harmonics",
    "opacities",
    "scales",
    "rotations",
)
SHAPES: dict[str, tuple[int, ...]] = {
    POSITIONS: (3,),
    COLORS: (3,),
    HARMONICS: (15, 3),
    OPACITIES: (),
    SCALES: (3,),
    ROTATIONS: (4,),
}
"""The shape of one splat's entry of each array. `colors` is the constant harmonic; rotations are (w, x, y, z)."""
FLOATS = sum(int(np.prod(shape)) for shape in SHAPES.values())
"""Numbers of one splat: 59."""
SH_0 = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi))."""


def check_splats(arrays: Mapping[str, np.ndarray], where: str) -> int:
    """Return the number of splats.

    Args:
        arrays: by the names of `SHAPES`.
        where: what they were read from, for the error.

    Raises:
        DataMissing: there is no splat, or an array is absent, of another shape, not finite, or of no rotation.
    """
    if absent := SHAPES.keys() - arrays.keys():
        raise DataMissing(f"{where}: expected arrays {sorted(SHAPES)}, without {sorted(absent)}")
    n = len(arrays[POSITIONS])
    if n == 0:
        raise DataMissing(f"{where}: expected at least one splat, got none; a scene needs points to start from")
    for name, shape in SHAPES.items():
        if arrays[name].shape != (n, *shape):
            raise DataMissing(f"{where}: {name}: expected shape {(n, *shape)}, got {arrays[name].shape}")
        bad = ~np.isfinite(arrays[name]).reshape(n, -1).all(1)
        if bad.any():
            raise DataMissing(f"{where}: {name} of splat {int(bad.argmax())} is not finite ({int(bad.sum())} of {n})")
    flat = ~(np.abs(arrays[ROTATIONS]).max(1) > 0)
    if flat.any():
        raise DataMissing(f"{where}: rotations of splat {int(flat.argmax())} is zero, which is no rotation")
    large = np.abs(arrays[SCALES]).max(1) > 40
    if large.any():
        i = int(large.argmax())
        raise DataMissing(
            f"{where}: scales of splat {i}: expected logarithms between -40 and 40, got {arrays[SCALES][i].tolist()}; "
            "its covariance would be degenerate"
        )
    return n


def from_points(points: np.ndarray, colors: np.ndarray, opacity: float = 0.1) -> dict[str, np.ndarray]:
    """Return one round splat for each point, as wide as its three nearest neighbours are far (root mean square).

    Args:
        points: (n, 3), in the scene's units.
        colors: (n, 3), in [0, 1].
        opacity: of every splat, in (0, 1).

    Returns:
        float32 arrays by the names of `SHAPES`.

    Raises:
        DataMissing: there is no point, or one is not finite.
    """
    n = len(points)
    if n == 0:
        raise DataMissing("points: expected at least one, got none; a scene needs points to start from")
    if not np.isfinite(points).all():
        raise DataMissing(f"points: point {int((~np.isfinite(points)).any(1).argmax())} is not finite")
    scale = np.full(n, 0.1)
    if n > 1:
        near = cKDTree(points).query(points, k=min(4, n))[0][:, 1:]
        scale = np.sqrt(np.maximum((near**2).mean(1), 1e-14))
    rotations = np.zeros((n, 4))
    rotations[:, 0] = 1
    made = {
        POSITIONS: points,
        COLORS: (colors - 0.5) / SH_0,
        HARMONICS: np.zeros((n, 15, 3)),
        OPACITIES: np.full(n, np.log(opacity / (1 - opacity))),
        SCALES: np.repeat(np.log(scale)[:, None], 3, 1),
        ROTATIONS: rotations,
    }
    return {name: np.ascontiguousarray(value, np.float32) for name, value in made.items()}


def tensors(
    arrays: Mapping[str, np.ndarray], device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return copies of a splat's arrays as tensors."""
    return {name: torch.tensor(arrays[name], dtype=dtype, device=device) for name in SHAPES}


def rows(splats: Splats, index: Tensor) -> dict[str, Tensor]:
    """Return some splats.

    Args:
        splats: n of them.
        index: (m,), their numbers, or (n,) booleans.
    """
    return {name: value[index] for name, value in splats.items()}


def joined(parts: list[Splats]) -> dict[str, Tensor]:
    """Return the splats of several sets, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
