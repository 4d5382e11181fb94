"""Data read as it is meant, or rejected with its path: one check behind every source."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.checked import Examples, checked
from fedloom.workloads._data.images import ImageData, load_images
from fedloom.workloads._data.settings import Images, Npz
from fedloom.workloads._data.tables import read_table, table_files
from fedloom.workloads._data.text_settings import Csv, HubText, JsonLines, TextTable

X = np.random.Generator(np.random.PCG64(2)).integers(0, 256, (20, 5, 5)).astype(np.uint8)
Y = np.arange(20) % 2


def archive(folder: Path, settings: dict[str, Any] | None = None, **arrays: Any) -> ImageData:
    np.savez(folder / "a.npz", **{"x_train": X, "y_train": Y, **arrays})
    return load_images(Npz(file=str(folder / "a.npz"), **(settings or {})))


def table(settings: TextTable) -> Examples[list[str]]:
    return checked(read_table(settings, table_files(settings)), settings)


def pairs(data: Examples[list[str]]) -> set[tuple[str, str]]:
    names = data.facts["label_names"]
    labels = [*data.y_train.tolist(), *data.y_test.tolist()]
    return {(text, names[label]) for text, label in zip([*data.x_train, *data.x_test], labels, strict=True)}


def pictures(folder: Path, *names: str, count: int = 4) -> None:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("L", (4, 4), 10 * index).save(folder / name / f"{index}.png")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y_train": Y[:-5]}, "20 training examples, but 15 labels"),
        ({"groups_train": np.arange(12)}, "20 training examples, but 12 groups"),
        ({"x_test": X, "y_test": Y[:3]}, "20 test examples, but 3 labels"),
        ({"x_test": X}, "the test set has no labels"),
        ({"y_test": Y}, "the test set has no examples"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "no training examples"),
        ({"y_train": np.int64(3)}, "y_train is a single value"),
        ({"x_train": np.where(X > 250, np.nan, X / 255.0)}, "NaN or infinite"),
        ({"x_train": X.astype(str)}, "images of type"),
        ({"x_train": X[:, :0]}, "no pixels"),
        ({"y_train": np.where(Y == 1, np.nan, 0.0)}, r"example 1 has no label \(NaN\)"),
        ({"y_train": Y + 0.5}, "the label 0.5, expected a class"),
        ({"y_train": Y - 1}, r"a label is -1.*workload\.data\.classes = \[-1, 0\]"),
        ({"y_train": np.zeros(20, int)}, "all 20 examples have the class"),
        ({"y_train": np.stack([Y, Y, 1 - Y], 1)}, "several classes"),
        ({"y_train": np.stack([Y, 0 * Y], 1)}, "one-hot row"),
        ({"y_train": np.zeros((20, 2, 2))}, "expected one class"),
        ({"groups_train": np.where(Y == 1, np.nan, 0.0)}, r"example 1 has no group \(nan\)"),
        ({"x_test": X, "y_test": Y + 1}, "test set has the classes 2, which no training example has"),
    ],
)
def test_an_archive_that_is_not_what_it_should_be(tmp_path: Path, arrays: dict[str, Array], words: str) -> None:
    with pytest.raises(DataMissing, match=rf"a\.npz.*{words}"):
        archive(tmp_path, None, **arrays)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (Y + 1, ["1", "2"]),
        (Y * 9000 + 1001, ["1001", "10001"]),
        (Y.astype(float), ["0", "1"]),
        (np.where(Y == 1, "dog", "cat"), ["cat", "dog"]),
        (Y == 1, ["False", "True"]),
        (Y[:, None], ["0", "1"]),
        (np.eye(2)[Y], ["0", "1"]),
        (np.eye(2, dtype=np.uint8)[Y], ["0", "1"]),
    ],
    ids=["from 1", "ids", "floats", "text", "booleans", "a column", "one-hot", "one-hot bytes"],
)
def test_labels_of_every_kind_are_numbered_in_sorted_order(tmp_path: Path, labels: Array, names: list[str]) -> None:
    data = archive(tmp_path, y_train=labels, x_test=X, y_test=labels)
    assert data.y_train.tolist() == Y.tolist() and data.info["label_names"] == names and data.num_labels == 2
    assert data.info["remarks"] == (
        ["labels are one-hot, read as classes"] if np.ndim(labels) == 2 and len(labels[0]) > 1 else []
    )


def test_given_classes_fix_the_numbers(tmp_path: Path) -> None:
    data = archive(tmp_path, {"classes": ["1", 0, "none"]})
    assert data.info["label_names"] == ["1", "0", "none"] and data.num_labels == 3
    assert data.info["remarks"] == ["no example at all: classes none"]
    assert sorted(data.y_train.tolist() + data.y_test.tolist()) == [0] * 10 + [1] * 10
    with pytest.raises(DataMissing, match=r"label '1' is none of the classes \['0', '2'\]"):
        archive(tmp_path, {"classes": [0, 2]})
    with pytest.raises(ConfigError, match="'a' is empty or named twice"):
        Npz(file="x", classes=("a", "b", "a "))


def test_ids_in_place_of_classes_are_noticed(tmp_path: Path) -> None:
    many = np.zeros((120, 4, 4), np.uint8)
    with pytest.raises(DataMissing, match=r"120 classes in 120 examples.*ids or measurements"):
        archive(tmp_path, x_train=many, y_train=np.arange(120))


def test_array_names_are_settings_and_others_are_left_out(tmp_path: Path) -> None:
    names = {"train_images": "images", "train_labels": "targets", "train_groups": "patient"}
    data = archive(tmp_path, names, images=X, targets=1 - Y, patient=np.arange(20) % 4, x_val=X)
    assert data.groups is not None and len(set(data.groups.tolist())) == 4
    assert data.info["left_out"] == ["arrays of other names: x_train, y_train, x_val"]


def test_class_folders_leave_out_what_is_none_and_say_so(tmp_path: Path) -> None:
    pictures(tmp_path, "cat", "dog", ".ipynb_checkpoints", "__MACOSX/cat")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "._0.png").write_bytes(b"x")
    (tmp_path / "dog" / "notes.txt").write_text("x", encoding="utf-8")
    Image.new("L", (4, 4)).save(tmp_path / "loose.png")
    data = load_images(Images(folder=str(tmp_path), size=4, channels=1))
    assert data.info["label_names"] == ["cat", "dog"] and len(data.y_train) + len(data.y_test) == 8
    assert data.info["left_out"] == [
        "9 hidden files: .ipynb_checkpoints, __MACOSX, cat",
        "1 picture outside the class folders read: loose.png",
        "1 other file: .txt 1",
        "1 folder without a picture: empty",
    ]


def test_a_validation_folder_is_left_out_and_splits_are_no_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "a", "train/cat", "train/dog", "val/cat", "val/dog")
    data = load_images(Images(folder=str(tmp_path / "a"), size=4, channels=1))
    assert len(data.y_train) + len(data.y_test) == 8
    assert data.info["left_out"] == ["8 pictures outside the class folders read: val"]
    held = load_images(Images(folder=str(tmp_path / "a"), size=4, channels=1, test_folder="val"))
    assert (len(held.y_train), len(held.y_test), held.info["left_out"]) == (8, 8, [])
    for folder, words in (("b", "Test, Train look like splits"), ("c", "has 'test', but no 'train'")):
        splits = ("Train", "Test") if folder == "b" else ("test", "training")
        pictures(tmp_path / folder, *(f"{split}/{name}" for split in splits for name in ("cat", "dog")))
        with pytest.raises(DataMissing, match=words):
            load_images(Images(folder=str(tmp_path / folder)))


def test_a_class_of_the_test_folder_alone_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "train/cat", "train/dog", "test/cat", "test/horse")
    with pytest.raises(DataMissing, match=r"test: has the classes horse, which .*train lacks"):
        load_images(Images(folder=str(tmp_path)))
    data = load_images(Images(folder=str(tmp_path), size=4, classes=("cat", "dog", "horse")))
    assert data.num_labels == 3 and data.info["remarks"][0] == "no training example: classes horse"


def test_names_of_files_and_classes_in_any_encoding(tmp_path: Path) -> None:
    pictures(tmp_path, "cat", "caf\u00e9", "cafe\u0301")  # one name, composed and decomposed
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / os.fsdecode(b"caf\xe9.png"))
    data = load_images(Images(folder=str(tmp_path), size=4, channels=1))
    assert data.info["label_names"] == ["caf\u00e9", "cat"] and len(data.y_train) + len(data.y_test) == 12
    (tmp_path / "cat").rename(tmp_path / os.fsdecode(b"ch\xe2t"))
    with pytest.raises(DataMissing, match="must be UTF-8"):
        load_images(Images(folder=str(tmp_path)))


def test_a_symbolic_link_to_a_class_is_followed_and_its_change_noticed(tmp_path: Path) -> None:
    pictures(tmp_path / "all", "cat", "dog")
    (tmp_path / "chosen").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "chosen" / name).symlink_to(tmp_path / "all" / name)
    settings = Images(folder=str(tmp_path / "chosen"), size=4)
    before = load_images(settings)
    Image.new("L", (4, 4), 77).save(tmp_path / "all" / "cat" / "0.png")
    assert before.sha256 != load_images(settings).sha256 and len(before.y_train) + len(before.y_test) == 8


ROWS = "".join(f"{'good' if i % 2 else 'bad'} {i},{'pos' if i % 2 else 'neg'}\n" for i in range(20))
TURNED = [",".join(line.split(",")[::-1]) for line in ROWS.splitlines()]
PAIRS = {(f"{'good' if i % 2 else 'bad'} {i}", "pos" if i % 2 else "neg") for i in range(20)}


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (b"\xef\xbb\xbf" + f"text,label\n{ROWS}".encode(), {}),
        (f"text,label\n{ROWS}".encode("utf-16"), {}),
        (f"text;label\n{ROWS.replace(',', ';')}".encode(), {"delimiter": ";"}),
        (f"text\tlabel\r\n{ROWS.replace(',', chr(9))}".encode(), {"delimiter": "\t"}),
        (f" text , label \n{ROWS}".replace("pos", " pos ").encode(), {}),
        (("label,text,x\n" + "".join(f"{line},\n" for line in TURNED)).encode(), {}),
        (f"text,label\n\n{ROWS},\n , \n".encode(), {}),
        (f"x,y\n{ROWS}".encode("utf-16-le"), {"encoding": "utf-16-le", "text_column": "x", "label_column": "y"}),
    ],
    ids=["mark", "utf-16", "semicolon", "tab", "blanks", "order", "empty lines", "encoding and names"],
)
def test_tables_of_spreadsheets_are_read_as_meant(tmp_path: Path, data: bytes, settings: dict[str, str]) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    assert pairs(table(Csv(file=str(tmp_path / "t.csv"), **settings))) == PAIRS  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (f"text,label\n{ROWS}no label,\n".encode(), "line 22: no value in column 'label'"),
        (f"text,label\n{ROWS}   ,pos\n".encode(), "line 22: no value in column 'text'"),
        (f"text,label\n{ROWS}a,b,pos\n".encode(), "line 22: 3 cells, expected 2"),
        (f'text,label\n{ROWS}"never closed,pos\n{ROWS}'.encode(), "not CSV: unexpected end of data"),
        (f"text;label\n{ROWS}".encode(), "Is the delimiter ';'"),
        (f"text,label,label\n{ROWS}".encode(), "2 columns are named 'label'"),
        (f"text,label\n{ROWS}caf\xe9,pos\n".encode("latin-1"), "byte 0xe9 is not utf-8.*encoding"),
        (f"text,label\n{ROWS}".encode("utf-16-le"), "no column 'text'|zero byte"),
        (f"text,label\n{ROWS}a\0b,pos\n".encode(), "line 22: a zero byte"),
    ],
)
def test_a_broken_table_is_named_with_its_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataMissing, match=rf"t\.csv.*({words})"):
        table(Csv(file=str(tmp_path / "t.csv")))


def test_a_huge_cell_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"text,label\n{'word ' * 100_000}end,pos\n{ROWS}", encoding="utf-8")
    assert any(len(text) > 500_000 for text, _ in pairs(table(Csv(file=str(tmp_path / "t.csv")))))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": None, "label": 1}, "line 21: no value in column 'text'"),
        ({"text": ["a"], "label": 1}, "line 21: column 'text' is a list"),
        ({"text": "a"}, "line 21: no column 'label', only text"),
        ({"text": "a", "label": [0, 1]}, "several classes"),
        ({"text": "a", "label": {"x": 1}}, "expected one class"),
        ({"text": "a", "label": "pos"}, "labels are text .'pos'. and integers"),
        ({"text": "a", "label": 0.5}, "expected a class"),
        ([1], "line 21: expected an object, got list"),
    ],
)
def test_broken_json_lines_are_named(tmp_path: Path, row: object, words: str) -> None:
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, [*rows, row])), encoding="utf-8-sig")
    with pytest.raises(DataMissing, match=rf"t\.jsonl.*({words})"):
        table(JsonLines(file=str(tmp_path / "t.jsonl")))


def test_a_test_file_needs_no_groups_and_its_classes_are_those_of_training(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,who\n" + ROWS.replace("\n", ",me\n"), encoding="utf-8")
    (tmp_path / "b.csv").write_text("text,label\nfine,pos\n", encoding="utf-8")
    settings = Csv(file=str(tmp_path / "a.csv"), test_file=str(tmp_path / "b.csv"), group_column="who")
    data = table(settings)
    assert data.groups is not None and data.facts["remarks"] == ["no test example: classes neg"]
    (tmp_path / "b.csv").write_text("text,label\nfine,odd\n", encoding="utf-8")
    with pytest.raises(DataMissing, match="test set has the classes odd"):
        table(settings)


def test_a_folder_in_place_of_a_file_and_unknown_encodings(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="is a folder, expected a file"):
        table(Csv(file=str(tmp_path)))
    with pytest.raises(DataMissing, match="cannot be read"):
        load_images(Npz(file=str(tmp_path)))
    with pytest.raises(ConfigError, match="'utf-9' is no encoding"):
        Csv(file="x", encoding="utf-9")
    with pytest.raises(ConfigError, match="expected both"):
        Npz(file="x", mean=(0.5,))


def write_parquet(path: Path, labels: list[object], texts: list[object] | None = None) -> None:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    texts = texts or [f"t{index}" for index in range(len(labels))]
    datasets.Dataset.from_dict({"text": texts, "label": labels}).to_parquet(str(path))


def hub(folder: Path) -> Examples[list[str]]:
    from fedloom.workloads._data.hub import hub_files, read_hub_text

    settings = HubText(dataset=str(folder))
    return checked(read_hub_text(settings, hub_files(settings)), settings)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, -1, 1], "a label is -1"),
        ([0, 1, None, 1], "example 2 has no label"),
        ([[0, 1], [1], [0], [1]], "several classes"),
        ([0.2, 1.0, 2.5, 3.0], "expected a class"),
    ],
)
def test_labels_of_hugging_face_data_are_checked(tmp_path: Path, labels: list[object], words: str) -> None:
    write_parquet(tmp_path / "train.parquet", labels)
    with pytest.raises(DataMissing, match=words):
        hub(tmp_path)


def test_splits_are_words_of_a_files_name(tmp_path: Path) -> None:
    binary: Callable[[int], list[object]] = lambda count: [index % 2 for index in range(count)]  # noqa: E731
    write_parquet(tmp_path / "latest-train-00000-of-00001.parquet", binary(10))
    write_parquet(tmp_path / "data" / "test" / "0.parquet", binary(4))
    write_parquet(tmp_path / "validation.parquet", binary(6))
    data = hub(tmp_path)
    assert (len(data.y_train), len(data.y_test)) == (10, 4)
    assert data.facts["left_out"] == ["split 'validation': 6 examples"]
    write_parquet(tmp_path / "more.parquet", binary(4))
    with pytest.raises(DataMissing, match=r"more\.parquet names no split"):
        hub(tmp_path)


def test_given_moments_normalise_in_place_of_the_datas_own(tmp_path: Path) -> None:
    data = archive(tmp_path, {"mean": [0.25], "std": [0.5]})
    whole = np.concatenate([data.x_train, data.x_test])[:, 0] * 0.5 + 0.25
    assert sorted(np.round(whole * 255).astype(int).ravel().tolist()) == sorted(X.ravel().tolist())
    assert data.info["mean"] == [0.25] and data.info["std"] == [0.5]
    with pytest.raises(ConfigError, match="3 values each, but the images have 1 channels"):
        archive(tmp_path, {"mean": [0.1] * 3, "std": [0.5] * 3})


TABLE_ROWS = "".join(f"t {index},{'ab'[index % 2]}\n" for index in range(20)).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04" + bytes(30), "a spreadsheet or another zip archive: save it as CSV"),
        (b"\xd0\xcf\x11\xe0" + bytes(30), "a spreadsheet: save it as CSV"),
        (b"\x1f\x8b" + bytes(30), "compressed with gzip: unpack it"),
        (b"PAR1" + bytes(30), "a Parquet file: set"),
        (("text,label\n" + "x,a\n" * 9).encode("utf-16-le"), "line 1: a zero byte. Set workload.data.encoding"),
        (b"sep=;\ntext;label\n" + TABLE_ROWS, "a spreadsheet's note of the delimiter"),
        ("text,label\n\u200b\u00a0,a\n".encode() + TABLE_ROWS, "the text of example 0 is empty"),
        ("text,label\nx,\u200b\n".encode() + TABLE_ROWS, "example 0 has no label"),
        (b"text,label\n" + b"".join(b"x,0.%d\n" % index for index in range(10, 99)), "Are they measurements"),
        (b"text,label\n" + b"".join(b"x,id-%d\n" % index for index in range(20)), "Are these ids or measurements"),
    ],
)
def test_files_that_are_no_table_and_cells_that_hold_nothing(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataMissing) as caught:
        table(Csv(file=str(tmp_path / "t.csv")))
    assert str(tmp_path / "t.csv") in str(caught.value) and words in str(caught.value)


def test_utf_32_is_read_by_its_mark(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(("text,label\n" + TABLE_ROWS.decode()).encode("utf-32"))
    assert ("t 3", "b") in pairs(table(Csv(file=str(tmp_path / "t.csv"))))


@pytest.mark.parametrize(
    ("labels", "remark"),
    [
        (["Cat", "cat", "dog"], "classes ['Cat', 'cat'] may be one class, written in several ways"),
        (["1", "1.0", "2"], "classes ['1', '1.0'] may be one class, written in several ways"),
        (["N/A", "a", "b"], "classes ['N/A'] may be examples without label"),
        (["9223372036854775808", "9223372036854775809", "3"], None),
        (["a", "b", "c"], None),
    ],
)
def test_classes_that_look_wrong_are_remarked(tmp_path: Path, labels: list[str], remark: str | None) -> None:
    rows = "".join(f"t {index},{labels[index % 3]}\n" for index in range(30))
    (tmp_path / "t.csv").write_text("text,label\n" + rows, encoding="utf-8")
    assert table(Csv(file=str(tmp_path / "t.csv"))).facts["remarks"] == ([] if remark is None else [remark])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"text": "a \\ud800 b", "label": "a"}', "the text of example 30 has half a surrogate pair"),
        ('{"text": "a", "label": "\\ud800"}', "which is no Unicode"),
        ('{"text": "a", "label": "a", "label": "b"}', "the name 'label' is there twice"),
    ],
)
def test_json_that_no_file_can_hold_or_says_two_things(tmp_path: Path, row: str, words: str) -> None:
    lines = [*(json.dumps({"text": f"t {index}", "label": "ab"[index % 2]}) for index in range(30)), row]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataMissing) as caught:
        table(JsonLines(file=str(tmp_path / "t.jsonl")))
    assert words in str(caught.value)


def test_settings_that_cannot_be_meant(tmp_path: Path) -> None:
    for encoding in ("rot13", "base64", "hex"):
        with pytest.raises(ConfigError, match="is no encoding of text"):
            Csv(file="t.csv", encoding=encoding)
    with pytest.raises(ConfigError, match="text_column and label_column are both 'text'"):
        Csv(file="t.csv", label_column="text")
    with pytest.raises(DataMissing, match="is a device or a pipe"):
        table(Csv(file="/dev/null"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"groups_train": np.stack([Y, Y], 1)}, r"example 0 has the group \[0, 0\]"),
        ({"x_train": X.astype(np.float32), "x_test": X, "y_test": Y}, "of different scales"),
    ],
)
def test_archives_whose_arrays_do_not_go_together(tmp_path: Path, arrays: dict[str, Array], words: str) -> None:
    with pytest.raises(DataMissing, match=words):
        archive(tmp_path, None, **arrays)


def test_labels_of_bytes_are_text_and_a_single_array_is_no_archive(tmp_path: Path) -> None:
    assert archive(tmp_path, y_train=np.array([b"dog", b"cat"])[Y]).info["label_names"] == ["cat", "dog"]
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(DataMissing, match=r"a single array \(\.npy\), expected an \.npz archive"):
        load_images(Npz(file=str(tmp_path / "a.npy")))


def test_a_broken_link_among_pictures_is_left_out_by_name(tmp_path: Path) -> None:
    pictures(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load_images(Images(folder=str(tmp_path), size=4))
    assert data.info["left_out"] == ["1 broken link: cat/gone.png"]
