"""The composer: it has the photographs, merges the boxes' pictures, and sends derivatives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

import numpy as np
import torch

from fedloom.workloads.retinags.camera import Camera
from fedloom.workloads.retinags.loss import picture_loss
from fedloom.workloads.retinags.merge import Layer, merge, merge_backward
from fedloom.workloads.retinags.state import Rows, Table, gathered
from fedloom.workloads.retinags.submodel import Copies, Slopes, SubModel
from fedloom.workloads.retinags.tree import Tree, boxes, front_to_back, owners

T = TypeVar("T")
Adjust = Callable[[Table, Table], None]
"""Changes gradients in place, given the values; both are tables of all splats."""


class Part(Protocol):
    """A sub-model, wherever it runs."""

    def call(self, method: str, *arguments: object) -> object:
        """Return what a method of `SubModel` returns."""


class LocalPart:
    """A sub-model in this process."""

    def __init__(self, model: SubModel) -> None:
        self._model = model

    def call(self, method: str, *arguments: object) -> object:
        methods: dict[str, Callable[..., object]] = {
            "load": self._model.load,
            "unload": self._model.unload,
            "shared": self._model.shared,
            "render": self._model.render,
            "backward": self._model.backward,
            "step": self._model.step,
            "skip": self._model.skip,
            "add": self._model.add,
            "gradients": self._model.gradients,
            "change": self._model.change,
            "apply": self._model.apply,
        }
        return methods[method](*arguments)


@dataclass(slots=True)
class Traffic:
    """Bytes between the composer and the boxes, and what they are made of."""

    images: int = 0
    copies: int = 0
    layers: int = 0
    """Pictures of boxes, each with its derivatives."""
    shared: int = 0
    """Copies of splats, each with its derivatives."""
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a step's loss is made."""

    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dissimilarity: float = 0.2
    degree: int = 3


@dataclass(slots=True)
class Composer:
    """Renders and trains splats divided among sub-models."""

    parts: Sequence[Part]
    recipe: Recipe
    dtype: torch.dtype = torch.float32
    traffic: Traffic = field(default_factory=Traffic)
    _tree: Tree | None = None

    def load(self, rows: Rows, tree: Tree, steps: int) -> None:
        """Divide splats among the sub-models, each with its moments.

        Args:
            rows: all splats.
            tree: of as many boxes as there are sub-models.
            steps: optimiser steps done before.
        """
        self._tree, number = tree, owners(tree, rows.values["positions"])
        faces = boxes(tree)
        for i, part in enumerate(self.parts):
            part.call("load", rows.chosen(number == i), faces, steps)

    def unload(self) -> Rows:
        """Return all splats, in the order of their numbers."""
        return gathered([cast(Rows, part.call("unload")) for part in self.parts])

    def render(self, camera: Camera) -> torch.Tensor:
        """Return the picture (height, width, 3), without gradients."""
        layers, _ = self._layers(camera)
        return merge([layer for _, layer in layers], self._background()) if layers else self._empty(camera)

    def step(
        self, camera: Camera, photograph: np.ndarray, rates: dict[str, float], adjust: Adjust | None = None
    ) -> float:
        """Do one optimiser step on one photograph, and return its loss before the step.

        Args:
            camera: the photograph's.
            photograph: (height, width, 3), in [0, 1].
            rates: of learning, by array of the splats.
            adjust: applied to the gradients first; all of them are sent to the composer and back.
        """
        layers, shared = self._layers(camera)
        with torch.inference_mode(False), torch.enable_grad():
            pictures = [layer for _, layer in layers]
            picture = merge(pictures, self._background()) if layers else self._empty(camera)
            picture.requires_grad_()
            loss = picture_loss(picture, torch.tensor(photograph, dtype=self.dtype), self.recipe.dissimilarity)
            (slope,) = torch.autograd.grad(loss, picture)
        back = merge_backward(pictures, self._background(), slope) if layers else []
        by_box = {box: each for (box, _), each in zip(layers, back, strict=True)}
        found = self._all(lambda i: self._backward(i, by_box.get(i)))
        received = [[each[i] for each in found if i in each] for i in range(len(self.parts))]
        if adjust is None:
            self._all(lambda i: self.parts[i].call("step", received[i], rates))
        else:
            self._all(lambda i: self.parts[i].call("add", received[i]))
            self._adjust(adjust)
            self._all(lambda i: self.parts[i].call("apply", rates))
        self._count(layers, back, shared, [each for group in received for each in group])
        return float(loss.detach())

    def _adjust(self, adjust: Adjust) -> None:
        found = [cast(tuple[np.ndarray, Table, Table], part.call("gradients")) for part in self.parts]
        ids = np.concatenate([each[0] for each in found])
        order = np.argsort(ids)
        gradients, values = (
            {name: np.concatenate([each[i][name] for each in found])[order] for name in found[0][i]} for i in (1, 2)
        )
        adjust(gradients, values)
        for part, (own, _, _) in zip(self.parts, found, strict=True):
            part.call("change", {name: value[own] for name, value in gradients.items()})

    def _backward(self, number: int, slopes: Layer | None) -> dict[int, Slopes]:
        if slopes is None:
            self.parts[number].call("skip")
            return {}
        color, alpha = (each.numpy() for each in slopes)
        return cast(dict[int, Slopes], self.parts[number].call("backward", color, alpha))

    def _layers(self, camera: Camera) -> tuple[list[tuple[int, Layer]], list[Copies]]:
        assert self._tree is not None
        offers = [cast(dict[int, Copies], each) for each in self._all(lambda i: self.parts[i].call("shared", camera))]
        wanted = [[each[i] for each in offers if i in each] for i in range(len(self.parts))]
        drawn = self._all(lambda i: self.parts[i].call("render", camera, wanted[i], self.recipe.degree))
        found = list[tuple[int, Layer]]()
        for number in front_to_back(self._tree, camera.position):
            layer = cast(tuple[np.ndarray, np.ndarray] | None, drawn[number])
            if layer is not None:
                found.append((number, (torch.from_numpy(layer[0]), torch.from_numpy(layer[1]))))
        return found, [each for group in wanted for each in group]

    def _all(self, work: Callable[[int], T]) -> list[T]:
        """Return what `work` returns for each sub-model, all at once."""
        if len(self.parts) == 1:
            return [work(0)]
        with ThreadPoolExecutor(len(self.parts)) as pool:
            return list(pool.map(work, range(len(self.parts))))

    def _background(self) -> torch.Tensor:
        return torch.tensor(self.recipe.background, dtype=self.dtype)

    def _empty(self, camera: Camera) -> torch.Tensor:
        return self._background().expand(camera.height, camera.width, 3).clone()

    def _count(
        self, layers: list[tuple[int, Layer]], back: list[Layer], shared: list[Copies], slopes: list[Slopes]
    ) -> None:
        traffic = self.traffic
        both = [*(layer for _, layer in layers), *back]
        traffic.images += sum(each.numel() * each.element_size() for layer in both for each in layer)
        traffic.copies += sum(each.ids.nbytes + _nbytes(each.values) for each in shared)
        traffic.copies += sum(_nbytes(each.values) for each in slopes)
        traffic.layers += len(layers)
        traffic.shared += sum(len(each.ids) for each in shared)
        traffic.steps += 1


def _nbytes(table: Table) -> int:
    return sum(value.nbytes for value in table.values())
