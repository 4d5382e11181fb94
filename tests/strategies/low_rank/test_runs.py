"""Whole runs, the base that travels once among them, counted and compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.strategies.low_rank.conftest import FULL, HEAD, SHAPES, WIDTH, experiment

from fedloom import api
from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.api import RunResult
from fedloom.core import registry
from fedloom.core.errors import CheckpointCorrupt, ConfigError
from fedloom.core.records import MODEL, Job, Record, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank.layers import chosen_layers
from fedloom.strategies._low_rank.saving import uplink
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies.fedlora.config import Config as FedLoRAConfig
from fedloom.strategies.fedlora.strategy import build_strategy
from fedloom.strategies.sa_fedlora.config import Config
from fedloom.strategies.sa_fedlora.strategy import schedule_of

Run = Callable[..., RunResult]
SA = {"initiating_rounds": 2, "rank_max": 8, "rank_min": 2, "heating": 0.25, "cooling": 0.25, "init_mu": 0.1}


def sha(result: RunResult) -> str:
    return arrays_sha256(result.arrays)


class TestCounts:
    def test_every_element_in_every_round_is_the_formulas(self, run: Run) -> None:
        result = run("sa_fedlora", settings=SA)
        schedule = schedule_of(Config.model_validate(SA), 6)
        assert schedule.ranks == (8, 4, 2, 2)  # 8, then 2 + 6 (2/3)^3 = 3.8 and 2 + 6 (1/3)^3 = 2.2, then 2
        seen: set[int] = set()
        for record in result.history:
            if schedule.is_initiating(record.round):
                assert record.traffic.params_up == record.traffic.params_down == 2 * FULL
                continue
            sent = WIDTH * schedule.rank(record.round) + HEAD
            new = set(record.cohort) - seen
            seen |= new
            assert record.traffic.params_up == 2 * sent
            assert record.traffic.params_down == 2 * sent + len(new) * (FULL - HEAD)
            assert record.info["params_up"] == record.info["params_down"] == sent
            assert record.info["bytes_up"] == 4 * sent
            assert record.info["rank"] == schedule.rank(record.round)
            assert record.info["ranks"] == dict.fromkeys(SHAPES, schedule.rank(record.round))
        shapes = list(SHAPES.values())
        assert result.summary.params_up == 2 * uplink(schedule, FULL, HEAD, shapes)
        assert 1 - result.summary.params_up / (2 * 6 * FULL) <= 1 - 2 / 6

    def test_bytes_are_those_of_the_frames(self, run: Run) -> None:
        for record in run("sa_fedlora", settings=SA).history:
            payload = 4 * record.traffic.params_up
            assert payload < record.traffic.bytes_up < payload + 2 * 2048  # a header for each of two clients

    @pytest.mark.parametrize(("wire", "bytes_each"), [("fp16", 2), ("int8", 1)])
    def test_a_narrow_wire_sends_fewer_bytes_both_ways(self, run: Run, wire: str, bytes_each: int) -> None:
        plain, narrow = (run("sa_fedlora", settings={**SA, "wire": w}) for w in ("fp32", wire))
        for a, b in zip(plain.history, narrow.history, strict=True):
            scales = b.info["params_up"] - a.info["params_up"]  # every one a float32 that travels
            assert (scales > 0) is (wire == "int8")
            assert b.info["bytes_up"] == bytes_each * a.info["params_up"] + 4 * scales
            assert b.info["bytes_down"] == b.info["bytes_up"]
            assert b.traffic.params_up == 2 * b.info["params_up"]
        for name, array in plain.arrays.items():
            assert np.abs(array - narrow.arrays[name]).max() < 0.1 and narrow.arrays[name].dtype == array.dtype

    def test_a_frozen_a_travels_when_it_changes_and_never_up(self, run: Run) -> None:
        result = run("sa_fedlora", settings={**SA, "aggregation": "freeze_a"}, clients=2)
        rank, out, in_ = 8, 24 + 16, 64 + 24
        record = result.history[2]
        assert record.traffic.params_up == 2 * (rank * out + HEAD)
        assert record.traffic.params_down == 2 * (rank * out + HEAD + rank * in_ + FULL - HEAD)
        last = result.history[5]  # the same rank as the round before: A is there already
        assert last.traffic.params_down == last.traffic.params_up == 2 * (2 * out + HEAD)

    def test_the_pretrained_anchor_is_read_once(self, run: Run) -> None:
        result = run("sa_fedlora", settings={**SA, "anchor": "pretrained"}, clients=2)
        downs = [record.traffic.params_down for record in result.history[:3]]
        assert downs == [2 * FULL, 2 * FULL, 2 * (8 * WIDTH + HEAD + FULL - HEAD)]

    def test_a_frozen_head_stays_at_home(self, run: Run) -> None:
        result = run("fedlora", settings={"rank": 4, "head": "freeze"}, clients=2)
        assert [r.traffic.params_up for r in result.history] == [2 * 4 * WIDTH] * 6
        assert result.history[0].traffic.params_down == 2 * (4 * WIDTH + FULL)


class TestDegenerateCases:
    def test_only_initiating_rounds_are_fedprox_and_without_regulariser_fedavg(self, run: Run) -> None:
        for mu, other, settings in ((0.3, "fedprox", {"mu": 0.3}), (0.0, "fedavg", {})):
            ours = run("sa_fedlora", settings={**SA, "initiating_rounds": 6, "init_mu": mu, "heating": 0, "cooling": 0})
            assert sha(ours) == sha(run(other, settings=settings))

    def test_one_rank_from_the_first_round_on_is_fedlora(self, run: Run) -> None:
        one = {"initiating_rounds": 0, "rank_max": 4, "rank_min": 4}
        assert sha(run("sa_fedlora", settings={**SA, **one})) == sha(run("fedlora", settings={"rank": 4}))

    def test_without_annealing_the_two_stages_are_fedprox_then_fedlora_on_its_result(self, run: Run) -> None:
        first = run("fedprox", settings={"mu": 0.1}, rounds=2)
        ours = run("sa_fedlora", settings={**SA, "rank_min": 8}, rounds=3)
        frozen = set(first.arrays) - {"1.weight", "3.weight", "5.weight", "5.bias"}
        for name in frozen:
            assert np.array_equal(first.arrays[name], ours.arrays[name])
        assert (first.arrays["1.weight"] != ours.arrays["1.weight"]).any()

    @pytest.mark.parametrize("strategy", ["fedlora", "flexlora"])
    def test_one_client_alone_is_local_training(self, strategy: str) -> None:
        """p = 1: the mean of one is that one, in every round."""
        result = api.run(experiment(strategy, settings={"rank": 4}, clients=1, cohort=1, rounds=2), keep=False)
        errors = [record.info["aggregation_error"] for record in result.history]
        assert max(errors) < 1e-6

    def test_one_client_alone_keeps_every_bit_of_its_own_training(self) -> None:
        """With p = 1 nothing is averaged: the run is the client's local trainings, one after the other."""
        one = {"clients": 1, "cohort": 1, "rounds": 3, "round": {"weighting": "uniform"}}
        made = experiment("fedlora", settings={"rank": 4}, **one)
        federated = api.run(made, keep=False)
        workload = registry.part("workloads", "image_classification", "workload").build_workload(made.workload, made)
        strategy = build_strategy(FedLoRAConfig(rank=4, targets=("1", "3")), made)
        state = strategy.init(workload.init(generator(made.seed, "init", 0, 0, 0)))
        for round in range(1, 4):
            rng = generator(made.seed, "train", round, 0, 0)
            job, inputs = Job(round=round, client=0), strategy.model_inputs(state)
            update = workload.train(job, inputs, workload.shard(0), None, rng)
            own = {g: {n: np.array(array) for n, array in arrays.items()} for g, arrays in update.groups.items()}
            state = replace(state, model=own[MODEL], lora_a=own[LORA_A], lora_b=own[LORA_B])
        assert arrays_sha256(strategy.arrays(state)) == sha(federated)

    def test_full_density_flasc_is_fedlora(self, run: Run) -> None:
        dense = run("flasc", settings={"rank": 4, "density_up": 1.0, "density_down": 1.0})
        plain = run("fedlora", settings={"rank": 4})
        for name, array in plain.arrays.items():
            np.testing.assert_allclose(dense.arrays[name], array, atol=1e-5)

    def test_equal_ranks_make_the_controls_equal(self, run: Run) -> None:
        orders = ("falling", "rising", "level")
        assert len({sha(run("sa_fedlora", settings={**SA, "rank_min": 8, "order": order})) for order in orders}) == 1

    def test_a_small_mu_on_adapters_is_felt_and_zero_is_not(self, run: Run) -> None:
        assert sha(run("fedlora", settings={"mu": 0.0})) == sha(run("fedlora"))
        assert sha(run("fedlora", settings={"mu": 0.5})) != sha(run("fedlora"))


class TestRegulariser:
    def test_a_huge_weight_with_a_small_step_holds_the_model(self) -> None:
        moved = {}
        for mu in (0.0, 1e6):
            settings = {**SA, "initiating_rounds": 1, "init_mu": mu, "heating": 0, "cooling": 0}
            steps = {"learning_rate": 1e-7 if mu else 1e-2, "max_steps": 3}
            made = experiment("sa_fedlora", settings=settings, rounds=1, clients=1, cohort=1)
            made = made.override([f"workload.training.{key}={value}" for key, value in steps.items()])
            still = made.override(["strategy.init_mu=0.0", "workload.training.learning_rate=1e-30"])
            before = api.run(still, keep=False)
            after = api.run(made, keep=False)
            apart = sum(((after.arrays[n] - array) ** 2).sum() for n, array in before.arrays.items())
            moved[mu] = float(np.sqrt(apart / sum((array**2).sum() for array in before.arrays.values())))
        assert moved[1e6] < 1e-3 < 1e-2 < moved[0.0] * 10


class TestTheBase:
    def test_it_is_named_once_in_a_run_folder_and_a_run_continues_from_it(self, tmp_path: Path) -> None:
        made = experiment("sa_fedlora", settings={**SA, "shrink": "fold"}, evaluation={"every": 1})
        whole = api.run(made, out=tmp_path / "whole")
        pinned = sorted((tmp_path / "whole" / "checkpoints").glob("pinned-*"))
        assert len(pinned) == 3  # the base, and what two cuts have folded into it
        for name in ("rounds.jsonl", "summary.json"):
            assert (tmp_path / "whole" / name).exists()
        checkpoints = sorted((tmp_path / "whole" / "checkpoints").glob("round-*"))
        checkpoints[-1].unlink()  # as if the last round had never been saved
        again = api.resume(tmp_path / "whole")
        assert sha(again) == sha(whole)
        counted = ("params_up", "params_down", "bytes_up", "bytes_down")
        for record, same in zip(whole.history, again.history, strict=True):
            assert all(getattr(record.traffic, what) == getattr(same.traffic, what) for what in counted)

    def test_a_damaged_base_is_reported_and_nothing_is_lost(self, tmp_path: Path) -> None:
        api.run(experiment("fedlora", settings={"rank": 2}), out=tmp_path / "run")
        (pinned,) = (tmp_path / "run" / "checkpoints").glob("pinned-*")
        content = bytearray(pinned.read_bytes())
        content[-1] ^= 1
        pinned.write_bytes(content)
        with pytest.raises(CheckpointCorrupt, match=r"pinned-.*the file was damaged"):
            api.resume(tmp_path / "run")
        content[-1] ^= 1
        pinned.write_bytes(content)
        assert api.resume(tmp_path / "run").summary.status == "done"

    def test_what_is_evaluated_is_what_is_exported(self, run: Run) -> None:
        """Base, folds and adapters on the client against the merged model of the server."""
        for strategy, settings in (
            ("sa_fedlora", {**SA, "shrink": "fold"}),
            ("sa_fedlora", {**SA, "aggregation": "residual", "initiating_rounds": 0}),
            ("flora", {"rank": 3}),
            ("ffa_lora", {"rank": 3}),
            ("fed_adalora", {"rank_max": 4, "rank_min": 2}),
        ):
            made = experiment(strategy, settings=settings, evaluation={"every": 1, "parts": 1})
            result = api.run(made, keep=False)
            part = registry.part("workloads", "image_classification", "workload")
            workload = part.build_workload(made.workload, made)
            metrics = workload.evaluate({MODEL: Record({MODEL: result.arrays})}, workload.held_out(0, 1))
            assert metrics["loss"].value == pytest.approx(result.metrics["loss"], rel=1e-4)

    @pytest.mark.parametrize("runtime", ["process"])
    def test_a_shared_base_changes_no_bit(self, run: Run, runtime: str) -> None:
        other = {"runtime": {"name": runtime, "workers": 2}}
        here, there = (
            run("sa_fedlora", settings={**SA, "shrink": "fold"}),
            run("sa_fedlora", settings={**SA, "shrink": "fold"}, **other),
        )
        assert sha(here) == sha(there)
        assert [r.traffic.params_down for r in here.history] == [r.traffic.params_down for r in there.history]


RANKS = (2, 8, 4)


class TestTheFamily:
    @pytest.mark.parametrize(
        ("strategy", "settings"),
        [
            ("fedlora", {"rank": 6, "client_ranks": RANKS}),
            ("ffa_lora", {"rank": 6}),
            ("flora", {"rank": 6, "client_ranks": RANKS}),
            ("flexlora", {"rank": 6, "client_ranks": RANKS}),
            ("hetlora", {"rank": 6, "client_ranks": RANKS, "gamma": 0.6}),
            ("flasc", {"rank": 6}),
            ("fed_adalora", {"rank_max": 6, "rank_min": 3}),
            ("spd_cfl", {"rank_max": 6, "rank_min": 2, "mu_previous": 0.1, "consistency": 0.0}),
            ("sa_fedlora", {**SA, "aggregation": "product_svd", "client_ranks": RANKS}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_each_of_them_learns(self, strategy: str, settings: dict[str, Any]) -> None:
        training = {"optimizer": "adamw", "learning_rate": 0.01, "max_steps": 15}
        made = experiment(strategy, settings=settings, rounds=8)
        made = made.override([f"workload.training.{key}={value}" for key, value in training.items()])
        losses = [record.metrics["loss"] for record in api.run(made, keep=False).history]
        assert losses[-1] < 0.7 * losses[0]

    @pytest.mark.parametrize("strategy", ["fedlora", "flexlora"])
    def test_a_client_sends_and_reads_its_own_rank(self, run: Run, strategy: str) -> None:
        ranks = [min(6, RANKS[client % 3]) for client in range(4)]
        seen: set[int] = set()
        for record in run(strategy, settings={"rank": 6, "client_ranks": RANKS}).history:
            sent = sum(WIDTH * ranks[client] + HEAD for client in record.cohort)
            new = set(record.cohort) - seen
            seen |= new
            assert record.traffic.params_up == sent
            assert record.traffic.params_down == sent + len(new) * (FULL - HEAD)

    def test_stacks_go_down_once_to_each_client(self, run: Run) -> None:
        """A stack has Σ r_k (o + i) elements; the fourth makes them more than the base, so there is a new base."""
        stack, base = 2 * 2 * WIDTH, FULL - HEAD
        assert 3 * stack <= base < 4 * stack
        result = run("flora", settings={"rank": 2}, clients=2)
        news = [base, stack, stack, stack, base, stack]
        for record, new in zip(result.history, news, strict=True):
            assert record.traffic.params_up == 2 * (2 * WIDTH + HEAD)
            assert record.traffic.params_down == 2 * (new + HEAD)
        assert [record.info["params_base"] for record in result.history] == [
            base + stacks * stack for stacks in (0, 1, 2, 3, 0, 1)
        ]

    @pytest.mark.parametrize("strategy", ["flora", "sa_fedlora"])
    def test_a_new_base_changes_no_model(self, run: Run, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """With and without it: the same change, added in another order of float32 operations."""
        settings = {"rank": 4} if strategy == "flora" else {**SA, "initiating_rounds": 0, "aggregation": "residual"}
        compact = run(strategy, settings=settings)
        monkeypatch.setattr(Adapters, "folded", lambda self, fold: replace(self, folds=(*self.folds, fold)))
        plain = run(strategy, settings=settings)
        assert compact.summary.params_down != plain.summary.params_down
        for name, array in plain.arrays.items():
            np.testing.assert_allclose(compact.arrays[name], array, atol=1e-5)

    def test_gates_and_scores_are_counted(self, run: Run) -> None:
        result = run("fed_adalora", settings={"rank_max": 4, "rank_min": 4}, clients=2)
        for record in result.history:
            assert record.traffic.params_up == 2 * (4 * WIDTH + 4 * 2 + 4 * 2 + HEAD) == 2 * record.info["params_up"]
            new = FULL - HEAD if record.round == 1 else 0
            assert record.traffic.params_down == 2 * (4 * WIDTH + 4 * 2 + HEAD + new)

    def test_sparse_entries_and_their_mask_are_counted(self, run: Run) -> None:
        size = 4 * WIDTH
        result = run("flasc", settings={"rank": 4, "density_up": 0.25, "density_down": 0.5}, clients=2)
        for record in result.history[1:]:
            mask = -(-size // 8)
            assert record.traffic.params_up == 2 * (size // 4 + mask + HEAD) == 2 * record.info["params_up"]
            assert record.traffic.params_down == 2 * (size // 2 + mask + HEAD) == 2 * record.info["params_down"]


class TestWrongInput:
    @pytest.mark.parametrize(
        ("strategy", "settings", "words"),
        [
            ("fedlora", {"rank": 17}, r"rank 17 is above min\(out, in\) = 16 of layer '3' \(16 x 24\)"),
            (
                "fedlora",
                {"targets": ["query"]},
                r"no layer matches 'query'.*2 layers .* are named: 1, 3",
            ),
            ("sa_fedlora", {"rank_min": 20}, "rank_min: 20 is above"),
            ("sa_fedlora", {"heating": 0.7, "cooling": 0.7}, "do not fit into the"),
        ],
    )
    def test_it_ends_before_anything_starts(
        self, strategy: str, settings: dict[str, Any], words: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=f"(?s){words}"):
            api.run(experiment(strategy, settings=settings), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_workload_that_keeps_its_body_frozen_says_so(self) -> None:
        with pytest.raises(ConfigError, match=r"no layer that can carry an adapter.*freeze its body"):
            chosen_layers({"adaptable": {}, "head": ["head.weight"]}, ["query"], 2)
