"""Lists in pages that repeat what the code has: every source of data, every scheme of a partition."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
from fedloom_docs_pages import ROOT

from fedloom.core import registry
from fedloom.core.kinds import Kind
from fedloom.workloads._data import partition_settings, settings, text_settings
from fedloom.workloads.torch import config

_PAGE = ROOT / "docs" / "how-to" / "bring-your-data.md"
_README = ROOT / "src" / "fedloom" / "workloads" / "image_classification" / "README.md"
_OWN = ROOT / "docs" / "how-to" / "train-your-own-model.md"


def _tags(union: object, field: str) -> set[str]:
    """Return the names that select a member of a union of settings."""
    members = typing.get_args(typing.get_args(union)[0])
    return {typing.get_args(member.model_fields[field].annotation)[0] for member in members}


@pytest.mark.parametrize(
    ("page", "union", "field"),
    [
        (_PAGE, settings.ImageSource, "source"),
        (_PAGE, text_settings.TextSource, "source"),
        (_PAGE, partition_settings.PartitionSettings, "scheme"),
        (_README, settings.ImageSource, "source"),
        (_OWN, config.Data, "source"),
    ],
    ids=["images", "texts", "partitions", "images beside the code", "own model"],
)
def test_every_name_is_in_the_page(page: Path, union: object, field: str) -> None:
    named = set(re.findall(r"`([a-z0-9_]+)`", page.read_text(encoding="utf-8")))
    assert _tags(union, field) - named == set()


def test_every_workload_with_a_model_says_how_to_load_it() -> None:
    page = (ROOT / "docs" / "how-to" / "use-the-final-model.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    assert set(registry.names(Kind.WORKLOAD)) - named == {"flower"}  # an app of Flower's writes its own model


def test_a_name_that_is_missing_is_noticed() -> None:
    assert {"digits", "cifar10", "svhn"} < _tags(settings.ImageSource, "source")
    assert {"iid", "long_tailed", "natural"} < _tags(partition_settings.PartitionSettings, "scheme")
