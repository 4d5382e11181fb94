"""Networks and losses against other implementations: monai's variational network, scikit-image's SSIM and PSNR."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedloom.workloads.mri_unlearning.config import NetSettings
from fedloom.workloads.mri_unlearning.losses import psnr, reconstruction_loss, ssim
from fedloom.workloads.mri_unlearning.nets import Cascade, VarNet, cropped, make_net
from fedloom.workloads.mri_unlearning.operators import fft2c, ifft2c, rss
from fedloom.workloads.mri_unlearning.unet import UNet, padded

SMALL = NetSettings(cascades=2, channels=4, pools=2, sensitivity_channels=3, sensitivity_pools=1)


def measured(coils: int = 3, height: int = 20, width: int = 26) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    kspace = rng.standard_normal((2, coils, height, width)) + 1j * rng.standard_normal((2, coils, height, width))
    mask, centre = np.zeros(width, bool), np.zeros(width, bool)
    mask[1::4] = True
    centre[11:16] = True  # the same columns in monai's way of finding them
    mask |= centre
    mask[[10, 16]] = False
    return torch.from_numpy((kspace * mask).astype(np.complex64)), torch.from_numpy(mask), torch.from_numpy(centre)


def cascades_of(net: VarNet) -> list[Cascade]:
    return [each for each in net.cascades if isinstance(each, Cascade)]


def complex_rss(x: torch.Tensor, spatial_dim: int) -> torch.Tensor:
    """Return the root-sum-of-squares of complex numbers, (…, 1) for (…, 2): over coils and both parts."""
    found: torch.Tensor = (x**2).sum(-1, keepdim=True).sum(spatial_dim).sqrt()
    return found


@pytest.mark.slow  # monai takes ten seconds to import
def test_the_variational_network_is_monais_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    reconstruction = pytest.importorskip("monai.apps.reconstruction.networks.nets.varnet")
    from monai.apps.reconstruction.networks.nets import coil_sensitivity_model
    from monai.apps.reconstruction.networks.nets.coil_sensitivity_model import CoilSensitivityModel
    from monai.apps.reconstruction.networks.nets.complex_unet import ComplexUnet

    # monai divides real and imaginary parts of sensitivities each by its own sum; the paper by their common one
    monkeypatch.setattr(coil_sensitivity_model, "root_sum_of_squares_t", complex_rss)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = VarNet(SMALL)
        inner = UNet(2, 2, 3, 1)
        sens = ComplexUnet(conv_net=inner)
        theirs = reconstruction.VariationalNetworkModel(
            CoilSensitivityModel(conv_net=sens), ComplexUnet(conv_net=UNet(2, 2, 4, 2)), num_cascades=2
        )
    with torch.no_grad():
        for eta, cascade in zip((0.7, 1.2), cascades_of(ours), strict=True):
            cascade.eta.fill_(eta)
        inner.load_state_dict(ours.sensitivities.net.unet.state_dict())
        for mine, other in zip(cascades_of(ours), theirs.cascades, strict=True):
            other.model.unet.load_state_dict(mine.net.unet.state_dict())
            other.dc_weight.copy_(mine.eta)
        kspace, mask, centre = measured()
        found = ours(kspace, mask, centre)
        for row in range(2):
            wanted = theirs(torch.view_as_real(kspace[row : row + 1]), mask.reshape(1, 1, 1, -1, 1))
            assert float((found[row] - wanted[0]).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_u3_ssim_and_psnr_are_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(1)
    target = rng.random((3, 24, 30))
    image = target + 0.1 * rng.standard_normal(target.shape)
    found = ssim(torch.from_numpy(image), torch.from_numpy(target), torch.full((3,), 1.7))
    for row in range(3):
        wanted = metrics.structural_similarity(target[row], image[row], win_size=7, data_range=1.7)
        assert abs(float(found[row]) - wanted) <= 1e-4
    mse = float(((image - target) ** 2).mean())
    assert abs(psnr(mse, 1.7) - metrics.peak_signal_noise_ratio(target, image, data_range=1.7)) <= 1e-4


def test_the_loss_is_zero_for_the_target_and_adds_its_two_parts() -> None:
    rng = np.random.default_rng(2)
    x, y = torch.from_numpy(rng.random((2, 12, 12))), torch.from_numpy(rng.random((2, 12, 12)))
    tops = torch.ones(2)
    assert abs(float(reconstruction_loss(x, x, tops, 1.0))) < 1e-12
    wanted = 1.0 - float(ssim(x, y, tops).mean()) + 0.5 * float((x - y).abs().mean())
    assert abs(float(reconstruction_loss(x, y, tops, 0.5)) - wanted) < 1e-12
    assert psnr(0.0, 1.0) == np.inf


def test_the_first_estimate_is_the_measurement_and_the_last_step_can_be_made_consistent() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = VarNet(SMALL)
    kspace, mask, centre = measured()
    with torch.no_grad():
        for cascade in cascades_of(net):
            for weight in cascade.net.unet.last.parameters():
                weight.zero_()
        # a U-Net that gives 0 gives back the mean of its input: k moves by F(S mean) and by nothing else
        found = net.kspace(kspace, mask, centre)
        # U13: one more step with eta = 1 makes the measured columns those of the input
        forced = found - (found - kspace) * mask
        assert float((forced - kspace)[..., mask].abs().max()) <= 1e-4
        assert torch.allclose(forced[..., ~mask], found[..., ~mask])


@pytest.mark.parametrize("kind", ["varnet", "unet"])
def test_networks_take_any_size_and_every_weight_learns(kind: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make_net(SMALL.model_copy(update={"kind": kind}))
    for height, width in ((20, 26), (33, 17)):
        kspace, mask, centre = measured(2, height, 26)
        kspace, mask, centre = kspace[..., :width], mask[:width], centre[:width]
        image = net(kspace, mask, centre)
        assert image.shape == (2, height, width)
    image.square().sum().backward()
    missing = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.abs().sum()]
    assert missing == (["cascades.0.eta"] if kind == "varnet" else [])  # the first step has nothing to make consistent


def test_scaling_the_measurement_scales_the_image() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = VarNet(SMALL)
    kspace, mask, centre = measured()
    with torch.no_grad():
        assert torch.allclose(net(1e-4 * kspace, mask, centre), 1e-4 * net(kspace, mask, centre), rtol=1e-3, atol=1e-7)


def test_images_are_filled_up_and_cut_back() -> None:
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    filled, (rows, columns) = padded(x, 4)
    assert filled.shape == (1, 1, 4, 8) and torch.equal(filled[..., rows, columns], x)
    assert torch.equal(
        cropped(torch.arange(24.0).reshape(1, 4, 6), torch.zeros(1, 2, 2)), torch.tensor([[[8.0, 9.0], [14.0, 15.0]]])
    )
    x = rss(ifft2c(fft2c(torch.ones(1, 2, 4, 4, dtype=torch.complex64))))
    assert torch.allclose(x, torch.full((1, 4, 4), 2.0**0.5))
