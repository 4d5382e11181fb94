"""Tables in files, checked where they are read: what cannot be meant is rejected with the path and the row.

Rows are counted from 1, without the header and lines without a value.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.extras import needed_by
from fedloom.workloads._data.labels import class_name
from fedloom.workloads._data.tables import check_header, encoding_of
from fedloom.workloads.torch.config import Csv, Parquet

if TYPE_CHECKING:
    import pandas as pd

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")


def read_frame(settings: Csv | Parquet, path: Path) -> pd.DataFrame:
    """Return a table file as a frame.

    Raises:
        DataMissing: it cannot be read, columns are missing, without a name, or of one name, or a cell is no value.
    """
    with needed_by(f"workload.data.source = {settings.source!r}"):
        import pandas as pd
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = _csv(settings, path) if isinstance(settings, Csv) else pd.read_parquet(path)
    except (ValueError, OSError, LookupError, pd.errors.ParserWarning) as exc:
        raise DataMissing(f"{path}: not a {settings.source} file that can be read: {exc}") from exc
    if not len(frame):
        raise DataMissing(f"{path}: no rows")
    labels = _labels(settings)
    for name in settings.features or [each for each in frame.columns if each not in labels]:
        if name in frame.columns:
            _check_numbers(frame[name], str(name), path)
    return frame


def _labels(settings: Csv | Parquet) -> tuple[str, ...]:
    return (settings.label,) if isinstance(settings.label, str) else settings.label


def _csv(settings: Csv, path: Path) -> pd.DataFrame:
    import pandas as pd

    encoding = "utf-8-sig" if path.suffix in _COMPRESSED else encoding_of(path, settings.encoding)
    labels, lines = _labels(settings), {"sep": settings.delimiter, "encoding": encoding}
    first = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **lines)
    header = [name.strip() for name in first.iloc[0]]
    check_header(path, header, [*labels, *settings.features], settings.delimiter)
    frame = pd.read_csv(path, index_col=False, decimal=settings.decimal, **lines)
    frame.columns = pd.Index(header)
    used = _used(frame, settings, path)
    for name in labels:
        if frame[name].dtype.kind not in "biu":
            texts = pd.read_csv(path, index_col=False, dtype=str, keep_default_na=False, **lines)
            frame[name] = _label_column(frame[name], texts.iloc[:, header.index(name)], name, path)
    return frame[used]


def _used(frame: pd.DataFrame, settings: Csv, path: Path) -> list[str]:
    """Return the columns that are used, without empty ones without a name, which a last delimiter makes."""
    header = list(frame.columns)
    empty = [n for n, name in enumerate(header) if not name and frame.iloc[:, n].isna().all()]
    names = [name for n, name in enumerate(header) if n not in empty]
    used = [*settings.features, *_labels(settings)] if settings.features else names
    for name in used:
        if not name:
            raise DataMissing(
                f"{path}, line 1: column {header.index('') + 1} has no name. Is it the index of a frame? Write the "
                "table with index=False, give the column a name, or name those to use in workload.data.features"
            )
        if used.count(name) > 1:
            raise DataMissing(
                f"{path}, line 1: {used.count(name)} columns are named {name!r}, expected names that differ"
            )
    return used


def _label_column(values: pd.Series, texts: pd.Series, name: str, path: Path) -> pd.Series:
    """Return a column of labels: numbers, or text as it is written, without surrounding blanks."""
    blank = np.flatnonzero(~texts.str.strip().astype(bool))
    if len(blank):
        raise DataMissing(f"{path}, row {blank[0] + 1}: no value in column {name!r}. Remove the row, or fill it in")
    if values.dtype.kind == "f":
        _check_numbers(values, name, path)
        return values
    odd = np.flatnonzero(texts.str.contains("\0", regex=False))
    if len(odd):
        raise DataMissing(f"{path}, row {odd[0] + 1}: a zero byte in column {name!r}. Set workload.data.encoding")
    return texts.map(class_name)


def _check_numbers(column: pd.Series | pd.DataFrame, name: str, path: Path) -> None:
    """Raise `DataMissing` for a cell that is no finite number; what is no column of cells is judged later."""
    import pandas as pd

    if isinstance(column, pd.DataFrame) or column.dtype.kind in "biuM":
        return
    if column.dtype.kind == "f":
        odd = np.flatnonzero(~np.isfinite(column.to_numpy(dtype=np.float64)))
        what = "a missing or infinite value"
    else:
        odd = np.flatnonzero(pd.to_numeric(column, errors="coerce").isna())
        what = f"{column.iloc[odd[0]]!r}"[:80] if len(odd) else ""
    if len(odd):
        comma = bool(_DECIMAL_COMMA.fullmatch(str(column.iloc[odd[0]])))
        advice = 'Set workload.data.decimal = ","' if comma else "Correct or remove it, or leave the column out"
        raise DataMissing(f"{path}, row {odd[0] + 1}, column {name!r}: {what}, expected a number. {advice}")
