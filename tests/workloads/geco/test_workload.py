"""Regimes of fine-tuning: what is trained and sent, and one client against a plain loop of PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support_geco import build, experiment, make_body

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import MODEL, Info, Job, Record, arrays_sha256
from fedloom.core.seeds import generator, integer_seed
from fedloom.testing.workload import WorkloadConformance
from fedloom.workloads._pretrained.text_model import padded

REGIMES = ("C", "CE", "CEf", "CEfAf", "OLA", "LoRA")
PREFIXES = {
    "C": {"head"},
    "CE": {"embeddings", "head"},
    "CEf": {"embeddings", "head"},
    "CEfAf": {"body", "head"},
    "OLA": {"embedding", "query", "key", "value", "pooler", "head"},
    "LoRA": {"adapters", "head"},
}
"""First parts of the names of the arrays of each regime."""


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_body(tmp_path_factory.mktemp("body"))


def train(workload: Any, model: Record, client: int = 0) -> Any:
    job = Job(round=1, client=client)
    return workload.train(job, {MODEL: model}, workload.shard(client), None, generator(1, "train", client))


@pytest.mark.parametrize("regime", REGIMES)
def test_a_regime_trains_and_sends_its_own_arrays_and_no_other(body: str, regime: str) -> None:
    workload = build(experiment(body, {"regimes": [regime]}))
    net = workload.network.net(regime)
    whole = {} if regime == "OLA" else dict(net._whole[0].named_parameters())
    trained = {id(parameter) for parameter in net.parameters()}
    frozen = {name: each.detach().clone() for name, each in whole.items() if id(each) not in trained}
    model = workload.init(generator(1, "init"))
    assert {name.split(".")[1] for name in model.groups[MODEL]} == PREFIXES[regime]
    update = train(workload, model)
    assert update.groups[MODEL].keys() == model.groups[MODEL].keys()
    moved = [name for name, each in update.groups[MODEL].items() if not np.array_equal(each, model.groups[MODEL][name])]
    assert any(".head." in name for name in moved)
    if len(PREFIXES[regime]) > 1:
        assert any(".head." not in name for name in moved)
    for name, each in frozen.items():
        assert torch.equal(whole[name], each), name
    assert bool(frozen) == (regime not in ("CEfAf", "OLA"))


def test_a_head_that_is_not_trained_is_the_same_everywhere(body: str) -> None:
    made = experiment(body, {"regimes": ["CEf"], "model": {"head_trainable": False}})
    one, other = build(made), build(made)
    model = one.init(generator(1, "init"))
    assert not any(".head." in name for name in model.groups[MODEL])
    heads = [each.network.net("CEf")._whole[0].classifier.weight.detach().clone() for each in (one, other)]
    assert torch.equal(*heads) and torch.count_nonzero(heads[0])
    train(one, model)
    assert torch.equal(one.network.net("CEf")._whole[0].classifier.weight, heads[0])


def test_embeddings_are_pretrained_or_drawn_anew(body: str) -> None:
    workload = build(experiment(body, {"regimes": ["CE", "CEf"]}))
    name = "embeddings.word_embeddings.weight"
    first, second = (workload.init(generator(1, "init", number)).groups[MODEL] for number in (1, 2))
    assert np.array_equal(first[f"CEf.{name}"], second[f"CEf.{name}"])
    assert not np.array_equal(first[f"CE.{name}"], second[f"CE.{name}"])
    rows, width = first[f"CE.{name}"].shape
    assert np.abs(first[f"CE.{name}"]).max() <= np.sqrt(6.0 / (rows + width)) + 1e-6


def test_word_vectors_of_words_that_no_sentence_has_would_not_change(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train the whole table of words: rows outside the lexicon stay, the others are those of the small table."""
    made = experiment(body, {"regimes": ["CEf"]})
    small = build(made)
    kept = small._tokens.kept
    some = train(small, small.init(generator(1, "init"))).groups[MODEL]
    corpus = replace(small._corpus, lexicon=())
    monkeypatch.setattr("fedloom.workloads.geco.workload.load_corpus", lambda source, seed: corpus)
    full = build(made)
    begun = full.init(generator(1, "init"))
    before = np.array(begun.groups[MODEL]["CEf.embeddings.word_embeddings.weight"])
    after = train(full, begun).groups[MODEL]["CEf.embeddings.word_embeddings.weight"]
    unused = np.setdiff1d(np.arange(len(before)), kept)
    assert len(unused) and np.array_equal(before[unused], after[unused])
    assert np.allclose(after[kept], some["CEf.embeddings.word_embeddings.weight"], atol=1e-5)


def loop(made: Experiment, regime: str) -> dict[str, np.ndarray[Any, Any]]:
    """Two rounds as a plain loop: transformers' classifier, torch's AdamW, the streams and sentences of fedloom."""
    from transformers import AutoModelForSequenceClassification

    workload = build(made)
    torch.manual_seed(integer_seed(made.seed, "geco", "head"))
    body: str = made.workload.model.body  # type: ignore[attr-defined]
    model = AutoModelForSequenceClassification.from_pretrained(body, num_labels=2, dtype=torch.float32).eval()
    table = model.base_model.embeddings.word_embeddings
    small = torch.nn.Embedding.from_pretrained(table.weight[torch.from_numpy(workload._tokens.kept)].detach().clone())
    model.base_model.embeddings.word_embeddings = small
    model.requires_grad_(False)
    parts = {"C": [model.classifier], "CEf": [model.base_model.embeddings, model.classifier], "CEfAf": [model]}[regime]
    trained = [each.requires_grad_(True) for part in parts for each in part.parameters()]
    sentences, rows = workload._corpus.train, workload.shard(0).rows
    encoded = workload._tokens.encode([each.words for each in sentences])
    for number in (1, 2):
        rng = generator(made.seed, "train", number, 0, 0)
        rng.integers(2**63)
        rate: float = made.workload.rates.of(regime)  # type: ignore[attr-defined]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        for batch in np.split(rows[rng.permutation(len(rows))], range(8, len(rows), 8)):
            ids, mask = padded([encoded[row].ids for row in batch], workload._tokens.pad_id, torch.device("cpu"))
            versions = torch.tensor([sentences[row].version for row in batch])
            optimizer.zero_grad()
            F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, versions).backward()
            optimizer.step()
    renamed = {"classifier": "head.classifier", "bert.embeddings": "embeddings"}
    if regime == "CEfAf":
        renamed = {"classifier": "head.classifier", "bert": "body"}
    found = {}
    for name, each in model.named_parameters():
        start = next((old for old in renamed if name.startswith(f"{old}.")), None)
        if start is not None and each.requires_grad:
            found[f"{regime}.{renamed[start]}{name[len(start) :]}"] = each.detach().numpy()
    return found


@pytest.mark.parametrize("regime", ["C", "CEf", "CEfAf"])
def test_one_client_through_the_server_is_a_plain_loop_bit_for_bit(body: str, regime: str) -> None:
    made = experiment(body, {"regimes": [regime]})
    expected = loop(made, regime)
    found = api.run(made, keep=False).arrays
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert np.array_equal(found[name], each), name


def test_regimes_side_by_side_have_the_bits_they_have_alone(body: str) -> None:
    regimes = ["CE", "OLA", "LoRA"]
    together = api.run(experiment(body, {"regimes": regimes}), keep=False)
    for regime in regimes:
        alone = api.run(experiment(body, {"regimes": [regime]}), keep=False)
        mine = {name: each for name, each in together.arrays.items() if name.startswith(f"{regime}.")}
        assert arrays_sha256(alone.arrays) == arrays_sha256(mine)
        one, all_ = alone.history[-1].evaluation or {}, together.history[-1].evaluation or {}
        assert one["loss"] == all_[f"loss_{regime}"]


def test_a_platforms_low_rank_strategy_trains_adapters_of_one_regime(body: str) -> None:
    made = experiment(body, {"regimes": ["CEfAf"]}, strategy={"name": "fedlora", "targets": ["query", "value"]})
    result = api.run(made, keep=False)
    assert result.summary.status == "done"
    two = experiment(body, {"regimes": ["C", "CEfAf"]}, strategy={"name": "fedlora", "targets": ["query", "value"]})
    with pytest.raises(ConfigError, match=r"needs one regime, got \['C', 'CEfAf'\]"):
        api.run(two, keep=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"regimes": ["C", "C"]}, "expected different regimes"),
        ({"regimes": ["C", "CE"], "training": {"clip_norm": 1.0}}, "would couple the 2 regimes"),
        ({"model": {"layers": 9}}, "the first 9 are requested"),
        ({"regimes": ["LoRA"], "model": {"targets": ["nowhere"]}}, "nowhere"),
        ({"data": {"attribute": "gendr"}}, "did you mean 'gender'"),
        ({"training": {"label_smoothing": 0.1}}, "label_smoothing"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(body: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(experiment(body, settings))


def test_an_encoder_without_an_embedding_block_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2Model

    folder = make_body(tmp_path / "gpt")
    GPT2Model(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).is_fast
    with pytest.raises(DataMissing, match="no module 'embeddings'; take a BERT-like encoder"):
        build(experiment(folder))


class TestConformance(WorkloadConformance):
    name = "geco"
    clients = 4

    @pytest.fixture(autouse=True)
    def _small(self, body: str) -> None:
        small = experiment(body, {"regimes": ["CEf", "OLA"]}).workload.model_dump(mode="json", exclude_unset=True)
        self.settings: Info = {key: value for key, value in small.items() if key != "name"}
