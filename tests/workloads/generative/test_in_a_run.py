"""Whole runs: one client through the server against a plain PyTorch loop; runtimes, resuming, invalid input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support_generative import TINY, build, experiment, member
from torch import Tensor

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, FedloomError, Interrupted
from fedloom.core.records import MODEL, Info, Record, arrays_sha256
from fedloom.core.seeds import generator as stream
from fedloom.core.seeds import integer_seed
from fedloom.testing.workload import WorkloadConformance
from fedloom.workloads.generative.config import Config
from fedloom.workloads.generative.families import KINDS
from fedloom.workloads.generative.member import Form
from fedloom.workloads.generative.noise import DrawnNoise, RowNoise

MONITOR: dict[str, Any] = {"name": "generative", "samples": 12, "pictures": 4}


def loop(made: Experiment) -> dict[str, Tensor]:
    """A whole run of `realnvp` and `gan` as a plain loop of PyTorch: two rounds are two epochs.

    From fedloom come the members' classes, the data and the streams; losses, turns and optimisers are written out.
    """
    workload, models = build(made), build(made).models
    drawn = torch.Generator().manual_seed(int(stream(1, "init", 0, 0, 0).integers(2**63)))
    base = int(torch.randint(2**62, (1,), generator=drawn))
    for name, part in (("classifier", models.classifier), *models.members.items()):
        torch.manual_seed(integer_seed(base, name))
        fresh = type(part)(part.form) if name == "classifier" else member(name, part.form, integer_seed(base, name))
        part.load_state_dict(fresh.state_dict())
    flow, game = models.members["realnvp"], models.members["gan"]
    data, rows = workload.data.train, workload.shard(0).rows
    for number in (1, 2):
        rng = stream(1, "train", number, 0, 0)
        seed = int(rng.integers(2**62))
        rng.integers(2**63)
        streams = {name: torch.Generator().manual_seed(integer_seed(seed, name)) for name in ("realnvp", "gan")}
        classifying, flowing = (
            torch.optim.AdamW(p.parameters(), 1e-3, weight_decay=0) for p in (models.classifier, flow)
        )
        judging, making = (
            torch.optim.AdamW(p.parameters(), 1e-3, betas=(0.5, 0.9), weight_decay=0)
            for p in (game.critic, game.generator)
        )
        for step, batch in enumerate(torch.split(torch.from_numpy(rows[rng.permutation(len(rows))]), 32)):
            (x,), y = data.batch(batch)
            classifying.zero_grad()
            F.cross_entropy(models.classifier(x)[1], y).backward()
            classifying.step()
            flowing.zero_grad()
            (-flow.log_prob(x, DrawnNoise(len(x), streams["realnvp"])).mean() / 64).backward()
            flowing.step()
            z = torch.randn(len(x), 4, generator=streams["gan"])
            if step % 2 == 0:
                fake = game.generator(z).detach()
                u = torch.rand(len(x), 64, generator=streams["gan"])
                real = (2 * ((x.flatten(1).float() + u) / 17) - 1).reshape(fake.shape)
                judging.zero_grad()
                (F.softplus(-game.critic(real)).mean() + F.softplus(game.critic(fake)).mean()).backward()
                judging.step()
            else:
                making.zero_grad()
                F.softplus(-game.critic(game.generator(z))).mean().backward()
                making.step()
    return {name: each.detach() for name, each in models.state_dict().items()}


def test_one_client_through_the_server_is_a_plain_loop_bit_for_bit() -> None:
    made = experiment({"members": ["realnvp", "gan"], "training": {"optimizer": "adamw", "batch_size": 32}})
    made = made.override(["workload.training.learning_rate=0.001"])
    result, expected = api.run(made, keep=False), loop(made)
    assert result.arrays.keys() == expected.keys()
    for name, each in expected.items():
        assert np.array_equal(result.arrays[name], each.numpy()), name
    workload = build(made)
    test, flow = workload.data.test, workload.models.members["realnvp"]
    workload.trainer.load({MODEL: Record({MODEL: result.arrays})})
    rows = torch.arange(len(test))
    with torch.no_grad():
        noise = RowNoise(rows, 2 * list(KINDS).index("realnvp") + 1)
        bits = -flow.log_prob(test.batch(rows)[0][0], noise).double().mean() / (64 * np.log(2))
    evaluation = result.history[-1].evaluation or {}
    assert evaluation["bits_per_dim_realnvp"] == pytest.approx(float(bits), abs=1e-6)
    assert evaluation["bits_per_dim_flow"] == evaluation["bits_per_dim_realnvp"]
    assert "bits_per_dim_gan" not in evaluation


def test_members_side_by_side_have_the_bits_they_have_alone() -> None:
    members = ["langevin", "vae", "hinge", "histogram", "jem"]
    together = api.run(experiment({"members": members}), keep=False)
    for name in members:
        alone = api.run(experiment({"members": [name]}), keep=False)
        own = {key: each for key, each in together.arrays.items() if key.split(".")[0] in (name, "classifier")}
        assert arrays_sha256(alone.arrays) == arrays_sha256(own), name
        mine, theirs = alone.history[-1].evaluation or {}, together.history[-1].evaluation or {}
        assert mine.items() <= theirs.items()


@pytest.mark.parametrize(
    "runtime", [{"name": "process", "workers": 2}, pytest.param({"name": "ray", "workers": 2}, marks=pytest.mark.slow)]
)
def test_runtimes_have_equal_bits(runtime: dict[str, Any]) -> None:
    common: dict[str, Any] = {"clients": 3, "monitor": MONITOR}
    settings = {"members": list(KINDS), "train_examples": 60, "training": {"optimizer": "adamw", "max_steps": 2}}
    inline = api.run(experiment(settings, **common), keep=False)
    other = api.run(experiment(settings, **common, runtime=runtime), keep=False)
    assert inline.summary.model_sha256 == other.summary.model_sha256
    assert [record.evaluation for record in inline.history] == [record.evaluation for record in other.history]


@pytest.mark.parametrize("moment", ["RoundFinished", "ClientsDone"], ids=["between rounds", "inside a round"])
@pytest.mark.parametrize("home", ["server", "node"])
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, moment: str, home: str) -> None:
    settings: dict[str, Any] = {
        "clients": 3,
        "checkpoint": {"every": 1},
        "round": {"group_size": 1, "state_home": home},
    }
    made = experiment({"members": ["langevin", "rbm", "vae"], "train_examples": 60}, rounds=4, **settings)
    whole = api.run(made, out=tmp_path / "whole")

    class Stop:
        seen = 0

        def write(self, event: Any) -> None:
            if type(event).__name__ != moment:
                return
            self.seen += 1
            if self.seen == (2 if moment == "RoundFinished" else 5):  # one for each of three clients in a round
                raise KeyboardInterrupt

        def close(self) -> None: ...

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        api.run(made, out=tmp_path / "cut", sinks=[Stop()])
    assert api.resume(tmp_path / "cut").summary.model_sha256 == whole.summary.model_sha256


def test_a_family_without_a_likelihood_is_not_asked_for_one() -> None:
    with pytest.raises(ConfigError, match=r"workload.bits_per_dim: 'gan' .* has no likelihood.*Members with one: hist"):
        Config.model_validate({"members": ["gan", "vae"], "bits_per_dim": ["gan"]})
    assert Config.model_validate({"members": ["gan", "vae"]}).measured == ("vae",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": ["vea"]}, "got 'vea'"),
        ({"members": ["vae", "vae"]}, "different members"),
        ({"members": ["vae"], "bits_per_dim": ["made"]}, "expected some of workload.members, got 'made'"),
        ({"autoregressive": {"width": 10, "heads": 4}}, "divisor of width 10, got 4"),
        ({"training": {"clip_norm": 1.0}}, "couple the members"),
        ({"training": {"precision": "bf16"}}, "expected 'float32'"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings: Info, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.model_validate(settings)


def test_an_image_size_that_a_net_cannot_take_is_refused_before_the_first_round() -> None:
    with pytest.raises(ConfigError, match=r"multiples of 4, got 9 x 9.*workload.size"):
        build(experiment({"members": ["gan"], "size": 9}))
    assert build(experiment({"members": ["gan"], "size": 12})).models.members["gan"].form == Form(12, 12, 17, 10)


def test_one_image_is_learned_and_has_no_distance() -> None:
    made = experiment({"members": list(KINDS), "train_examples": 1}, monitor=MONITOR)
    result = api.run(made, keep=False)
    evaluation = result.history[-1].evaluation or {}
    assert all(np.isfinite(value) for value in evaluation.values()) and not any(
        "frechet" in name for name in evaluation
    )
    assert result.history[-1].monitor["members"]["vae"]["frechet"] is None


def test_constant_images_are_learned(tmp_path: Path) -> None:
    images = np.full((40, 8, 8), 90, np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.arange(40) % 2, x_test=images, y_test=np.arange(40) % 2)
    data = {"source": "npz", "file": str(tmp_path / "x.npz")}
    made = experiment({"members": list(KINDS), "data": data, "train_examples": None}, monitor=MONITOR)
    evaluation = api.run(made, keep=False).history[-1].evaluation or {}
    assert all(np.isfinite(value) for value in evaluation.values())
    assert evaluation["bits_per_dim_histogram"] == pytest.approx(-np.log2(1.001 / 1.017), abs=1e-6)
    assert 0.0 <= evaluation["frechet_histogram"] < 0.01  # smoothing changes a pixel in 64


def test_a_loss_that_is_not_finite_names_the_member_and_earlier_rounds_stay(tmp_path: Path) -> None:
    made = experiment({"members": ["vae", "ddpm"], "training": {"optimizer": "sgd", "learning_rate": 1e18}})
    with pytest.raises(FedloomError, match=r"member '(vae|ddpm)': its loss is (nan|inf|-inf) in step .*learning_rate"):
        api.run(made, out=tmp_path / "run")
    assert (tmp_path / "run" / "experiment.toml").is_file()


def test_colour_images_are_made_grey(tmp_path: Path) -> None:
    images = np.random.Generator(np.random.PCG64(1)).integers(0, 250, (40, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.arange(40) % 2, x_test=images, y_test=np.arange(40) % 2)
    workload = build(experiment({"data": {"source": "npz", "file": str(tmp_path / "x.npz")}, "train_examples": None}))
    (x,), _ = workload.data.train.batch(torch.arange(4))
    assert x.shape == (4, 1, 8, 8) and x.dtype == torch.int64 and int(x.min()) >= 0 and int(x.max()) < 17


def test_the_digits_levels_are_their_own() -> None:
    from sklearn.datasets import load_digits

    workload = build(experiment({"train_examples": None}))
    mine = np.concatenate([source.inputs[0].flatten(1).numpy() for source in (workload.data.train, workload.data.test)])
    theirs = load_digits().data.astype(np.int64)
    assert sorted(map(bytes, mine.astype(np.uint8))) == sorted(map(bytes, theirs.astype(np.uint8)))


def test_settings_monitor_and_report_import_no_torch() -> None:
    modules = ("config", "families", "moments", "report", "study", "monitor.config", "monitor.monitor", "monitor.watch")
    names = ", ".join(f"fedloom.workloads.generative.{module}" for module in modules)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["generative", "generative-federated"])
def test_the_presets_have_a_member_of_each_family(name: str) -> None:
    made = api.load(name)
    config = made.workload
    assert isinstance(config, Config) and made.monitor is not None
    assert {KINDS[member].family for member in config.members} == {kind.family for kind in KINDS.values()}


class TestConformance(WorkloadConformance):
    name = "generative"
    settings: Info = {**TINY, "train_examples": 120, "members": list(KINDS)}  # noqa: RUF012


def test_baselines_on_digits_are_in_their_known_order() -> None:
    """Uniform log2 17 = 4.087 > one Gaussian, about 2.95 > per-pixel histogram, about 2.42."""
    made = experiment({"members": ["histogram", "gaussian"], "train_examples": None}, rounds=1)
    found = api.run(made, keep=False).history[-1].evaluation or {}
    assert np.log2(17) > found["bits_per_dim_gaussian"] > found["bits_per_dim_histogram"]
    assert found["bits_per_dim_gaussian"] == pytest.approx(2.95, abs=0.1)
    assert found["bits_per_dim_histogram"] == pytest.approx(2.42, abs=0.06)
