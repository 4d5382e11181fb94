"""Exact likelihoods: all images sum to one, nothing is seen before its turn, determinants are exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neural_network import BernoulliRBM
from support_generative import batch, every_image, generator, member, stirred
from torch import Tensor

from fedloom.core.errors import ConfigError, UnsupportedFeature
from fedloom.workloads.generative.baselines import Gaussian, Histogram
from fedloom.workloads.generative.continuous import integrated_with_trace
from fedloom.workloads.generative.flow import (
    Composite,
    Coupling,
    GlowStep,
    MaskedAffine,
    Squeeze,
    Transform,
    glow,
    logits_of,
    normal_log_prob,
)
from fedloom.workloads.generative.member import Form
from fedloom.workloads.generative.nets import TimeNet
from fedloom.workloads.generative.noise import DrawnNoise, RowNoise
from fedloom.workloads.generative.rbm import Rbm, annealed_log_partition

BITS = Form(height=2, width=5, levels=2)
"""Ten pixels of two levels: 1024 images."""
TERNARY = Form(height=2, width=3, levels=3)
IMAGES = Form(height=4, width=4, levels=5)


def noise(count: int) -> DrawnNoise:
    return DrawnNoise(count, generator())


@pytest.mark.parametrize("form", [BITS, TERNARY], ids=["bits", "ternary"])
@pytest.mark.parametrize("name", ["made", "pixelcnn", "transformer", "rbm"])
def test_the_probabilities_of_all_images_sum_to_one(name: str, form: Form) -> None:
    made, images = stirred(member(name, form)).double().eval(), every_image(form)
    with torch.no_grad():
        logs = made.log_prob(images, noise(len(images)))
    assert float(logs.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(logs.max() - logs.min()) > 0.5  # not the uniform distribution, of which that is true whatever it sees


@pytest.mark.parametrize("name", ["made", "pixelcnn", "transformer"])
def test_a_pixel_depends_on_all_earlier_pixels_and_on_no_other(name: str) -> None:
    wide = {"hidden": [64, 64], "channels": 8, "blocks": 2, "width": 8, "layers": 1, "heads": 2}
    made, x = stirred(member(name, IMAGES, autoregressive=wide)).eval(), batch(IMAGES, 1).x
    with torch.no_grad():
        logits, seen = made.logits(x)[0], np.zeros((16, 16), bool)
        for place in range(16):
            other = x.clone()
            other.view(-1)[place] = (other.view(-1)[place] + 1) % IMAGES.levels
            seen[:, place] = (made.logits(other)[0] != logits).any(1).numpy()
    assert not np.triu(seen).any(), "a pixel sees itself or a later one"
    if name != "pixelcnn":  # whose window leaves a blind spot
        assert (seen == np.tri(16, k=-1, dtype=bool)).all()


@pytest.mark.parametrize("name", ["made", "rbm"])
def test_samples_have_the_frequencies_that_the_likelihood_says(name: str) -> None:
    form = Form(height=1, width=3, levels=2)
    made = stirred(member(name, form, energy={"gibbs_sampling_steps": 60, "hidden": 3}), size=1.0).eval()
    with torch.no_grad():
        samples, images = made.sample(8000, generator()), every_image(form)
        expected = made.log_prob(images, noise(8)).exp().numpy()
    found = np.bincount((samples.flatten(1) @ torch.tensor([4, 2, 1])).numpy(), minlength=8) / 8000
    assert np.abs(found - expected).max() < 4 * 0.5 / math.sqrt(8000)


def transforms() -> dict[str, Transform]:
    torch.manual_seed(2)
    return {
        "coupling": Coupling(torch.tensor([1, 0, 0, 1, 1, 0, 0, 1]), [12]),
        "masked": MaskedAffine(8, [24], reverse=False),
        "masked reverse": MaskedAffine(8, [24], reverse=True),
        "glow step": GlowStep(4, 1, 2, 6),
        "squeeze": Squeeze(1, 2, 4),
        "stack": Composite([Squeeze(1, 2, 4), GlowStep(4, 1, 2, 6), MaskedAffine(8, [24], reverse=True)]),
    }


@pytest.mark.parametrize("name", transforms())
def test_a_transform_is_inverted_and_its_determinant_is_autograds(name: str) -> None:
    made = stirred(transforms()[name], size=0.3)  # type: ignore[arg-type]
    x = torch.randn(6, 8, generator=generator())
    with torch.no_grad():
        assert float((made.inverse(made(x)[0]) - x).abs().max()) < 1e-4
    made, x = made.double(), x.double()
    with torch.no_grad():
        z, log_det = made(x)
        assert float((made.inverse(z) - x).abs().max()) < 1e-9
    for row, expected in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: made(v[None])[0][0], row)
        assert float(torch.linalg.slogdet(jacobian)[1] - expected) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("kind", ["couplings", "masked"])
def test_the_density_of_a_flow_in_the_plane_integrates_to_one(kind: str) -> None:
    torch.manual_seed(4)
    if kind == "couplings":
        parts: list[Transform] = [Coupling(torch.tensor([p % 2, 1 - p % 2]), [16]) for p in range(4)]
    else:
        parts = [MaskedAffine(2, [16], reverse=p % 2 == 1) for p in range(3)]
    flow = stirred(Composite(parts), size=0.15).double()  # type: ignore[arg-type]
    side = torch.linspace(-15, 15, 300, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        z, log_det = flow(grid)
        density = (normal_log_prob(z) + log_det).exp()
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1.0, abs=0.01)
    assert float((density - normal_log_prob(grid).exp()).abs().max()) > 0.01


def test_a_continuous_flows_density_integrates_to_one() -> None:
    torch.manual_seed(4)
    net = stirred(TimeNet(2, 12, 1), size=0.3).double()  # type: ignore[arg-type]
    side = torch.linspace(-9, 9, 60, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    z, trace = integrated_with_trace(net, grid, 1.0, 0.0, 12, None)
    density = (normal_log_prob(z) + trace).exp()
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1.0, abs=0.01)
    signs = (torch.rand(400, 2, generator=generator()) - 0.5).sign().double()
    _, guessed = integrated_with_trace(net, grid[1800:1801].expand(400, 2), 1.0, 0.0, 12, signs)
    error = float(guessed.std()) / 20
    assert float(guessed.mean() - trace[1800]) == pytest.approx(0.0, abs=4 * error + 1e-9)


def test_the_logit_transform_has_the_determinant_of_autograd() -> None:
    y = torch.rand(3, 4, generator=generator(), dtype=torch.float64)
    _, log_det = logits_of(y)
    for row, expected in zip(y, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: logits_of(v[None])[0][0], row)
        assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(expected), abs=1e-9)


def test_masked_layers_have_the_density_of_zukos() -> None:
    """Zuko's MAF with the same affine parameters: y = exp(a) x + m there is the other direction's scale here."""
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    theirs = zuko.flows.MAF(features=3, transforms=1, hidden_features=(16,))
    x = torch.randn(20, 3, generator=generator())
    with torch.no_grad():
        transform = theirs().transform
        z = transform(x)
        log_det = transform.log_abs_det_jacobian(x, z)
        assert torch.allclose(theirs().log_prob(x), normal_log_prob(z) + log_det, atol=1e-5)

        class Borrowed(MaskedAffine):
            def _of(self, x: Tensor) -> tuple[Tensor, Tensor]:
                slope = torch.stack([transform(x + step) - transform(x) for step in torch.eye(3)], 2)
                scale = slope.diagonal(dim1=1, dim2=2)
                shift = transform(x) - scale * x
                return -shift / scale, -scale.log()

        mine, total = Borrowed(3, [4], reverse=False)(x)
        assert torch.allclose(mine, z, atol=1e-4) and torch.allclose(total, log_det, atol=1e-4)


def test_a_binary_rbm_is_scikit_learns() -> None:
    form = Form(height=1, width=6, levels=2)
    made = stirred(member("rbm", form, energy={"hidden": 3})).double()
    other = BernoulliRBM(n_components=3)
    other.components_ = (made.weight[:, 1] - made.weight[:, 0]).detach().numpy().T
    other.intercept_hidden_ = (made.hidden + made.weight[:, 0].sum(0)).detach().numpy()
    other.intercept_visible_ = (made.visible[:, 1] - made.visible[:, 0]).detach().numpy()
    images = every_image(form)
    constant = float(made.visible[:, 0].detach().sum())
    with torch.no_grad():
        mine = made.free_energy(images).numpy() + constant
        assert np.allclose(mine, other._free_energy(images.flatten(1).double().numpy()), atol=1e-10)
        hidden = made.hidden_logits(images).sigmoid().numpy()
    assert np.allclose(hidden, other.transform(images.flatten(1).double().numpy()), atol=1e-10)


def test_the_rbms_partition_function_is_that_of_ais_and_of_enumerated_images() -> None:
    form = Form(height=2, width=3, levels=3)
    made: Rbm = stirred(member("rbm", form, energy={"hidden": 5}), size=0.7)
    images = every_image(form)
    with torch.no_grad():
        exact = float(made.log_partition())
        assert float((-made.free_energy(images)).logsumexp(0)) == pytest.approx(exact, abs=1e-4)
    assert annealed_log_partition(made, 400, 200, generator()) == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("persistent", [True, False], ids=["PCD", "CD"])
def test_an_rbms_exact_likelihood_rises_in_training(persistent: bool) -> None:
    form = Form(height=2, width=3, levels=2)
    pattern = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1]])[torch.arange(64) % 2].reshape(-1, 1, 2, 3)
    made = member("rbm", form, energy={"hidden": 4, "chains": 64, "gibbs_steps": 2, "persistent": persistent})
    optimizer, given = torch.optim.SGD(made.parameters(), lr=1.0), batch(form, 64)
    likelihoods = []
    for step in range(61):
        if step % 20 == 0:
            with torch.no_grad():
                likelihoods.append(float(made.log_prob(pattern, given.noise).mean()))
        optimizer.zero_grad()
        made.loss(type(given)(pattern, given.y, given.noise, given.generator)).backward()
        optimizer.step()
    assert likelihoods == sorted(likelihoods) and likelihoods[-1] > likelihoods[0] + 1.0


def test_the_pooled_histogram_and_gaussian_are_means_of_the_clients() -> None:
    x = batch(IMAGES, 30).x
    for kind in (Histogram, Gaussian):
        whole, parts = kind(IMAGES), [kind(IMAGES) for _ in range(2)]
        whole.observe(x)
        parts[0].observe(x[:10])
        parts[1].observe(x[10:])
        for (name, pooled), one, two in zip(
            whole.state_dict().items(), *(p.state_dict().values() for p in parts), strict=True
        ):
            assert torch.allclose(pooled, (10 * one + 20 * two) / 30, atol=1e-7), name


def test_the_baselines_are_those_of_numpy() -> None:
    x, fresh = batch(IMAGES, 40).x, batch(IMAGES, 6, seed=9).x
    histogram, gaussian = Histogram(IMAGES), Gaussian(IMAGES)
    histogram.observe(x)
    gaussian.observe(x)
    counts = np.stack([np.bincount(column, minlength=5) / 40 for column in x.flatten(1).numpy().T]) + 1e-3
    logs = np.log(counts / counts.sum(1, keepdims=True))
    expected = [sum(logs[i, level] for i, level in enumerate(image)) for image in fresh.flatten(1).numpy()]
    assert np.allclose(histogram.log_prob(fresh, noise(6)).numpy(), expected, atol=1e-4)
    y = (x.flatten(1).numpy() + 0.5) / 5
    mean, cov = y.mean(0), np.cov(y.T, bias=True) + np.eye(16) / 300 + 1e-6 * np.eye(16)
    drawn = IMAGES.dequantised(fresh, noise(6)).numpy().astype(np.float64) - mean
    quadratic = np.einsum("bi,ij,bj->b", drawn, np.linalg.inv(cov), drawn)
    density = -0.5 * (quadratic + np.linalg.slogdet(cov)[1] + 16 * np.log(2 * np.pi)) - 16 * np.log(5)
    assert np.allclose(gaussian.log_prob(fresh, noise(6)).numpy(), density, rtol=1e-4)


def test_noise_of_rows_depends_on_the_row_alone_and_is_uniform() -> None:
    rows = torch.arange(4000)
    first, again = RowNoise(rows), RowNoise(rows[1000:1005])
    assert torch.equal(first.uniform(3)[1000:1005], again.uniform(3))
    assert torch.equal(first.normal(2)[1000:1005], again.normal(2))
    assert not torch.equal(RowNoise(rows, 1).uniform(3), RowNoise(rows).uniform(3))
    u = RowNoise(rows).uniform(20).double()
    assert float(u.min()) > 0.0 and float(u.max()) < 1.0
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 80000))
    assert np.abs(np.corrcoef(u.numpy().T) - np.eye(20)).max() < 5 / math.sqrt(4000)
    z = RowNoise(rows).normal(20)
    assert float(z.std()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("name", ["langevin", "jem", "gan", "wgan_gp", "hinge"])
def test_a_member_without_a_likelihood_says_so(name: str) -> None:
    form = Form(height=4, width=4, levels=5, classes=3)
    made = member(name, form)
    with pytest.raises(UnsupportedFeature, match="has no likelihood"):
        made.bits_per_dim(batch(form).x, noise(8))


@pytest.mark.parametrize(("name", "form"), [("glow", Form(4, 5, 3)), ("gan", Form(6, 8, 3)), ("hinge", Form(8, 6, 3))])
def test_a_net_that_cannot_take_the_size_says_which_it_can(name: str, form: Form) -> None:
    with pytest.raises(ConfigError, match=rf"{form.height} x {form.width}.*workload.size"):
        member(name, form)
    with pytest.raises(ConfigError, match=r"even sides, got 3 x 4"):
        glow(Form(3, 4, 5), 2, 4)
