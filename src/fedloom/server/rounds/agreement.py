"""Determines the settings that sites agree on before round 1, so that one model fits the data of all."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from fedloom.core.config import Experiment
from fedloom.core.data_schema import FEW_EXAMPLES, SUMS, data_schema
from fedloom.core.errors import DataDiffers
from fedloom.core.records import Info
from fedloom.server.rounds.descriptions import Described

CLASSES = "workload.data.classes"
"""Setting of the classes in the order of their numbers."""
UNIFORM = 'round.weighting="uniform"'
"""Setting with which all updates weigh the same."""
_LARGEST = 1e300
"""Bound of a site's sums."""
_NUMBER = re.compile(r"-?[0-9]{1,18}")
"""A class that is a number."""
_SHOWN = 12
"""Limit of names that a message lists."""


def warnings_of(sites: Sequence[Described]) -> list[str]:
    """Return notices about sites whose data fit together, in words."""
    by_digest: dict[str, list[str]] = {}
    for site in sites:
        if isinstance(digest := site.info.data.get("sha256"), str):
            by_digest.setdefault(digest, []).append(site.name)
    return [
        f"sites {', '.join(names)} have the same data (SHA-256 {digest[:12]}…): is it a copy, or one site twice?"
        for digest, names in by_digest.items()
        if len(names) > 1
    ]


def agreed_settings(experiment: Experiment, sites: Sequence[Described], run_id: str) -> list[str]:
    """Return the `KEY=VALUE` settings that sites agree on, in the order of their names.

    Args:
        experiment: as it was submitted.
        sites: all that are clients in round 1.
        run_id: of the run, which digests of classes are made with.

    Raises:
        DataDiffers: their data do not fit together; the message names the site and the difference.
    """
    first = sites[0]
    for site in sites[1:]:
        if found := difference(site.info.data, first.info.data):
            raise DataDiffers(f"site {site.name!r} does not fit site {first.name!r}: {found}")
    settings: list[str] = []
    table = experiment.workload.model_dump().get("data")
    if isinstance(table, Mapping) and table.get("classes") == "union":
        settings.append(f"{CLASSES}={json.dumps(_union(sites), ensure_ascii=False)}")
    else:
        _check_classes(sites, run_id)
    settings += uniform_weights(experiment, sites)
    settings += _moments(experiment, sites)
    return settings


def uniform_weights(experiment: Experiment, sites: Sequence[Described]) -> list[str]:
    """Return the setting that makes all updates weigh the same, where a site withholds its number of examples."""
    withheld = any(site.withholds_size for site in sites)
    return [UNIFORM] if withheld and experiment.round.weighting == "examples" else []


def reasons_of(settings: Sequence[str], sites: Sequence[Described]) -> str:
    """Return the reason for agreed settings, in words, if it is not obvious; empty otherwise."""
    names = [site.name for site in sites if site.withholds_size]
    if UNIFORM not in settings or not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f": updates weigh the same, since {', '.join(names[:_SHOWN])}{more} withheld the number of examples"


def difference(one: Info, other: Info) -> str:
    """Return how a site's columns or images differ from another one's, in words; empty if they do not."""
    if one.get("columns") != other.get("columns"):
        return _columns_differ(one, other)
    return _shapes_differ(one, other) if one.get("shape") != other.get("shape") else ""


def _columns_differ(one: Info, other: Info) -> str:
    mine, others = _as_table(one.get("columns")), _as_table(other.get("columns"))
    missing, more = sorted(others.keys() - mine.keys()), sorted(mine.keys() - others.keys())
    kinds = [
        f"{name} is {mine[name]}, not {others[name]}" for name in mine if others.get(name, mine[name]) != mine[name]
    ]
    found = [f"it lacks the columns {', '.join(missing[:_SHOWN])}"] if missing else []
    found += [f"it has the further columns {', '.join(more[:_SHOWN])}"] if more else []
    return "; ".join([*found, *kinds[:_SHOWN]]) or "its columns have another order"


def _shapes_differ(one: Info, other: Info) -> str:
    return (
        f"its images have the shape {one.get('shape')} (channels, height, width), not {other.get('shape')}. Set "
        "workload.resize and workload.channels"
    )


def _check_classes(sites: Sequence[Described], run_id: str) -> None:
    """Compare the classes and their order, of which every site reports a digest."""
    first = sites[0]
    expected = _classes_digest(first, run_id)
    for site in sites[1:]:
        if _classes_digest(site, run_id) == expected:
            continue
        only = [name for name in site.info.label_names if name not in first.info.label_names]
        lacks = [name for name in first.info.label_names if name not in site.info.label_names]
        found = [f"it has the further classes {', '.join(only[:_SHOWN])}"] if only else []
        found += [f"it lacks the classes {', '.join(lacks[:_SHOWN])}"] if lacks else []
        how = "; ".join(found) or "its classes have another order"
        raise DataDiffers(
            f"site {site.name!r} does not fit site {first.name!r}: {how}. "
            f'Set {CLASSES} to the classes of all sites, in one order, or to "union"'
        )


def _classes_digest(site: Described, run_id: str) -> object:
    schema = site.info.data.get("schema")
    found = schema if isinstance(schema, Mapping) else data_schema(site.info.data, run_id)
    return found.get("classes")


def _union(sites: Sequence[Described]) -> list[str]:
    """Return the classes of all sites, sorted: as numbers if all are."""
    names: set[str] = set()
    for site in sites:
        hidden = [name for name in site.info.label_names if name.startswith("sha256:") or name == FEW_EXAMPLES]
        if hidden:
            count = len(site.info.label_names)
            raise DataDiffers(
                f"site {site.name!r} withholds the names of {len(hidden)} of its {count} classes, so the "
                f"classes of all are unknown. Set {CLASSES} to them, or have its owner list their names "
                "(`classes` of the workload in the policy)"
            )
        names.update(site.info.label_names)
    if len(names) < 2:
        raise DataDiffers(f"all sites together have the classes {sorted(names)}; expected at least two")
    return sorted(names, key=int) if all(map(_NUMBER.fullmatch, names)) else sorted(names)


def _as_table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _moments(experiment: Experiment, sites: Sequence[Described]) -> list[str]:
    """Return the mean and deviation of all sites' data together, from each one's sums."""
    reported = [site.info.data.get(SUMS) for site in sites]
    if all(sums is None for sums in reported):
        return []
    silent = next((site.name for site, sums in zip(sites, reported, strict=True) if not _are_sums(sums)), None)
    if silent is not None:
        raise DataDiffers(
            f"site {silent!r} reports no sums of its data (n, sum and squares), so the mean and deviation of all "
            "sites are unknown. Set workload.data.mean and workload.data.std, one value per channel"
        )
    known = [sums for sums in reported if isinstance(sums, dict)]
    wide = next((i for i, sums in enumerate(known) if len(sums["sum"]) != len(known[0]["sum"])), None)
    if wide is not None:
        raise DataDiffers(
            f"site {sites[wide].name!r} has {len(known[wide]['sum'])} channels or columns, site {sites[0].name!r} "
            f"{len(known[0]['sum'])}"
        )
    if not _can_be_set(experiment):
        return _same_moments(known, sites)
    mean, std = moments_of(known)
    return [f"workload.data.mean={json.dumps(mean)}", f"workload.data.std={json.dumps(std)}"]


def _can_be_set(experiment: Experiment) -> bool:
    """Return whether the workload has settings for the mean and deviation; data of installed packages have none."""
    table = experiment.workload.model_dump().get("data")
    return isinstance(table, Mapping) and {"mean", "std"} <= table.keys()


def _same_moments(known: Sequence[Info], sites: Sequence[Described]) -> list[str]:
    """Return no settings if all sites normalise alike by themselves, since their sums are equal.

    Raises:
        DataDiffers: names the first site whose sums are others.
    """
    other = next((site.name for site, sums in zip(sites, known, strict=True) if sums != known[0]), None)
    if other is not None:
        raise DataDiffers(
            f"site {other!r} has other data than site {sites[0].name!r}, and this workload has no settings "
            "workload.data.mean and workload.data.std to normalise both alike. Use a source of data with these settings"
        )
    return []


def moments_of(sums: Sequence[Info]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel or column over all sites; a flat one's deviation is 1."""
    count = sum(each["n"] for each in sums)
    mean, std = [], []
    for place in range(len(sums[0]["sum"])):
        center = math.fsum(each["sum"][place] for each in sums) / count
        square = math.fsum(each["squares"][place] for each in sums) / count
        deviation = math.sqrt(max(square - center**2, 0.0))
        mean.append(center)
        std.append(deviation if deviation > 1e-8 else 1.0)
    return mean, std


def _are_sums(value: object) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("n")) is int
        and 0 < value["n"] < 2**63
        and all(_are_finite(value.get(key)) for key in ("sum", "squares"))
        and len(value["sum"]) == len(value["squares"])
    )


def _are_finite(value: object) -> bool:
    """Return whether a value is a list of numbers whose sum over any number of sites is finite."""
    return isinstance(value, list) and all(type(each) in (int, float) and abs(each) < _LARGEST for each in value)
