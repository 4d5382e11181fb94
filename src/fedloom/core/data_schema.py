"""Checks that the data of all nodes of a run agree: in the classes and their numbers, shape and normalisation."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

from fedloom.core.errors import DataDiffers
from fedloom.core.records import Info

SUMS = "sums"
"""Key of `WorkloadInfo.data` with the sums that a site's data would be normalised by: the number `n` of values of each
channel or column, their `sum` and the sum of their `squares`. Added up, they give `workload.data.mean` and `std`."""
SHARES = "shares_local_model"
"""Key of a site's description that says, by `true`, that a model trained there may be evaluated at other sites."""
UNSIZED = "withholds_sizes"
"""Key of a node's description that says, by `true`, that its reports count one example for each client."""
FEW_EXAMPLES = "fewer than 5 examples"
"""Replaces the name of a class of which a node has too few examples for it to be disclosed."""
_TOLERANCE = 1e-4
"""Relative difference up to which moments are the same: sums of floats differ between kinds of processors."""
_SHOWN = 12
_SET_SHAPE = "Set workload.resize and workload.channels"
_SET_MOMENTS = "Set workload.data.mean and workload.data.std, one value per channel, for all sites"


def data_schema(data: Info, run_id: str) -> Info:
    """Return the facts that other nodes' data must agree with; empty if a workload does not state them.

    Names of classes leave as a digest only.

    Args:
        data: `WorkloadInfo.data`, whose `label_names`, `shape`, `mean` and `std` are read.
        run_id: of the run; digests of two runs differ.
    """
    schema = {name: list(data[name]) for name in ("shape", "mean", "std") if _is_numbers(data.get(name))}
    names = data.get("label_names")
    return {**schema, "classes": _digest(names, run_id)} if isinstance(names, list | tuple) else schema


def check_schema(expected: Info, data: Info, run_id: str) -> None:
    """Check that a node's data is numbered, shaped and normalised as the run's.

    Args:
        expected: what the node that made the initial model has, as `data_schema` returns it. What that node withholds
            is named in `withheld`, and not compared.
        data: this node's `WorkloadInfo.data`.
        run_id: of the run.

    Raises:
        DataDiffers: it is not; the message says how they differ and what to set.
    """
    found = data_schema(data, run_id)
    expected = {**expected, **{name: found.get(name) for name in expected.get("withheld", ())}}
    if expected.get("classes") != found.get("classes"):
        names = [str(name) for name in data.get("label_names", ())]
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
        what = "(label_names in workload.json). Set workload.data.classes to the classes of all sites, in one order"
        raise DataDiffers(
            f"this node's classes are {shown or 'none'}, numbered from 0 in this order; the run's are others {what}",
            f"this node's classes, or their order, are not the run's {what}",
        )
    if expected.get("shape") != found.get("shape"):
        raise DataDiffers(
            f"this node's images have the shape {found.get('shape')} (channels, height, width), the run's "
            f"{expected.get('shape')}. {_SET_SHAPE}",
            f"this node's images have another shape than the run's. {_SET_SHAPE}",
        )
    for name in ("mean", "std"):
        ours, theirs = found.get(name), expected.get(name)
        if not _close(ours, theirs):
            raise DataDiffers(
                f"this node's images have the {name} {ours}, the run's {theirs}: each site would normalise by its own. "
                f"{_SET_MOMENTS}",
                f"this node's images have another {name} than the run's. {_SET_MOMENTS}",
            )


def _digest(names: Sequence[object], run_id: str) -> str:
    return hashlib.sha256(json.dumps([run_id, *map(str, names)]).encode()).hexdigest()


def _is_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, int | float) for each in value)


def _close(ours: object, theirs: object) -> bool:
    if not isinstance(ours, list) or not isinstance(theirs, list):
        return ours == theirs
    return len(ours) == len(theirs) and all(
        math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) for a, b in zip(ours, theirs, strict=True)
    )
