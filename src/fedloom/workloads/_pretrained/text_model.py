"""A text classifier as a function of its word vectors: what an explanation of its decisions starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sentence in tokens."""

    ids: Array
    """Token ids, (t,), int64."""
    words: tuple[int | None, ...]
    """Number of the word that each token is a piece of, t entries; None for a special token."""


class WordTokens:
    """Turns sentences that are cut into words into tokens, and remembers which token belongs to which word.

    Args:
        tokenizer: a fast one, which knows the words of its tokens.
        max_length: tokens of a sentence, the special ones included; those beyond are cut off.
        lexicon: all words there will be; token ids are then numbered without gaps. Empty leaves the tokenizer's ids.

    Raises:
        DataMissing: the tokenizer does not know the words of its tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, lexicon: Sequence[str] = ()) -> None:
        if not tokenizer.is_fast:
            raise DataMissing(
                f"the tokenizer of {tokenizer.name_or_path!r} does not know which token is a piece of which word; "
                "add its tokenizer.json to the folder"
            )
        self._tokenizer, self._max_length = tokenizer, max_length
        self.kept: Array | None = None
        """The tokenizer's ids that are in use, rising; None if all are."""
        if lexicon:
            pieces = tokenizer([[word] for word in lexicon], is_split_into_words=True)["input_ids"]
            special = set(tokenizer.all_special_ids)
            self.kept = np.array(sorted(special | {token for ids in pieces for token in ids}), np.int64)
        self.pad_id = int(self._numbered(np.array([tokenizer.pad_token_id or 0]))[0])

    @property
    def size(self) -> int:
        """Return the number of different ids."""
        return len(self._tokenizer) if self.kept is None else len(self.kept)

    def encode(self, sentences: Sequence[Sequence[str]]) -> list[Encoded]:
        """Return each sentence's tokens.

        Raises:
            DataMissing: a token is not of the lexicon.
        """
        if not sentences:
            return []
        made = self._tokenizer(
            [list(words) for words in sentences],
            is_split_into_words=True,
            truncation=True,
            max_length=self._max_length,
        )
        return [
            Encoded(self._numbered(np.array(ids, np.int64)), tuple(made.word_ids(row)))
            for row, ids in enumerate(made["input_ids"])
        ]

    def _numbered(self, ids: Array) -> Array:
        if self.kept is None:
            return ids
        places = np.minimum(np.searchsorted(self.kept, ids), len(self.kept) - 1)
        strangers = ids[self.kept[places] != ids]
        if len(strangers):
            token = self._tokenizer.convert_ids_to_tokens(int(strangers[0]))
            raise DataMissing(f"token {token!r} is of no word that these sentences can have")
        return np.asarray(places, np.int64)


class TextModel(nn.Module):
    """Logits of a classifier, given the vectors of a sentence's tokens instead of the tokens.

    Args:
        network: the classifier whose modules take part.
        tokens: how sentences become token ids.
        vectors: word vectors of token ids: (b, t) int64 to (b, t, d), without positions.
        logits: classes' logits of word vectors and a mask, (b, t, d) and (b, t), to (b, K).
        block: the embedding block's whole output, positions and normalisation included, (b, t) to (b, t, d); None if
            the network has none.
    """

    def __init__(
        self,
        network: nn.Module,
        tokens: WordTokens,
        vectors: Callable[[Tensor], Tensor],
        logits: Callable[[Tensor, Tensor], Tensor],
        block: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.tokens, self.vectors, self.block = tokens, vectors, block
        self._logits = logits

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return logits, (b, K), of word vectors (b, t, d) and a mask (b, t)."""
        return self._logits(vectors, mask)


def word_embedding(encoder: nn.Module) -> nn.Embedding:
    """Return the table of word vectors of a transformer."""
    found: nn.Embedding = encoder.get_input_embeddings()  # type: ignore[operator]  # transformers' method
    return found


def padded(rows: Sequence[Array], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and mask of some sentences, padded to the longest; both (b, t) int64."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_id, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
