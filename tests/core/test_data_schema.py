"""What the data of all nodes of a run must agree on."""

import json

import pytest

from fedloom.core.data_schema import check_schema, data_schema
from fedloom.core.errors import DataDiffers
from fedloom.core.records import Info

HERE: Info = {"label_names": ["benign", "malignant"], "shape": [1, 8, 8], "mean": [0.25], "std": [0.5], "sha256": "a"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"label_names": ["malignant", "normal"]}, "classes are malignant, normal, .*workload.data.classes"),
        ({"label_names": ["malignant", "benign"]}, "in this order"),
        ({"label_names": ["benign", "malignant", "normal"]}, "workload.data.classes"),
        ({"shape": [3, 8, 8]}, r"shape \[3, 8, 8\] .*the run's \[1, 8, 8\]"),
        ({"mean": [0.3]}, r"mean \[0.3\], the run's \[0.25\].*workload.data.mean"),
        ({"std": [0.4]}, "the std"),
        ({"mean": [0.25, 0.25]}, "the mean"),
    ],
)
def test_data_that_differs_is_refused(changed: Info, words: str) -> None:
    with pytest.raises(DataDiffers, match=words) as caught:
        check_schema(data_schema(HERE, "r"), {**HERE, **changed}, "r")
    public = caught.value.public_message()
    assert "Set workload." in public and not any(word in public for word in ("malignant", "0.25", "0.3", "8"))


def test_data_that_agrees_may_be_other_data_on_another_processor() -> None:
    check_schema(data_schema(HERE, "r"), {**HERE, "sha256": "b", "num_train": 7, "mean": [0.2500001]}, "r")
    check_schema(data_schema({}, "r"), {}, "r")
    assert data_schema({"label_names": 5, "mean": ["x"]}, "r") == {}


def test_names_of_classes_leave_as_a_digest() -> None:
    assert "benign" not in json.dumps(data_schema(HERE, "r"))
    assert data_schema(HERE, "r")["classes"] != data_schema(HERE, "s")["classes"]
