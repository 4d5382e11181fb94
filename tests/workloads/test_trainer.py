from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedloom.core.errors import BadUpdate, ConfigError
from fedloom.core.protocols import LocalRule
from fedloom.core.records import MODEL, Array, Record, Update
from fedloom.core.seeds import generator
from fedloom.workloads._torch.scope import choose_device, exact
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads._torch.trainer import LocalTraining, Trainer

CPU = torch.device("cpu")
RNG = np.random.Generator(np.random.PCG64(2))
X = torch.from_numpy(RNG.standard_normal((20, 3)).astype(np.float32))
Y = torch.from_numpy(RNG.standard_normal((20, 1)).astype(np.float32))
ROWS = np.arange(4, 17)


def model(dropout: float = 0.0) -> nn.Module:
    with exact(CPU, seed=3):
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 1))


def record_of(module: nn.Module) -> Record:
    return Record({MODEL: {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}})


def train(
    settings: TrainingSettings,
    *,
    module: nn.Module | None = None,
    rule: Any = None,
    seed: int = 9,
    rows: Array = ROWS,
    knobs: Any = None,
) -> Update:
    module = module or model()
    trainer = Trainer(module, settings, CPU)

    def loss(batch: Tensor) -> Tensor:
        return nn.functional.mse_loss(module(X.index_select(0, batch)), Y.index_select(0, batch))

    return trainer.train(
        {MODEL: record_of(model())},
        LocalTraining(rows=rows, loss_of=loss, rule=rule, knobs=knobs or {}),
        generator(seed, "t"),
    )


def bare(settings: TrainingSettings, make: Any, seed: int = 9) -> tuple[nn.Module, list[float], list[int]]:
    """The same training written the usual way: torch's optimiser, torch's clipping."""
    module, rng, losses, counts = model(), generator(seed, "t"), [], []
    rng.integers(2**63)  # the seed of torch's generators
    optimizer = make(module.parameters())
    for _ in range(settings.epochs):
        order = torch.from_numpy(ROWS[rng.permutation(len(ROWS))])
        for batch in order.split(settings.batch_size):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(module(X[batch]), Y[batch])
            loss.backward()
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            counts.append(len(batch))
    return module, losses, counts


@pytest.mark.parametrize(
    ("changes", "make"),
    [
        ({}, lambda p: torch.optim.SGD(p, 0.1)),
        ({"weight_decay": 0.3}, lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.3)),
        ({"momentum": 0.8}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.8)),
        ({"momentum": 0.8, "nesterov": True}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True)),
        ({"clip_norm": 0.05}, lambda p: torch.optim.SGD(p, 0.1)),
        ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.0)),
        (
            {"optimizer": "adamw", "weight_decay": 0.3, "beta1": 0.7, "beta2": 0.95, "epsilon": 1e-3},
            lambda p: torch.optim.AdamW(p, 0.1, (0.7, 0.95), 1e-3, weight_decay=0.3),
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_the_loop_is_torchs_own_mathematics(changes: dict[str, Any], make: Any) -> None:
    settings = TrainingSettings(learning_rate=0.1, batch_size=4, epochs=3, **changes)
    update, (want, losses, counts) = train(settings), bare(settings, make)
    for name, tensor in want.state_dict().items():
        np.testing.assert_allclose(update.groups[MODEL][name], tensor.numpy(), rtol=1e-5, atol=1e-6)
    assert update.metrics["loss"].weight == sum(counts) == 3 * len(ROWS)
    assert update.metrics["loss"].sum == pytest.approx(float(np.dot(losses, counts)), rel=1e-5)


def test_plain_sgd_gives_the_bits_of_torchs_own() -> None:
    settings = TrainingSettings(learning_rate=0.1, batch_size=4, epochs=2)
    update, (want, _, _) = train(settings), bare(settings, lambda p: torch.optim.SGD(p, 0.1))
    assert all(np.array_equal(update.groups[MODEL][name], tensor.numpy()) for name, tensor in want.state_dict().items())


def test_max_steps_stops_early_and_spans_epochs() -> None:
    for limit, weight in ((2, 8), (5, 4 + 4 + 4 + 1 + 4)):  # 13 rows in batches of 4, 4, 4, 1
        update = train(TrainingSettings(batch_size=4, epochs=5, max_steps=limit))
        assert update.metrics["loss"].weight == weight and update.num_examples == 13


@pytest.mark.parametrize("changes", [{"momentum": 0.9}, {"optimizer": "adamw"}], ids=str)
def test_nothing_is_carried_from_one_client_to_the_next(changes: dict[str, Any]) -> None:
    settings, module = TrainingSettings(batch_size=4, epochs=2, **changes), model(dropout=0.5)
    trainer = Trainer(module, settings, CPU)
    start = record_of(model())

    def loss(batch: Tensor) -> Tensor:
        return nn.functional.mse_loss(module(X.index_select(0, batch)), Y.index_select(0, batch))

    def client(number: int) -> bytes:
        arrays = trainer.train(
            {MODEL: start}, LocalTraining(rows=ROWS[number:], loss_of=loss), generator(1, "train", number)
        ).groups[MODEL]
        return b"".join(array.tobytes() for array in arrays.values())

    def broken(batch: Tensor) -> Tensor:
        loss(batch).backward()  # leaves gradients behind, then fails
        raise RuntimeError("half way")

    alone = client(5)
    torch.rand(7)
    client(3)
    with pytest.raises(RuntimeError, match="half way"):
        trainer.train({MODEL: start}, LocalTraining(rows=ROWS, loss_of=broken), generator(1, "train", 4))
    assert client(5) == alone


def test_dropout_follows_the_jobs_randomness_and_leaves_torchs_alone() -> None:
    settings = TrainingSettings(batch_size=4)
    before = torch.get_rng_state()
    first, same, other = (train(settings, module=model(0.5), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    bits = [update.groups[MODEL]["3.bias"].tobytes() for update in (first, same, other)]
    assert bits[0] == bits[1] != bits[2]


def test_one_thread_inside_and_the_callers_number_after() -> None:
    seen, threads = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with exact(CPU, seed=1):
            seen.append(torch.get_num_threads())
        with pytest.raises(KeyError), exact(CPU, seed=1):
            raise KeyError
        seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(threads)
    assert seen == [1, 2]


def test_the_update_is_the_models_own_memory() -> None:
    module = model()
    update = train(TrainingSettings(), module=module)
    for name, tensor in module.state_dict().items():
        assert update.groups[MODEL][name].ctypes.data == tensor.data_ptr()


class Recording(LocalRule):
    """Adds 1 to every gradient; remembers what it was shown, and signs the update."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool, bool, Any]] = []

    def adjust_gradients(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], anchor: Sequence[Tensor], knobs: Any
    ) -> None:
        shapes = [tuple(g.shape) for g in gradients] == [tuple(p.shape) for p in parameters]
        at_start = all(torch.equal(p, a) for p, a in zip(parameters, anchor, strict=True))
        self.seen.append((len(gradients), shapes, at_start, dict(knobs)))
        for gradient in gradients:
            gradient.add_(1.0)

    def outgoing(self, update: Update, knobs: Any) -> Update:
        raise AssertionError("what leaves the client is the platform's to ask, not the trainer's")


def test_a_rule_sees_parameters_and_anchor_and_its_change_counts() -> None:
    rule, settings = Recording(), TrainingSettings(learning_rate=0.5, batch_size=13, max_steps=2, epochs=2)
    train(settings, rule=rule)
    plain = train(TrainingSettings(learning_rate=0.5, batch_size=13))
    assert rule.seen == [(4, True, True, {}), (4, True, False, {})]
    once = train(TrainingSettings(learning_rate=0.5, batch_size=13), rule=Recording())
    for name, array in plain.groups[MODEL].items():  # one step: w - 0.5 (g + 1) = (w - 0.5 g) - 0.5
        np.testing.assert_allclose(once.groups[MODEL][name], array - 0.5, atol=1e-6)


def test_a_parameter_the_loss_never_touches_stays_where_it_is() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 1), nn.Linear(2, 2)

    module = Idle()
    start = record_of(module)
    local = LocalTraining(rows=ROWS, loss_of=lambda batch: module.used(X[batch]).square().mean())
    update = Trainer(module, TrainingSettings(momentum=0.9), CPU).train({MODEL: start}, local, generator(1, "t"))
    same = {name: np.array_equal(update.groups[MODEL][name], start.groups[MODEL][name]) for name in start.groups[MODEL]}
    assert same == {"used.weight": False, "used.bias": False, "unused.weight": True, "unused.bias": True}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda arrays: arrays.pop("0.bias"),
            r"'0.bias': it is nothing, the workload has float32 of shape \(5,\)",
        ),
        (lambda arrays: arrays.update({"0.bias": np.zeros(4, np.float32)}), r"float32 of shape \(4,\)"),
        (lambda arrays: arrays.update({"0.bias": np.zeros(5)}), r"float64 of shape \(5,\)"),
        (lambda arrays: arrays.update(extra=np.zeros(5)), r"'extra'"),
    ],
)
def test_a_model_that_does_not_fit_is_named(spoil: Any, words: str) -> None:
    arrays = dict(record_of(model()).groups[MODEL])
    spoil(arrays)
    with pytest.raises(BadUpdate, match=words):
        Trainer(model(), TrainingSettings(), CPU).load({MODEL: Record({MODEL: arrays})})


def test_weights_that_blow_up_are_not_hidden() -> None:
    update = train(TrainingSettings(learning_rate=1e30, epochs=4))
    assert not all(np.isfinite(array).all() for array in update.groups[MODEL].values())


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="nesterov"):
        TrainingSettings(nesterov=True)
    with pytest.raises(ConfigError, match="beta1"):
        TrainingSettings(optimizer="adamw", momentum=0.9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="no GPU"):
        choose_device("cuda")


def test_a_strategy_may_multiply_the_step_size() -> None:
    start, settings = record_of(model()).groups[MODEL], TrainingSettings(learning_rate=0.1, max_steps=1)
    once, thrice = (train(settings, knobs=knobs).groups[MODEL] for knobs in ({}, {"rate_factor": 3.0}))
    for name, array in once.items():
        assert np.allclose(thrice[name] - start[name], 3 * (array - start[name]), atol=1e-6)
        assert np.abs(array - start[name]).max() > 1e-4
