"""Rates and qualities against published implementations, and other formats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import bjontegaard
import numpy as np
import pytest
import torch
from pytorch_msssim import ms_ssim as published
from support_llic import picture

from fedloom.cli.app import main
from fedloom.core.history import RoundRecord, Timing, Traffic
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads.llic.bitstream import as_images
from fedloom.workloads.llic.config import Rival
from fedloom.workloads.llic.curves import bd_rates, require_reading
from fedloom.workloads.llic.quality import ms_ssim, psnr
from fedloom.workloads.llic.rate import Curve, bd_rate, rate_at
from fedloom.workloads.llic.rivals import TITLES, missing, points
from fedloom.workloads.llic.study import rates

RATES = (0.12, 0.21, 0.40, 0.75, 1.30)
QUALITIES = (27.1, 29.0, 31.6, 34.2, 36.5)


def test_the_bd_rate_is_the_published_packages() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        other = np.sort(np.array(RATES) * rng.uniform(0.6, 1.5, 5))
        quality = np.sort(np.array(QUALITIES) + rng.uniform(-0.8, 0.8, 5))
        found = bd_rate(Curve.of(RATES, QUALITIES), Curve.of(other, quality))
        expected = bjontegaard.bd_rate(RATES, QUALITIES, other, quality, method="pchip", min_overlap=0)
        assert found.percent == pytest.approx(float(expected), abs=1e-6)


def test_a_curve_that_needs_a_tenth_less_has_minus_ten_percent() -> None:
    found = bd_rate(Curve.of(RATES, QUALITIES), Curve.of([0.9 * rate for rate in RATES], QUALITIES))
    assert found.percent == pytest.approx(-10.0, abs=1e-9) and found.text == "-10.0 %"


def test_without_an_overlap_there_is_none_and_the_reason() -> None:
    far = bd_rate(Curve.of(RATES, QUALITIES), Curve.of(RATES, [quality - 20 for quality in QUALITIES]))
    assert (
        math.isnan(far.percent) and far.text == "n/a (qualities do not overlap: 27.10 to 36.50 against 7.10 to 16.50)"
    )
    few = bd_rate(Curve.of(RATES, QUALITIES), Curve.of(RATES[:3], QUALITIES[:3]))
    assert few.text == "n/a (the tested codec has 3 points, four are needed)"


def test_points_that_cost_more_for_less_are_left_out() -> None:
    curve = Curve.of([0.1, 0.3, 0.2, 0.4], [30.0, 31.0, 32.0, 33.0])
    assert curve.rates.tolist() == [0.1, 0.2, 0.4]
    assert rate_at(curve, 31.0) == pytest.approx(math.sqrt(0.1 * 0.2))
    assert rate_at(curve, 29.9) is None and rate_at(curve, 33.1) is None


def test_ms_ssim_is_the_published_packages() -> None:
    rng = np.random.default_rng(2)
    x = picture(163, 180)
    y = np.clip(x + rng.normal(0, 25, x.shape), 0, 255).astype(np.uint8)
    one, other = as_images(x), as_images(y)
    assert float(ms_ssim(one, other)) == pytest.approx(float(published(one, other, data_range=1.0)), abs=2e-5)
    assert float(ms_ssim(one, one)) == pytest.approx(1.0, abs=1e-6)
    moved = other.clone().requires_grad_()
    ms_ssim(one, moved).backward()
    assert moved.grad is not None and bool(torch.isfinite(moved.grad).all())


def test_psnr_is_of_eight_bits() -> None:
    assert psnr(255.0**2) == 0.0 and psnr(0.0) == math.inf and psnr(1.0) == pytest.approx(48.1308, abs=1e-4)


@pytest.mark.parametrize("rival", TITLES)
def test_other_formats_give_real_bytes_and_rising_quality(rival: Rival) -> None:
    if missing(rival):
        pytest.skip(missing(rival))
    rgb = picture(64, 80)
    found = points(rival, rgb)
    assert all(each.decoded.shape == rgb.shape and each.bits % 8 == 0 for each in found)
    assert found[0].bits < found[-1].bits and found[0].mse(rgb) > found[-1].mse(rgb)
    assert found[-1].mse(rgb) == pytest.approx(float(((found[-1].decoded.astype(float) - rgb) ** 2).mean()))


def test_runs_of_several_lambdas_are_compared_with_other_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = {"bits_per_pixel": [1.25 * rate for rate in RATES], "psnr": list(QUALITIES), "ms_ssim": [None] * 5}
    far = {**curve, "psnr": [quality + 40 for quality in QUALITIES]}
    runs = []
    for number, (rate, quality) in enumerate(zip(RATES, QUALITIES, strict=True)):
        runs.append(tmp_path / f"llic-{number}" / "seed-1")
        write_run(runs[-1], rate, quality, {"jpeg": curve, "avif": far})
    readings = [require_reading(run) for run in runs]
    found = bd_rates(readings)
    assert found["jpeg"].percent == pytest.approx(-20.0, abs=1e-9) and math.isnan(found["avif"].percent)
    assert main(["codec", "compare", *map(str, runs)]) == 0
    shown = capsys.readouterr().out
    assert "against JPEG (4:2:0): -20.0 %" in shown
    assert "against AVIF: n/a (qualities do not overlap: 67.10 to 76.50 against 27.10 to 36.50)" in shown
    assert main(["codec", "compare", *map(str, runs[:3])]) == 0
    assert "n/a (the tested codec has 3 points, four are needed)" in capsys.readouterr().out
    assert main(["codec", "compare", str(tmp_path)]) == 2
    assert "expected the folder of a run of llic with the monitor" in capsys.readouterr().err


def test_a_study_has_the_bd_rates_of_families_of_arms(tmp_path: Path) -> None:
    curve = {"bits_per_pixel": [1.25 * rate for rate in RATES], "psnr": list(QUALITIES), "ms_ssim": [None] * 5}
    for family, factor in (("llic", 1.0), ("elic", 2.0)):
        for number, (rate, quality) in enumerate(zip(RATES, QUALITIES, strict=True)):
            folder = tmp_path / f"{family}-{number}" / "seed-1"
            write_run(folder, factor * rate, quality, {"jpeg": curve})
            (folder / "summary.json").write_text("{}", encoding="utf-8")
    run = RunFolder(path=tmp_path / "llic-2" / "seed-1", experiment={}, rounds=(), run_id="x")
    numbers = rates(run).numbers
    assert numbers["bd_rate_jpeg"] == pytest.approx(-20.0, abs=1e-9)
    assert numbers["bd_rate_elic"] == pytest.approx(-50.0, abs=1e-9)
    anchor = RunFolder(path=tmp_path / "elic-0" / "seed-1", experiment={}, rounds=(), run_id="x")
    assert math.isnan(rates(anchor).numbers["bd_rate_elic"])
    assert rates(RunFolder(path=tmp_path / "static" / "seed-1", experiment={}, rounds=(), run_id="x")).numbers == {}


def write_run(folder: Path, rate: float, quality: float, rivals: dict[str, Any]) -> None:
    """Write the records of a run whose monitor has read one photograph."""
    folder.mkdir(parents=True)
    line = {"name": "a", "bits_per_pixel": rate, "psnr": quality, "ms_ssim": None}
    monitor = {"photographs": [line], "rivals": rivals}
    record = RoundRecord(
        round=1, cohort=[0], num_examples=1, metrics={}, traffic=Traffic(), timing=Timing(), monitor=monitor
    )
    (folder / "rounds.jsonl").write_text(record.model_dump_json() + "\n", encoding="utf-8")
