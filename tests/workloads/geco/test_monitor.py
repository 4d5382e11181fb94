"""The monitor of explanations: what clients send, what is added up, and on which workloads it runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_geco import BagOfWords, build, experiment, make_body

pytest.importorskip("captum")

from fedloom import api
from fedloom.core.config import Experiment, plugin_schema
from fedloom.core.errors import ConfigError, FedloomError, UnsupportedFeature
from fedloom.core.kinds import Kind
from fedloom.core.plugins import build_monitor, build_watch
from fedloom.core.protocols import Inputs, Observation, Shard
from fedloom.core.records import MODEL, ClientReport, Info
from fedloom.core.seeds import generator
from fedloom.testing.monitor import MonitorConformance
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._pretrained.text_model import TextModel, WordTokens
from fedloom.workloads.geco.measures import histogram, median_of
from fedloom.workloads.geco.monitor.report import numbers

SMALL: dict[str, Any] = {
    "name": "geco",
    "explainers": ["random", "input_x_gradient", "integrated_gradients"],
    "explaining": {"steps": 5},
    "only_correct": False,
}


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_body(tmp_path_factory.mktemp("body"))


def settings(**changes: Any) -> Any:
    return plugin_schema(Kind.MONITOR, "geco").model_validate({**SMALL, **changes})


def observe(workload: Any, inputs: Inputs, shard: Shard, **changes: Any) -> Observation:
    watch = build_watch(settings(**changes))
    watch.check(workload)
    return watch(workload, inputs, shard, generator(1, "watch"))


def report(client: int, seen: Observation) -> ClientReport:
    return ClientReport(
        client=client, num_examples=seen.num_examples, seconds=0.1, metrics=seen.metrics, info=seen.info
    )


def test_the_sum_of_the_clients_histograms_is_the_pooled_one(body: str) -> None:
    workload = build(experiment(body))
    inputs = {MODEL: workload.init(generator(1, "init"))}
    everything: dict[str, Any] = {"sentences": None, "explainers": [*SMALL["explainers"], "gradient_shap"]}
    whole = observe(workload, inputs, workload.held_out(0, 1), **everything)
    parts = [observe(workload, inputs, workload.held_out(part, 3), **everything) for part in range(3)]
    pooled, added = (
        build_monitor(settings()).read([report(client, seen) for client, seen in enumerate(each)], ()).info
        for each in ([whole], parts)
    )
    for info in (pooled, added):
        assert set(info["nets"]["CEf"]) == {*SMALL["explainers"], "gradient_shap"}
    assert {key: value for key, value in pooled.items() if key != "clients"} == {
        key: value for key, value in added.items() if key != "clients"
    }
    assert pooled["scored"] == 16 and sum(pooled["sentences"]) == 16


def numbers_in(value: object) -> Iterator[object]:
    match value:
        case dict():
            for each in value.values():
                yield from numbers_in(each)
        case list():
            for each in value:
                yield from numbers_in(each)
        case _:
            yield value


def test_only_counts_leave_a_client_unless_more_is_asked_for(body: str) -> None:
    workload = build(experiment(body))
    inputs = {MODEL: workload.init(generator(1, "init"))}
    info = observe(workload, inputs, workload.shard(0)).info
    assert set(info) == {"versions", "sentences", "chance", "histograms", "right"}
    assert all(isinstance(each, int | str) for each in numbers_in(json.loads(json.dumps(dict(info)))))
    assert np.array(info["histograms"]["CEf"]["random"]).shape == (2, 20)
    more = observe(workload, inputs, workload.shard(0), send_values=True, examples=2).info
    assert set(more) - set(info) == {"values", "chances", "scored", "examples"}
    values = more["values"]["CEf"]["random"]
    counts = np.array(more["histograms"]["CEf"]["random"]).sum(axis=0)
    assert histogram(np.array(values, np.float64)) == counts.tolist()
    example = more["examples"][0]
    shares = example["shares"]["CEf"]["integrated_gradients"]
    assert len(shares) == len(example["words"]) == len(example["mask"]) and sum(shares) == pytest.approx(1.0, abs=1e-4)
    within = sum(share for share, of in zip(shares, example["mask"], strict=True) if of)
    assert within == pytest.approx(more["values"]["CEf"]["integrated_gradients"][0], abs=1e-4)


def test_only_sentences_that_all_networks_get_right_are_scored(body: str) -> None:
    workload = build(experiment(body, {"regimes": ["CEf", "OLA"]}))
    inputs = {MODEL: workload.init(generator(1, "init"))}
    shard = workload.held_out(0, 1)
    info = observe(workload, inputs, shard, only_correct=True, send_values=True).info
    with workload.text_models(inputs) as models:
        right = np.ones(16, bool)
        for model in models.values():
            for place, (encoded, sentence) in enumerate(
                zip(workload.data.test.encoded, workload.masked_sentences(shard), strict=True)
            ):
                ids = torch.from_numpy(encoded.ids)[None]
                logits = model(model.vectors(ids), torch.ones_like(ids))
                right[place] &= int(logits.argmax(1)) == sentence.version
    expected = [
        [each.pair, each.version] for each, ok in zip(workload.masked_sentences(shard), right, strict=True) if ok
    ]
    assert info["scored"] == expected and len(expected) < 16


def made_up(values: Mapping[str, list[list[float]]], chance: float = 0.15) -> Info:
    """A report with these mass accuracies, by explainer and version."""
    counts = {name: [histogram(np.array(each)) for each in versions] for name, versions in values.items()}
    some = [len(each) for each in next(iter(values.values()))]
    return {
        "versions": ["female", "male"],
        "sentences": some,
        "chance": [histogram(np.full(count, chance)) for count in some],
        "histograms": {"net": counts},
        "right": {"net": some},
    }


def read(infos: list[Info], earlier: list[Info] | None = None) -> Any:
    reports = [
        ClientReport(client=client, num_examples=1, seconds=0.1, metrics={}, info=info)
        for client, info in enumerate(infos)
    ]
    return build_monitor(settings()).read(reports, earlier or [])


def test_medians_gaps_and_relative_mass_accuracies_by_hand() -> None:
    first = read([made_up({"random": [[0.1], [0.1]], "saliency": [[0.2, 0.22], [0.4, 0.42]]})])
    second = read([made_up({"random": [[0.1], [0.1]], "saliency": [[0.62], [0.82]]})] * 3, [first.info])
    entry = second.info["nets"]["net"]["saliency"]
    low, high = [0] * 20, [0] * 20
    low[12], high[16] = 3, 3
    assert entry["histograms"] == [low, high]
    assert entry["gap"] == pytest.approx(median_of(high) - median_of(low)) == pytest.approx(0.2)
    before = first.info["nets"]["net"]["saliency"]["median"]
    assert entry["relative"] == pytest.approx(math.log(entry["median"] / before))
    assert second.metrics == {
        "mass_accuracy": entry["median"],  # the best that uses the network
        "mass_accuracy_chance": second.info["chance_median"],
    }
    assert numbers(second.info)["mass_accuracy_gap_saliency"] == pytest.approx(0.2)
    assert [line["client"] for line in second.info["clients"]] == [0, 1, 2]


def test_without_a_scored_sentence_there_is_a_warning_and_no_number() -> None:
    nothing = {**made_up({"saliency": [[], []]}), "sentences": [4, 4]}
    reading = read([nothing])
    assert not reading.metrics and "none of 8 sentences" in reading.warnings["no explanation is scored"]
    json.dumps(reading.info, allow_nan=False)


class Texts:
    """A workload of three classes with a text model and no sentences of its own."""

    def __init__(self, tokens: WordTokens) -> None:
        weights = torch.linspace(-1.0, 1.0, tokens.size)
        self._model = BagOfWords(tokens, weights).explained()

    @contextmanager
    def text_models(self, inputs: Inputs) -> Iterator[Mapping[str, TextModel]]:
        """Yield the one model."""
        yield {"model": self._model}


@pytest.fixture(scope="module")
def texts(body: str) -> Texts:
    from transformers import AutoTokenizer

    return Texts(WordTokens(AutoTokenizer.from_pretrained(body), 64))


def test_on_other_texts_the_monitors_own_sentences_are_explained_part_by_part(texts: Texts) -> None:
    source = {"source": "generated", "pairs": 2, "test_pairs": 10}
    parts = [
        observe(texts, {}, RowShard.test_part(30, part, 4), clients=4, source=source, sentences=None, send_values=True)
        for part in range(4)
    ]
    pairs = sorted(tuple(each) for seen in parts for each in seen.info["scored"])
    assert len(pairs) == 20 and len({pair for pair, _ in pairs}) == 10
    assert all("right" not in seen.info for seen in parts)


def test_what_cannot_be_explained_is_refused_by_name(body: str, texts: Texts) -> None:
    with pytest.raises(UnsupportedFeature, match=r"monitor 'geco' needs a workload with text_models"):
        build_watch(settings()).check(object())
    with pytest.raises(UnsupportedFeature, match=r"'covariance' needs training sentences.* Texts has none"):
        build_watch(settings(explainers=["covariance"])).check(texts)
    with pytest.raises(UnsupportedFeature, match="BagOfWords has no embedding block"):
        observe(texts, {}, RowShard.test_part(4, 0, 1), explaining={"legacy_double_embedding": True})
    with pytest.raises(ConfigError, match=r"monitor\.explainers"):
        Experiment.parse(
            {
                "rounds": 1,
                "clients": 1,
                "strategy": "fedavg",
                "workload": "geco",
                "monitor": {"name": "geco", "explainers": ["saliency", "saliency"]},
            }
        )
    digits = {"name": "image_classification", "data": {"source": "digits"}}
    made = Experiment.parse(
        {
            "rounds": 1,
            "clients": 2,
            "strategy": "fedavg",
            "workload": digits,
            "monitor": {"name": "geco"},
            "runtime": {"name": "inline"},
        }
    )
    with pytest.raises(FedloomError, match="text_models"):
        api.run(made, keep=False)


@pytest.mark.parametrize("train", ["head", "all"])
def test_it_watches_text_classification(body: str, tmp_path: Path, train: str) -> None:
    lines = [f"she sells the {'map' if row % 2 else 'ring'},{'a' if row % 2 else 'b'}" for row in range(40)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    workload = {
        "name": "text_classification",
        "data": {"source": "csv", "file": str(table)},
        "partition": {"scheme": "iid"},
        "model": {"body": body, "train": train},
    }
    made = Experiment.parse(
        {
            "rounds": 2,
            "clients": 2,
            "strategy": "fedavg",
            "workload": workload,
            "runtime": {"name": "inline"},
            "evaluation": {"every": 1, "parts": 1},
            "monitor": {**SMALL, "clients": 2, "source": {"source": "generated", "pairs": 2, "test_pairs": 4}},
        }
    )
    result = api.run(made, keep=False)
    last = result.history[-1]
    assert last.monitor["scored"] == 8 and last.monitor["nets"].keys() == {"model"}
    assert 0.0 < (last.evaluation or {})["mass_accuracy"] <= 1.0
    again = api.run(made.override(["monitor.explainers=['random']"]), keep=False)
    assert again.summary.model_sha256 == result.summary.model_sha256  # watching changes nothing


def test_the_pattern_follows_the_training_sentences(body: str) -> None:
    workload = build(experiment(body, {"balance": [1.0]}))
    shard = workload.shard(0)
    inputs = {MODEL: workload.init(generator(1, "init"))}
    info = observe(workload, inputs, shard, explainers=["covariance"]).info
    assert np.sum(info["histograms"]["CEf"]["covariance"]) == 0  # of one version there is no covariance
    info = observe(workload, inputs, workload.held_out(0, 1), explainers=["covariance"]).info
    counts = np.array(info["histograms"]["CEf"]["covariance"]).sum(axis=0)
    assert median_of(counts.tolist()) > 0.7


class TestConformance(MonitorConformance):
    name = "geco"
    settings: Info = {**SMALL, "source": {"source": "generated", "pairs": 2, "test_pairs": 2}}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _texts(self, texts: Texts) -> None:
        self.texts = texts

    def workload(self) -> object:
        return self.texts
