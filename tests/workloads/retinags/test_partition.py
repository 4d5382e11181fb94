"""Boxes: the picture, the gradients and the path of training are those of one model, and wrong rules are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_splats import as_tensors, random_camera, random_splats
from torch import Tensor

from fedloom.core.errors import ConfigError
from fedloom.workloads.retinags.camera import Camera, looking
from fedloom.workloads.retinags.composer import Composer, LocalPart, Recipe
from fedloom.workloads.retinags.density import FREE, Growth, densified, free_rows
from fedloom.workloads.retinags.loss import picture_loss
from fedloom.workloads.retinags.merge import merge, merge_backward
from fedloom.workloads.retinags.projection import project
from fedloom.workloads.retinags.raster import rasterize
from fedloom.workloads.retinags.splats import SHAPES
from fedloom.workloads.retinags.state import Rows
from fedloom.workloads.retinags.submodel import SubModel
from fedloom.workloads.retinags.tree import Leaf, Split, Tree, boxes, front_to_back, median_tree, owners

DTYPES = {"float32": torch.float32, "float64": torch.float64}
RATES = dict(zip(SHAPES, (1e-3, 1e-2, 1e-3, 2e-2, 5e-3, 5e-3), strict=True))


def random_tree(rng: np.random.Generator, parts: int, first: int = 0) -> Tree:
    if parts == 1:
        return Leaf(first)
    lower = int(rng.integers(1, parts))
    left, right = random_tree(rng, lower, first), random_tree(rng, parts - lower, first + lower)
    return Split(int(rng.integers(3)), float(rng.uniform(-0.9, 0.9)), left, right)


def cameras(tree: Tree, seed: int) -> dict[str, Camera]:
    """Return cameras outside of the splats, among them, on a plane of the tree, and looking away."""
    inside, outside = random_camera(seed, (20, 14), 0.4), random_camera(seed + 1, (20, 14), 3.0)
    away = looking(np.array([0, 0, -3.0]), np.array([0, 0, -9.0]), 0.9, (20, 14))
    on_plane = outside
    if isinstance(tree, Split):
        eye = np.array(outside.position)
        eye[tree.axis] = tree.plane
        on_plane = replace(looking(eye, np.array([0.01, 0.02, 0.03]), 0.9, (20, 14)))
    return {"inside": inside, "outside": outside, "away": away, "on a plane": on_plane}


def composed(
    splats: dict[str, np.ndarray], tree: Tree, dtype: str, recipe: Recipe | None = None
) -> tuple[Composer, list[SubModel]]:
    models = [SubModel(i, "cpu", dtype) for i in range(len(boxes(tree)))]
    composer = Composer([LocalPart(each) for each in models], recipe or Recipe(), DTYPES[dtype])
    composer.load(Rows.fresh({name: value.astype(dtype) for name, value in splats.items()}), tree, 0)
    return composer, models


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    parts=st.integers(1, 16),
    where=st.sampled_from(["inside", "outside", "away", "on a plane"]),
    degree=st.integers(0, 3),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_the_picture_of_any_boxes_is_that_of_one_model(
    seed: int, parts: int, where: str, degree: int, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    splats, tree = random_splats(80, seed, scale=float(rng.choice([0.005, 0.1, 0.4]))), random_tree(rng, parts)
    camera, background = cameras(tree, seed)[where], tuple(float(x) for x in rng.random(3))
    recipe = Recipe(background=(background[0], background[1], background[2]), degree=degree)
    composer, models = composed(splats, tree, dtype, recipe)
    found = composer.render(camera)
    one = rasterize(project(as_tensors(splats, DTYPES[dtype]), camera, degree), camera, torch.arange(80))
    whole = merge([(one.color, one.alpha)], torch.tensor(background, dtype=DTYPES[dtype])).detach()
    assert float((found - whole).abs().max()) < {"float32": 1e-5, "float64": 1e-12}[dtype]
    assert sum(model._picture.pairs for model in models) == one.pairs
    assert (where == "away") <= (one.pairs == 0)


def whole_gradients(splats: dict[str, np.ndarray], camera: Camera, photograph: np.ndarray) -> dict[str, Tensor]:
    values = as_tensors(splats)
    drawn = rasterize(project(values, camera), camera, torch.arange(len(splats["opacities"])))
    picture_loss(merge([(drawn.color, drawn.alpha)], torch.zeros(3)), torch.tensor(photograph).double()).backward()
    return {name: value.grad for name, value in values.items() if value.grad is not None}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), parts=st.integers(2, 9), where=st.sampled_from(["inside", "outside"]))
def test_gradients_of_any_boxes_are_those_of_one_model(seed: int, parts: int, where: str) -> None:
    rng = np.random.default_rng(seed)
    splats, tree = random_splats(60, seed), random_tree(rng, parts)
    camera = cameras(tree, seed)[where]
    photograph = rng.random((14, 20, 3)).astype(np.float32)
    composer, _ = composed(splats, tree, "float64")
    composer.step(camera, photograph, dict.fromkeys(SHAPES, 0.0))
    first = composer.unload().first  # after one step Adam's mean is a tenth of the gradient
    for name, slope in whole_gradients(splats, camera, photograph).items():
        scale = max(float(slope.abs().max()), 1e-12)
        assert float(np.abs(10 * first[name] - slope.numpy()).max()) / scale < 1e-10, name


def test_the_closed_form_of_merging_is_autograds() -> None:
    rng = np.random.default_rng(0)
    layers = [(torch.tensor(rng.random((4, 5, 3))), torch.tensor(rng.random((4, 5)))) for _ in range(4)]
    background, slope = torch.tensor(rng.random(3)), torch.tensor(rng.standard_normal((4, 5, 3)))
    flat = [each.requires_grad_() for layer in layers for each in layer]
    wanted = torch.autograd.grad((merge(layers, background) * slope).sum(), flat)
    found = [each for layer in merge_backward(layers, background, slope) for each in layer]
    assert max(float((a - b).detach().abs().max()) for a, b in zip(found, wanted, strict=True)) < 1e-14


def plain_training(
    splats: dict[str, np.ndarray], views: list[Camera], photographs: list[np.ndarray]
) -> dict[str, Tensor]:
    values = as_tensors(splats)
    groups = [{"params": [values[name]], "lr": RATES[name]} for name in SHAPES]
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    for camera, photograph in zip(views, photographs, strict=True):
        optimizer.zero_grad()
        drawn = rasterize(project(values, camera), camera, torch.arange(len(splats["opacities"])))
        picture = merge([(drawn.color, drawn.alpha)], torch.zeros(3))
        picture_loss(picture, torch.tensor(photograph).double()).backward()
        optimizer.step()
    return values


def test_training_in_boxes_that_change_is_the_training_of_one_model() -> None:
    rng, splats = np.random.default_rng(1), random_splats(60, 7)
    views = [random_camera(i, (20, 14), 0.4 if i % 3 == 0 else 2.5) for i in range(12)]
    photographs = [rng.random((14, 20, 3)).astype(np.float32) for _ in views]
    wanted = plain_training(splats, views, photographs)
    rows = Rows.fresh(splats)
    for step, (camera, photograph) in enumerate(zip(views, photographs, strict=True)):
        if step % 4 == 0:
            tree = random_tree(rng, 5)
            composer, _ = composed(splats, tree, "float64")
        composer.load(rows, tree, step)
        composer.step(camera, photograph, RATES)
        rows = composer.unload()
    assert rows.ids.tolist() == list(range(60)) and rows.statistics["views"].max() > 5
    for name, value in wanted.items():
        assert float(np.abs(rows.values[name] - value.detach().numpy()).max()) < 1e-8, name
        assert float(np.abs(rows.values[name] - splats[name]).max()) > 1e-3, name


def test_densification_does_not_depend_on_the_boxes() -> None:
    rng, splats = np.random.default_rng(1), random_splats(60, 3)
    splats["opacities"][40:] = FREE
    photograph, noise = rng.random((14, 20, 3)).astype(np.float32), rng.standard_normal((60, 2, 3))
    results = []
    for parts in (1, 6):
        tree = random_tree(np.random.default_rng(2), parts)
        composer, _ = composed(splats, tree, "float64")
        for i in range(4):
            composer.step(random_camera(i, (20, 14), 2.5), photograph, RATES)
        rows = densified(composer.unload(), Growth(slope=1e-6, size=0.15, opacity=0.1), 1.0, noise)
        composer.load(rows, tree, 4)
        for i in range(3):
            composer.step(random_camera(i, (20, 14), 2.5), photograph, RATES)
        results.append(composer.unload())
    one, many = results
    assert 40 < (~free_rows(one)).sum() <= 60
    for name in SHAPES:
        np.testing.assert_allclose(many.values[name], one.values[name], atol=1e-8)


def test_a_split_moves_two_halves_and_a_clone_none_and_free_rows_limit_both() -> None:
    splats = random_splats(6, 0)
    splats["scales"][:] = np.log([0.5, 0.5, 0.001, 0.001, 0.001, 0.001])[:, None]
    splats["opacities"][:] = [1, 1, 1, 1, -9, -9]
    rows = Rows.fresh(splats)
    rows.statistics["slopes"][:], rows.statistics["views"][:] = [2, 0, 1, 0.5, 9, 9], 1
    found = densified(rows, Growth(slope=0.4), 1.0, np.ones((6, 2, 3))).values
    assert found["scales"][[0, 4], 0] == pytest.approx(np.log(0.5 / 1.6))
    assert np.linalg.norm(found["positions"][4] - splats["positions"][0]) == pytest.approx(0.5 * np.sqrt(3))
    np.testing.assert_array_equal(found["positions"][[2, 5]], splats["positions"][[2, 2]])
    assert not free_rows(densified(rows, Growth(slope=0.4), 1.0, np.ones((6, 2, 3)))).any()


def test_boxes_of_equal_load_tile_space() -> None:
    points = np.random.default_rng(0).standard_normal((1000, 3))
    for parts in (1, 2, 3, 7, 16):
        tree = median_tree(points, parts)
        counts = np.bincount(owners(tree, points), minlength=parts)
        assert counts.sum() == 1000 and counts.max() <= 1.02 * 1000 / parts and len(boxes(tree)) == parts
        inside = sum(
            ((points > np.array(b.low)) & (points <= np.array(b.high))).all(1).astype(int) for b in boxes(tree)
        )
        assert (np.asarray(inside) == 1).all()
    with pytest.raises(ConfigError, match="expected 1 to 3, the number of splats, got 4"):
        median_tree(points[:3], 4)
    assert len(boxes(median_tree(np.zeros((4, 3)), 4))) == 4  # points in one place


def test_bytes_of_a_step_are_those_of_the_formula() -> None:
    splats = random_splats(100, 1)
    composer, _ = composed(splats, median_tree(splats["positions"], 4), "float32")
    camera = random_camera(0, (20, 14))
    composer.step(camera, np.zeros((14, 20, 3), np.float32), RATES)
    traffic = composer.traffic
    assert traffic.layers == 4 and traffic.shared > 20
    assert traffic.images == traffic.layers * 2 * 4 * camera.pixels * 4
    assert traffic.copies == traffic.shared * (2 * 59 * 4 + 8)


def layers_of(splats: dict[str, np.ndarray], tree: Tree, camera: Camera, wrong: str) -> Tensor:
    """Return the picture by a rule that is wrong."""
    values, owner = as_tensors(splats), torch.from_numpy(owners(tree, splats["positions"]))
    drawn = list[tuple[Tensor, Tensor]]()
    order = front_to_back(tree, camera.position)
    for number in order[::-1] if wrong == "order" else order:
        mine = torch.ones_like(owner, dtype=torch.bool) if wrong == "order" else owner == number
        some = {name: value[mine] for name, value in values.items()}
        box = None if wrong == "no clip" else boxes(tree)[number]
        found = rasterize(project(some, camera), camera, torch.arange(int(mine.sum())), box)
        drawn.append((found.color, found.alpha))
    return merge(drawn, torch.zeros(3)).detach()


@pytest.mark.parametrize("wrong", ["no clip", "no copies", "order"])
def test_wrong_rules_give_another_picture(wrong: str) -> None:
    splats, camera = random_splats(100, 2, scale=0.3), random_camera(4, (20, 14), 2.5)
    tree = median_tree(splats["positions"], 8)
    composer, _ = composed(splats, tree, "float64")
    assert float((layers_of(splats, tree, camera, wrong) - composer.render(camera)).abs().max()) > 0.01
