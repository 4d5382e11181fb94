"""Pretraining of the encoder without transcripts: masked-cluster prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import Inputs, LocalRule
from fedloom.core.records import Info, Job, Mean, Metrics
from fedloom.core.seeds import generator
from fedloom.workloads._base.rows import RowData
from fedloom.workloads._base.task import RowTask, minibatches
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.trainer import LocalTraining
from fedloom.workloads.hubert_ee.config import Config
from fedloom.workloads.hubert_ee.corpus import load_corpus
from fedloom.workloads.hubert_ee.corpus_rows import row_data
from fedloom.workloads.hubert_ee.front import LogMel
from fedloom.workloads.hubert_ee.net import EarlyExit, as_exits
from fedloom.workloads.hubert_ee.pretraining import Targets, cluster_centres, masked_loss, spans
from fedloom.workloads.hubert_ee.reading import SCALE
from fedloom.workloads.hubert_ee.start import load_start


class MaskedSpeech(RowTask[Config]):
    """The encoder predicts the clusters of masked frames from those around them. Branches and final head do not train.

    The clusters are of the training frames of this machine's corpus, drawn by the experiment's seed.
    """

    own_training = True
    evaluation_batch = 32

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._corpus = load_corpus(config.speech)
        super().__init__(config, experiment)
        with exact(torch.device("cpu"), seed=0):
            self._front = LogMel(1).eval()
            train = self._corpus.train
            rng = generator(experiment.seed, "hubert_ee", "clusters")
            self._targets = Targets(
                cluster_centres(self._front, train.waves, train.lengths, config.pretraining.clusters, rng)
            )
        self._front.to(self.device)

    def dataset(self) -> RowData:
        return row_data(self._corpus, self.device)

    def model(self) -> nn.Module:
        config = self.config
        net = EarlyExit(config.net, config.exits, config.branch, augments=config.augment, clusters=config.pretraining)
        if config.start is not None:
            load_start(net, config.start, whole=False, sha256=config.start_sha256)
        for part in (net.branches, net.final):
            part.requires_grad_(False)
        return net

    def initial_info(self, model: nn.Module) -> Info:
        return {}

    def local_training(self, model: nn.Module, job: Job, shard: RowShard, rule: LocalRule | None) -> LocalTraining:
        local = super().local_training(model, job, shard, rule)
        source, _ = self.examples(shard)
        net = as_exits(model)

        def loss_of(rows: Tensor) -> Tensor:
            (waves, lengths), _ = source.batch(rows)
            return self._predicted(net, waves, lengths)[0]

        return replace(local, loss_of=loss_of)

    def evaluate(self, inputs: Inputs, shard: RowShard) -> Metrics:
        """Return the `loss` of masked frames, and `accuracy`: the share of them whose cluster is predicted."""
        source, rows = self.examples(shard)
        sums = np.zeros(3)
        with self.evaluating(inputs):
            net = as_exits(self.network)
            for batch in minibatches(rows, self.evaluation_batch, self.device):
                (waves, lengths), _ = source.batch(batch)
                loss, right, count = self._predicted(net, waves, lengths, batch.tolist())
                sums += float(loss) * count, float(right), count
        return {"loss": Mean(float(sums[0]), float(sums[2])), "accuracy": Mean(float(sums[1]), float(sums[2]))}

    def _predicted(
        self, net: EarlyExit, waves: Tensor, lengths: Tensor, seeds: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor, int]:
        """Return the mean loss of masked frames, how many are predicted right, and how many there are."""
        wave = waves[:, : int(lengths.max())].float() * SCALE
        features, padding = net.features(wave, lengths)
        mask = spans(padding, self.config.pretraining, seeds)
        with torch.no_grad():
            clusters = self._targets.of(self._front.bands(wave, lengths), features.shape[1])
        hidden = torch.where(mask[..., None], net.hubert.masked_spec_embed.to(features), features)
        frames = net.positioned(hidden, padding)
        if net.clusters is None:
            raise TypeError("the model has no head for clusters")
        loss, right = masked_loss(net.clusters(net.encoded(frames)), clusters, mask)
        return loss, right, int(mask.sum())
