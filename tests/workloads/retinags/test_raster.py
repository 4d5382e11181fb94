"""The rasteriser against a naive one, its gradients, and its loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support_splats import as_tensors, naive_picture, random_camera, random_splats

from fedloom.workloads.retinags.camera import looking
from fedloom.workloads.retinags.loss import psnr, ssim
from fedloom.workloads.retinags.projection import project
from fedloom.workloads.retinags.raster import rasterize


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("degree", "size"), [(0, (17, 9)), (3, (32, 24))])
def test_the_picture_is_that_of_one_pixel_and_one_splat_at_a_time(
    dtype: torch.dtype, bound: float, degree: int, size: tuple[int, int]
) -> None:
    splats, camera = random_splats(60, degree), random_camera(3, size, distance=1.2)
    given = {name: value.astype(np.float32).astype(np.float64) for name, value in splats.items()}
    color, alpha = naive_picture(given, camera, degree)
    found = rasterize(project(as_tensors(given, dtype), camera, degree), camera, torch.arange(60))
    assert color.max() > 0.3 and 0.05 < alpha.mean() < 0.999
    assert np.abs(found.color.detach().numpy() - color).max() < bound
    assert np.abs(found.alpha.detach().numpy() - alpha).max() < bound
    assert found.pairs == int(found.drawn.sum()) > 60


def test_gradients_are_those_of_finite_differences() -> None:
    splats, camera = random_splats(6, 1, scale=0.3), looking(np.array([0.1, 0.2, -3.0]), np.zeros(3), 0.8, (9, 7))
    splats["opacities"] = np.linspace(-0.5, 1.0, 6)  # far from the clamp at 0.99
    splats["colors"] = np.full((6, 3), 1.0)
    splats["scales"] += 3.0  # wide enough to be above 1/255 in every pixel
    given = as_tensors(splats)
    names = list(given)

    def picture(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = rasterize(project(dict(zip(names, values, strict=True)), camera), camera, torch.arange(6))
        assert found.pairs == 6 * 63
        return found.color, found.alpha

    assert torch.autograd.gradcheck(picture, tuple(given.values()), atol=1e-7, rtol=1e-5, fast_mode=True)


def test_gradients_are_those_of_a_dense_evaluation() -> None:
    splats, camera = as_tensors(random_splats(80, 4)), random_camera(5)
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((24, 32, 3)))
    tiled = rasterize(project(splats, camera), camera, torch.arange(80))
    ((tiled.color * weight).sum() + (tiled.alpha * weight[..., 0]).sum()).backward()
    found = {name: value.grad.clone() for name, value in splats.items() if value.grad is not None}
    for value in splats.values():
        value.grad = None
    seen = project(splats, camera)
    order = torch.argsort(seen.depths)
    rows, columns = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    d = torch.stack([columns, rows], -1)[..., None, :] - seen.centers[order]
    a, b, c = seen.conics[order].T
    power = -0.5 * (a * d[..., 0] ** 2 + c * d[..., 1] ** 2) - b * d[..., 0] * d[..., 1]
    alpha = (seen.opacities[order] * torch.exp(power)).clamp_max(0.99) * seen.seen[order]
    alpha = torch.where(alpha >= 1 / 255, alpha, torch.zeros_like(alpha))
    through = torch.cumprod(1 - alpha, -1)
    before = torch.cat([torch.ones_like(through[..., :1]), through[..., :-1]], -1)
    color = ((before * alpha)[..., None] * seen.colors[order]).sum(-2)
    assert torch.allclose(color, tiled.color, atol=1e-12)
    ((color * weight).sum() + ((1 - through[..., -1]) * weight[..., 0]).sum()).backward()
    assert len(found) == 6
    for name, value in splats.items():
        assert value.grad is not None
        assert float((found[name] - value.grad).norm() / value.grad.norm()) < 1e-10, name


def test_splats_behind_the_camera_and_beside_the_picture_are_not_drawn() -> None:
    splats, camera = (
        random_splats(20, 2, scale=0.01),
        looking(np.array([0.0, 0.0, 9.0]), np.array([0, 0, 20.0]), 0.5, (8, 8)),
    )
    found = rasterize(project(as_tensors(splats), camera), camera, torch.arange(20))
    assert found.pairs == 0 and float(found.color.detach().abs().max()) == 0 and float(found.alpha.detach().max()) == 0
    found.color.sum().backward()


def test_equal_depths_are_drawn_in_the_order_of_their_numbers() -> None:
    splats = random_splats(2, 0, scale=0.5)
    splats["positions"][:] = 0
    camera = looking(np.array([0, 0, -3.0]), np.zeros(3), 0.8, (8, 8))
    ahead, behind = (
        rasterize(project(as_tensors(splats), camera), camera, torch.tensor(ids)).color for ids in ([0, 1], [1, 0])
    )
    swapped = {name: value[::-1].copy() for name, value in splats.items()}
    again = rasterize(project(as_tensors(swapped), camera), camera, torch.tensor([1, 0])).color
    assert torch.equal(ahead, again) and not torch.equal(ahead, behind)


def test_structural_similarity_is_that_of_another_package_and_1_for_equal_pictures() -> None:
    package = pytest.importorskip("pytorch_msssim")
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.random((30, 40, 3))) for _ in range(2))
    y = 0.7 * x + 0.3 * y
    windowed = package.ssim(
        *(torch.nn.functional.pad(each.permute(2, 0, 1)[None], (5, 5, 5, 5)) for each in (x, y)), data_range=1.0
    )
    assert abs(float(ssim(x, y)) - float(windowed)) < 1e-7  # its window is float32
    assert float(ssim(x, x)) == pytest.approx(1.0, abs=1e-12)
    assert psnr(x + 0.1, x.clamp(0, 0.9)) > 0 and psnr(x, x) == 100.0
    assert psnr(torch.full((4, 4, 3), 0.5), torch.full((4, 4, 3), 0.6)) == pytest.approx(20.0, abs=1e-4)
