"""Tables in files for the workload `torch`: read as they are meant, or rejected with the path and the row."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.protocols import WorkloadInfo
from fedloom.workloads.torch.table_files import read_frame
from fedloom.workloads.torch.workload import build_workload

HEADER = "x,y,label\n"
ROWS = "".join(f"{i},{i * 0.5},{'ab'[i % 2]}\n" for i in range(20))
PLAIN = HEADER + ROWS


def experiment(file: Path, source: str, **data: object) -> Experiment:
    workload = {"name": "torch", "model": "logistic", "data": {"source": source, "file": str(file), **data}}
    return Experiment.parse({"name": "x", "rounds": 1, "clients": 2, "strategy": "fedavg", "workload": workload})


def read(file: Path, source: str = "csv", **data: object) -> WorkloadInfo:
    made = experiment(file, source, **data)
    return build_workload(made.workload, made).describe()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        (PLAIN.encode(), {}),
        (b"\xef\xbb\xbf" + PLAIN.encode(), {}),
        (PLAIN.encode("utf-16"), {}),
        (PLAIN.encode("utf-32"), {}),
        (PLAIN.replace("label", "Größe").encode("latin-1"), {"encoding": "latin-1", "label": "Größe"}),
        (PLAIN.replace("\n", "\r\n").encode(), {}),
        (PLAIN.replace("\n", "\r").encode(), {}),
        (PLAIN.replace("\n", "\n\n").encode(), {}),
        (PLAIN.replace("\n", ",\n").encode(), {}),
        (PLAIN.replace("x,y", " x ,  y").encode(), {}),
        (PLAIN.replace(",", "\t").encode(), {"delimiter": "\t"}),
        (PLAIN.replace(",", ";").replace(".", ",").encode(), {"delimiter": ";", "decimal": ","}),
        (pd.read_csv(io.StringIO(PLAIN)).to_csv(quoting=csv.QUOTE_ALL).encode(), {"features": ["x", "y"]}),
    ],
    ids=[
        "plain", "mark", "utf-16", "utf-32", "latin-1", "crlf", "cr", "empty lines", "last delimiter", "blanks", "tabs",
        "decimal comma", "index and quotes",
    ],
)  # fmt: skip
def test_one_table_written_in_many_ways(tmp_path: Path, content: bytes, settings: dict[str, object]) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    made = experiment(file, "csv", **settings)
    frame = read_frame(made.workload.data, file)  # type: ignore[attr-defined]
    assert frame.iloc[:, 0].tolist() == list(range(20)) and frame.iloc[:, 1].tolist() == [i * 0.5 for i in range(20)]
    assert frame.iloc[:, 2].tolist() == list("ab" * 10)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PLAIN.replace(",", ";"), r"line 1: no column 'label'.*Is the delimiter ';'"),
        (PLAIN.replace("x,y", "x,x"), r"line 1: 2 columns are named 'x'"),
        (PLAIN.replace("x,y", "x,"), r"line 1: column 2 has no name.*index=False"),
        (PLAIN + "1,2\n", r"row 21: no value in column 'label'"),
        (PLAIN + "1,2, \n", r"row 21: no value in column 'label'"),
        (PLAIN + "1,2,a,4\n", r"Expected 3 fields in line 22, saw 4"),
        (HEADER + ROWS.replace("\n", ",9\n"), r"not a csv file that can be read"),
        (PLAIN + ",2,a\n", r"row 21, column 'x': a missing or infinite value"),
        (PLAIN + "1,inf,a\n", r"row 21, column 'y': a missing or infinite value"),
        (PLAIN + "50%,2,a\n", r"row 21, column 'x': '50%', expected a number"),
        (PLAIN.replace(",", ";").replace(".", ",").replace(";", "\t"), r"no column 'label'.*Is the delimiter '\\t'"),
        (HEADER, r"no rows"),
        ("", r"No columns to parse"),
        (ROWS, r"line 1: no column 'label', only 0, 0.0, a"),
        ("sep=,\n" + PLAIN, r"a spreadsheet's note of the delimiter"),
        ("PK\x03\x04" + PLAIN, r"a spreadsheet or another zip archive"),
        (PLAIN + "1,2,\0\n", r"row 21: a zero byte"),
        (PLAIN + "1,2,\udce9\n", r"can't decode byte 0xe9"),
    ],
)
def test_what_cannot_be_meant_is_rejected_with_its_place(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataMissing, match=said) as caught:
        read(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("labels", "names", "remark"),
    [
        (["a", " a ", "b", "b"], ("a", "b"), ""),
        (["a", "A", "b", "b"], ("A", "a", "b"), "may be one class"),
        (["\u00e9", "e\u0301", "b", "b"], ("b", "\u00e9"), ""),
        (["NA", "a", "b", "b"], ("NA", "a", "b"), "may be examples without label"),
        (["1", "2", "3", "3"], ("0", "1", "2", "3"), "no example of the classes 0"),
        (["a", "a", "a", "a"], ("a",), "all examples are of one class, 'a'"),
        ([str(2**70), str(2**70 + 1)] * 2, (str(2**70), str(2**70 + 1)), ""),
    ],
)
def test_classes_are_those_that_are_written(
    tmp_path: Path, labels: list[str], names: tuple[str, ...], remark: str
) -> None:
    (tmp_path / "t.csv").write_text(
        HEADER + "".join(f"{i},{i},{label}\n" for i, label in enumerate(labels * 5)), encoding="utf-8"
    )
    info = read(tmp_path / "t.csv")
    assert tuple(info.label_names or ()) == names
    assert remark in " ".join(map(str, info.data["remarks"]))


def test_negative_classes_are_refused_for_a_model_of_fedloom(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEADER + "".join(f"{i},{i},{i % 2 * 2 - 1}\n" for i in range(20)), encoding="utf-8")
    with pytest.raises(ConfigError, match="labels from -1 to 1, expected classes from 0"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([None, *[1.0] * 19], "row 1, column 'x': a missing or infinite value"),
        ([{"a": 1.0}] * 20, "row 1, column 'x': {'a': 1.0}, expected a number"),
        ([[1.0, 2.0]] * 20, "row 1, column 'x'"),
        ([pd.Timestamp("2020-01-01")] * 20, "column 'x' has dtype datetime64"),
    ],
)
def test_cells_of_parquet_that_are_no_numbers(tmp_path: Path, column: list[object], said: str) -> None:
    file = tmp_path / "t.parquet"
    pd.DataFrame({"x": column, "label": list("ab" * 10)}).to_parquet(file)
    with pytest.raises(DataMissing, match=said) as caught:
        read(file, "parquet")
    assert str(caught.value).startswith(str(file))


def test_numbers_of_every_width_are_read(tmp_path: Path) -> None:
    columns = {
        "a": np.arange(20, dtype=np.uint64) + 2**40,
        "b": np.arange(20).astype(np.float16),
        "c": [True, False] * 10,
    }
    pd.DataFrame({**columns, "label": pd.Categorical(list("ab" * 10))}).to_parquet(tmp_path / "t.parquet")
    info = read(tmp_path / "t.parquet", "parquet")
    assert tuple(info.label_names or ()) == ("a", "b") and info.data["num_train"] == 16


def test_examples_that_the_partition_gives_to_nobody_are_said_to_be_left_out(tmp_path: Path) -> None:
    """16 training examples in 3 shards of equal size, 5 each."""
    (tmp_path / "t.csv").write_text(PLAIN, encoding="utf-8")
    made = experiment(tmp_path / "t.csv", "csv").override(
        ["clients=3", "workload.partition.scheme=shards", "workload.partition.shards_per_client=1"]
    )
    info = build_workload(made.workload, made).describe()  # type: ignore[arg-type]
    assert list(info.client_sizes) == [5, 5, 5]
    assert info.data["left_out"] == ["1 training example that workload.partition.scheme = 'shards' gives to no client"]
