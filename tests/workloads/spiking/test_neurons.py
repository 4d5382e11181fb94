"""Neurons step by step on hand-made currents, surrogates against their formulas, and the traps of snntorch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import snntorch
import snntorch.surrogate
import snntorch.utils
import torch

from fedloom.workloads._spiking.networks import Network, Plan, build_network
from fedloom.workloads._spiking.neurons import Dynamics, Neurons
from fedloom.workloads._spiking.settings import ModelSettings, NeuronSettings
from fedloom.workloads._spiking.stacked import Fire
from fedloom.workloads._spiking.surrogates import make_derivative, spike_function

KINDS: list[dict[str, Any]] = [
    {"kind": kind, "reset": reset, "reset_delay": delay, **extra}
    for kind, extra in (("if", {}), ("lif", {"beta": 0.75}))
    for reset in ("soft", "hard")
    for delay in (True, False)
]


def numpy_spikes(currents: np.ndarray, settings: NeuronSettings) -> np.ndarray:
    """The definition, one step after the other; (T, ...) to (T, ...)."""
    beta = 1.0 if settings.kind == "if" else settings.beta or 0.95
    u, fired, spikes = np.zeros_like(currents[0]), np.zeros_like(currents[0]), []
    for current in currents:
        if settings.reset == "hard":
            u = beta * u * (1 - fired) + current
        elif settings.reset_delay:
            u = beta * u + current - fired * settings.threshold
        else:
            u = beta * (u - fired * settings.threshold) + current
        fired = (u > settings.threshold).astype(u.dtype)
        spikes.append(fired)
    return np.array(spikes)


@pytest.mark.parametrize("values", KINDS)
def test_spikes_are_those_of_the_definition(values: dict[str, Any]) -> None:
    settings = NeuronSettings(**values)
    currents = np.random.default_rng(3).normal(0.5, 1.0, (12, 5, 7))
    want = numpy_spikes(currents, settings)
    got = Neurons(settings, 12).double()(torch.from_numpy(currents)).numpy()
    assert 0.1 < want.mean() < 0.9
    np.testing.assert_array_equal(got, want)
    given = torch.from_numpy(currents).transpose(0, 1).unsqueeze(2)
    stacked = Fire.apply(given, 12, Dynamics.of(settings))  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(stacked.squeeze(2).transpose(0, 1).numpy(), want)


def test_a_membrane_that_just_reaches_the_threshold_is_silent() -> None:
    neurons = Neurons(NeuronSettings(), 4)
    spikes = neurons(torch.tensor([[[0.5, 0.75]]]))  # U: 0.5 1.0 1.5* 1.0 and 0.75 1.5* 1.25* 1.0
    assert spikes[:, 0].T.tolist() == [[0, 0, 1, 0], [0, 1, 1, 0]]


def test_the_delay_matters_to_leaky_neurons_with_soft_reset_only() -> None:
    drive = torch.full((1, 1, 1), 0.8)
    trains = {}
    for values in KINDS:
        key = (values["kind"], values["reset"], values["reset_delay"])
        trains[key] = Neurons(NeuronSettings(**values), 12)(drive).flatten().tolist()
    assert trains["if", "soft", True] == trains["if", "soft", False]
    assert trains["if", "hard", True] == trains["if", "hard", False]
    assert trains["lif", "hard", True] == trains["lif", "hard", False]
    # beta 0.75: delayed U 0.8 1.4* 0.85 1.4375* 0.878…; at once 0.8 1.4* 1.1* 0.875 …
    assert trains["lif", "soft", True][:4] == [0, 1, 0, 1]
    assert trains["lif", "soft", False][:4] == [0, 1, 1, 0]


def test_no_spike_is_lost_when_much_is_left_after_a_reset_at_once() -> None:
    neurons = Neurons(NeuronSettings(reset_delay=False), 3)
    currents = torch.tensor([2.5, 0.0, 0.0]).view(3, 1, 1)  # U: 2.5* 1.5* 0.5
    assert neurons(currents).flatten().tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "constant", "formula"),
    [
        ("atan", None, lambda u: 1 / (1 + (np.pi * u) ** 2)),
        ("atan", 5.0, lambda u: 2.5 / (1 + (np.pi * 2.5 * u) ** 2)),
        ("fast_sigmoid", None, lambda u: 1 / (1 + 25 * np.abs(u)) ** 2),
        ("triangular", None, lambda u: 0.3 * np.maximum(0, 1 - np.abs(u))),
        ("straight_through", None, np.ones_like),
    ],
)
def test_surrogates(name: Any, constant: float | None, formula: Any) -> None:
    u = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    derivative = make_derivative(NeuronSettings(surrogate=name, surrogate_constant=constant))
    spikes = spike_function(derivative)(u)
    assert spikes.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    weights = torch.arange(1.0, 10.0, dtype=torch.float64)
    (spikes * weights).sum().backward()
    assert u.grad is not None
    np.testing.assert_allclose(u.grad.numpy(), formula(u.detach().numpy()) * weights.numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", ["atan", "fast_sigmoid"])
def test_surrogates_that_snntorch_has_too(name: Any) -> None:
    ours, theirs = (torch.linspace(-2, 2, 11, requires_grad=True) for _ in range(2))
    spike_function(make_derivative(NeuronSettings(surrogate=name)))(ours).sum().backward()
    getattr(snntorch.surrogate, name)()(theirs).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("constant_drive", [True, False])
@pytest.mark.parametrize("values", KINDS)
def test_gradients_through_time_are_the_cells(values: dict[str, Any], constant_drive: bool) -> None:
    settings = NeuronSettings(**values, surrogate="triangular", surrogate_constant=1.0)
    shape = (1 if constant_drive else 6, 3, 4)
    currents = torch.from_numpy(np.random.default_rng(5).normal(0.6, 0.6, shape))
    weights = torch.from_numpy(np.random.default_rng(6).normal(size=(6, 3, 4)))
    loop, fused = (currents.clone().requires_grad_() for _ in range(2))
    (Neurons(settings, 6).double()(loop) * weights).sum().backward()
    given = fused.transpose(0, 1).unsqueeze(2)
    spikes = Fire.apply(given, 6, Dynamics.of(settings))  # type: ignore[no-untyped-call]
    (spikes.squeeze(2).transpose(0, 1) * weights).sum().backward()
    assert loop.grad is not None and float(loop.grad.abs().sum()) > 0.0
    torch.testing.assert_close(loop.grad, fused.grad)


def test_gradient_of_two_steps_by_hand() -> None:
    """Soft reset, beta 0.5, straight-through: dL/dI1 = w1 + 0.5 w2 and dL/dI2 = w2; resets carry no gradient."""
    settings = NeuronSettings(kind="lif", beta=0.5, surrogate="straight_through")
    currents = torch.tensor([1.5, 0.2]).view(2, 1, 1).requires_grad_()
    (Neurons(settings, 2)(currents).flatten() * torch.tensor([2.0, 3.0])).sum().backward()
    assert currents.grad is not None
    assert currents.grad.flatten().tolist() == [2.0 + 0.5 * 3.0, 3.0]


def network(**neuron: Any) -> Network:
    plan = Plan(ModelSettings(name="resnet8"), NeuronSettings(**neuron), time_steps=3, shape=(1, 8, 8), num_labels=10)
    torch.manual_seed(1)
    return build_network(plan)


def test_trap_nested_neurons_start_anew_with_every_batch() -> None:
    """`snntorch.utils.reset` does not find neurons inside sub-modules, as the ResNet's are."""
    net = network().eval()
    images = torch.rand(1, 4, 1, 8, 8) * 3
    first = net(images)
    net(images * 5)  # would leave membranes behind
    assert torch.equal(net(images), first)
    assert float(first.detach().sum()) > 0
    cells = [module for module in net.modules() if isinstance(module, snntorch.Leaky)]
    assert len(cells) == 8
    assert all(cell.mem.numel() == 0 and cell.mem.grad_fn is None for cell in cells)


def test_trap_the_registry_of_neurons_stays_as_it_was() -> None:
    other = snntorch.Leaky(beta=0.5, init_hidden=True)
    before = list(snntorch.SpikingNeuron.instances)
    network()
    after = snntorch.SpikingNeuron.instances
    assert len(after) == len(before)
    assert all(left is right for left, right in zip(before, after, strict=True))
    assert any(neuron is other for neuron in after)
    snntorch.SpikingNeuron.instances[:] = [neuron for neuron in after if neuron is not other]


def test_trap_a_deep_copy_behaves_like_a_new_network() -> None:
    net = network().eval()
    images = torch.rand(1, 4, 1, 8, 8) * 3
    net(images * 2)
    twin = copy.deepcopy(net)
    snntorch.utils.reset(net)
    assert torch.equal(twin(images), net(images))


def test_trap_constants_are_neither_saved_nor_counted() -> None:
    assert not Neurons(NeuronSettings(kind="lif"), 3).state_dict()
    assert not list(Neurons(NeuronSettings(kind="lif"), 3).parameters())
    names = network().state_dict().keys()
    assert all(name.endswith((".weight", ".bias")) for name in names)
    assert set(snntorch.Leaky(beta=0.5).state_dict()) == {  # what would travel otherwise
        "threshold", "graded_spikes_factor", "reset_mechanism_val", "beta",
    }  # fmt: skip


def test_constants_move_with_the_module() -> None:
    cell = Neurons(NeuronSettings(kind="lif"), 2).double().cell
    assert {name: buffer.dtype for name, buffer in cell.named_buffers()}["beta"] == torch.float64
