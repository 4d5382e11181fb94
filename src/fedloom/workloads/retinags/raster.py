"""Rasterisation of projected splats: culled by tiles, sorted by depth, all tiles at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.workloads.retinags.camera import Camera
from fedloom.workloads.retinags.projection import ALPHA_MIN, Projected

ALPHA_MAX = 0.99
"""Largest opacity of a splat in a pixel."""
TILE = 8
"""Side of a tile, pixels. The picture does not depend on it."""


@dataclass(frozen=True, slots=True)
class Box:
    """The points p with low < p <= high, on every axis."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn, before a black background."""

    color: Tensor
    """(height, width, 3)."""
    alpha: Tensor
    """(height, width), 1 minus the transmittance."""
    pairs: int
    """Drawn pairs of a pixel and a splat."""
    drawn: Tensor
    """(n,), pixels that each splat is drawn in."""


@dataclass(frozen=True, slots=True)
class _Entries:
    """Pairs of a tile and a splat that may be seen in it, by tile, then by depth, then by the splat's number."""

    splat: Tensor
    tile: Tensor
    start: Tensor
    """(tiles,), the first entry of each tile."""
    stop: Tensor
    left: Tensor
    """(e,), of the entry's tile, pixels."""
    top: Tensor


def rasterize(seen: Projected, camera: Camera, ids: Tensor, box: Box | None = None) -> Picture:
    """Return the picture of n splats, with gradients for their centres, conics, opacities and colours.

    Args:
        seen: the splats.
        camera: that they were projected into.
        ids: (n,), distinct integers that decide the order of splats of equal depth.
        box: a splat is drawn in a pixel only if the point of the pixel's ray at the depth of the splat's centre is in
            this box; None draws all.
    """
    entries = _entries(seen, camera, ids)
    accepted = None if box is None else _accepted(entries, seen.depths.detach(), camera, box)
    color, alpha, drawn = _composite(entries, accepted, seen)
    across, down = _tiles(camera)
    color = color.view(down, across, TILE, TILE, 3).transpose(1, 2).reshape(down * TILE, across * TILE, 3)
    alpha = alpha.view(down, across, TILE, TILE).transpose(1, 2).reshape(down * TILE, across * TILE)
    color, alpha = color[: camera.height, : camera.width], alpha[: camera.height, : camera.width]
    inside = _inside(entries, camera)
    per_entry = (drawn & inside).sum(1)
    counts = torch.zeros(len(ids), dtype=torch.int64, device=ids.device).index_add_(0, entries.splat, per_entry)
    return Picture(color, alpha, int(per_entry.sum()), counts)


def _tiles(camera: Camera) -> tuple[int, int]:
    return -(-camera.width // TILE), -(-camera.height // TILE)


def _entries(seen: Projected, camera: Camera, ids: Tensor) -> _Entries:
    across, down = _tiles(camera)
    by_id = torch.argsort(ids)
    by_id = by_id[seen.seen[by_id]]
    order = by_id[torch.argsort(seen.depths.detach()[by_id], stable=True)]
    centers, extents = seen.centers.detach()[order], seen.extents[order]
    limits = torch.tensor([across, down], device=order.device)
    low = torch.minimum(torch.floor((centers - extents) / TILE).clamp_min(0).long(), limits)
    high = torch.minimum((torch.floor((centers + extents) / TILE) + 1).clamp(0, max(across, down)).long(), limits)
    size = (high - low).clamp_min(0)
    count = size[:, 0] * size[:, 1]
    which = torch.repeat_interleave(torch.arange(len(order), device=order.device), count)
    local = torch.arange(len(which), device=order.device) - (torch.cumsum(count, 0) - count)[which]
    columns, rows_ = low[which, 0] + local % size[which, 0], low[which, 1] + local // size[which, 0]
    tile = rows_ * across + columns
    by_tile = torch.argsort(tile, stable=True)
    tile = tile[by_tile]
    bounds = torch.searchsorted(tile, torch.arange(across * down + 1, device=order.device))
    return _Entries(
        splat=order[which[by_tile]],
        tile=tile,
        start=bounds[:-1],
        stop=bounds[1:],
        left=columns[by_tile] * TILE,
        top=rows_[by_tile] * TILE,
    )


def _pixel_centers(entries: _Entries, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the coordinates of every entry's pixels, (e, TILE^2) each, row by row."""
    steps = torch.arange(TILE, device=entries.tile.device, dtype=dtype) + 0.5
    x = entries.left.to(dtype)[:, None] + steps.repeat(TILE)
    y = entries.top.to(dtype)[:, None] + steps.repeat_interleave(TILE)
    return x, y


def _inside(entries: _Entries, camera: Camera) -> Tensor:
    """Return which pixels of every entry's tile are in the picture."""
    x, y = _pixel_centers(entries, torch.float32)
    return (x < camera.width) & (y < camera.height)


def _accepted(entries: _Entries, depths: Tensor, camera: Camera, box: Box) -> Tensor:
    """Return where the point of a pixel's ray at the splat's depth is in the box, (e, TILE^2)."""
    x, y = _pixel_centers(entries, depths.dtype)
    z = depths[entries.splat][:, None]
    t, r = camera.translation, camera.rotation
    across = (x - camera.center[0]) / camera.focal[0] * z - t[0]
    down = (y - camera.center[1]) / camera.focal[1] * z - t[1]
    deep = z - t[2]
    accepted = torch.ones_like(x, dtype=torch.bool)
    for axis in range(3):
        point = r[0][axis] * across + r[1][axis] * down + r[2][axis] * deep
        accepted &= (point > box.low[axis]) & (point <= box.high[axis])
    return accepted


def _composite(entries: _Entries, accepted: Tensor | None, seen: Projected) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = _Composite.apply(  # type: ignore[no-untyped-call]  # torch's own
        entries, accepted, seen.centers, seen.conics, seen.opacities, seen.colors
    )
    return found


def _sums_before(values: Tensor, entries: _Entries) -> tuple[Tensor, Tensor]:
    """Return the sums over the entries of the same tile before each, (e, p), and over all of each tile, (tiles, p)."""
    total = torch.zeros(len(values) + 1, values.shape[1], dtype=torch.float64, device=values.device)
    torch.cumsum(values.double(), 0, out=total[1:])
    return total[:-1] - total[entries.start][entries.tile], total[entries.stop] - total[entries.start]


class _Composite(torch.autograd.Function):
    """Blending front to back, with its derivative in closed form."""

    @staticmethod
    def forward(
        ctx: Any,
        entries: _Entries,
        accepted: Tensor | None,
        centers: Tensor,
        conics: Tensor,
        opacities: Tensor,
        colors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, dy = _offsets(entries, centers)
        a, b, c = conics[entries.splat].T[:, :, None]
        raw = opacities[entries.splat][:, None] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
        drawn = raw >= ALPHA_MIN
        if accepted is not None:
            drawn &= accepted
        alpha = torch.where(drawn, raw.clamp_max(ALPHA_MAX), torch.zeros_like(raw))
        before, whole = _sums_before(torch.log1p(-alpha.double()), entries)
        through, end = torch.exp(before).to(raw.dtype), torch.exp(whole).to(raw.dtype)
        weight = through * alpha
        picture = torch.zeros(*end.shape, 3, dtype=raw.dtype, device=raw.device)
        for channel, value in enumerate(colors[entries.splat].T):
            picture[..., channel] = torch.zeros_like(end).index_add_(0, entries.tile, weight * value[:, None])
        ctx.entries = entries
        ctx.save_for_backward(centers, conics, opacities, colors, alpha, through, end)
        ctx.mark_non_differentiable(drawn)
        return picture, -torch.expm1(whole).to(raw.dtype), drawn

    @staticmethod
    def backward(ctx: Any, to_picture: Tensor, to_alpha: Tensor, _: Tensor) -> Any:
        entries: _Entries = ctx.entries
        centers, conics, opacities, colors, alpha, through, end = ctx.saved_tensors
        splat, tile = entries.splat, entries.tile
        weight, shade = through * alpha, torch.zeros_like(alpha)
        to_colors = torch.zeros_like(colors)
        for channel, value in enumerate(colors[splat].T):
            above = to_picture[..., channel][tile]
            shade += value[:, None] * above
            to_colors[:, channel].index_add_(0, splat, (weight * above).sum(1))
        before, whole = _sums_before(weight * shade, entries)
        behind = (whole[tile] - before).to(alpha.dtype) - weight * shade
        slope = through * shade + ((to_alpha * end)[tile] - behind) / (1 - alpha)
        slope = torch.where((alpha > 0) & (alpha < ALPHA_MAX), slope, torch.zeros_like(slope))
        dx, dy = _offsets(entries, centers)
        half = -0.5 * slope * alpha
        a, b, c = conics[splat].T[:, :, None]
        columns = torch.stack(
            [
                (half * -2 * (a * dx + b * dy)).sum(1),
                (half * -2 * (b * dx + c * dy)).sum(1),
                (half * dx * dx).sum(1),
                (half * 2 * dx * dy).sum(1),
                (half * dy * dy).sum(1),
                (slope * alpha).sum(1) / opacities[splat],
            ],
            dim=1,
        )
        sums = torch.zeros(len(opacities), 6, dtype=alpha.dtype, device=alpha.device).index_add_(0, splat, columns)
        return None, None, sums[:, :2], sums[:, 2:5], sums[:, 5], to_colors


def _offsets(entries: _Entries, centers: Tensor) -> tuple[Tensor, Tensor]:
    x, y = _pixel_centers(entries, centers.dtype)
    at = centers[entries.splat]
    return x - at[:, :1], y - at[:, 1:]
