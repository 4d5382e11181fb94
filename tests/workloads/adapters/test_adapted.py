"""The trainer in adapter rounds: strict about what it is given, gentle with the base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedloom.adapters.names import ADAPTERS, LORA_A, LORA_B, LORA_E
from fedloom.core.errors import BadUpdate
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import LocalRule
from fedloom.core.records import MODEL, Record
from fedloom.core.seeds import generator
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads._torch.trainer import LocalTraining, Trainer

CPU = torch.device("cpu")
RNG = np.random.Generator(np.random.PCG64(2))
X = torch.from_numpy(RNG.standard_normal((40, 6)).astype(np.float32))
Y = torch.from_numpy(RNG.integers(0, 3, 40))
SCALE = 2.0


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


Inputs = dict[str, Record]


def inputs(rank: int = 2, *, rank_max: int = 4, fold: bool = False, frozen_a: bool = False, seed: int = 1) -> Inputs:
    """The model above with an adapter on its first layer, random factors, its last layer as the head."""
    rng = generator(seed, "factors")
    arrays = {name: tensor.numpy().copy() for name, tensor in model().state_dict().items()}
    head = {name: arrays.pop(name) for name in ("3.weight", "3.bias")}
    for array in arrays.values():
        array.setflags(write=False)
    beneath = {"base": Pinned.of(Record({MODEL: arrays}))}
    a, b = rng.standard_normal((rank, 6)).astype(np.float32), rng.standard_normal((8, rank)).astype(np.float32)
    if fold:
        pair = {LORA_A: {"0": a[:1] + 1}, LORA_B: {"0": b[:, :1] - 1}}
        beneath["fold-1"] = Pinned.of(Record(pair))
    groups: dict[str, dict[str, np.ndarray]] = {MODEL: head, LORA_A: {"0": a}, LORA_B: {"0": b}}
    if frozen_a:
        beneath["factors"] = Pinned.of(Record({LORA_A: groups.pop(LORA_A)}))
    info = {
        "modules": ["0"],
        "scale": SCALE,
        "rank_max": rank_max,
        "base": [[name, record.sha256] for name, record in beneath.items()],
    }
    return {MODEL: Record(groups, {ADAPTERS: info}), **beneath}


def trainer(**settings: Any) -> tuple[Trainer, Callable[[Tensor], Tensor]]:
    made = Trainer(model(), TrainingSettings(learning_rate=0.1, batch_size=8, **settings), CPU)
    return made, lambda rows: nn.functional.cross_entropy(made.model(X[rows]), Y[rows])


def train(made: Trainer, loss: Any, given: Inputs, rule: Any = None) -> dict[str, dict[str, np.ndarray]]:
    update = made.train(given, LocalTraining(rows=np.arange(40), loss_of=loss, rule=rule), generator(9, "t"))
    return {group: {name: np.array(array) for name, array in arrays.items()} for group, arrays in update.groups.items()}


def test_only_factors_and_head_are_trained_and_the_base_is_not_even_copied() -> None:
    made, loss = trainer()
    given = inputs()
    before = given["base"].groups[MODEL]["0.weight"].copy()
    groups = train(made, loss, given)
    assert {group: sorted(arrays) for group, arrays in groups.items()} == {
        MODEL: ["3.bias", "3.weight"],
        LORA_A: ["0"],
        LORA_B: ["0"],
    }
    for group, arrays in groups.items():
        for name, array in arrays.items():
            assert array.shape == given[MODEL].groups[group][name].shape
            assert (array != given[MODEL].groups[group][name]).any()
    assert np.array_equal(given["base"].groups[MODEL]["0.weight"], before)
    at = made.model.get_parameter("0.weight").data_ptr()
    assert at == given["base"].groups[MODEL]["0.weight"].ctypes.data  # one copy for all who map it
    assert np.array_equal(
        made.model.get_buffer("1.running_mean").numpy(), given["base"].groups[MODEL]["1.running_mean"]
    )


def test_training_is_torchs_own_on_the_same_function() -> None:
    """Factors as plain parameters, torch's SGD: ten lines."""
    made, loss = trainer(epochs=2)
    given = inputs(fold=True)
    got = train(made, loss, given)
    net = model()
    pair = given["fold-1"].groups
    net.get_parameter("0.weight").data += torch.from_numpy(pair[LORA_B]["0"] @ pair[LORA_A]["0"])
    a, b = (torch.from_numpy(given[MODEL].groups[group]["0"].copy()).requires_grad_() for group in (LORA_A, LORA_B))
    optimizer = torch.optim.SGD([a, b, *net[3].parameters()], 0.1)
    rng = generator(9, "t")
    rng.integers(2**63)
    net[1].eval()
    for _ in range(2):
        for rows in torch.from_numpy(rng.permutation(40)).split(8):
            optimizer.zero_grad()
            hidden = net[0](X[rows]) + SCALE * X[rows] @ a.T @ b.T
            nn.functional.cross_entropy(net[3](torch.tanh(net[1](hidden))), Y[rows]).backward()
            optimizer.step()
    np.testing.assert_allclose(got[LORA_A]["0"], a.detach(), atol=1e-5)
    np.testing.assert_allclose(got[LORA_B]["0"], b.detach(), atol=1e-5)
    np.testing.assert_allclose(got[MODEL]["3.weight"], net.get_parameter("3.weight").detach(), atol=1e-5)


def test_a_client_leaves_nothing_behind_whatever_its_rank() -> None:
    made, loss = trainer(momentum=0.9)
    alone = {rank: train(*trainer(momentum=0.9), inputs(rank)) for rank in (1, 2, 4)}
    for rank in (4, 1, 2, 4, 1):
        again = train(made, loss, inputs(rank))
        for group, arrays in alone[rank].items():
            for name, array in arrays.items():
                assert np.array_equal(again[group][name], array)


def test_whole_rounds_after_adapter_rounds_are_as_before() -> None:
    made, loss = trainer()
    whole = {MODEL: Record({MODEL: {n: t.numpy().copy() for n, t in model().state_dict().items()}})}
    want = train(*trainer(), whole)
    train(made, loss, inputs())
    got = train(made, loss, whole)
    assert all(np.array_equal(got[MODEL][name], array) for name, array in want[MODEL].items())


def test_a_frozen_a_is_used_and_does_not_travel() -> None:
    made, loss = trainer()
    free, held = inputs(), inputs(frozen_a=True)
    groups = train(made, loss, held)
    assert sorted(groups) == [LORA_B, MODEL]
    with torch.no_grad():
        made.load(held)
        made.model.eval()
        frozen = made.model(X)
        other, _ = trainer()
        other.load(free)
        other.model.eval()
        assert torch.equal(other.model(X), frozen)


def test_rules_see_the_rank_that_is_active() -> None:
    class Looks(LocalRule):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def begin(self, trained: Any, knobs: Any) -> None:
            self.seen.append(list(trained))

        def adjust_gradients(self, gradients: Any, parameters: Any, anchor: Any, knobs: Any) -> None:
            self.seen += [[tuple(x.shape) for x in each] for each in (gradients, parameters, anchor)]

    made, loss = trainer(max_steps=1)
    looks = Looks()
    train(made, loss, inputs(rank=2, rank_max=4), looks)
    names, *shapes = looks.seen
    assert names == [(MODEL, "3.weight"), (MODEL, "3.bias"), (LORA_A, "0"), (LORA_B, "0")]
    assert shapes == [[(3, 8), (3,), (2, 6), (8, 2)]] * 3


def without(given: Inputs, group: str, name: str) -> Inputs:
    record = given[MODEL]
    groups = {g: {n: a for n, a in arrays.items() if (g, n) != (group, name)} for g, arrays in record.groups.items()}
    return {**given, MODEL: Record(groups, record.info)}


def with_info(given: Inputs, **changes: Any) -> Inputs:
    reported = {**given[MODEL].info[ADAPTERS], **changes}
    return {**given, MODEL: Record(given[MODEL].groups, {ADAPTERS: reported})}


def with_factor(given: Inputs, group: str, array: np.ndarray) -> Inputs:
    groups = {**given[MODEL].groups, group: {"0": array}}
    return {**given, MODEL: Record(groups, given[MODEL].info)}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda g: without(g, LORA_A, "0"), r"group 'lora_a' lacks factors for modules \['0'\]"),
        (lambda g: without(g, LORA_B, "0"), r"group 'lora_b' lacks factors for modules \['0'\]"),
        (lambda g: with_info(g, modules=[]), r"has others for \['0'\]; the record is for 0 modules"),
        (lambda g: without(g, MODEL, "3.bias"), "does not fit this workload in 1 arrays, first '3.bias'"),
        (lambda g: with_factor(g, LORA_A, np.zeros((2, 5), np.float32)), r"A \(2, 5\) and B \(8, 2\) do not match"),
        (lambda g: with_factor(g, LORA_A, np.zeros((3, 6), np.float32)), r"A \(3, 6\) and B \(8, 2\) do not match"),
        (lambda g: inputs(rank=5, rank_max=4), r"with r from 1 to 4"),
        (lambda g: with_factor(g, LORA_E, np.zeros(3, np.float32)), r"gates"),
        (lambda g: {MODEL: g[MODEL]}, r"need input 'base' with digest .*this agent has nothing"),
        (lambda g: {**g, "base": Record(g["base"].groups)}, "this agent has no digest"),
        (lambda g: {**g, "base": Pinned(g["base"].groups, {}, "ab" * 32)}, "this agent has abababab"),
    ],
    ids=["a", "b", "left-over", "head", "columns", "ranks", "too-high", "gates", "no-base", "unnamed", "other-base"],
)
def test_what_does_not_fit_is_named_and_not_loaded(spoil: Any, words: str) -> None:
    made, loss = trainer()
    with pytest.raises(BadUpdate, match=words):
        made.load(spoil(inputs()))
    want = train(*trainer(), inputs())
    got = train(made, loss, inputs())  # and the next global model is none the worse for it
    assert all(np.array_equal(got[g][n], array) for g, arrays in want.items() for n, array in arrays.items())
