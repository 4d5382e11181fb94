"""What sites agree on before round 1, so that one model fits the data of all: settings fixed for the run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from fedloom.core.config import Experiment
from fedloom.core.data_schema import SUMS
from fedloom.core.errors import DataDiffers
from fedloom.core.records import Info
from fedloom.server.rounds.descriptions import Described


def agreed_settings(experiment: Experiment, sites: Sequence[Described]) -> list[str]:
    """Return the `KEY=VALUE` settings that sites agree on, in the order of their names.

    Args:
        experiment: as it was submitted.
        sites: all that are clients in round 1.

    Raises:
        DataDiffers: their data do not fit together; the message names the site and the difference.
    """
    settings: list[str] = []
    if experiment.round.weighting == "examples" and any(site.size is None for site in sites):
        settings.append('round.weighting="uniform"')
    settings += _moments(experiment, sites)
    return settings


def _moments(experiment: Experiment, sites: Sequence[Described]) -> list[str]:
    """Return the mean and deviation of all sites' data together, from each one's sums."""
    told = [site.info.data.get(SUMS) for site in sites]
    if all(sums is None for sums in told):
        return []
    silent = next((site.name for site, sums in zip(sites, told, strict=True) if not _are_sums(sums)), None)
    if silent is not None:
        raise DataDiffers(
            f"site {silent!r} tells no sums of its data (n, sum and squares), so that the mean and deviation of all "
            "sites are not known. Set workload.data.mean and workload.data.std, one value per channel"
        )
    known = [sums for sums in told if isinstance(sums, dict)]
    wide = next((i for i, sums in enumerate(known) if len(sums["sum"]) != len(known[0]["sum"])), None)
    if wide is not None:
        raise DataDiffers(
            f"site {sites[wide].name!r} has {len(known[wide]['sum'])} channels or columns, site {sites[0].name!r} "
            f"{len(known[0]['sum'])}"
        )
    mean, std = moments_of(known)
    return [f"workload.data.mean={json.dumps(mean)}", f"workload.data.std={json.dumps(std)}"]


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
        and isinstance(value.get("n"), int)
        and value["n"] > 0
        and all(isinstance(value.get(key), list) for key in ("sum", "squares"))
        and len(value["sum"]) == len(value["squares"])
    )
