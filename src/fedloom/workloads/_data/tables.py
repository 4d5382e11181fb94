"""Tables of texts: CSV and JSON lines, each row with its line, or rejected with it."""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedloom.core.errors import DataMissing
from fedloom.core.records import JsonObject
from fedloom.workloads._data.raw import RawData, existing, title_of
from fedloom.workloads._data.text_settings import Csv, TextTable

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = (
    (b"PK\x03\x04", "a spreadsheet or another zip archive: save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet: save it as CSV"),
    (b"\x1f\x8b", "compressed with gzip: unpack it"),
    (b"BZh", "compressed with bzip2: unpack it"),
    (b"\xfd7zXZ", "compressed with xz: unpack it"),
    (b"PAR1", 'a Parquet file: set workload.data.source = "huggingface" and workload.data.dataset'),
    (b"SQLite", "a database: export the table"),
)
"""Starts of files that are no text, and what they are."""
_DELIMITERS = (";", "\t", "|", ",")
_SHOWN = 10

Rows = Iterator[tuple[int, JsonObject]]


def table_files(settings: TextTable) -> list[tuple[str, Path]]:
    """Return the training table, and the test table if there is one."""
    remedy = "Set workload.data.file to a table with a text and a label in each row"
    found = []
    for path in (settings.file, settings.test_file):
        if path is not None:
            place = existing(path, "workload.data", remedy)
            if not place.is_file():
                what = "a folder" if place.is_dir() else "a device or a pipe"
                raise DataMissing(f"workload.data: {str(place)!r} is {what}, expected a file. {remedy}")
            found.append((place.name, place))
    return found


def read_table(settings: TextTable, files: list[tuple[str, Path]]) -> RawData[list[str]]:
    """Return the columns of a CSV or JSON-lines table.

    Raises:
        DataMissing: a column or cell is missing, a line is broken, or the encoding is another; the message names it.
    """
    columns = [settings.text_column, settings.label_column]
    grouped = [settings.group_column] if settings.group_column else []
    texts, labels, *groups = _columns(settings, files[0][1], [*columns, *grouped])
    test = _columns(settings, files[1][1], columns) if len(files) > 1 else None
    return RawData(
        x_train=[str(text) for text in texts],
        y_train=labels,
        x_test=None if test is None else [str(text) for text in test[0]],
        y_test=None if test is None else test[1],
        test_fraction=settings.test_fraction,
        groups=groups[0] if groups else None,
        where=", ".join(str(path) for _, path in files),
        title=title_of(settings, settings.file),
        kind=settings.kind,
        licence=settings.licence,
    )


def _columns(settings: TextTable, path: Path, wanted: Sequence[str]) -> list[list[object]]:
    rows = _csv_rows(path, settings, wanted) if isinstance(settings, Csv) else _json_rows(path, settings, wanted)
    columns: list[list[object]] = [[] for _ in wanted]
    for line, row in rows:
        for name, column in zip(wanted, columns, strict=True):
            value = row[name]
            if value is None or (isinstance(value, str) and not value.strip()):
                raise DataMissing(f"{path}, line {line}: no value in column {name!r}. Remove the row, or fill it in")
            if name == settings.text_column and (isinstance(value, bool) or not isinstance(value, str | int | float)):
                raise DataMissing(f"{path}, line {line}: column {name!r} is a {type(value).__name__}, expected text")
            column.append(value)
    if not columns[0]:
        raise DataMissing(f"{path}: no rows")
    return columns


def encoding_of(path: Path, given: str | None) -> str:
    """Return the encoding set, otherwise that of the file's byte-order mark, otherwise UTF-8.

    Raises:
        DataMissing: the file is no text.
    """
    with path.open("rb") as file:
        start = file.read(8)
    for mark, what in _NO_TEXT:
        if start.startswith(mark):
            raise DataMissing(f"{path}: no table of text, but {what}")
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    return marked if given in (None, "utf-8") else str(given)


def _csv_rows(path: Path, settings: Csv, wanted: Sequence[str]) -> Rows:
    csv.field_size_limit(sys.maxsize)  # cells may hold whole documents
    encoding = encoding_of(path, settings.encoding)
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(file, delimiter=settings.delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            check_header(path, header, wanted, settings.delimiter)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue  # spreadsheets end in lines without a value
                if len(cells) != len(header):
                    raise DataMissing(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, expected {len(header)} as in the header. "
                        f"A {settings.delimiter!r} or a line break inside a text must be in quotes"
                    )
                if any("\0" in cell for cell in cells):
                    raise DataMissing(f"{path}, line {reader.line_num}: a zero byte. {_SET_ENCODING}")
                yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as exc:
            raise DataMissing(f"{path}, line {reader.line_num}: not CSV: {exc}. Are all quotes closed?") from exc
        except UnicodeDecodeError as exc:
            raise _undecoded(path, reader.line_num, encoding, exc) from exc


_SET_ENCODING = 'Set workload.data.encoding to the file\'s, such as "latin-1", "cp1252" or "utf-16"'


def _undecoded(path: Path, line: int, encoding: str, exc: UnicodeDecodeError) -> DataMissing:
    byte = exc.object[exc.start : exc.start + 1].hex()
    return DataMissing(f"{path}, after line {line}: byte 0x{byte} is not {encoding} ({exc.reason}). {_SET_ENCODING}")


def check_header(path: Path, header: Sequence[str], wanted: Sequence[str], delimiter: str) -> None:
    """Check the names of a table's columns.

    Raises:
        DataMissing: one of those that are wanted is missing or there twice, or the line is no header.
    """
    if not header:
        raise DataMissing(f"{path}: the file is empty; expected a header line with {', '.join(wanted)}")
    if any("\0" in name for name in header):
        raise DataMissing(f"{path}, line 1: a zero byte. {_SET_ENCODING}")
    if header[0].lower().startswith("sep="):
        raise DataMissing(
            f"{path}, line 1: {header[0]!r} is a spreadsheet's note of the delimiter, expected the names of the "
            "columns. Remove the line, and set workload.data.delimiter"
        )
    for name in wanted:
        if name in header and header.count(name) > 1:
            raise DataMissing(f"{path}: {header.count(name)} columns are named {name!r}. Rename all but one")
        if name not in header:
            other = next((each for each in _DELIMITERS if each != delimiter and each in header[0]), None)
            hint = f". Is the delimiter {other!r}? Set workload.data.delimiter" if len(header) == 1 and other else ""
            raise _no_column(path, 1, name, header, hint)


def _no_column(path: Path, line: int, name: str, found: Sequence[str], hint: str = "") -> DataMissing:
    shown = ", ".join(repr(column)[1:-1] for column in found[:_SHOWN]) or "nothing"
    advice = hint or ". Name it in workload.data (label, text_column, …)"
    return DataMissing(f"{path}, line {line}: no column {name!r}, only {shown}{advice}")


def _json_rows(path: Path, settings: TextTable, wanted: Sequence[str]) -> Rows:
    encoding = encoding_of(path, settings.encoding)
    number = 0
    with path.open(encoding=encoding) as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = _json_row(path, number, line)
                missing = next((name for name in wanted if name not in row), None)
                if missing is not None:
                    raise _no_column(path, number, missing, [*row])
                yield number, row
        except UnicodeDecodeError as exc:
            raise _undecoded(path, number, encoding, exc) from exc


def _json_row(path: Path, number: int, line: str) -> JsonObject:
    try:
        row = json.loads(line, object_pairs_hook=_without_copies)
    except (ValueError, RecursionError) as exc:
        raise DataMissing(f"{path}, line {number}: not JSON: {exc}. Expected one object per line") from exc
    if not isinstance(row, dict):
        raise DataMissing(f"{path}, line {number}: expected an object, got {type(row).__name__}")
    return row


def _without_copies(pairs: list[tuple[str, object]]) -> JsonObject:
    """Return a JSON object; one that has a name twice is an error, since one of the values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} is there twice")
    return found
