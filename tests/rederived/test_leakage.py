"""No test example is in the training data with its label."""

from __future__ import annotations

import pytest

from fedloom.core.errors import DataMissing
from fedloom.workloads._data.fortunes import fortunes_files, read_fortunes
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.settings import Digits
from fedloom.workloads._data.text_settings import Fortunes


def test_no_digit_is_in_both_parts() -> None:
    data = load_images(Digits())
    train = {image.tobytes() for image in data.x_train}
    assert len(train) > 1000 and not any(image.tobytes() in train for image in data.x_test)


def test_no_fortune_is_in_both_parts_with_the_same_label() -> None:
    settings = Fortunes()
    try:
        data = read_fortunes(settings, fortunes_files(settings))
    except DataMissing as missing:
        pytest.skip(f"no fortunes here: {str(missing).splitlines()[0]}")
    parts = (data.x_train, data.y_train), (data.x_test, data.y_test)
    assert all(texts is not None and labels is not None for texts, labels in parts)
    train, test = (
        {(" ".join(str(text).lower().split()), str(label)) for text, label in zip(texts or (), labels, strict=True)}
        for texts, labels in parts
        if labels is not None
    )
    assert len(train) > 1000 and not train & test
