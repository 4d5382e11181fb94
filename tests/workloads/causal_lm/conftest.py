"""Two tiny causal language models with a tokenizer of whole words, and four files to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedloom.core.config import Experiment
from fedloom.core.seeds import generator

WORDS = [f"w{index}" for index in range(12)]
BLOCK = 8
TARGETS = {"gpt2": ["c_attn", "mlp.c_fc"], "llama": ["q_proj", "v_proj"]}


def save_tokenizer(folder: Path, **special: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<end>", *WORDS]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **special).save_pretrained(str(folder))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A GPT-2 (Conv1D layers, output tied to the embedding) and a Llama (Linear layers, not tied)."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": len(WORDS) + 2, "initializer_range": 0.3}  # wide, or adapters would have nothing to adapt
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1, **size)
    llama = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=1,
        eos_token_id=1,
        **size,
    )
    folders = {}
    for name, kind, config in (("gpt2", GPT2LMHeadModel, gpt2), ("llama", LlamaForCausalLM, llama)):
        folders[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            kind(config).save_pretrained(str(folders[name]))
        save_tokenizer(folders[name])
    return folders


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files that count: after w3 comes w4. File k has 160 + k words, so its last block has k of eight."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "inner").mkdir()
    for number in range(4):
        start = int(generator(2, "texts", number).integers(12))
        words = [WORDS[(start + place) % 12] for place in range(160 + number)]
        (folder / ("inner" if number == 3 else "") / f"file-{number}.txt").write_text(
            " ".join(words) + "\n", encoding="utf-8"
        )
    (folder / "notes.md").write_text("not read", encoding="utf-8")
    return folder


Make = Callable[..., Experiment]


@pytest.fixture
def make(checkpoints: dict[str, Path], texts: Path) -> Make:
    """An experiment on one of the models; dotted keyword arguments change its settings."""

    def experiment(kind: str = "gpt2", strategy: dict[str, Any] | None = None, **changes: Any) -> Experiment:
        values: dict[str, Any] = {
            "rounds": 3,
            "clients": 4,
            "cohort": 2,
            "strategy": strategy or {"name": "fedavg"},
            "workload": {
                "name": "causal_lm",
                "data": {"path": str(texts)},
                "model": {"checkpoint": str(checkpoints[kind]), "block_size": BLOCK},
                "training": {"optimizer": "adamw", "learning_rate": 0.02, "batch_size": 8, "epochs": 2},
            },
            "runtime": {"name": "inline"},
        }
        return Experiment.parse(values).override([f"{key}={value}" for key, value in changes.items()])

    return experiment


def entropy(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean cross-entropy, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_p[np.arange(len(truth)), truth].mean())
