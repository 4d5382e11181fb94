"""On a trained model: attacks come in the right order, nothing masks the gradient, planted outliers hurt means only."""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fedloom.core.records import MODEL, Arrays, Record
from fedloom.core.seeds import generator
from fedloom.strategies.meat import ensembles
from fedloom.workloads._attacks.auto import STAGES, auto_attack
from fedloom.workloads._torch.scope import exact
from fedloom.workloads.meat.measuring import right_under

sys.path.insert(0, str(Path(__file__).parent))
from support_meat import act, build, experiment, initial

EPSILON = 0.15
ROUNDS = 14


@pytest.fixture(scope="module")
def trained() -> tuple[Any, list[Arrays]]:
    """The workload, and its client's weights after the last seven of fourteen epochs."""
    settings = {"train_examples": 800, "measure": {"examples": 359}, "model": {"name": "strided"}}
    workload = build(experiment(settings, rounds=ROUNDS))
    record, state, history = initial(workload), None, list[Arrays]()
    for epoch in range(1, ROUNDS + 1):
        update = act(workload, "train", {MODEL: record}, state=state, round=epoch)
        record, state = Record({MODEL: update.groups[MODEL]}), update.state
        history.append(update.groups[MODEL])
    return workload, history[-7:]


def share(workload: Any, arrays: Arrays, attack: str, epsilon: float = EPSILON) -> float:
    with workload._using(Record({MODEL: arrays}), 7):
        return float(right_under(workload._trainer.model, workload._images.test, attack, epsilon).float().mean())


def in_falling_order(shares: list[float]) -> bool:
    """Random starts may win half a point back."""
    return all(after <= before + 0.005 for before, after in itertools.pairwise(shares))


def test_stronger_attacks_leave_fewer_points(trained: Any) -> None:
    workload, history = trained
    shares = [share(workload, history[-1], attack) for attack in ("clean", "fgsm", "pgd-10", "pgd-20", "pgd-100")]
    assert shares[0] > 0.9 and shares[-1] > 0.4  # it learned, and something is left to break
    assert in_falling_order(shares), shares


@pytest.mark.slow
def test_auto_attack_is_the_strongest_and_ten_iterations_of_it_are_not(trained: Any) -> None:
    pytest.importorskip("pyautoattack")
    workload, history = trained
    images = workload._images.test
    with workload._using(Record({MODEL: history[-1]}), 7):
        weak, strong = (
            auto_attack(
                workload._trainer.model, images.x, images.y, epsilon=EPSILON, seed=1, iterations=iterations, queries=50
            )
            for iterations in (10, 100)
        )
    shares = [share(workload, history[-1], "pgd-100"), *(float(strong[stage].float().mean()) for stage in STAGES)]
    assert in_falling_order(shares), shares
    assert float(weak[STAGES[-1]].float().mean()) >= shares[-1] - 0.005


@pytest.mark.slow
def test_an_attack_without_gradients_finds_nothing_that_gradients_do_not(trained: Any) -> None:
    pytest.importorskip("pyautoattack")
    workload, history = trained
    images = workload._images.test.first(100)
    with workload._using(Record({MODEL: history[-1]}), 7):
        by_gradients, by_queries = (
            auto_attack(workload._trainer.model, images.x, images.y, epsilon=EPSILON, seed=1, stages=stages)[stages[-1]]
            for stages in (STAGES[:3], STAGES[3:])
        )
    assert float(by_queries.float().mean()) >= float(by_gradients.float().mean()) - 0.01


def test_nothing_is_masked(trained: Any) -> None:
    """With half of the range to move in every point falls; so does gradient-free noise fail where gradients do not."""
    workload, history = trained
    assert share(workload, history[-1], "pgd-100", 0.5) <= 0.05
    images = workload._images.test
    with workload._using(Record({MODEL: history[-1]}), 7), torch.no_grad():
        noisy = (images.x + EPSILON * torch.empty_like(images.x).uniform_(-1, 1).sign()).clamp(0, 1)
        by_noise = float((workload._trainer.model(noisy).argmax(1) == images.y).float().mean())
    assert by_noise > share(workload, history[-1], "fgsm")


@pytest.mark.parametrize("planted", [1, 2, 3])
def test_planted_outliers_ruin_the_mean_and_not_the_median(trained: Any, planted: int) -> None:
    workload, history = trained
    rng = generator(5, "planted", planted)
    spoilt = [ensembles.with_outliers(arrays, 3.0, rng) for arrays in history[:planted]] + history[planted:]
    clean = share(workload, ensembles.median(history, history[0]), "pgd-20")
    by_median = share(workload, ensembles.median(spoilt, history[0]), "pgd-20")
    by_mean = share(workload, ensembles.mean(spoilt, history[0]), "pgd-20")
    assert by_median >= clean - 0.02
    assert by_mean <= clean - 0.10


def test_the_same_work_has_the_same_bits_whatever_came_before(trained: Any) -> None:
    workload, history = trained
    record = {"a": Record({MODEL: history[-1]})}
    job: dict[str, Any] = {"inputs": ("a",), "knobs": {"part": 0, "parts": 1}}
    first = act(workload, "robustness", record, **job).info
    with exact(torch.device("cpu"), seed=99):
        act(workload, "train", {MODEL: record["a"]})
    assert act(workload, "robustness", record, **job).info == first
