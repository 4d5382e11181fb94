"""Speech recognition with early exits on an agent: data, the encoder with its branches, training, evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core import frames as frame_files
from fedloom.core import run_files
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.extras import needed_by
from fedloom.core.protocols import Inputs, LocalRule
from fedloom.core.records import Array, Info, Job, Mean, Metrics
from fedloom.workloads._base.rows import RowData, TensorRows
from fedloom.workloads._base.task import RowTask, minibatches
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.arrays import as_tensor
from fedloom.workloads._torch.trainer import LocalTraining
from fedloom.workloads.hubert_ee.config import Config
from fedloom.workloads.hubert_ee.corpus import Split, load_corpus
from fedloom.workloads.hubert_ee.criteria import Criterion, exit_of, greedy
from fedloom.workloads.hubert_ee.losses import ctc, total
from fedloom.workloads.hubert_ee.net import EarlyExit, frame_counts
from fedloom.workloads.hubert_ee.vocabulary import decode

_TIMED = 40
"""Utterances of a part of the held-out data that are timed."""
_SCALE = 1.0 / 32768.0


class EarlyExitSpeech(RowTask[Config]):
    """CTC over characters at every exit; an utterance's transcript is that of the exit it leaves at."""

    own_training = True
    evaluation_batch = 32

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._corpus = load_corpus(config.speech)
        super().__init__(config, experiment)

    def dataset(self) -> RowData:
        corpus = self._corpus
        return RowData(
            train=self._rows(corpus.train),
            test=self._rows(corpus.test),
            info=corpus.info,
            sha256=corpus.sha256,
            groups=np.asarray(corpus.train.speakers),
        )

    def model(self) -> nn.Module:
        config = self.config
        net = EarlyExit(config.net, config.exits, config.branch)
        if config.start is not None:
            load_start(net, config.start)
        if config.stage == "branches":
            for part in (net.hubert, net.final):
                part.requires_grad_(False)
        if config.stage == "final":
            net.branches.requires_grad_(False)
        net.hubert.masked_spec_embed.requires_grad_(False)
        return net

    def initial_info(self, model: nn.Module) -> Info:
        return {}

    def local_training(self, model: nn.Module, job: Job, shard: RowShard, rule: LocalRule | None) -> LocalTraining:
        local = super().local_training(model, job, shard, rule)
        source, _ = self.examples(shard)
        config, net = self.config, self._net(model)

        def loss_of(rows: Tensor) -> Tensor:
            (waves, lengths), targets = source.batch(rows)
            found = [ctc(logits, counts, targets) for logits, counts in self._exits(net, waves, lengths)]
            return total(found, config.stage, config.weight)

        return replace(local, loss_of=loss_of)

    def evaluate(self, inputs: Inputs, shard: RowShard) -> Metrics:
        """Return word error rates: `wer` with early exits, `wer_full_depth`, `wer_exit_L`, and where utterances left.

        Rates are of the whole corpus: errors over words. `mean_exit_layer` counts the last layer for the final head.
        """
        source, rows = self.examples(shard)
        sums: dict[str, list[float]] = {}

        def add(name: str, value: float, weight: float) -> None:
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + value, entry[1] + weight

        with self.evaluating(inputs):
            net = self._net(self.network)
            places = [*self.config.exits, net.num_layers]
            for batch in minibatches(rows, self.evaluation_batch, self.device):
                (waves, lengths), targets = source.batch(batch)
                exits = list(self._exits(net, waves, lengths))
                add("loss", float(ctc(*exits[-1], targets)) * len(batch), float(len(batch)))
                for row, target in enumerate(targets.tolist()):
                    text = decode(target[1 : target[0] + 1])
                    logits = [each[row, : int(counts[row])] for each, counts in exits]
                    left = exit_of(logits[:-1], self.config.criterion)
                    words = float(len(text.split()))
                    errors = [float(word_errors(text, greedy(each))) for each in logits]
                    add("wer", errors[left], words)
                    add("wer_full_depth", errors[-1], words)
                    add("mean_exit_layer", float(places[left]), 1.0)
                    for place, number in enumerate(places):
                        add(f"wer_exit_{number}", errors[place], words)
                        add(f"left_at_{number}", float(left == place), 1.0)
            if self.config.measure_time:
                self._timed(net, rows, add)
        return {name: Mean(value, weight) for name, (value, weight) in sums.items()}

    def transcribe(self, net: EarlyExit, wave: Tensor) -> tuple[str, int]:
        """Return one utterance's transcript and the layer it left at; no layer above it is run.

        Args:
            net: the model, in evaluation mode.
            wave: samples, (n,), int16.
        """
        criterion, length = Criterion(self.config.criterion), torch.tensor([len(wave)])
        found, number = torch.zeros(0), 0
        for number, logits in net.outputs(net.frames(wave[None].float() * _SCALE, length)):
            found = logits[0]
            if number < net.num_layers and criterion.leaves(found):
                break
        return greedy(found), number

    def _timed(self, net: EarlyExit, rows: Array, add: object) -> None:
        source = self.data.test
        if source is None or not callable(add):
            return
        for row in rows[:_TIMED].tolist():
            (waves, lengths), _ = source.batch(torch.tensor([row]))
            wave = waves[0, : int(lengths[0])]
            begin = time.process_time()
            self.transcribe(net, wave)
            early = time.process_time() - begin
            begin = time.process_time()
            greedy(net(wave[None].float() * _SCALE, lengths)[-1][0])
            whole = time.process_time() - begin
            add("cpu_seconds", early, 1.0)
            add("cpu_seconds_full_depth", whole, 1.0)
            add("cpu_seconds_saved", whole - early, 1.0)

    def _exits(self, net: EarlyExit, waves: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each exit's logits, and the frames that are no padding."""
        wave = waves[:, : int(lengths.max())].float() * _SCALE
        counts = frame_counts(lengths)
        for logits in net(wave, lengths):
            yield logits, counts

    def _rows(self, split: Split) -> TensorRows:
        waves, lengths, targets = (
            torch.from_numpy(np.array(each)) for each in (split.waves, split.lengths, split.targets)
        )
        return TensorRows((waves.to(self.device), lengths.to(self.device)), targets.to(self.device))

    def _net(self, model: nn.Module) -> EarlyExit:
        if not isinstance(model, EarlyExit):
            raise TypeError(f"expected an EarlyExit, got {type(model).__name__}")
        return model


def word_errors(reference: str, hypothesis: str) -> int:
    """Return substitutions, insertions and deletions of words, by jiwer."""
    import jiwer  # here, so that only an evaluation needs the extra

    found = jiwer.process_words(reference, hypothesis)
    return int(found.substitutions + found.insertions + found.deletions)


def load_start(net: EarlyExit, folder: str) -> None:
    """Load a finished run's weights into those parts of the network that it has.

    Raises:
        DataMissing: no finished run is there, or its arrays do not fit.
    """
    file = Path(folder).expanduser() / run_files.MODEL
    if not file.is_file():
        raise DataMissing(f"workload.start: {folder!r} has no {run_files.MODEL}; expected the folder of a finished run")
    groups = frame_files.decode(file.read_bytes()).groups
    arrays = {name: array for group in groups.values() for name, array in group.items()}
    own = dict(net.named_parameters())
    missing = [name for name in own if not name.startswith("branches.") and name not in arrays]
    missing = [name for name in missing if name != "hubert.masked_spec_embed"]
    odd = [name for name, array in arrays.items() if name not in own or tuple(own[name].shape) != array.shape]
    if missing or odd:
        raise DataMissing(
            f"workload.start: {folder!r} holds another network: {(missing or odd)[0]!r} does not fit. Set "
            "workload.net and workload.exits as in that run"
        )
    with torch.no_grad():
        for name, array in arrays.items():
            own[name].copy_(as_tensor(array))


def build_workload(config: Config, experiment: Experiment) -> EarlyExitSpeech:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: recordings or weights are missing on this machine, or invalid.
        ConfigError: a client has no utterances, or a required GPU is missing.
        PackageMissing: the extra `speech` is not installed.
    """
    with needed_by("workload 'hubert_ee'"):
        import jiwer  # noqa: F401  # now rather than at the first evaluation
    if config.training.early_stopping is not None:
        raise ConfigError("workload.training.early_stopping: not for this workload; remove it")
    return EarlyExitSpeech(config, experiment)
