"""A HuBERT encoder with branches that can stop: layers above an exit are not run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertModel

from fedloom.core.errors import DataMissing
from fedloom.workloads.hubert_ee.config import NetSettings, PretrainingSettings
from fedloom.workloads.hubert_ee.front import LogMel
from fedloom.workloads.hubert_ee.pretraining import ClusterHead
from fedloom.workloads.hubert_ee.vocabulary import SIZE

_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


@dataclass(frozen=True, slots=True)
class Frames:
    """The encoder's input after convolutions, projection and positions."""

    hidden: Tensor
    """(b, T, width)."""
    counts: Tensor
    """Frames that are no padding, (b,), int64."""
    mask: Tensor | None
    """Added to attention scores, (b, 1, 1, T): 0, or a very negative number at padding; None without padding."""


class Branch(nn.Module):
    """A transformer encoder layer and a linear one: (b, T, width) to (b, T, C).

    Args:
        shape: of the encoder.
        dropout: in the layer.
    """

    def __init__(self, shape: HubertConfig, dropout: float) -> None:
        super().__init__()
        width, heads, feed_forward = shape.hidden_size, shape.num_attention_heads, shape.hidden_size // 2
        # outputs of an encoder with normalisation before its layers' parts are not normalised
        self.norm = nn.LayerNorm(width) if shape.do_stable_layer_norm else nn.Identity()
        self.layer = nn.TransformerEncoderLayer(width, heads, feed_forward, dropout, "gelu", batch_first=True)
        self.linear = nn.Linear(width, SIZE)

    def forward(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the logits; `padding` is true at padded frames, (b, T)."""
        logits: Tensor = self.linear(self.layer(self.norm(frames), src_key_padding_mask=padding))
        return logits


class LinearBranch(nn.Module):
    """A normalisation and a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, SIZE)

    def forward(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the logits, (b, T, C)."""
        logits: Tensor = self.linear(self.norm(frames))
        return logits


class EarlyExit(nn.Module):
    """HuBERT, a branch after each layer of `exits`, and the final head.

    Args:
        settings: sizes or a checkpoint.
        exits: layers, from 1.
        kind: `attention` or `linear` branches.
        augments: whether training changes the log-mel bands.
        clusters: head of the pretraining; None without.
    """

    def __init__(
        self,
        settings: NetSettings,
        exits: tuple[int, ...],
        kind: str,
        *,
        augments: bool = False,
        clusters: PretrainingSettings | None = None,
    ) -> None:
        super().__init__()
        self.exits = exits
        self.hubert = _encoder(settings)
        self._log_mel: LogMel | None = None
        if settings.front == "log_mel" and settings.checkpoint is None:
            self._log_mel = LogMel(settings.channels, augments)
            self.hubert.feature_extractor = self._log_mel
        shape, dropout = self.hubert.config, settings.dropout
        if exits[-1] >= shape.num_hidden_layers:
            raise DataMissing(
                f"workload.exits: there is no branch after layer {exits[-1]}; the checkpoint has "
                f"{shape.num_hidden_layers} layers"
            )
        width = shape.hidden_size
        self.branches = nn.ModuleDict(
            {str(number): LinearBranch(width) if kind == "linear" else Branch(shape, dropout) for number in exits}
        )
        self.final = nn.Linear(width, SIZE)
        self.clusters = None if clusters is None else ClusterHead(width, clusters.clusters, clusters.temperature)

    @property
    def num_layers(self) -> int:
        """Return the encoder's layers."""
        return int(self.hubert.config.num_hidden_layers)

    def counts(self, lengths: Tensor) -> Tensor:
        """Return the number of frames of a number of samples."""
        return frame_counts(lengths) if self._log_mel is None else self._log_mel.counts(lengths)

    def frames(self, wave: Tensor, lengths: Tensor) -> Frames:
        """Return the first layer's input.

        Args:
            wave: samples, (b, n), zeros behind an utterance's end.
            lengths: samples of each utterance, (b,), int64.
        """
        features, padding = self.features(wave, lengths)
        if self.training:
            features = self.hubert._mask_hidden_states(features)
        return self.positioned(features, padding)

    def features(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected frames, (b, T, width), and where they are padding, (b, T)."""
        hubert, front = self.hubert, self._log_mel
        found = hubert.feature_extractor(wave) if front is None else front(wave, lengths)
        features: Tensor = hubert.feature_projection(found.transpose(1, 2))
        padding = torch.arange(features.shape[1], device=wave.device) >= self.counts(lengths)[:, None]
        return features, padding

    def positioned(self, features: Tensor, padding: Tensor) -> Frames:
        """Return projected frames, (b, T, width), with their positions, as the first layer reads them."""
        features = features.masked_fill(padding[..., None], 0.0)
        encoder = self.hubert.encoder
        hidden = features + encoder.pos_conv_embed(features)
        if not self.hubert.config.do_stable_layer_norm:
            hidden = encoder.layer_norm(hidden)
        mask = None
        if bool(padding.any()):
            mask = torch.zeros(padding.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill(padding, torch.finfo(hidden.dtype).min)[:, None, None, :]
        return Frames(encoder.dropout(hidden), (~padding).sum(1), mask)

    def outputs(self, frames: Frames) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each exit and its logits, (b, T, C), the final head last.

        Layers are run on demand: those above the last exit that was asked for never run.
        """
        padding = torch.arange(frames.hidden.shape[1], device=frames.hidden.device) >= frames.counts[:, None]
        for number, hidden in self.hidden(frames):
            if number in self.exits:
                yield number, self.branches[str(number)](hidden, padding)
            if number == self.num_layers:
                yield number, self.final(self.normalised(hidden))

    def hidden(self, frames: Frames) -> Iterator[tuple[int, Tensor]]:
        """Yield each layer's number and output, (b, T, width); layers are run on demand."""
        hidden = frames.hidden
        for number, layer in enumerate(self.hubert.encoder.layers, 1):
            found = layer(hidden, attention_mask=frames.mask)
            hidden = found[0] if isinstance(found, tuple) else found
            yield number, hidden

    def last(self, frames: Frames) -> Tensor:
        """Return the final head's logits, (b, T, C), without running a branch."""
        logits: Tensor = self.final(self.encoded(frames))
        return logits

    def encoded(self, frames: Frames) -> Tensor:
        """Return the encoder's output, (b, T, width)."""
        *_, (_, hidden) = self.hidden(frames)
        return self.normalised(hidden)

    def normalised(self, hidden: Tensor) -> Tensor:
        """Return the last layer's output as the encoder gives it."""
        if self.hubert.config.do_stable_layer_norm:
            hidden = self.hubert.encoder.layer_norm(hidden)
        return hidden

    def forward(self, wave: Tensor, lengths: Tensor) -> list[Tensor]:
        """Return the logits of every exit and of the final head, (b, T, C) each."""
        return [logits for _, logits in self.outputs(self.frames(wave, lengths))]


def as_exits(model: nn.Module) -> EarlyExit:
    """Return a model as what it is here."""
    if not isinstance(model, EarlyExit):
        raise TypeError(f"expected an EarlyExit, got {type(model).__name__}")
    return model


def frame_counts(lengths: Tensor) -> Tensor:
    """Return the number of frames of a number of samples."""
    for kernel, stride in zip(_KERNELS, _STRIDES, strict=True):
        lengths = (lengths - kernel) // stride + 1
    return lengths.clamp(min=0)


def _encoder(settings: NetSettings) -> HubertModel:
    if settings.checkpoint is not None:
        return _from_folder(settings.checkpoint)
    waveform = settings.front == "waveform"
    config = HubertConfig(
        do_stable_layer_norm=settings.norm == "pre",
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.feed_forward,
        conv_dim=(settings.channels,) * (len(_KERNELS) if waveform else 1),
        conv_kernel=_KERNELS if waveform else _KERNELS[:1],
        conv_stride=_STRIDES if waveform else _STRIDES[:1],
        feat_extract_norm="layer",  # unlike group normalisation it does not see the padding
        conv_bias=True,
        num_conv_pos_embeddings=settings.positions,
        num_conv_pos_embedding_groups=settings.heads,
        hidden_dropout=settings.dropout,
        attention_dropout=settings.dropout,
        activation_dropout=settings.dropout,
        feat_proj_dropout=settings.dropout,
        layerdrop=0.0,
        apply_spec_augment=False,
        attn_implementation="eager",
    )
    return HubertModel(config)


def _from_folder(folder: str) -> HubertModel:
    """Load a checkpoint.

    Raises:
        DataMissing: the folder has none, or one of another architecture.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise DataMissing(f"workload.net.checkpoint: {folder!r} has no config.json; expected a folder of transformers")
    kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    if kind not in ("hubert", "wav2vec2"):
        raise DataMissing(
            f"workload.net.checkpoint: {folder!r} holds a model of type {kind!r}, expected 'hubert' or 'wav2vec2'"
        )
    config = HubertConfig.from_pretrained(folder, attn_implementation="eager", layerdrop=0.0, apply_spec_augment=False)
    model, found = HubertModel.from_pretrained(folder, config=config, output_loading_info=True)
    missing = sorted(name for name in found["missing_keys"] if "masked_spec_embed" not in name)
    if missing:
        raise DataMissing(
            f"workload.net.checkpoint: {folder!r} lacks {len(missing)} arrays of the encoder, such as {missing[0]!r}. "
            "Save the bare encoder (HubertModel or Wav2Vec2Model) with save_pretrained"
        )
    loaded: HubertModel = model
    return loaded
