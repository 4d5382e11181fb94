"""Texts by topic, and a body cut to its first layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.workloads._data.checked import checked
from fedloom.workloads._data.fortunes import fortunes_files, read_fortunes
from fedloom.workloads._data.text_settings import Fortunes
from fedloom.workloads.text_classification.body import find_body, load_body


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for topic in ("law", "art"):
        texts = [f"{topic} number\n\t\t-- {index}\n" for index in range(20)]
        (tmp_path / topic).write_text("%\n".join([*texts, texts[0], " \n", "100 % is\nno divider\n"]), encoding="utf-8")
    return tmp_path


def test_topics_are_classes_and_repetitions_are_left_out(folder: Path) -> None:
    settings = Fortunes(folder=str(folder), topics=("law", "art"))
    data = checked(read_fortunes(settings, fortunes_files(settings)))
    assert data.facts["label_names"] == ["art", "law"] and data.facts["kind"] == "real"
    texts = [*data.x_train, *data.x_test]
    assert sorted(texts) == sorted(
        [f"{topic} number -- {index}" for topic in ("art", "law") for index in range(20)] + ["100 % is no divider"] * 2
    )
    assert len(data.x_test) == round(42 * 0.2)
    assert all(
        (label == 1) == text.startswith("law")
        for text, label in zip(texts, [*data.y_train, *data.y_test], strict=True)
        if "no divider" not in text
    )


def test_missing_topics_say_how_to_get_them(folder: Path) -> None:
    with pytest.raises(DataMissing, match=r"no files science in .*Run: apt-get install fortunes"):
        fortunes_files(Fortunes(folder=str(folder), topics=("law", "science")))
    (folder / "few").write_text("one\n%\ntwo\n", encoding="utf-8")
    settings = Fortunes(folder=str(folder), topics=("law", "few"))
    with pytest.raises(DataMissing, match="2 texts, expected at least 10 for the topic 'few'"):
        read_fortunes(settings, fortunes_files(settings))


def test_a_body_keeps_its_first_layers(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    whole = BertModel(config)
    whole.save_pretrained(tmp_path)
    cut = load_body(find_body(str(tmp_path)), 2)
    kept = {
        name: tensor for name, tensor in whole.state_dict().items() if "layer.2." not in name and "pooler" not in name
    }
    assert cut.state_dict().keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in cut.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == 3
    with pytest.raises(ConfigError, match=r"layers: the first 4 are requested, but .* has 3"):
        load_body(find_body(str(tmp_path)), 4)
