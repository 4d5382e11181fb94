"""On a trained model: attacks come in the right order, nothing masks the gradient, planted outliers hurt means only."""

import itertools
import math
from typing import Any

import pytest
import torch
from support_meat import act, build, experiment, initial
from torch import Tensor

from fedloom.core.records import MODEL, Arrays, Record
from fedloom.core.seeds import generator
from fedloom.strategies.meat import ensembles
from fedloom.strategies.meat.workload.robustness import right_under
from fedloom.workloads._attacks.auto import STAGES, auto_attack
from fedloom.workloads._torch.scope import exact

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


def verdicts(workload: Any, arrays: Arrays, attack: str, epsilon: float = EPSILON) -> Tensor:
    """Whether each test image is classified rightly under the attack; bool, shape (359,)."""
    with workload._using(Record({MODEL: arrays}), 7):
        return right_under(workload.network, workload._images.test, attack, epsilon)


def share(workload: Any, arrays: Arrays, attack: str, epsilon: float = EPSILON) -> float:
    return float(verdicts(workload, arrays, attack, epsilon).float().mean())


CHANCE = 1e-4
"""Comparisons less likely than this are no accident; exact orders between random starts do not exist."""


def chance(gained: Tensor, lost: Tensor) -> float:
    """P(Binomial(d, 1/2) >= gained): how likely so many gains are if a change is as often a loss, in d changes.

    The sign test of McNemar 1947. The model's last bits, and so single images, depend on the CPU; this bound does not.
    """
    up, changes = int(gained.sum()), int(gained.sum() + lost.sum())
    return float(sum(math.comb(changes, k) for k in range(up, changes + 1)) / 2**changes)


def as_strong(weaker: Tensor, stronger: Tensor) -> bool:
    """Whether the images that the stronger attack leaves right, and the weaker does not, may be accidents."""
    return chance(stronger & ~weaker, weaker & ~stronger) > CHANCE


def clearly_stronger(weaker: Tensor, stronger: Tensor) -> bool:
    return chance(weaker & ~stronger, stronger & ~weaker) < CHANCE


def test_a_sign_test_in_numbers() -> None:
    right, wrong = torch.ones(20, dtype=torch.bool), torch.zeros(20, dtype=torch.bool)
    one = torch.arange(20) < 1
    assert chance(right, wrong) == 2.0**-20 and chance(one, ~one) == 1 - 2.0**-20 and chance(wrong, wrong) == 1.0
    assert clearly_stronger(right, wrong) and not as_strong(wrong, right)
    assert as_strong(right, right) and not clearly_stronger(right, right)
    assert as_strong(~one, right), "one image won back by another random start"


def test_stronger_attacks_leave_fewer_points(trained: Any) -> None:
    workload, history = trained
    clean, fgsm, *pgd = (
        verdicts(workload, history[-1], attack) for attack in ("clean", "fgsm", "pgd-10", "pgd-20", "pgd-100")
    )
    assert clean.float().mean() > 0.9 and pgd[-1].float().mean() > 0.4  # it learned, and something is left to break
    assert not any((attacked & ~clean).any() for attacked in (fgsm, *pgd)), "a wrong image counts as broken by all"
    assert clearly_stronger(clean, fgsm)
    assert all(clearly_stronger(fgsm, attacked) for attacked in pgd)
    assert all(as_strong(before, after) for before, after in itertools.pairwise(pgd))


@pytest.mark.slow
def test_auto_attack_is_the_strongest_and_ten_iterations_of_it_are_not(trained: Any) -> None:
    pytest.importorskip("pyautoattack")
    workload, history = trained
    images = workload._images.test
    with workload._using(Record({MODEL: history[-1]}), 7):
        weak, strong = (
            auto_attack(
                workload.network, images.x, images.y, epsilon=EPSILON, seed=1, iterations=iterations, queries=50
            )
            for iterations in (10, 100)
        )
    stages = [strong[stage] for stage in STAGES]
    assert as_strong(verdicts(workload, history[-1], "pgd-100"), stages[0])
    assert not any((after & ~before).any() for before, after in itertools.pairwise(stages)), "each attacks what is left"
    assert as_strong(weak[STAGES[-1]], stages[-1])


@pytest.mark.slow
def test_an_attack_without_gradients_finds_nothing_that_gradients_do_not(trained: Any) -> None:
    pytest.importorskip("pyautoattack")
    workload, history = trained
    images = workload._images.test.first(100)
    with workload._using(Record({MODEL: history[-1]}), 7):
        by_gradients, by_queries = (
            auto_attack(workload.network, images.x, images.y, epsilon=EPSILON, seed=1, stages=stages)[stages[-1]]
            for stages in (STAGES[:3], STAGES[3:])
        )
    assert as_strong(by_queries, by_gradients)


def test_nothing_is_masked(trained: Any) -> None:
    """With half of the range to move in every point falls; so does gradient-free noise fail where gradients do not."""
    workload, history = trained
    assert share(workload, history[-1], "pgd-100", 0.5) <= 0.05
    images = workload._images.test
    with workload._using(Record({MODEL: history[-1]}), 7), torch.no_grad():
        noisy = (images.x + EPSILON * torch.empty_like(images.x).uniform_(-1, 1).sign()).clamp(0, 1)
        by_noise = float((workload.network(noisy).argmax(1) == images.y).float().mean())
    assert by_noise > share(workload, history[-1], "fgsm")


@pytest.mark.parametrize("planted", [1, 2, 3])
def test_planted_outliers_ruin_the_mean_and_not_the_median(trained: Any, planted: int) -> None:
    workload, history = trained
    rng = generator(5, "planted", planted)
    spoilt = [ensembles.with_outliers(arrays, 3.0, rng) for arrays in history[:planted]] + history[planted:]
    clean = verdicts(workload, ensembles.median(history, history[0]), "pgd-20")
    by_median = verdicts(workload, ensembles.median(spoilt, history[0]), "pgd-20")
    by_mean = verdicts(workload, ensembles.mean(spoilt, history[0]), "pgd-20")
    assert as_strong(by_median, clean), "what the outliers cost the median may be an accident"
    assert by_mean.float().mean() <= clean.float().mean() - 0.10


def test_the_same_work_has_the_same_bits_whatever_came_before(trained: Any) -> None:
    workload, history = trained
    record = {"a": Record({MODEL: history[-1]})}
    job: dict[str, Any] = {"inputs": ("a",), "knobs": {"part": 0, "parts": 1}}
    first = act(workload, "robustness", record, **job).info
    with exact(torch.device("cpu"), seed=99):
        act(workload, "train", {MODEL: record["a"]})
    assert act(workload, "robustness", record, **job).info == first
