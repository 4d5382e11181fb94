"""The four server optimisers against ten lines of NumPy, over several rounds."""

from typing import Any

import ml_dtypes
import numpy as np
import pydantic
import pytest

from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.records import MODEL, UNTRAINED, Array, Record, RoundContext, Update
from fedloom.core.seeds import generator
from fedloom.strategies.server_opt.config import Config
from fedloom.strategies.server_opt.strategy import ServerOptimizer, build_strategy

START = np.array([1.0, -2.0, 0.5, 0.0], np.float64)
CENTRE = np.array([2.0, -3.0, 0.5, 0.003], np.float64)
SETTINGS: dict[str, dict[str, float]] = {
    "momentum": {"learning_rate": 0.7, "momentum": 0.6},
    "adam": {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.95, "tau": 0.02},
    "yogi": {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.95, "tau": 0.02},
    "adagrad": {"learning_rate": 0.3, "beta1": 0.4, "tau": 0.02},
}
ROUNDS = 6


def oracle(optimizer: str, means: list[np.ndarray[Any, Any]], w: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Reddi et al. 2021, Algorithm 2, and Hsu et al. 2019, written out; `means[t]` is what the clients' mean is."""
    s, out = SETTINGS[optimizer], []
    m, v = np.zeros_like(w), np.full_like(w, s.get("tau", 0.0) ** 2)
    for mean in means:
        delta = mean - w
        if optimizer == "momentum":
            m = s["momentum"] * m + delta
            w = w + s["learning_rate"] * m
        else:
            m = s["beta1"] * m + (1 - s["beta1"]) * delta
            if optimizer == "adagrad":
                v = v + delta**2
            elif optimizer == "yogi":
                v = v - (1 - s["beta2"]) * delta**2 * np.sign(v - delta**2)
            else:
                v = s["beta2"] * v + (1 - s["beta2"]) * delta**2
            w = w + s["learning_rate"] * m / (np.sqrt(v) + s["tau"])
        out.append(w)
    return out


def means() -> list[np.ndarray[Any, Any]]:
    """Far and near targets, signs of both kinds, an element that never moves: Yogi's sign takes each of its values."""
    return [CENTRE + np.array([0.3, -0.2, 0.0, 0.02]) * (-1.0) ** t * t for t in range(ROUNDS)]


def build(optimizer: str, **settings: Any) -> ServerOptimizer:
    config = Config(optimizer=optimizer, **(settings or SETTINGS[optimizer]))  # type: ignore[arg-type]
    return build_strategy(config, Experiment.model_construct(rounds=ROUNDS))


def context(round: int) -> RoundContext:
    return RoundContext(round=round, cohort=(0, 1), population=2, rounds=ROUNDS, seed=1)


def total(arrays: dict[str, np.ndarray[Any, Any]]) -> RunningMean:
    """Two clients whose weighted mean (1 and 3) is `arrays`."""
    fold = RunningMean()
    for client, (weight, off) in enumerate(((1.0, 3.0), (3.0, -1.0))):
        shifted = {n: (a + off).astype(a.dtype) if a.dtype.kind != "b" else a for n, a in arrays.items()}
        fold.add(Update(num_examples=1, groups={MODEL: shifted}), weight, client)
    return fold


@pytest.mark.parametrize("optimizer", SETTINGS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_several_rounds_follow_the_paper(optimizer: str, dtype: Any) -> None:
    strategy = build(optimizer)
    state = strategy.init(Record({MODEL: {"w": START.astype(dtype)}}))
    for t, want in enumerate(oracle(optimizer, means(), START)):
        state = strategy.finish(state, total({"w": means()[t].astype(dtype)}), context(t + 1))
        got = strategy.arrays(state)["w"]
        assert got.dtype == dtype
        np.testing.assert_allclose(
            got, want, rtol=1e-12 if dtype == np.float64 else 3e-5, atol=1e-12 if dtype == np.float64 else 3e-6
        )


def test_the_oracle_distinguishes_the_optimisers() -> None:
    """What would hide a wrong branch is four trajectories that agree."""
    ends = [oracle(optimizer, means(), START)[-1] for optimizer in SETTINGS]
    for i, one in enumerate(ends):
        for other in ends[i + 1 :]:
            assert (abs(one - other)[[0, 1, 3]] > 1e-3).all()


def test_momentum_with_rate_1_and_no_decay_is_federated_averaging() -> None:
    strategy = build("momentum", learning_rate=1.0, momentum=0.0)
    state = strategy.init(Record({MODEL: {"w": START}}))
    state = strategy.finish(state, total({"w": CENTRE}), context(1))
    np.testing.assert_allclose(strategy.arrays(state)["w"], CENTRE, rtol=1e-15, atol=1e-15)


def test_v_starts_at_tau_squared_and_there_is_no_bias_correction() -> None:
    strategy = build("adam")
    state = strategy.init(Record({MODEL: {"w": START}}))
    np.testing.assert_array_equal(state.v["w"], np.full(4, 0.02**2))
    np.testing.assert_array_equal(state.m["w"], np.zeros(4))
    assert build("momentum").init(Record({MODEL: {"w": START}})).v == {}


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_counters_and_masks_become_the_mean(optimizer: str) -> None:
    model: dict[str, Array] = {
        "w": START.astype(np.float32),
        "steps": np.array(10, np.int64),
        "mask": np.array([True, False]),
    }
    strategy = build(optimizer)
    state = strategy.init(Record({MODEL: model}))
    assert set(state.m) == {"w"}
    state = strategy.finish(state, total({**model, "steps": np.array(17, np.int64)}), context(1))
    after = strategy.arrays(state)
    assert (after["steps"].dtype, int(after["steps"])) == (np.dtype(np.int64), 17)
    np.testing.assert_array_equal(after["mask"], [True, False])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_short_floats_keep_long_moments(dtype: Any) -> None:
    strategy = build("yogi")
    state = strategy.init(Record({MODEL: {"w": START.astype(dtype)}}))
    state = strategy.finish(state, total({"w": CENTRE.astype(dtype)}), context(1))
    found = [arrays["w"].dtype for arrays in (state.m, state.v, state.model)]
    assert found == [np.dtype(kind) for kind in (np.float32, np.float32, dtype)]
    want = oracle("yogi", [CENTRE.astype(dtype).astype(np.float64)], START)[0]
    np.testing.assert_allclose(
        state.model["w"].astype(np.float64), want, rtol=2 * float(ml_dtypes.finfo(dtype).eps), atol=1e-3
    )


class TestConfig:
    @pytest.mark.parametrize(
        ("optimizer", "resolved"),
        [
            ("momentum", {"learning_rate": 1.0, "momentum": 0.9}),
            ("adam", {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}),
            ("yogi", {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}),
            ("adagrad", {"learning_rate": 0.1, "beta1": 0.0, "tau": 1e-3}),
        ],
    )
    def test_defaults_are_those_of_the_optimiser(self, optimizer: str, resolved: dict[str, float]) -> None:
        config = Config(optimizer=optimizer)  # type: ignore[arg-type]
        dumped = config.model_dump(exclude_none=True)
        assert dumped == {"name": "server_opt", "optimizer": optimizer, **resolved}
        assert Config.model_validate(dumped) == config

    @pytest.mark.parametrize(
        ("optimizer", "idle"),
        [("momentum", "beta1"), ("momentum", "beta2"), ("momentum", "tau"), ("adam", "momentum"), ("adagrad", "beta2")],
    )
    def test_a_setting_without_effect_is_refused(self, optimizer: str, idle: str) -> None:
        with pytest.raises(pydantic.ValidationError, match=f"{idle}: no effect with optimizer '{optimizer}'"):
            Config.model_validate({"optimizer": optimizer, idle: 0.5})

    @pytest.mark.parametrize(
        "wrong",
        [
            {"optimizer": "sgd"},
            {"optimizer": 3},
            {"learning_rate": 0.0},
            {"learning_rate": float("inf")},
            {"beta1": 1.0},
            {"beta2": -0.1},
            {"tau": 0.0},
            {"optimizer": "momentum", "momentum": 1.0},
            {"beta_1": 0.9},
        ],
    )
    def test_values_out_of_range_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(pydantic.ValidationError):
            Config.model_validate(wrong)

    def test_the_message_reaches_the_user_in_their_own_terms(self) -> None:
        with pytest.raises(ConfigError, match=r"strategy: .*momentum: no effect with optimizer 'adam'"):
            Experiment.parse({"rounds": 1, "strategy": {"name": "server_opt", "momentum": 0.5}, "workload": "x"})


def test_training_converges_where_the_mean_stays_put() -> None:
    """Every optimiser reaches a target that does not move; signs that are wrong run away instead."""
    rng = generator(1, "target")
    target = rng.normal(size=20)
    for optimizer, settings in (
        ("momentum", {"learning_rate": 0.5, "momentum": 0.5}),
        ("adam", {"learning_rate": 0.05}),
        ("yogi", {"learning_rate": 0.05}),
        ("adagrad", {"learning_rate": 0.5}),
    ):
        strategy = build(optimizer, **settings)
        state = strategy.init(Record({MODEL: {"w": np.zeros(20)}}))
        start = np.linalg.norm(target)
        for round in range(1, 81):
            near = state.model["w"] + 0.5 * (target - state.model["w"])  # clients go half the way
            state = strategy.finish(state, total({"w": near}), context(round))
        assert np.linalg.norm(state.model["w"] - target) < 0.1 * start, optimizer


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_what_the_workload_does_not_train_becomes_the_mean(optimizer: str) -> None:
    strategy = build(optimizer)
    variance = np.array([0.5, 0.25, 1.0, 2.0], np.float32)
    model = {"w": START.astype(np.float32), "running_var": variance}
    state = strategy.init(Record({MODEL: model}, {UNTRAINED: ["running_var"]}))
    assert state.m.keys() == {"w"} and state.v.keys() <= {"w"}
    for round, mean in enumerate(means(), 1):
        statistics = variance * np.float32(0.1) ** round
        state = strategy.finish(state, total({"w": mean.astype(np.float32), "running_var": statistics}), context(round))
        np.testing.assert_allclose(state.model["running_var"], statistics, rtol=1e-6, atol=1e-6)
    assert (state.model["w"] != means()[-1].astype(np.float32)).any()
