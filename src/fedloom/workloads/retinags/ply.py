"""Splats in PLY files of the layout of 3DGS, read and written; point clouds read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.workloads.retinags.splats import COLORS, HARMONICS, OPACITIES, POSITIONS, ROTATIONS, SCALES, check_splats

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_HEADER_BYTES = 1 << 16
"""Largest header that is read."""
_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "<"}


def fields_of_splats() -> list[str]:
    """Return the names of a splat's fields in the order of 3DGS files."""
    names = ["x", "y", "z", "nx", "ny", "nz"]
    names += [f"f_dc_{i}" for i in range(3)] + [f"f_rest_{i}" for i in range(45)] + ["opacity"]
    return names + [f"scale_{i}" for i in range(3)] + [f"rot_{i}" for i in range(4)]


def write_splats(path: Path, splats: dict[str, np.ndarray]) -> None:
    """Write splats as a little-endian PLY file of 3DGS; normals are 0.

    Raises:
        DataMissing: the splats are invalid.
    """
    n = check_splats(splats, str(path))
    rest = splats[HARMONICS].transpose(0, 2, 1).reshape(n, 45)
    parts = [splats[POSITIONS], np.zeros((n, 3)), splats[COLORS], rest, splats[OPACITIES][:, None]]
    table = np.concatenate([*parts, splats[SCALES], splats[ROTATIONS]], axis=1).astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {n}"]
    header += [f"property float {name}" for name in fields_of_splats()] + ["end_header", ""]
    path.write_bytes("\n".join(header).encode() + table.tobytes())


def read_splats(path: Path) -> dict[str, np.ndarray]:
    """Return the splats of a 3DGS file, float32 by the names of `splats.SHAPES`.

    Harmonics of a lower degree than 3 are filled with 0.

    Raises:
        DataMissing: the file is absent, no PLY file of splats, cut short, or holds invalid splats.
    """
    table = read_vertices(path)
    rest = sorted((name for name in table if name.startswith("f_rest_")), key=lambda name: int(name[7:] or -1))
    if len(rest) not in (0, 9, 24, 45) or rest != [f"f_rest_{i}" for i in range(len(rest))]:
        raise DataMissing(f"{path}: expected 0, 9, 24 or 45 fields f_rest_0, f_rest_1, …, got {len(rest)}: {rest[:4]}")
    wanted = [name for name in fields_of_splats() if not name.startswith(("n", "f_rest_"))]
    if absent := [name for name in wanted if name not in table]:
        raise DataMissing(
            f"{path}: expected the fields of 3DGS, without {absent}; the file has {sorted(table)[:12]}. A point cloud "
            "is read as a scene's points, not as splats"
        )
    n = len(table["x"])
    if n == 0:
        raise DataMissing(f"{path}: expected at least one splat, got none")

    def columns(*names: str) -> np.ndarray:
        return np.stack([table[name] for name in names], axis=1).astype(np.float32)

    harmonics = np.zeros((n, 15, 3), np.float32)
    if rest:
        harmonics[:, : len(rest) // 3] = columns(*rest).reshape(n, 3, -1).transpose(0, 2, 1)
    found = {
        POSITIONS: columns("x", "y", "z"),
        COLORS: columns("f_dc_0", "f_dc_1", "f_dc_2"),
        HARMONICS: harmonics,
        OPACITIES: table["opacity"].astype(np.float32),
        SCALES: columns("scale_0", "scale_1", "scale_2"),
        ROTATIONS: columns("rot_0", "rot_1", "rot_2", "rot_3"),
    }
    check_splats(found, str(path))
    return found


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions (n, 3) and colours (n, 3) in [0, 1] of a point cloud; grey where it has no colours.

    Raises:
        DataMissing: the file is absent, no PLY file, cut short, or has no positions.
    """
    table = read_vertices(path)
    if absent := [name for name in "xyz" if name not in table]:
        raise DataMissing(f"{path}: expected vertices with x, y and z, without {absent}")
    points = np.stack([table[name] for name in "xyz"], axis=1).astype(np.float32)
    names = ("red", "green", "blue")
    if not all(name in table for name in names):
        return points, np.full_like(points, 0.5)
    colors = np.stack([table[name] for name in names], axis=1)
    whole = colors.dtype.kind in "iu"
    return points, (colors / 255 if whole else colors).astype(np.float32)


def read_vertices(path: Path) -> dict[str, np.ndarray]:
    """Return the vertices of a PLY file, (n,) for each field.

    Raises:
        DataMissing: the file is absent, no PLY file, or cut short.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise DataMissing(f"{path}: expected a PLY file: {exc.strerror}") from exc
    head, mark, body = content[:_HEADER_BYTES].partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    if not mark or not lines or lines[0] != ["ply"]:
        raise DataMissing(f"{path}: expected a PLY file with its header within {_HEADER_BYTES} bytes")
    style = next((line[1] for line in lines if line[0:1] == ["format"] and len(line) > 1), "")
    if style not in _ORDER:
        raise DataMissing(f"{path}: expected a format of {sorted(_ORDER)}, got {style!r}")
    count, fields = _vertex_fields(path, lines, _ORDER[style])
    body = content[len(head) + len(mark) :]
    if style == "ascii":
        return _ascii(path, body, count, fields)
    dtype = np.dtype(fields)
    if len(body) < count * dtype.itemsize:
        raise DataMissing(f"{path}: expected {count} vertices of {dtype.itemsize} bytes, got {len(body)} bytes")
    table = np.frombuffer(body, dtype, count)
    return {name: table[name].astype(table[name].dtype.newbyteorder("=")) for name, _ in fields}


def _vertex_fields(path: Path, lines: list[list[str]], order: str) -> tuple[int, list[tuple[str, str]]]:
    elements = [line for line in lines if line[0:1] == ["element"]]
    if not elements or len(elements[0]) != 3 or elements[0][1] != "vertex" or not elements[0][2].isdecimal():
        raise DataMissing(f"{path}: expected vertices as its first element, got {elements[:1]}")
    first = lines.index(elements[0]) + 1
    stop = lines.index(elements[1]) if len(elements) > 1 else len(lines)
    fields = list[tuple[str, str]]()
    for line in lines[first:stop]:
        if line[0:1] != ["property"]:
            continue
        if len(line) != 3 or line[1] not in _TYPES:
            raise DataMissing(f"{path}: expected numbers as a vertex's properties, got {' '.join(line)!r}")
        fields.append((line[2], order + _TYPES[line[1]]))
    names = [name for name, _ in fields]
    if not names or len(set(names)) < len(names):
        raise DataMissing(f"{path}: expected distinct properties of vertices, got {names}")
    return int(elements[0][2]), fields


def _ascii(path: Path, body: bytes, count: int, fields: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    words = body.split()[: count * len(fields)]
    try:
        table = np.array(words, float).reshape(count, len(fields))
    except ValueError as exc:
        raise DataMissing(f"{path}: expected {count} vertices of {len(fields)} numbers: {exc}") from exc
    return {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(fields)}
