"""Runs: conformance, a plain loop's bits, sub-models in helpers, a killed one, kill and resume, invalid settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed_runs import killed_and_resumed

from fedloom import api
from fedloom.client.helper_processes.factory import ONE_CORE
from fedloom.client.helper_processes.process import ProcessHelpers
from fedloom.core.config import Experiment
from fedloom.core.errors import ClientFailed, ConfigError
from fedloom.core.protocols import HelperHandle, Resources
from fedloom.core.records import MODEL, Arrays, Info, Job
from fedloom.core.seeds import generator
from fedloom.testing.workload import WorkloadConformance
from fedloom.workloads.retinags.config import Config
from fedloom.workloads.retinags.loss import picture_loss
from fedloom.workloads.retinags.projection import project
from fedloom.workloads.retinags.raster import rasterize
from fedloom.workloads.retinags.splats import SHAPES
from fedloom.workloads.retinags.workload import Splatting, build_workload

SMALL: dict[str, Any] = {
    "splats": 60,
    "steps": 3,
    "data": {"source": "synthetic", "views": 4, "held_out": 2, "width": 20, "height": 14, "splats": 80},
}


class TestConformance(WorkloadConformance):
    name = "retinags"

    @pytest.fixture(autouse=True)
    def _settings(self) -> None:
        self.settings: Info = {**SMALL, "parts": 2}


def experiment(**more: Any) -> Experiment:
    settings = {**SMALL, **more.pop("workload", {}), "name": "retinags"}
    base = {"rounds": 2, "clients": 1, "seed": 5, "strategy": "fedavg", "runtime": {"name": "inline"}}
    return Experiment.parse({**base, "evaluation": {"parts": 1, "every": 2}, "workload": settings, **more})


def build(made: Experiment) -> Splatting:
    assert isinstance(made.workload, Config)
    return build_workload(made.workload, made)


def plain_loop(made: Experiment) -> dict[str, torch.Tensor]:
    """The same training in plain PyTorch, with torch's own Adam written out."""
    workload = build(made)
    first = workload.init(generator(made.seed, "init", 0, 0, 0)).groups[MODEL]
    values = {name: torch.tensor(first[name]).requires_grad_() for name in SHAPES}
    moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in values.items()}
    step = 0
    for number in (1, 2):
        order = generator(made.seed, "train", number, 0, 0).permutation(4)[:3]
        for i, index in enumerate(order):
            view, step = workload.scene.train[index], step + 1
            drawn = rasterize(project(values, view.camera), view.camera, torch.arange(60))
            loss = picture_loss(drawn.color, torch.tensor(view.photograph))
            slopes = torch.autograd.grad(loss, list(values.values()))
            with torch.no_grad():
                for (name, value), slope in zip(values.items(), slopes, strict=True):
                    m, v = moments[name]
                    m.mul_(0.9).add_(slope, alpha=1 - 0.9)
                    v.mul_(0.999).addcmul_(slope, slope, value=1 - 0.999)
                    size = (v / (1 - 0.999**step)).sqrt().add(1e-15)
                    value.addcdiv_(m, size, value=-workload.rates(number, i)[name] / (1 - 0.9**step))
    return values


def test_one_client_through_the_server_is_a_plain_loop_bit_for_bit() -> None:
    made = experiment()
    result, wanted = api.run(made, keep=False), plain_loop(made)
    for name, value in wanted.items():
        assert np.array_equal(result.arrays[name], value.detach().numpy()), name


def test_four_parts_learn_what_one_does_and_say_so() -> None:
    one, four = (api.run(experiment(workload={"parts": k}), keep=False) for k in (1, 4))
    for name in SHAPES.keys() - {"rotations"}:  # those of round splats have no gradient but rounding, which Adam scales
        np.testing.assert_allclose(four.arrays[name], one.arrays[name], atol=2e-3)
    last, whole = four.history[-1].evaluation or {}, one.history[-1].evaluation or {}
    assert last["psnr"] == pytest.approx(whole["psnr"], abs=0.01) and 0 <= last["max_abs_difference"] < 1e-5
    assert last["memory_per_part_mb"] == pytest.approx(whole["memory_per_part_mb"] / 4)


@pytest.mark.slow
def test_parts_in_processes_give_the_bits_of_parts_in_this_one() -> None:
    made = [experiment(workload={"parts": 3}, runtime={"name": name}) for name in ("inline", "process")]
    inline, process = (api.run(each, keep=False).arrays for each in made)
    assert all(np.array_equal(process[name], value) for name, value in inline.items()) and len(inline) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"workload": {"parts": 61}}, "61 boxes are more than the 60 splats"),
        ({"clients": 5}, "expected at most 4, the photographs"),
        ({"clients": 2, "workload": {"density": {"every": 1}}}, "no client can replace some"),
        ({"workload": {"splats": 500, "parts": 100}}, "expected at most 80, the splats of this scene"),
    ],
)
def test_settings_that_cannot_work_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        build(experiment(**more))


def test_densification_fills_free_rows() -> None:
    density = {"every": 1, "slope": 1e-7, "room": 20, "until": 1}
    result = api.run(experiment(workload={"density": density, "parts": 2}), keep=False)
    assert result.arrays["opacities"].shape == (80,)
    assert 60 < (result.history[-1].evaluation or {})["splats"] <= 80


class OneDies:
    """Helpers in child processes, the second of which is killed when it has been made."""

    def __init__(self) -> None:
        self.inner, self.started, self.kill = ProcessHelpers(), list[HelperHandle](), True

    def start(
        self, factory: Callable[..., object], *arguments: object, resources: Resources = ONE_CORE
    ) -> HelperHandle:
        self.started.append(self.inner.start(factory, *arguments, resources=resources))
        if self.kill and len(self.started) == 2:
            self.started[-1].stop()
        return self.started[-1]


@pytest.mark.slow
def test_a_killed_sub_model_fails_the_job_which_repeated_has_the_bits_of_one_undisturbed() -> None:
    made = experiment(workload={"parts": 2})
    undisturbed, disturbed, helpers = build(made), build(made), OneDies()
    disturbed.use_helpers(helpers)
    model = undisturbed.init(generator(5, "init", 0, 0, 0))
    job = Job(kind="train", client=0, round=1)

    def trained(workload: Splatting) -> Arrays:
        rng = generator(5, "train", 1, 0, 0)
        return workload.train(job, {MODEL: model}, workload.shard(0), None, rng).groups[MODEL]

    with pytest.raises(ClientFailed, match="SubModel"):
        trained(disturbed)
    found, wanted = trained(disturbed), trained(undisturbed)
    assert len(helpers.started) == 4 and all(np.array_equal(found[name], wanted[name]) for name in SHAPES)
    for handle in helpers.started:
        handle.stop()


@pytest.mark.slow
def test_a_run_killed_inside_a_round_resumes_with_equal_bits(tmp_path: Path) -> None:
    runtime = {"name": "process", "workers": 1}
    made = experiment(workload={"parts": 2}, rounds=8, checkpoint={"every": 1}, runtime=runtime)
    whole = api.run(made, out=tmp_path / "whole")
    assert killed_and_resumed(made, tmp_path, after=2) == whole.summary.model_sha256
