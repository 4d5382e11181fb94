"""FedProx: the term's gradient, its sign, factor and square; mu = 0 is federated averaging."""

import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from fedloom.core.config import Experiment
from fedloom.core.errors import BadMessage
from fedloom.core.records import MODEL, Record, RoundContext, Update
from fedloom.core.seeds import generator
from fedloom.strategies.fedavg.strategy import FedAvg
from fedloom.strategies.fedprox.config import Config
from fedloom.strategies.fedprox.rule import build_rule
from fedloom.strategies.fedprox.strategy import build_strategy

SHAPES = [(3, 4), (4,), ()]


def arrays(word: str, dtype: Any = np.float64) -> list[np.ndarray[Any, Any]]:
    rng = generator(1, word)
    return [np.asarray(rng.normal(size=shape) + 1.0).astype(dtype) for shape in SHAPES]


def test_the_gradient_is_that_of_half_mu_times_the_squared_distance() -> None:
    """Central differences of F(w) + mu/2 ||w - w_t||² against gradient of F + what the rule adds."""
    mu, step = 0.3, 1e-6
    w, anchor, gradients = arrays("w"), arrays("anchor"), arrays("gradient")

    def penalty(at: list[np.ndarray[Any, Any]]) -> float:
        return mu / 2 * sum(float(((x - a) ** 2).sum()) for x, a in zip(at, anchor, strict=True))

    expected = []
    for k, array in enumerate(w):
        slope = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            up, down = [x.copy() for x in w], [x.copy() for x in w]
            up[k][index] += step
            down[k][index] -= step
            slope[index] = (penalty(up) - penalty(down)) / (2 * step)
        expected.append(gradients[k] + slope)
    build_rule().adjust_gradients(gradients, w, anchor, {"mu": mu})
    for got, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_numpy_gradients_change_in_place_and_nothing_else_does(dtype: Any) -> None:
    w, anchor, gradients = arrays("w", dtype), arrays("anchor", dtype), arrays("gradient", dtype)
    before = [array.copy() for array in (*w, *anchor)]
    expected = [g + dtype(0.5) * (x - a) for g, x, a in zip(gradients, w, anchor, strict=True)]
    for array in (*w, *anchor):
        array.setflags(write=False)
    build_rule().adjust_gradients(gradients, w, anchor, {"mu": 0.5, "other": 1})
    for got, want in zip(gradients, expected, strict=True):
        assert got.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(got, want)
    for array, was in zip((*w, *anchor), before, strict=True):
        np.testing.assert_array_equal(array, was)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_tensors_change_in_place_outside_autograd(dtype: torch.dtype) -> None:
    parameters = [torch.nn.Parameter(torch.from_numpy(array).to(dtype)) for array in arrays("w")]
    anchor = [torch.from_numpy(array).to(dtype) for array in arrays("anchor")]
    gradients = [torch.from_numpy(array).to(dtype) for array in arrays("gradient")]
    expected = [g + 0.5 * (w.detach() - a) for g, w, a in zip(gradients, parameters, anchor, strict=True)]
    places = [gradient.data_ptr() for gradient in gradients]
    build_rule().adjust_gradients(gradients, parameters, anchor, {"mu": 0.5})
    for gradient, want in zip(gradients, expected, strict=True):
        assert not gradient.requires_grad and gradient.dtype == dtype
        torch.testing.assert_close(gradient, want)
    assert [gradient.data_ptr() for gradient in gradients] == places


def test_mu_0_touches_no_bit() -> None:
    special = np.array([-0.0, np.inf, np.nan, 1.0], np.float32)
    gradients, w = [special.copy()], [np.full(4, np.inf, np.float32)]
    build_rule().adjust_gradients(gradients, w, [np.full(4, np.inf, np.float32)], {"mu": 0.0})
    assert gradients[0].tobytes() == special.tobytes()


@pytest.mark.parametrize(
    "knobs", [{}, {"nu": 1.0}, {"mu": -1.0}, {"mu": float("nan")}, {"mu": "1"}, {"mu": True}, {"mu": None}]
)
def test_a_job_without_a_usable_mu_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(BadMessage, match=r"expected knob 'mu'.*same strategy"):
        build_rule().adjust_gradients(arrays("g"), arrays("w"), arrays("a"), knobs)


def test_mismatched_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        build_rule().adjust_gradients(arrays("g"), arrays("w")[:2], arrays("a"), {"mu": 1.0})


def test_the_update_leaves_as_it_is() -> None:
    update = Update(num_examples=3)
    assert build_rule().outgoing(update, {"mu": 1.0}) is update


def context(round: int = 1) -> RoundContext:
    return RoundContext(round=round, cohort=(2, 0), population=3, rounds=2, seed=1)


def test_the_server_half_is_federated_averaging_with_mu_in_the_knobs() -> None:
    experiment = Experiment.model_construct(rounds=2)
    model = Record({MODEL: {"w": np.zeros(2, np.float32)}})
    prox, plain = build_strategy(Config(mu=0.25), experiment), FedAvg()
    ours, theirs = prox.plan(prox.init(model), context()), plain.plan(plain.init(model), context())
    assert ours is not None and theirs is not None
    assert (ours.knobs, ours.rules) == ({"mu": 0.25}, ("fedprox",))
    assert (ours.jobs, ours.accumulator, ours.inputs) == (theirs.jobs, theirs.accumulator, theirs.inputs)


def trained(mu: float | None, rounds: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    """Two clients, each minimising ||w - c_k||²/2 with five gradient steps; mu None is federated averaging."""
    centres = {2: np.array([4.0, -1.0], np.float32), 0: np.array([0.0, 3.0], np.float32)}
    experiment = Experiment.model_construct(rounds=rounds)
    strategy: Any = FedAvg() if mu is None else build_strategy(Config(mu=mu), experiment)
    state = strategy.init(Record({MODEL: {"w": np.zeros(2, np.float32)}}))
    from fedloom.core.accumulators import RunningMean

    for round in range(1, rounds + 1):
        exchange = strategy.plan(state, context(round))
        total = RunningMean()
        for job in exchange.jobs:
            anchor = exchange.inputs[MODEL].groups[MODEL]["w"]
            w = anchor.copy()
            for _ in range(5):
                gradient = w - centres[job.client]
                if exchange.rules:
                    build_rule().adjust_gradients([gradient], [w], [anchor], exchange.knobs)
                w = w - np.float32(0.5) * gradient
            total.add(Update(num_examples=1, groups={MODEL: {"w": w}}), 1.0 + job.client, job.client)
        state = strategy.finish(state, total, context(round))
    return dict(strategy.arrays(state))


def test_mu_0_is_federated_averaging_bit_for_bit_and_a_large_mu_holds_clients_back() -> None:
    plain, zero, firm = trained(None)["w"], trained(0.0)["w"], trained(1.0)["w"]
    assert zero.tobytes() == plain.tobytes()
    # one round from 0 with mu = 1: w <- w - 0.5 (2w - c), whose fixed point is c/2, against c for mu = 0
    np.testing.assert_allclose(
        trained(1.0, rounds=1)["w"], trained(None, rounds=1)["w"] * 0.5 / (1 - 0.5**5), rtol=1e-6
    )
    assert np.linalg.norm(firm) < np.linalg.norm(plain)


def test_importing_the_folder_does_not_import_torch() -> None:
    import subprocess

    code = (
        "import sys; import fedloom.strategies.fedprox.rule, fedloom.strategies.fedprox.strategy; "
        "import fedloom.strategies.server_opt.strategy; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
