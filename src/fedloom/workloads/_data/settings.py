"""Settings of sources of images, and what sources of any examples share, without heavy imports."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import ColumnName, DataPath, FileName, FreeText, HubName, PlainWord

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Layout = Literal["hwc", "chw"]
"""Axes of an image: height, width, channels, or channels first."""
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Folder of the files of Debian's package `dataset-fashion-mnist`."""


class Digits(Settings):
    """The 1,797 handwritten digits (8 x 8, ten classes) that ship inside scikit-learn: always there."""

    source: Literal["digits"] = "digits"


class Available(Settings):
    """Fashion-MNIST if Debian's package is installed, otherwise the digits. The run's provenance records which."""

    source: Literal["available"] = "available"


class LocalData(Settings):
    """Facts about a user's own data that its files do not contain."""

    title: FreeText | None = None
    """Name of the data for people; by default the file's or folder's name."""
    kind: Literal["real", "rendered", "synthetic"] = "real"
    """Description of the examples, for the run's provenance."""
    licence: FreeText | None = None
    """Licence of the data, for the provenance."""


class Labelled(LocalData):
    """Examples with classes."""

    classes: Annotated[tuple[FreeText | int, ...], Field(min_length=2)] | Literal["union"] | None = None
    """The classes in the order of their numbers, the same for every site; None numbers those of the data, in
    sorted order. Any other label is rejected. `union`: where clients are sites, those of all sites together, as their
    policies name them; otherwise as None."""

    @pydantic.model_validator(mode="after")
    def _classes_differ(self) -> Self:
        names = [str(name).strip() for name in self.fixed_classes or ()]
        twice = next((name for name in names if not name or names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"workload.data.classes: {twice!r} is empty or named twice")
        return self

    @property
    def fixed_classes(self) -> tuple[str | int, ...] | None:
        """Return the classes that are given; None if those of the data are taken."""
        return None if isinstance(self.classes, str) else self.classes


class LocalImages(Labelled):
    """Facts about images that image files do not contain."""

    value_range: tuple[float, float] | None = None
    """Values that are black and white, such as [0, 4095]; None takes the depth of each file or array. Integers of 32
    bits, and floats outside 0 to 1 in picture files, need it."""

    mean: tuple[float, ...] | None = None
    """What is taken from every pixel, one value per channel, black being 0 and white 1; None takes the mean of the
    training images. Sites that have images of their own need one for all."""
    std: tuple[Annotated[float, Field(gt=0.0)], ...] | None = None
    """What every pixel is divided by after that, one value per channel; set together with `mean`."""

    @pydantic.model_validator(mode="after")
    def _has_both_moments(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ConfigError(
                "workload.data.mean and workload.data.std: expected both, with one value per channel each"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _has_width(self) -> Self:
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high)) or low == high:
                raise ConfigError(f"workload.data.value_range: [{low:g}, {high:g}], expected two different numbers")
        return self


class Idx(LocalImages):
    """A folder of four IDX files with MNIST's names (`train-images-idx3-ubyte`, …), plain or `.gz`."""

    source: Literal["idx"] = "idx"
    folder: DataPath = FASHION_MNIST
    """Folder of the four files."""


class Cifar10(Settings):
    """CIFAR-10 in the files it is published in: the binary version (`.bin`), or the Python version."""

    source: Literal["cifar10"] = "cifar10"
    folder: DataPath
    """Unpacked folder with `data_batch_1` to `data_batch_5` and `test_batch`."""


class Stl10(Settings):
    """STL-10 in its binary version; the unlabelled images are not read."""

    source: Literal["stl10"] = "stl10"
    folder: DataPath
    """Unpacked folder with `train_X.bin`, `train_y.bin`, `test_X.bin` and `test_y.bin`."""


class Svhn(Settings):
    """Street View House Numbers, cropped digits; the extra training set is not read."""

    source: Literal["svhn"] = "svhn"
    folder: DataPath
    """Folder with `train_32x32.mat` and `test_32x32.mat`."""


class Images(LocalImages):
    """Image files in one folder per class, below `train/` and `test/` if those exist."""

    source: Literal["images"] = "images"
    folder: DataPath
    """Folder of class folders, or of `train/` and `test/`."""
    train_folder: FileName = "train"
    """Folder of the class folders for training; without it, they are in `folder` itself."""
    test_folder: FileName = "test"
    """Folder of the held-out class folders, next to `train_folder`."""
    size: Annotated[int, Field(ge=4)] = 32
    """Side every image is resized to; pixels."""
    channels: Literal[1, 3] = 3
    """1 reads grey, 3 reads colour."""
    frames: Literal["one", "first"] = "one"
    """`one` rejects a file of several frames or pages; `first` reads the first of each."""
    test_fraction: Fraction = 0.2
    """Fraction held out if there is no `test/` folder."""


class Npz(LocalImages):
    """A NumPy archive with images and labels for training, and a test set if there is one.

    Images are (n, h, w), (n, h, w, c) with c in 1, 3, 4, or (n, c, h, w); booleans, uint8 (scaled by 1/255), uint16
    (by 1/65535), floats (as they are), or any integers with a `value_range`.
    """

    source: Literal["npz"] = "npz"
    file: DataPath
    """The `.npz` file."""
    layout: Layout | None = None
    """Axes of an image: `hwc` has channels last, `chw` first; None infers it if the sizes are unambiguous."""
    train_images: ColumnName = "x_train"
    """Array of the training images."""
    train_labels: ColumnName = "y_train"
    """Array of their classes: integers, text, or one-hot rows."""
    test_images: ColumnName = "x_test"
    """Array of the held-out images."""
    test_labels: ColumnName = "y_test"
    """Array of their classes."""
    train_groups: ColumnName = "groups_train"
    """Array of the `natural` partition (a user, a writer, a patient); optional."""
    test_fraction: Fraction = 0.2
    """Fraction held out if there is no `x_test`."""


class HubData(Labelled):
    """A data set in Hugging Face's form: on disk, or by name if there is a network."""

    source: Literal["huggingface"] = "huggingface"
    dataset: HubName
    """Folder written by `save_to_disk`, a `.parquet` file or a folder of them, or a name on the hub."""
    subset: PlainWord | None = None
    """Configuration of a data set on the hub, if it has several."""
    train_split: PlainWord = "train"
    """Split that is partitioned among the clients."""
    test_split: PlainWord | None = "test"
    """Split that is held out; if it does not exist, `test_fraction` of the training split is."""
    test_fraction: Fraction = 0.2
    """Fraction held out if there is no test split."""
    label_column: ColumnName = "label"
    """Column of the classes: integers or strings."""
    group_column: ColumnName | None = None
    """Column of the `natural` partition (a user, a writer, a topic)."""


class HubImages(HubData, LocalImages):
    """Images of a Hugging Face data set."""

    image_column: ColumnName = "image"
    """Column of the images."""
    size: Annotated[int, Field(ge=4)] | None = None
    """Side every image is resized to, pixels; None leaves them unchanged, and they must be equal."""
    channels: Literal[1, 3] = 3
    """1 reads grey, 3 reads colour."""
    frames: Literal["one", "first"] = "one"
    """`one` rejects a file of several frames or pages; `first` reads the first of each."""


ImageSource = Annotated[
    Digits | Available | Idx | Cifar10 | Stl10 | Svhn | Images | Npz | HubImages, Field(discriminator="source")
]
