"""A sub-model: the splats of one box, their optimiser, and the box's share of a picture. It runs in a helper."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedloom.workloads.retinags.camera import Camera
from fedloom.workloads.retinags.projection import Projected, project
from fedloom.workloads.retinags.raster import Box, rasterize
from fedloom.workloads.retinags.splats import SHAPES, joined, rows
from fedloom.workloads.retinags.state import Rows, Table

BETAS, EPSILON = (0.9, 0.999), 1e-15
"""Adam's."""


@dataclass(frozen=True, slots=True)
class Copies:
    """Splats of another box that this one draws some pixels of."""

    owner: int
    ids: np.ndarray
    """(m,)."""
    values: Table


@dataclass(frozen=True, slots=True)
class Slopes:
    """Derivatives of a view's loss that belong to splats of one owner."""

    ids: np.ndarray
    values: Table
    centers: np.ndarray
    """(m, 2), with respect to the centres in the picture."""
    drawn: np.ndarray
    """(m,), pixels drawn."""


class SubModel:
    """One box of a scene.

    Args:
        number: of the box.
        device: PyTorch's name of it.
        dtype: "float32" or "float64".
    """

    def __init__(self, number: int, device: str, dtype: str) -> None:
        self._number, self._device = number, torch.device(device)
        self._dtype = {"float32": torch.float32, "float64": torch.float64}[dtype]
        self._boxes: list[Box] = []
        self._steps = 0
        self._copies: list[Copies] = []

    def load(self, own: Rows, boxes: list[Box], steps: int) -> None:
        """Take splats, in place of all before.

        Args:
            own: the splats to own.
            boxes: of all sub-models.
            steps: optimiser steps done before.
        """
        self._boxes, self._steps, self._ids = boxes, steps, self._tensor(own.ids, torch.int64)
        self._values, self._first, self._second = (
            {name: self._tensor(table[name]) for name in SHAPES} for table in own.tables()[:3]
        )
        self._statistics = {name: self._tensor(value, torch.float64) for name, value in own.statistics.items()}

    def unload(self) -> Rows:
        """Return the splats owned, with their optimiser's state."""
        tables = (
            {name: value.cpu().numpy().copy() for name, value in table.items()}
            for table in (self._values, self._first, self._second, self._statistics)
        )
        return Rows(self._ids.cpu().numpy(), *tables)

    def shared(self, camera: Camera) -> dict[int, Copies]:
        """Return copies of the own splats for every other box that they may be drawn in, in one camera's picture."""
        if len(self._boxes) == 1:
            return {}
        with _gradients(False):
            low, high, seen = reach(project(self._values, camera, 0), camera)
            found = dict[int, Copies]()
            for number, box in enumerate(self._boxes):
                meets = seen.clone()
                for axis in range(3):
                    meets &= (low[:, axis] <= box.high[axis]) & (high[:, axis] >= box.low[axis])
                if number != self._number and bool(meets.any()):
                    values = {name: value.cpu().numpy() for name, value in rows(self._values, meets).items()}
                    found[number] = Copies(self._number, self._ids[meets].cpu().numpy(), values)
        return found

    def render(self, camera: Camera, copies: list[Copies], degree: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the box's colour and alpha, or None where nothing is drawn; gradients are prepared for `backward`."""
        with _gradients(True):
            self._copies, self._size = copies, np.array([camera.width, camera.height])
            sets = [self._values, *({n: self._tensor(v) for n, v in each.values.items()} for each in copies)]
            self._drawing = {name: value.requires_grad_() for name, value in joined(list(sets)).items()}
            ids = torch.cat([self._ids, *(self._tensor(each.ids, torch.int64) for each in copies)])
            self._seen = project(self._drawing, camera, degree)
            self._seen.centers.retain_grad()
            box = self._boxes[self._number] if len(self._boxes) > 1 else None
            self._picture = rasterize(self._seen, camera, ids, box)
            if not self._picture.pairs:
                return None
            return self._picture.color.detach().cpu().numpy(), self._picture.alpha.detach().cpu().numpy()

    def backward(self, to_color: np.ndarray, to_alpha: np.ndarray) -> dict[int, Slopes]:
        """Return the derivatives that belong to other boxes' splats, by their owners; the own ones are stored.

        Args:
            to_color: (height, width, 3), the loss's derivative with respect to the box's colour.
            to_alpha: (height, width), with respect to its alpha.
        """
        with _gradients(True):
            outputs = [self._picture.color, self._picture.alpha]
            torch.autograd.backward(outputs, [self._tensor(to_color), self._tensor(to_alpha)])
        return self._slopes()

    def step(self, received: list[Slopes], rates: dict[str, float]) -> None:
        """Do one step of Adam.

        Args:
            received: derivatives from other boxes of copies of the own splats, in a fixed order.
            rates: of learning, by array.
        """
        self.add(received)
        self.apply(rates)

    def add(self, received: list[Slopes]) -> None:
        """Add other boxes' derivatives of the own splats to those of this box."""
        with _gradients(False):
            own = self._own
            slopes = {name: self._tensor(own.values[name]) for name in SHAPES}
            centers, drawn = self._tensor(own.centers, torch.float64), self._tensor(own.drawn, torch.int64)
            for each in received:
                where = torch.searchsorted(self._ids, self._tensor(each.ids, torch.int64))
                for name in SHAPES:
                    slopes[name].index_add_(0, where, self._tensor(each.values[name]))
                centers.index_add_(0, where, self._tensor(each.centers, torch.float64))
                drawn.index_add_(0, where, self._tensor(each.drawn, torch.int64))
            self._statistics["slopes"] += centers.norm(dim=1)
            self._statistics["views"] += drawn > 0
            self._statistics["drawn"] += drawn
            self._total = slopes

    def gradients(self) -> tuple[np.ndarray, Table, Table]:
        """Return the own splats' numbers, their gradients and their values."""
        slopes, values = ({n: v.cpu().numpy() for n, v in table.items()} for table in (self._total, self._values))
        return self._ids.cpu().numpy(), slopes, values

    def change(self, gradients: Table) -> None:
        """Take gradients in place of those that were added up."""
        self._total = {name: self._tensor(value) for name, value in gradients.items()}

    def apply(self, rates: dict[str, float]) -> None:
        """Do a step of Adam with the gradients as they are."""
        with _gradients(False):
            self._steps += 1
            for name, slope in self._total.items():
                adam(self._values[name], slope, (self._first[name], self._second[name]), rates[name], self._steps)

    def skip(self) -> None:
        """Prepare a step in whose view the box drew nothing."""
        self._own = Slopes(
            self._ids.cpu().numpy(),
            {name: np.zeros(value.shape, _numpy(self._dtype)) for name, value in self._values.items()},
            np.zeros((len(self._ids), 2)),
            np.zeros(len(self._ids), np.int64),
        )

    def _slopes(self) -> dict[int, Slopes]:
        centers, drawn = self._seen.centers.grad, self._picture.drawn
        found, start = dict[int, Slopes](), 0
        sizes = [(self._number, self._ids.cpu().numpy()), *((each.owner, each.ids) for each in self._copies)]
        for owner, ids in sizes:
            part = slice(start, start + len(ids))
            start += len(ids)
            values = dict[str, np.ndarray]()
            for name, value in self._drawing.items():
                whole = torch.zeros_like(value) if value.grad is None else value.grad
                values[name] = whole[part].cpu().numpy()
            at = np.zeros((len(ids), 2)) if centers is None else centers[part].cpu().numpy()
            at = at * (self._size / 2)  # in halves of the picture, as 3DGS has it
            found[owner] = Slopes(ids, values, at, drawn[part].cpu().numpy())
        self._own = found.pop(self._number)
        return found

    def _tensor(self, array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(array, dtype=dtype or self._dtype, device=self._device)


def adam(value: Tensor, slope: Tensor, moments: tuple[Tensor, Tensor], rate: float, step: int) -> None:
    """Do one step of Adam in place; `step` is counted from 1."""
    (first, second), (b1, b2) = moments, BETAS
    first.mul_(b1).add_(slope, alpha=1 - b1)
    second.mul_(b2).addcmul_(slope, slope, value=1 - b2)
    size = (second / (1 - b2**step)).sqrt_().add_(EPSILON)
    value.addcdiv_(first, size, value=-rate / (1 - b1**step))


def reach(seen: Projected, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Return the corners (n, 3) of boxes around all that is drawn of each splat at its depth, and whether it is seen.

    Args:
        seen: n splats in the camera's picture.
        camera: likewise.
    """
    r, t, z = camera.rotation, camera.translation, seen.depths
    half = [seen.extents[:, i] * z / camera.focal[i] for i in range(2)]
    at = [(seen.centers[:, i] - camera.center[i]) / camera.focal[i] * z - t[i] for i in range(2)]
    low, high = list[Tensor](), list[Tensor]()
    for axis in range(3):
        center = r[0][axis] * at[0] + r[1][axis] * at[1] + r[2][axis] * (z - t[2])
        size = (abs(r[0][axis]) * half[0] + abs(r[1][axis]) * half[1]) * (1 + 1e-4) + 1e-5 * (1 + center.abs() + z)
        low.append(center - size)
        high.append(center + size)
    return torch.stack(low, dim=1), torch.stack(high, dim=1), seen.seen


def _numpy(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32


@contextlib.contextmanager
def _gradients(wanted: bool) -> Iterator[None]:
    with torch.inference_mode(False), torch.set_grad_enabled(wanted):
        yield
