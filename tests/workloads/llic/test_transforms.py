"""Blocks and transforms against slow loops, published counts of parameters, receptive fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support_llic import BLOCKS, KINDS, config, net, picture
from torch import nn

from fedloom.core.errors import ConfigError
from fedloom.workloads.llic.bitstream import ImageCodec, as_images
from fedloom.workloads.llic.blocks import ChannelTransform, KernelGenerator, SpatialTransform, grouped
from fedloom.workloads.llic.config import Config
from fedloom.workloads.llic.fields import adaptivity, area_shares, receptive_field
from fedloom.workloads.llic.net import Codec
from fedloom.workloads.llic.normalisation import GDN, lower_bound
from fedloom.workloads.llic.pixels import Pixels
from fedloom.workloads.llic.swin import SwinBlock


def test_kernels_of_each_image_and_channel_are_a_slow_loop() -> None:
    torch.manual_seed(1)
    u, kernels = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 5, 5)
    found, filled = grouped(u, kernels), F.pad(u, (2, 2, 2, 2))
    for b, c, y, x in np.ndindex(2, 3, 6, 5):
        slow = float((filled[b, c, y : y + 5, x : x + 5] * kernels[b, c]).sum())
        assert float(found[b, c, y, x]) == pytest.approx(slow, abs=1e-5)


def _bias(layer: nn.Conv2d) -> torch.Tensor:
    found = dict(layer.named_parameters())["bias"]
    return found.detach()


@pytest.mark.parametrize("kind", ["pooled", "grid", "delta", "static"])
def test_kernels_follow_from_pooled_features(kind: Any) -> None:
    torch.manual_seed(2)
    made, u = KernelGenerator(8, 3, kind), torch.randn(2, 8, 7, 9)
    kernels = made(u)
    assert kernels.shape == (2, 8, 3, 3)
    if kind == "static":
        assert torch.equal(kernels[0], kernels[1])
        return
    assert not torch.equal(kernels[0], kernels[1]), "kernels of two images are alike"
    w1, w2 = made.squeeze.weight[:, :, 0, 0], made.expand.weight[:, :, 0, 0]
    pooled = u[0].mean((1, 2))[:, None] if kind == "pooled" else F.adaptive_avg_pool2d(u[:1], 3)[0].flatten(1)
    by_hand = w2 @ F.gelu(w1 @ pooled + _bias(made.squeeze)[:, None]) + _bias(made.expand)[:, None]
    expected = by_hand.reshape(8, 3, 3) + (made.base if kind == "delta" else 0.0)
    assert torch.allclose(kernels[0], expected, atol=1e-6)


def test_channel_factors_are_a_sigmoid_of_pooled_features() -> None:
    torch.manual_seed(3)
    made, u = ChannelTransform(6), torch.randn(1, 6, 4, 4)
    hidden = F.gelu(made.squeeze.weight[:, :, 0, 0] @ u[0].mean((1, 2)) + _bias(made.squeeze))
    factors = torch.sigmoid(made.expand.weight[:, :, 0, 0] @ hidden + _bias(made.expand))
    assert torch.allclose(made(u)[0], u[0] * factors[:, None, None], atol=1e-6)


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_is_its_formula(inverse: bool) -> None:
    torch.manual_seed(4)
    made, x = GDN(3, inverse=inverse), torch.randn(1, 3, 2, 2)
    with torch.no_grad():
        made.gamma.add_(0.1 * torch.rand(3, 3))
    gamma, beta = made.gamma.detach() ** 2 - 2.0**-36, made.beta.detach() ** 2 - 2.0**-36
    gamma = torch.clamp(gamma, min=0.0)
    for y, z in np.ndindex(2, 2):
        v = x[0, :, y, z]
        norm = torch.sqrt(beta + gamma @ v**2)
        assert torch.allclose(made(x)[0, :, y, z], v * norm if inverse else v / norm, atol=1e-5)


def test_a_gradient_passes_a_lower_bound_only_where_it_raises() -> None:
    x = torch.tensor([-1.0, -1.0, 2.0], requires_grad=True)
    found = lower_bound(x, 0.0)
    found.backward(torch.tensor([1.0, -1.0, 1.0]))
    assert found.tolist() == [0.0, 0.0, 2.0] and x.grad is not None and x.grad.tolist() == [0.0, -1.0, 1.0]


def _millions(module: nn.Module) -> float:
    """Parameters without those of GDN."""
    norms = sum(p.numel() for each in module.modules() if isinstance(each, GDN) for p in each.parameters())
    return (sum(p.numel() for p in module.parameters()) - norms) / 1e6


@pytest.mark.parametrize(
    ("generator", "analysis", "synthesis"), [("pooled", 12.7, 15.3), ("grid", 6.1, 8.7), ("static", 6.0, 8.6)]
)
def test_the_papers_widths_have_the_counted_parameters(generator: str, analysis: float, synthesis: float) -> None:
    made = Codec(Config.model_validate({"transform": {"generator": generator}}))
    assert _millions(made.analysis) == pytest.approx(analysis, abs=0.06)
    assert _millions(made.synthesis) == pytest.approx(synthesis, abs=0.06)
    assert _millions(made.entropy) == pytest.approx(27, abs=0.5)


def test_a_small_one_has_the_counted_parameters() -> None:
    made = Codec(Config.model_validate({"transform": {"generator": "grid"}, "channels": [64, 64, 64], "latent": 96}))
    assert _millions(made.analysis) == pytest.approx(0.65, abs=0.006)
    assert _millions(made.synthesis) == pytest.approx(0.92, abs=0.006)


def test_elic_has_the_parameters_of_its_layers() -> None:
    made = Codec(Config.model_validate({"transform": {"kind": "elic"}}))

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + outputs

    def unit(c: int) -> int:
        return conv(c, c // 2, 1) + conv(c // 2, c // 2, 3) + conv(c // 2, c, 1)

    steps = conv(3, 192, 5) + 2 * conv(192, 192, 5) + conv(192, 320, 5)
    attention = sum(6 * unit(c) + conv(c, c, 1) for c in (192, 320))
    assert sum(p.numel() for p in made.analysis.parameters()) == steps + 9 * unit(192) + attention


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {
            "transform": {"kind": "stf", "window": 4},
            "latent": 384,
            "entropy": {"kind": "stf", "slices": 12, "support": 6, "context": [224, 176, 128, 64]},
        },
        {"transform": {"kind": "tcm"}, "channels": [256, 256, 256], "entropy": {"kind": "tcm"}},
        {"entropy": {"kind": "stf", "context": [224, 176, 128, 64]}},
        {"entropy": {"kind": "tcm"}},
    ],
    ids=["stf", "tcm", "llic-stf", "llic-tcm"],
)
def test_every_codec_of_the_papers_size_decodes_what_it_encodes(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    made = ImageCodec(Codec(Config.model_validate(settings)))
    container = made.encode(Pixels(picture(64, 64)))
    assert made.decode(container).rgb.shape == (64, 64, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_codec_has_a_stride_of_16_and_decodes_from_the_latent_alone(kind: str) -> None:
    made, x = net(kind), as_images(picture(64, 128))
    with torch.inference_mode():
        y = made.analysis(x)
        assert y.shape == (1, made.config.latent, 4, 8)
        assert made.synthesis(y).shape == x.shape
        assert made.entropy.analysis(y).shape == (1, 6, 1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str) -> None:
    made = net(kind).train()
    loss, rate, distortion = made(as_images(picture(64, 64)).repeat(2, 1, 1, 1))
    (loss + made.entropy.prior.quantile_loss()).backward()
    parts = float(rate.detach()) + made.config.trade_off * float(distortion.detach())
    assert float(loss.detach()) == pytest.approx(parts, rel=1e-5)
    without = [name for name, p in made.named_parameters() if p.grad is None]
    assert not without
    bad = [name for name, p in made.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert not bad


def test_bfloat16_changes_the_transforms_alone() -> None:
    made, x = net().train(), as_images(picture(64, 64))
    torch.manual_seed(1)
    _, rate, distortion = (float(each.detach()) for each in made(x))
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, coarse, other = made(x)
    assert loss.dtype == torch.float32
    assert float(coarse.detach()) == pytest.approx(rate, rel=0.05)
    assert float(other.detach()) == pytest.approx(distortion, rel=0.05)


def test_large_kernels_alone_see_as_far_as_the_formula_says() -> None:
    """Two kernels K one after the other, the second after a step down by 2, see (K - 1) + 2 (K - 1) + 1 + 1 pixels."""
    torch.manual_seed(5)
    first, second = (SpatialTransform(1, k, "static") for k in (5, 3))
    down = nn.Conv2d(1, 1, 2, stride=2)
    x = torch.randn(1, 1, 32, 32, requires_grad=True)
    second(down(first(x)))[0, 0, 8, 8].backward()
    assert x.grad is not None
    seen = (x.grad[0, 0] != 0).any(0).nonzero().flatten()
    assert int(seen[-1] - seen[0]) + 1 == (5 - 1) + 2 * (3 - 1) + 2


def test_windows_attend_within_themselves_alone() -> None:
    torch.manual_seed(6)
    plain, shifted = (SwinBlock(4, 2, 4, shifted=each).eval() for each in (False, True))
    x = torch.randn(1, 4, 6, 10, requires_grad=True)
    plain(x)[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0) > 0
    assert bool(seen[:4, :4].all()) and not bool(seen[4:].any()) and not bool(seen[:, 4:].any())
    (again,) = torch.autograd.grad(shifted(x)[0, :, 2, 2].sum(), x)
    seen = again[0].abs().sum(0) > 0
    assert bool(seen[2:6, 2:6].all()) and int(seen.sum()) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transform": {"kernels": [4, 5, 3, 3]}}, "odd sizes"),
        ({"entropy": {"groups": [3, 4], "hyper": 6, "context": [6, 6]}}, "add up to workload.latent = 10"),
        ({"entropy": {"kind": "stf", "slices": 3, "context": [6, 6, 6, 6]}}, "3 slices do not divide"),
        ({"entropy": {"context": [6]}}, "expected 2 widths"),
        ({"transform": {"kind": "stf", "embedding": 4}}, "STF's transform makes .* = 32"),
        ({"transform": {"kind": "tcm", "heads": [3, 1, 1]}}, "heads of width 3 do not divide 2"),
        ({"training": {"optimizer": "sgd"}}, "expected 'adamw', got 'sgd'"),
        ({"loss": "ms_ssim"}, "at least 176 pixels, got 64 and 64"),
        ({"crop": {"size": 96, "last": 64}}, "multiples of 64"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_the_whole_image_is_in_the_field_through_generators_alone() -> None:
    made, images = net(), as_images(picture(384, 384))
    direct, whole = (receptive_field(made, images, through_generators=through) for through in (False, True))
    assert direct.sum() == pytest.approx(1.0) and whole.sum() == pytest.approx(1.0)
    assert (whole > 0).all(), "pooling depends on every pixel"
    rows = np.flatnonzero(direct.sum(1))
    assert 0 < len(rows) < 384, "without it a field has an end"
    areas = area_shares(direct)
    assert areas == sorted(areas) and areas[-1] <= 1.0
    assert area_shares(np.full((10, 10), 0.01)) == pytest.approx([0.2, 0.3, 0.5, 0.99], abs=0.011)
    assert all(parameter.grad is None for parameter in made.parameters())


def test_adaptivity_is_none_without_generators() -> None:
    images = [as_images(picture(64, 64, seed)) for seed in (1, 2)]
    with torch.inference_mode():
        adapted = adaptivity(net(), images)
        still = adaptivity(net(transform={**BLOCKS, "generator": "static"}), images)
        plain = adaptivity(net("elic"), images)
    assert adapted["kernel_spread"] > 0 and adapted["factor_spread"] > 0 and adapted["swapped_loss"] != 1.0
    assert still["kernel_spread"] == 0.0 and still["swapped_loss"] == pytest.approx(1.0, abs=1e-9)
    assert plain == dict.fromkeys(adapted)
