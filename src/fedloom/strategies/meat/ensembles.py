"""One set of weights from a history of them, coordinate by coordinate, in blocks.

S snapshots w^(1) … w^(S), oldest first, are combined array by array and block by block: besides snapshots and result,
memory is S times one block. Integer arrays are never combined: they are the newest snapshot's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, Arrays

_BLOCK = 1 << 15
"""Coordinates combined at a time: with dozens of snapshots their values fit in a core's cache."""
Snapshots = Sequence[Arrays]
_Reduce = Callable[[Array], Array]
"""Maps (coordinates, S) to (coordinates,)."""


def median(snapshots: Snapshots, like: Arrays) -> dict[str, Array]:
    """Return the coordinate-wise median, w~_c = median_s w^(s)_c; of an even number the mean of the two middle values.

    MEAT (arXiv 2406.14259), its median ensemble. Fewer than half of the snapshots may be arbitrary: every coordinate
    still lies between the least and the greatest value of the others.

    Args:
        snapshots: w^(s), equal names and shapes.
        like: arrays with the dtypes of the result.

    Raises:
        BadUpdate: a snapshot contains NaN.
    """
    return _by_coordinate(snapshots, like, lambda values: np.median(values, axis=1))


def trimmed(snapshots: Snapshots, like: Arrays, share: float) -> dict[str, Array]:
    """Return the mean without the floor(share * S) smallest and largest values of each coordinate."""
    cut = int(share * len(snapshots))
    return _by_coordinate(
        snapshots, like, lambda values: np.sort(values, axis=1)[:, cut : len(snapshots) - cut].mean(1, np.float64)
    )


def weighted(snapshots: Snapshots, like: Arrays, weights: Sequence[float]) -> dict[str, Array]:
    """Return the sum of weights_s w^(s); weights add up to 1."""
    factors = np.asarray(weights, np.float64)
    return _by_coordinate(snapshots, like, lambda values: values @ factors)


def mean(snapshots: Snapshots, like: Arrays) -> dict[str, Array]:
    """Return the plain mean: weight averaging, or SWA (Izmailov et al. 2018)."""
    return weighted(snapshots, like, [1.0 / len(snapshots)] * len(snapshots))


def moving_average(snapshots: Snapshots, like: Arrays, decay: float) -> dict[str, Array]:
    """E^(1) = w^(1), E^(s) = decay * E^(s-1) + (1 - decay) * w^(s); the last E."""
    count = len(snapshots)
    shares = [(1.0 - decay) * decay ** (count - 1 - index) for index in range(count)]
    return weighted(snapshots, like, [decay ** (count - 1), *shares[1:]])


def middle(snapshots: Snapshots, like: Arrays) -> dict[str, Array]:
    """Return the snapshot in the middle of time; of an even number the mean of the two.

    If every coordinate moves one way only, the median is exactly this: an ensemble has to do better.
    """
    count = len(snapshots)
    return mean(snapshots[(count - 1) // 2 : count // 2 + 1], like)


def with_outliers(arrays: Arrays, scale: float, rng: np.random.Generator) -> dict[str, Array]:
    """Return every coordinate plus N(0, (scale * mean |w|)^2), the mean taken over its array.

    Integers and the statistics of batch normalisation (`running_…`) are unchanged: a variance below 0 would break any
    model.
    """
    return {
        name: array
        if array.dtype.kind in "iub" or "running_" in name or not array.size
        else (array + rng.normal(0.0, scale * float(np.abs(array).mean()), array.shape)).astype(array.dtype)
        for name, array in arrays.items()
    }


def stored(arrays: Arrays, *, half: bool) -> dict[str, Array]:
    """Return a snapshot as stored; floats as float16 if `half`.

    Raises:
        BadUpdate: a value does not fit into float16.
    """
    if not half:
        return dict(arrays)
    with np.errstate(over="ignore"):
        snapshot = {
            name: array if array.dtype.kind in "iub" else array.astype(np.float16) for name, array in arrays.items()
        }
    for name, array in snapshot.items():
        if array.dtype == np.float16 and not np.isfinite(array).all():
            raise BadUpdate(
                f'array {name!r} has values beyond 65504, the limit of float16; set strategy.precision to "full"'
            )
    return snapshot


def _by_coordinate(snapshots: Snapshots, like: Arrays, reduce: _Reduce) -> dict[str, Array]:
    combined: dict[str, Array] = {}
    for name, model in like.items():
        if model.dtype.kind in "iub":
            combined[name] = snapshots[-1][name]
            continue
        flat = [np.ascontiguousarray(each[name]).reshape(-1) for each in snapshots]
        wide = np.result_type(flat[0].dtype, np.float32) if flat[0].dtype.itemsize < 4 else flat[0].dtype
        result = np.empty(model.size, model.dtype)
        for start in range(0, model.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            values = np.stack([each[part] for each in flat], axis=1).astype(wide, copy=False)
            reduced = reduce(values)
            if np.isnan(reduced).any():
                raise BadUpdate(f"array {name!r} of the history contains NaN; training diverged there")
            result[part] = reduced
        combined[name] = result.reshape(model.shape)
    return combined


def combinations(trim: float, ema_decay: float) -> Mapping[str, Callable[[Snapshots, Arrays], dict[str, Array]]]:
    """Return every combination, by name."""
    return {
        "median": median,
        "mean": mean,
        "trimmed": lambda snapshots, like: trimmed(snapshots, like, trim),
        "ema": lambda snapshots, like: moving_average(snapshots, like, ema_decay),
        "middle": middle,
        "first": lambda snapshots, like: mean(snapshots[:1], like),
        "last": lambda snapshots, like: mean(snapshots[-1:], like),
    }
