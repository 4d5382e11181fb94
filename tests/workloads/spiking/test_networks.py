"""Networks, normalisation, losses and the estimate of energy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedloom.core.errors import ConfigError
from fedloom.workloads._spiking.energy import energy_sum, rate_sums, spike_sum
from fedloom.workloads._spiking.layers import BatchNormThroughTime, Trace
from fedloom.workloads._spiking.losses import Loss, masked_means
from fedloom.workloads._spiking.networks import Network, Plan, build_network
from fedloom.workloads._spiking.settings import ModelSettings, NeuronSettings


def network(steps: int = 3, *, twin: bool = False, shape: tuple[int, int, int] = (1, 8, 8), **model: Any) -> Network:
    torch.manual_seed(1)
    return build_network(Plan(ModelSettings(**model), NeuronSettings(), steps, shape, 10, twin))


@pytest.mark.parametrize("norm", ["none", "group", "batch_through_time"])
@pytest.mark.parametrize("name", ["mlp", "conv", "vgg9", "resnet8"])
def test_every_network_learns_from_constant_and_changing_input(name: str, norm: str) -> None:
    net = network(name=name, norm=norm)
    for steps in (1, 3):
        trace = Trace()
        spikes = net(torch.rand(steps, 2, 1, 8, 8) * 2, trace)
        assert spikes.shape == (3, 2, 10)
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}
        spikes.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert list(trace.spikes)[-1] == "output"
    assert len(trace.spikes) == len(trace.inputs) == {"mlp": 2, "conv": 4, "vgg9": 9, "resnet8": 8}[name]


@pytest.mark.parametrize("name", ["mlp", "conv", "vgg9", "resnet8"])
def test_the_twin_has_the_same_arrays_and_gives_logits(name: str) -> None:
    spiking, twin = network(name=name), network(name=name, twin=True)
    shapes = [{n: tuple(t.shape) for n, t in net.state_dict().items()} for net in (spiking, twin)]
    assert shapes[0] == shapes[1]
    trace = Trace()
    logits = twin(torch.rand(1, 2, 1, 8, 8), trace)
    assert logits.shape == (1, 2, 10)
    assert not trace.spikes
    assert float(logits.detach().min()) < 0.0


def test_the_twin_of_an_mlp_is_the_plain_formula() -> None:
    net = network(name="mlp", hidden=(5,), twin=True)
    first, second = (getattr(net, name).synapses for name in ("hidden1", "output"))
    x = torch.rand(1, 3, 1, 8, 8)
    want = F.relu(x.flatten(2)[0] @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(net(x)[0], want)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"halves the image 3 times and needs sides of at least 8 pixels.* 7 x 8"):
        network(name="vgg9", shape=(1, 7, 8))


def test_batch_normalisation_through_time_keeps_steps_apart() -> None:
    """Each step is normalised by its own batch; running statistics move by 0.1; a factor per step, no offset."""
    norm = BatchNormThroughTime(2, 3)
    x = torch.randn(3, 5, 2, 4, 4) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1) + 1
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    got = norm(x).detach()
    mean, var = x.mean((1, 3, 4), keepdim=True), x.var((1, 3, 4), unbiased=False, keepdim=True)
    scale = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1)
    torch.testing.assert_close(got, (x - mean) / (var + 1e-5).sqrt() * scale)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean.view(3, 2))
    assert sorted(norm.state_dict()) == ["running_mean", "running_var", "weight"]
    norm.eval()
    constant = norm(x[:1])
    assert constant.shape == x.shape
    want = (x[0] - norm.running_mean[1].view(2, 1, 1)) / (norm.running_var[1].view(2, 1, 1) + 1e-5).sqrt() * 2.0
    torch.testing.assert_close(constant[1], want)


def test_losses_by_their_formulas() -> None:
    spikes = torch.tensor(np.random.default_rng(2).integers(0, 2, (4, 3, 5)), dtype=torch.float64)
    labels = torch.tensor([0, 4, 2])

    def softmax_loss(scores: np.ndarray) -> np.ndarray:
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        losses: np.ndarray = -np.log(shares[..., np.arange(3), labels.numpy()])
        return losses

    s = spikes.numpy()
    want = {
        "count": softmax_loss(s.sum(0)),
        "rate": softmax_loss(s.mean(0)),
        "step": np.mean([softmax_loss(step) for step in s], axis=0),
        "mse_count": ((s.sum(0) - 4 * np.where(np.eye(5)[labels] == 1, 0.75, 0.25)) ** 2).mean(1) / 4,
    }
    for name, value in want.items():
        loss = Loss(name, 0.75, 0.25)  # type: ignore[arg-type]
        np.testing.assert_allclose(loss(spikes, labels).numpy(), value, rtol=1e-12)


@pytest.mark.parametrize(("name", "factor"), [("count", 1.0), ("rate", 4.0), ("step", 4.0), ("mse_count", 5 / 2)])
def test_errors_are_the_losses_negative_gradient(name: str, factor: float) -> None:
    """Mean over steps of -dL/ds, times what the loss divides its outputs by: T for rates, C / 2 for squares."""
    spikes = torch.tensor(np.random.default_rng(3).integers(0, 2, (4, 3, 5)), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 4, 2])
    loss = Loss(name, 0.75, 0.25)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss(spikes, labels).sum(), spikes)
    errors = loss.errors(spikes.detach(), labels)
    np.testing.assert_allclose(errors.numpy(), -gradient.mean(0).numpy() * factor, rtol=1e-12)
    assert float(errors.abs().max()) <= 1.0


def test_padding_does_not_enter_a_mean() -> None:
    losses = torch.tensor([[1.0, 2.0, 100.0], [4.0, 5.0, 6.0]])
    assert masked_means(losses, torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])).tolist() == [1.5, 5.0]


def test_rates_spikes_and_energy_by_hand() -> None:
    """An MLP 4-3-10 whose five hidden spikes each reach ten neurons; currents reach the three by 12 products."""
    net = network(2, name="mlp", hidden=(3,), shape=(1, 2, 2))
    with torch.no_grad():
        net.get_parameter("hidden1.synapses.weight").zero_()
        net.get_parameter("hidden1.synapses.bias").copy_(
            torch.tensor([2.5, 0.75, 0.0])
        )  # spikes in both steps, in the second, never
        net.get_parameter("output.synapses.weight").zero_()
        net.get_parameter("output.synapses.bias").zero_()
    trace = Trace()
    net(torch.ones(1, 5, 1, 2, 2), trace)
    assert {name: round(float(rate), 12) for name, rate in rate_sums(trace).items()} == {"hidden1": 2.5, "output": 0.0}
    assert float(rate_sums(trace, 2)["hidden1"]) == 1.0  # the first two examples only
    assert float(spike_sum(trace)) == 5 * 3
    spikes_pj, currents_pj = 5 * 3 * 10 * 0.9, 5 * 12 * 4.6
    np.testing.assert_allclose(float(energy_sum(trace, spiking_input=False)), currents_pj + spikes_pj)
    trace = Trace()
    net(torch.ones(2, 5, 1, 2, 2), trace)  # the same input as spikes: 5 x 2 x 4 of them, each reaching three neurons
    np.testing.assert_allclose(float(energy_sum(trace, spiking_input=True)), 5 * 8 * 3 * 0.9 + spikes_pj)


def test_energy_of_a_twin_and_of_a_convolution() -> None:
    trace = Trace()
    network(name="mlp", hidden=(3,), shape=(1, 2, 2), twin=True)(torch.ones(1, 5, 1, 2, 2), trace)
    np.testing.assert_allclose(float(energy_sum(trace, spiking_input=False)), 5 * (4 * 3 + 3 * 10) * 4.6)
    trace = Trace()
    network(name="conv")(torch.ones(1, 1, 1, 8, 8), trace)
    assert trace.products["conv2"] == 128 * 8 * 8 * 64 * 9
