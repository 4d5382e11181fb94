"""A BERT of random weights with a tokenizer of word pieces, and experiments of the workload `geco` on it."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.workloads._pretrained.text_model import TextModel, WordTokens
from fedloom.workloads.geco.config import Generated
from fedloom.workloads.geco.generator import load_attribute
from fedloom.workloads.geco.sentences import Sentence

DATA: dict[str, Any] = {"source": "generated", "pairs": 24, "test_pairs": 8}
SHARED = Path(__file__).parents[3] / "shared" / "data" / "geco"
"""The released data, where a checkout has it beside it."""


def make_body(folder: Path, layers: int = 1) -> str:
    """Write a BERT of 16 dimensions; every third word of the lexicon is cut into letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    lexicon = sorted({word.lower() for word in load_attribute("gender").lexicon})
    letters = [*string.ascii_lowercase, *string.punctuation]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = [*names, *letters, *(f"##{each}" for each in letters)]
    pieces += [word for place, word in enumerate(lexicon) if place % 3 and word not in pieces]
    tokenizer = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), names, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(folder))
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(str(folder))
    return str(folder)


def experiment(body: str, settings: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    """An experiment of two rounds with one client."""
    given = dict(settings or {})
    workload = {
        "name": "geco",
        "regimes": ["CEf"],
        "data": {**DATA, **given.pop("data", {})},
        "model": {"body": body, **given.pop("model", {})},
        "training": {"optimizer": "adamw", "learning_rate": 1.0, "batch_size": 8, **given.pop("training", {})},
        **given,
    }
    base: dict[str, Any] = {"rounds": 2, "clients": 1, "strategy": "fedavg", "runtime": {"name": "inline"}}
    return Experiment.parse({**base, "evaluation": {"every": 1, "parts": 1}, **changes, "workload": workload})


def build(made: Experiment) -> Any:
    """Build the workload of an experiment."""
    return registry.part("workloads", "geco", "workload").build_workload(made.workload, made)


class BagOfWords(nn.Module):
    """Logit of class 1: the sum of the weights of a sentence's tokens, whose vectors are one-hot; padding weighs 0."""

    def __init__(self, tokens: WordTokens, weights: Tensor) -> None:
        super().__init__()
        self.weights, self.tokens = nn.Parameter(weights), tokens

    def vectors(self, ids: Tensor) -> Tensor:
        """One-hot vectors, (b, t, V)."""
        return torch.nn.functional.one_hot(ids, len(self.weights)).to(self.weights.dtype)

    def logits(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(b, 2)."""
        found = ((vectors @ self.weights) * mask).sum(1)
        return torch.stack([torch.zeros_like(found), found], 1)

    def explained(self) -> TextModel:
        """As a function of its vectors."""
        return TextModel(self, self.tokens, self.vectors, self.logits)


def sentences(count: int = 8, **settings: Any) -> tuple[Sentence, ...]:
    """Return generated training sentences, two to a pair."""
    from fedloom.workloads.geco.generator import generate

    return generate(Generated(pairs=count, test_pairs=1, **settings), 1).train
