"""Whole runs: one client through the server against a plain PyTorch loop; resuming, a federation, invalid settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mdreg")

from support_mri import DATA, NET, PLAIN, build, experiment
from torch import Tensor

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, Interrupted, UsageError
from fedloom.core.records import MODEL, Info
from fedloom.core.seeds import generator as stream
from fedloom.erasure.forget import forget
from fedloom.testing.workload import WorkloadConformance
from fedloom.workloads.mri_unlearning.config import NetSettings
from fedloom.workloads.mri_unlearning.losses import reconstruction_loss
from fedloom.workloads.mri_unlearning.nets import make_net
from fedloom.workloads.mri_unlearning.procedures import PROCEDURES


def loop(made: Experiment) -> dict[str, Tensor]:
    """A run of the original, the oracle and NL-FT as a plain loop of PyTorch: a round each of both stages."""
    workload = build(made)
    rows, own = workload.train_rows, workload.shard(0).rows
    torch.manual_seed(int(stream(1, "init", 0, 0, 0).integers(2**63)))
    first = make_net(NetSettings(**NET)).state_dict()
    shares, left = own[~rows.forget[own]], own[rows.forget[own]]
    chosen = shares[stream(1, "mri retain", int(shares[0])).permutation(6)[:1]]  # a tenth of six, at least one
    uses = {
        "original": np.concatenate([shares, left]),
        "oracle": shares,
        "nl_ft": np.concatenate([chosen, left]),
    }
    found: dict[str, Any] = dict.fromkeys(uses, first)
    for number, names in ((1, ("original", "oracle")), (2, ("nl_ft",))):
        base = int(stream(1, "train", number, 0, 0).integers(2**62))
        for name in names:
            rng, net = stream(base, "mri", name), make_net(NetSettings(**NET))
            net.load_state_dict(found["original"] if number == 2 else first)
            torch.manual_seed(int(rng.integers(2**63)))
            optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0)
            order = uses[name][rng.permutation(len(uses[name]))]
            for batch in torch.split(torch.from_numpy(order), 2):
                sample = rows.drawn(batch)
                image, target = net(sample.measured, sample.mask, sample.centre), sample.target
                if number == 2:
                    noisy = torch.from_numpy(rows.forget[batch.numpy()])[:, None, None]
                    target = torch.where(noisy, target + 0.3 * torch.randn(target.shape), target)
                optimizer.zero_grad()
                reconstruction_loss(image, target, sample.ranges, 1e-5).backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                optimizer.step()
            found[name] = net.state_dict()
    return {f"nets.{name}.{key}": each for name, state in found.items() for key, each in state.items()}


def test_one_client_through_the_server_is_a_plain_loop() -> None:
    made = experiment({"procedures": ["nl_ft"]})
    result, expected = api.run(made, keep=False), loop(made)
    assert result.arrays.keys() == expected.keys()
    for name, each in expected.items():
        assert np.array_equal(result.arrays[name], each.numpy()), name


def test_models_side_by_side_have_the_bits_they_have_alone() -> None:
    names = list(PROCEDURES)
    together = api.run(experiment({"procedures": names}), keep=False)
    for name in ("ga", "ft"):
        alone = api.run(experiment({"procedures": [name], "oracle": False}), keep=False)
        assert all(np.array_equal(together.arrays[key], array) for key, array in alone.arrays.items())
        assert len({array.tobytes() for key, array in together.arrays.items() if key.endswith("last.weight")}) > 2
    numbers = together.history[-1].evaluation or {}
    for test in ("bta_db", "kta_db", "ua_db"):
        assert all(np.isfinite(numbers[f"{test}{model}"]) for model in ("", "_original", "_oracle", "_zero_filled"))
        assert numbers[test] == numbers[f"{test}_nl_ft"]
    assert numbers["distance_oracle"] == numbers["ks_oracle"] == 0.0 < numbers["distance_original"]


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    made = experiment({"procedures": ["ga_ft", "nl"]}, rounds=3, checkpoint={"every": 1})
    whole = api.run(made, keep=False)

    class Stop:
        seen = 0

        def write(self, event: Any) -> None:
            if type(event).__name__ == "RoundFinished":
                self.seen += 1
                if self.seen == 2:
                    raise KeyboardInterrupt

        def close(self) -> None: ...

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        api.run(made, out=tmp_path / "cut", sinks=[Stop()])
    assert api.resume(tmp_path / "cut").summary.model_sha256 == whole.summary.model_sha256


def test_in_a_federation_the_leaver_has_no_part_in_the_oracle() -> None:
    settings: dict[str, Any] = {
        "procedures": ["ft", "nl_ft"],
        "data": {**DATA, "sites": 2},
        "partition": {"scheme": "natural"},
    }
    made = experiment(settings, clients=3, strategy={"name": "partial"})
    workload = build(made)
    forget_rows = [workload.train_rows.forget[workload.shard(client).rows] for client in range(3)]
    assert [bool(each.all()) for each in forget_rows] == [False, False, True] and not forget_rows[0].any()
    result = api.run(made, keep=False)
    without = api.run(
        experiment(
            {**settings, "data": {**DATA, "sites": 2, "forget_slices": 2}}, clients=3, strategy={"name": "partial"}
        ),
        keep=False,
    )
    for key, array in result.arrays.items():
        same = np.array_equal(array, without.arrays[key])
        assert same or not key.startswith("nets.oracle."), key  # whatever the leaver has
    assert any(
        not np.array_equal(a, without.arrays[k]) for k, a in result.arrays.items() if k.startswith("nets.original.")
    )


def test_a_client_withdraws_from_a_run_of_one_model(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**PLAIN, "data": {**DATA, "sites": 2}, "partition": {"scheme": "natural"}}
    api.run(experiment(settings, clients=3), out=tmp_path / "run")
    for method in ("noisy_labels", "gradient_ascent"):
        copy = tmp_path / f"of {method}"
        api.run(experiment(settings, clients=3), out=copy)
        record = forget(copy, client=2, out=tmp_path / method, method=method)
        assert record.jobs_of_client_after == 0 and record.before.sha256 != record.after.sha256
        assert "loss" in record.before.on_client and "loss" in record.after.on_client
    with pytest.raises(UsageError, match="client 7 took no part"):
        forget(tmp_path / "run", client=7, out=tmp_path / "new")
    assert not (tmp_path / "run" / "erased.json").exists()


@pytest.mark.parametrize(
    ("workload", "settings", "match"),
    [
        ({"procedures": ["scrub"]}, {}, "procedures: expected some of ft, .*got 'scrub'"),
        ({"procedures": ["ft", "ft"]}, {}, "expected different procedures"),
        ({"unlearning": {"rounds": 2}}, {}, "unlearning.rounds: expected fewer than rounds = 2, got 2"),
        ({"unlearning": {"rounds": 0}}, {}, "unlearning.rounds: expected at least 1 with procedures, got 0"),
        ({"data": {**DATA, "forget": []}}, {}, "procedures need something to forget"),
        ({"data": {**DATA, "forget": ["joint"]}}, {}, "expected different anatomies"),
        ({"mask": {"centre_fraction": 0.01}}, {}, "0.01 of 24 columns is no column"),
        ({}, {"clients": 2}, "needs 'partial', got 'fedavg'"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    workload: dict[str, Any], settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        build(experiment(workload, **settings))


class TestConformance(WorkloadConformance):
    name = "mri_unlearning"
    settings: Info = {**PLAIN, "data": {**DATA, "slices": 12}, "net": NET}  # noqa: RUF012


def test_a_client_that_cannot_unlearn_alone_says_why() -> None:
    workload = build(experiment())
    from fedloom.core.errors import UnsupportedFeature
    from fedloom.core.records import Job, Record

    model = {MODEL: Record({MODEL: workload.trainer.arrays})}
    with pytest.raises(UnsupportedFeature, match=r"train one model: oracle = false, procedures = \[\]"):
        workload.actions["forget"](Job(round=1, client=0, kind="forget"), model, None, stream(1, "t"))
