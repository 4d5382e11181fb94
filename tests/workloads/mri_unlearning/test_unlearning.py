"""Objectives of the procedures, and the audit: membership, distances, content that was never measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mdreg")

from support_mri import build, experiment

from fedloom.workloads.mri_unlearning.audit import auc, hallucination, kolmogorov_smirnov
from fedloom.workloads.mri_unlearning.config import UnlearningSettings
from fedloom.workloads.mri_unlearning.learning import Objective, rows_for, slice_losses
from fedloom.workloads.mri_unlearning.operators import fft2c, ifft2c
from fedloom.workloads.mri_unlearning.procedures import PROCEDURES, TRAINING, procedure_of


def test_membership_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 20).astype(float), rng.integers(1, 8, 15).astype(float)
    wanted = np.mean([1.0 if a < b else 0.5 if a == b else 0.0 for a in members for b in others])
    assert auc(members, others) == pytest.approx(wanted)
    assert auc(members, members) == 0.5 and auc(np.zeros(3), np.ones(4)) == 1.0


def test_kolmogorov_smirnov_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    first, second = rng.normal(0, 1, 17), rng.normal(0.5, 1, 23)
    assert kolmogorov_smirnov(first, second) == pytest.approx(stats.ks_2samp(first, second).statistic)


def test_invented_content_is_what_lies_in_unsampled_columns() -> None:
    rng = np.random.default_rng(2)
    target = torch.from_numpy(rng.random((2, 16, 16)))
    mask, ones = torch.from_numpy(rng.random(16) < 0.4), torch.ones(2, 1, 16, 16, dtype=torch.complex128)
    error = fft2c(torch.from_numpy(rng.standard_normal((2, 16, 16)) + 0j))
    # an error in unsampled columns alone is invented, one in sampled columns alone is unfaithful
    for part, (some, none) in ((~mask, (0, 1)), (mask, (1, 0))):
        apart = ifft2c(error * part)
        found = hallucination(target + apart, target + 0j, ones, mask)
        null = ifft2c(fft2c(target + 0j) * ~mask)
        sizes = (apart.abs().square().sum((1, 2)).sqrt(), null.abs().square().sum((1, 2)).sqrt())
        whole = target.square().sum((1, 2)).sqrt()
        wanted = sizes[0] / (sizes[1] if some == 0 else whole)
        assert torch.allclose(found[some], wanted, rtol=1e-6) and float(found[none].max()) < 1e-9


def test_procedures_use_the_slices_they_say() -> None:
    workload = build(experiment())
    source, rows = workload.train_rows, np.arange(len(workload.train_rows))
    for name in (*TRAINING, *PROCEDURES):
        procedure, used = procedure_of(name), rows_for(procedure_of(name), rows, workload.train_rows, 0.5, 1)
        kept = int((~source.forget[used]).sum())
        assert kept == {"none": 0, "share": 3, "all": 6}[procedure.retained]
        assert int(source.forget[used].sum()) == (0 if procedure.forgotten == "none" else int(source.forget.sum()))
        assert len({*used.tolist()}) == len(used)


@pytest.mark.parametrize("name", ["ga_ft", "nl_ft"])
def test_objectives_are_their_formulas(name: str) -> None:
    workload = build(experiment())
    source, net = workload.train_rows, workload.single.model
    settings = UnlearningSettings(ascent_weight=0.25, gamma=0.01, label_noise=0.2)
    batch = torch.tensor([0, int(np.flatnonzero(source.forget)[0])])
    torch.manual_seed(5)
    found = Objective(procedure_of(name), net, source, settings, 0.1)(batch)
    torch.manual_seed(5)
    sample = source.drawn(batch)
    image, target = net(sample.measured, sample.mask, sample.centre), sample.target
    if name == "nl_ft":
        target = torch.stack([target[0], (target + 0.2 * torch.randn(target.shape))[1]])
        wanted = slice_losses(image, target, sample.ranges, 0.1).mean()
    else:
        losses = slice_losses(image, target, sample.ranges, 0.1)
        size = sum(float(each.detach().abs().sum()) for each in net.parameters())
        wanted = (losses[0] - 0.25 * losses[1]) / 2 + 0.01 * 0.5 * size
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
