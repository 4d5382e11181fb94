"""Rate-distortion curves out of runs' folders: one point for each run. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.records import Info
from fedloom.core.run_files import read_rounds
from fedloom.workloads.llic.config import Rival
from fedloom.workloads.llic.rate import BdRate, Curve, bd_rate
from fedloom.workloads.llic.rivals import TITLES


def last_reading(run: Path) -> Info | None:
    """Return what the monitor `llic` has found in a run's last evaluated round; None without a reading."""
    infos = [record.monitor for record in read_rounds(run) if record.monitor and "photographs" in record.monitor]
    return infos[-1] if infos else None


def require_reading(run: Path) -> Info:
    """Return what the monitor `llic` has found in a run's last evaluated round.

    Raises:
        UsageError: it has found nothing there.
    """
    found = last_reading(run) if run.is_dir() else None
    if found is None:
        raise UsageError(
            f"{run}: expected the folder of a run of llic with the monitor 'llic', but has no reading of it"
        )
    return found


def point(reading: Info) -> tuple[float, float]:
    """Return a codec's mean bits per pixel and mean PSNR over the held-out photographs."""
    lines = reading["photographs"]
    qualities = [100.0 if line["psnr"] is None else line["psnr"] for line in lines]
    return float(np.mean([line["bits_per_pixel"] for line in lines])), float(np.mean(qualities))


def codec_curve(readings: Sequence[Info]) -> Curve:
    """Return the curve through several runs' points."""
    rates, qualities = zip(*map(point, readings), strict=True)
    return Curve.of(rates, qualities)


def bd_rates(readings: Sequence[Info]) -> Mapping[Rival, BdRate]:
    """Return how much less (negative) or more than each other format the codec of several runs needs.

    Raises:
        UsageError: the runs' held-out photographs differ.
    """
    names = {tuple(line["name"] for line in reading["photographs"]) for reading in readings}
    if len(names) > 1:
        raise UsageError(f"runs with different held-out photographs have no common curve: {sorted(names)}")
    own, found = codec_curve(readings), dict[Rival, BdRate]()
    for rival in TITLES:
        curves = [reading["rivals"][rival] for reading in readings if rival in reading["rivals"]]
        if curves:
            found[rival] = bd_rate(Curve.of(curves[0]["bits_per_pixel"], curves[0]["psnr"]), own)
    return found
