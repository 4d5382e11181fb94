"""Weights of 16 bits beneath adapters: what is stored, sent and trained, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support_rounds import build
from tests.workloads.causal_lm.conftest import TARGETS, Make

from fedloom import api
from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, FedloomError
from fedloom.core.records import MODEL
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank.layers import Layer, merged
from fedloom.torch import load_model

BF16 = np.dtype(ml_dtypes.bfloat16)
HALF = {"workload.model.dtype": "bf16", "workload.training.precision": "bf16"}


def lora(kind: str, name: str = "fedlora") -> dict[str, Any]:
    return {"name": name, "targets": TARGETS[kind], "rank": 2}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
class TestBase:
    def test_it_is_the_checkpoints_weights_rounded(self, make: Make, checkpoints: dict[str, Path], kind: str) -> None:
        record = build(make(kind, lora(kind), **HALF)).init(generator(1, "init"))
        weights = load_file(checkpoints[kind] / "model.safetensors")
        assert {array.dtype for array in record.groups[MODEL].values()} == {BF16}
        for name, array in record.groups[MODEL].items():
            rounded = weights[name if name in weights else name.removeprefix("transformer.")].to(torch.bfloat16)
            assert (torch.from_numpy(array.view(np.int16)) == rounded.view(torch.int16)).all(), name

    def test_it_has_half_the_bytes_on_disk_and_on_the_wire(self, make: Make, kind: str, tmp_path: Path) -> None:
        infos, files = [], []
        for number, settings in enumerate(({"workload.training.precision": "bf16"}, HALF)):
            folder = tmp_path / f"run{number}"
            result = api.run(make(kind, lora(kind), rounds=1, **settings), out=folder)
            infos.append(result.history[-1].info)
            (pinned,) = (folder / "checkpoints").glob("pinned-*.safetensors")
            files.append(frames.decode(pinned.read_bytes()))
        whole, half = infos
        assert half["params_base"] == whole["params_base"]
        assert 2 * half["bytes_base"] == whole["bytes_base"]
        assert 2 * files[1].num_bytes == files[0].num_bytes
        assert half["bytes_up"] == whole["bytes_up"]  # factors have 32 bits in both

    def test_adapters_learn_on_it(self, make: Make, kind: str, tmp_path: Path) -> None:
        losses: list[list[float]] = []
        for settings in ({}, HALF):
            made = make(kind, lora(kind), rounds=4, **settings)
            result = api.run(made, out=tmp_path / f"run{len(losses)}")
            evaluations = [record.evaluation["loss"] for record in result.history if record.evaluation]
            losses.append(evaluations)
        assert losses[1][-1] < losses[1][0] - 0.1
        assert losses[1] == pytest.approx(losses[0], rel=0.05)  # bfloat16 has eight bits of precision
        model = load_model(tmp_path / "run1")
        assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}

    @pytest.mark.parametrize("strategy", ["flora", "flexlora", "ffa_lora"])
    def test_every_kind_of_aggregation_takes_it(self, make: Make, kind: str, strategy: str) -> None:
        made = make(kind, lora(kind, strategy), rounds=3, **HALF)
        first, second = (api.run(made, keep=False) for _ in range(2))
        assert first.summary.model_sha256 == second.summary.model_sha256
        assert {array.dtype for array in first.arrays.values()} == {BF16}


def test_a_change_is_added_in_float32_and_rounded_once() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3)).astype(BF16)
    a, b = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    got = merged({"w": weight}, {"m": Layer("w", 4, 3, "linear")}, {"m": a}, {"m": b}, 0.5)["w"]
    wanted = (weight.astype(np.float32) + (b @ a) * np.float32(0.5)).astype(BF16)
    assert got.dtype == BF16 and (got.view(np.int16) == wanted.view(np.int16)).all()


class TestRefused:
    def test_another_precision(self, make: Make) -> None:
        with pytest.raises(ConfigError, match=r'set workload\.training\.precision = "bf16"'):
            make("llama", **{"workload.model.dtype": "bf16"})

    def test_a_strategy_that_trains_whole_models(self, make: Make) -> None:
        with pytest.raises(FedloomError, match=r"'fedavg' trains whole models, but workload\.model\.dtype"):
            api.run(make("llama", rounds=1, **HALF), keep=False)

    def test_a_frozen_body_of_texts_that_is_never_sent(self) -> None:
        with pytest.raises(ConfigError, match='no body is sent with train = "head"'):
            Experiment.parse(
                {
                    "rounds": 1,
                    "strategy": "fedlora",
                    "workload": {
                        "name": "text_classification",
                        "model": {"dtype": "bf16"},
                        "training": {"precision": "bf16"},
                    },
                }
            )


def test_the_head_of_a_network_for_images_is_trained_in_32_bits() -> None:
    vit = {"name": "vit", "vit": {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp": 32}, "dtype": "bf16"}
    made = Experiment.parse(
        {
            "rounds": 2,
            "clients": 10,
            "cohort": 3,
            "strategy": {"name": "fedlora", "targets": ["query", "value"], "rank": 2},
            "workload": {"name": "image_classification", "model": vit, "training": {"precision": "bf16"}},
            "runtime": {"name": "inline"},
        }
    )
    record = build(made).init(generator(1, "init"))
    head = set(record.info["head"])
    assert head and {array.dtype.name for name, array in record.groups[MODEL].items() if name in head} == {"float32"}
    assert {array.dtype for name, array in record.groups[MODEL].items() if name not in head} == {BF16}
    result = api.run(made, keep=False)
    name = next(name for name in head if name.endswith("weight"))
    assert result.arrays[name].dtype == np.float32
    assert not np.array_equal(result.arrays[name], record.groups[MODEL][name])
