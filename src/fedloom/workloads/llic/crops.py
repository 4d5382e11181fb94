"""Crops of photographs as rows: each row is a place in a photograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import Array
from fedloom.workloads._base.rows import Batch
from fedloom.workloads.llic.photographs import Photograph


class Crops:
    """Training rows: the tiles of a regular grid over the photographs; targets are the numbers of their kinds.

    Args:
        photographs: the source.
        kinds: names of kinds.
        size: side of a tile; pixels.
        device: of the work.
    """

    def __init__(
        self, photographs: Sequence[Photograph], kinds: Sequence[str], size: int, device: torch.device
    ) -> None:
        self._images, self._size, self._device = [each.rgb for each in photographs], size, device
        found = [
            (number, (y + 0.5) * height / rows, (x + 0.5) * width / columns, kinds.index(each.kind))
            for number, each in enumerate(photographs)
            for height, width in [each.rgb.shape[:2]]
            for rows, columns in [(max(height // size, 1), max(width // size, 1))]
            for y in range(rows)
            for x in range(columns)
        ]
        self._places = np.array([(number, round(y), round(x)) for number, y, x, _ in found], np.int64)
        """Photograph, and centre, of each row."""
        self.kinds = np.array([kind for *_, kind in found], np.int64)
        """Number of the kind of each row, (n,)."""

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, rows: Tensor) -> Batch:
        """Return the tiles of rows, (b, 3, size, size) from 0 to 1, and their kinds."""
        middle = torch.zeros(len(rows), 3)
        kinds = torch.from_numpy(self.kinds[rows.cpu().numpy()]).to(self._device)
        return (self.crops(rows, self._size, middle),), kinds

    def drawn(self, rows: Tensor, size: int) -> Tensor:
        """Return crops near the tiles, moved by up to half a tile and mirrored at random (torch's global generator)."""
        return self.crops(rows, size, torch.rand(len(rows), 3) - 0.5)

    def crops(self, rows: Tensor, size: int, moves: Tensor) -> Tensor:
        """Return crops around the centres of tiles, inside the photographs; small photographs are filled up.

        Args:
            rows: (b,), int64.
            size: side of the crops; pixels.
            moves: (b, 3): moves of the centres down and right, in tiles, and mirrored where the last is positive.
        """
        cut = [
            self._crop(place, size, move)
            for place, move in zip(self._places[rows.cpu().numpy()], moves.numpy(), strict=True)
        ]
        pixels = torch.from_numpy(np.stack(cut)).to(self._device)
        return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255.0)

    def _crop(self, place: Array, size: int, move: Array) -> Array:
        image = self._images[place[0]]
        starts = []
        for axis in range(2):
            wanted = round(float(place[1 + axis]) + float(move[axis]) * self._size - size / 2)
            starts.append(min(max(wanted, 0), max(image.shape[axis] - size, 0)))
        top, left = starts
        found = image[top : top + size, left : left + size]
        if found.shape[:2] != (size, size):
            found = np.pad(found, ((0, size - found.shape[0]), (0, size - found.shape[1]), (0, 0)), mode="edge")
        return np.asarray(found[:, ::-1] if move[2] > 0 else found)


class HeldOut:
    """Held-out photographs as rows, one each, of any size; they are not stacked.

    Args:
        photographs: the source.
    """

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        self.photographs = tuple(photographs)

    def __len__(self) -> int:
        return len(self.photographs)

    def batch(self, rows: Tensor) -> Batch:
        """Return one photograph, (1, 3, H, W) from 0 to 1, and its number.

        Raises:
            ValueError: several are wanted, which may differ in size.
        """
        (row,) = rows.tolist()
        image = torch.from_numpy(self.photographs[row].rgb.transpose(2, 0, 1).copy())[None].float() / 255.0
        return (image,), rows
