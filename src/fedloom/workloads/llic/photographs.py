"""The photographs: bundled ones, Debian's wallpapers, folders of the user's own. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing, UsageError
from fedloom.core.extras import needed_by
from fedloom.core.records import Array, Info
from fedloom.workloads._data import cache
from fedloom.workloads.llic.config import Folders, ImageSource, Photographs
from fedloom.workloads.llic.pixels import read_pixels

_SKIMAGE = ("skimage", "scikit-image", "data")
_SKLEARN = ("sklearn", "scikit-learn", "datasets/images")
_TRAIN = (
    (_SKLEARN, "flower.jpg", "nature"),
    *((_SKIMAGE, f"{name}.png", "scenes") for name in ("motorcycle_left", "motorcycle_right", "camera", "coins")),
    *((_SKIMAGE, f"{name}.png", "textures") for name in ("brick", "grass", "gravel")),
    *((_SKIMAGE, name, "science") for name in ("hubble_deep_field.jpg", "retina.jpg", "ihc.png", "moon.png")),
)
_TEST = (
    *((_SKIMAGE, name, "scenes") for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")),
    (_SKLEARN, "china.jpg", "scenes"),
)
_WALLPAPERS = (Path("/usr/share/backgrounds/mate/nature"), Path("/usr/share/backgrounds"))
_NO_PHOTOGRAPHS = ("analogpattern", "umang")
"""Drawings among Debian's wallpapers."""
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
_LEAST = 16
"""Shorter sides of training photographs are at least this; pixels."""
_HELD_OUT = 5
"""Every so many photographs of a folder are held out."""


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph."""

    name: str
    kind: str
    rgb: Array = field(repr=False)
    """(H, W, 3), uint8."""


@dataclass(frozen=True, slots=True)
class Album:
    """Photographs for training and held-out ones."""

    train: tuple[Photograph, ...]
    test: tuple[Photograph, ...]
    info: Info

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of image in training, sorted."""
        return tuple(sorted({each.kind for each in self.train}))

    @property
    def sha256(self) -> str:
        """Return a digest of all pixels."""
        parts = [[each.name, each.kind, hashlib.sha256(each.rgb.tobytes()).hexdigest()] for each in self._all()]
        return cache.digest_of(parts)

    def _all(self) -> Iterator[Photograph]:
        yield from self.train
        yield from self.test


def load_album(source: ImageSource) -> Album:
    """Return the photographs that a source describes.

    Raises:
        DataMissing: a package or folder is missing, there is no photograph, or one cannot be read.
    """
    with needed_by("workload 'llic'"):
        import PIL  # noqa: F401  # now rather than at the first file
    return _bundled(source) if isinstance(source, Photographs) else _own(source)


def _bundled(source: Photographs) -> Album:
    train = [
        _halved(_photograph(_packaged(package, name), kind, source.longest), name) for package, name, kind in _TRAIN
    ]
    extra = _wallpapers() if source.wallpapers else []
    train += [_photograph(path, "nature", source.longest) for path in extra]
    test = [_halved(_photograph(_packaged(package, name), kind, None), name) for package, name, kind in _TEST]
    info: Info = {
        "name": "photographs that come with scikit-image and scikit-learn"
        + (f", and {len(extra)} of Debian's wallpapers" if extra else ""),
        "kind": "real",
        "licence": "CC0, public domain, CC BY (per file)",
        "held_out": [each.name for each in test],
    }
    return Album(tuple(train), tuple(test), info)


def _halved(photograph: Photograph, name: str) -> Photograph:
    """Return a photograph of a JPEG file at half its size, without the file's traces of compression."""
    if not name.endswith(".jpg"):
        return photograph
    return replace(photograph, rgb=_shrunk(photograph.rgb, max(photograph.rgb.shape[:2]) // 2))


def _packaged(package: tuple[str, str, str], name: str) -> Path:
    """Return a file inside an installed package, found without importing it."""
    module, title, folder = package
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = Path(places[0], folder, name) if places else Path()
    if not path.is_file():
        raise DataMissing(
            f"workload.data: {name!r} comes with {title}, which is not installed here, or has no such file: "
            f'pip install {title}. Or name photographs of your own: workload.data.source = "folders"'
        )
    return path


def _wallpapers() -> list[Path]:
    mate, lomiri = _WALLPAPERS
    found = [*_files(mate), *(path for path in _files(lomiri, deep=False) if path.suffix == ".jpg")]
    return [path for path in found if not any(word in path.name.lower() for word in _NO_PHOTOGRAPHS)]


def _files(folder: Path, *, deep: bool = True) -> list[Path]:
    """Return the pictures in a folder, in order of names."""
    if not folder.is_dir():
        return []
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in _PICTURES and path.is_file())


def _own(source: Folders) -> Album:
    root = Path(source.train_folder)
    paths = _found(root, "workload.data.train_folder")
    if source.test_folder is None:
        if len(paths) < 2:
            raise DataMissing(
                f"{root}: expected at least two photographs, one of them to be held out, got {len(paths)}. Add some, "
                "or set workload.data.test_folder"
            )
        held = paths[_HELD_OUT - 1 :: _HELD_OUT] or paths[-1:]
        test = [(path, root) for path in held]
        paths = [path for path in paths if path not in held]
    else:
        folder = Path(source.test_folder)
        test = [(path, folder) for path in _found(folder, "workload.data.test_folder")]
        own = {path.resolve() for path, _ in test}
        paths = [path for path in paths if path.resolve() not in own]
        if not paths:
            raise DataMissing(f"workload.data.train_folder: every photograph of {str(root)!r} is held out, too")
    kinds = {path: path.relative_to(root).parts[0] if path.parent != root else "photographs" for path in paths}
    album = Album(
        tuple(_photograph(path, kinds[path], source.longest, root) for path in paths),
        tuple(_photograph(path, "held out", source.test_longest, folder) for path, folder in test),
        {"name": f"{len(paths)} photographs of folders", "kind": "real", "licence": None},
    )
    return album


def _found(folder: Path, setting: str) -> list[Path]:
    if not folder.is_dir():
        raise DataMissing(f"{setting}: expected a folder with photographs, but {str(folder)!r} is none")
    paths = _files(folder)
    if not paths:
        raise DataMissing(
            f"{setting}: {str(folder)!r} has no photograph; expected files with the endings {', '.join(_PICTURES)}"
        )
    return paths


def _photograph(path: Path, kind: str, longest: int | None, root: Path | None = None) -> Photograph:
    try:
        rgb = read_pixels(path).rgb
    except UsageError as exc:
        raise DataMissing(f"workload.data: {exc}") from exc
    if min(rgb.shape[:2]) < _LEAST and longest is not None:
        raise DataMissing(
            f"workload.data: {path}: expected sides of at least {_LEAST} pixels for training, got "
            f"{rgb.shape[0]} x {rgb.shape[1]}"
        )
    return Photograph(path.stem if root is None else str(path.relative_to(root)), kind, _shrunk(rgb, longest))


def _shrunk(rgb: Array, longest: int | None) -> Array:
    """Return an image whose longer side is at most `longest`, in its proportions."""
    height, width = rgb.shape[:2]
    if longest is None or max(height, width) <= longest:
        return rgb
    from PIL import Image

    share = longest / max(height, width)
    size = max(round(width * share), 1), max(round(height * share), 1)
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)).copy()
