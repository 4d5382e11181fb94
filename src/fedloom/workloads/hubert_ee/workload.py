"""Speech recognition with early exits on an agent: data, the encoder with its branches, training, evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.extras import needed_by
from fedloom.core.protocols import Inputs, LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Array, Info, Job, Mean, Metrics, Record, Update
from fedloom.workloads._adapters.targets import model_info
from fedloom.workloads._base.rows import RowData
from fedloom.workloads._base.task import RowTask
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.trainer import LocalTraining
from fedloom.workloads.hubert_ee.config import Config
from fedloom.workloads.hubert_ee.corpus import load_corpus
from fedloom.workloads.hubert_ee.corpus_rows import as_rows, row_data
from fedloom.workloads.hubert_ee.depths import depth_of, is_held
from fedloom.workloads.hubert_ee.exits import Rule, Table, calibrated, fit_gate
from fedloom.workloads.hubert_ee.freezing import Frozen
from fedloom.workloads.hubert_ee.losses import ctc, total
from fedloom.workloads.hubert_ee.masked import MaskedSpeech
from fedloom.workloads.hubert_ee.net import EarlyExit, as_exits
from fedloom.workloads.hubert_ee.outside import Recordings, load_outside
from fedloom.workloads.hubert_ee.reading import SCALE, Transcripts, exit_seconds, read_all
from fedloom.workloads.hubert_ee.start import load_start
from fedloom.workloads.hubert_ee.trade_off import Conditions, trade_off

_REPEATS = 3
"""Timings of an utterance, whose median counts."""


class EarlyExitSpeech(RowTask[Config]):
    """CTC over characters at every exit; an utterance's transcript is that of the exit it leaves at."""

    own_training = True
    evaluation_batch = 32

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._corpus = load_corpus(config.speech)
        super().__init__(config, experiment)
        dev = self._corpus.dev
        self._dev = None if dev is None else as_rows(dev, self.device)
        self._outside = load_outside(config.outside, self.device)
        self._read_of: tuple[Record, Table] | None = None
        """The last global model, and what it made of the dev set."""

    def dataset(self) -> RowData:
        return row_data(self._corpus, self.device)

    def model(self) -> nn.Module:
        config = self.config
        net = EarlyExit(config.net, config.exits, config.branch, augments=config.augment)
        if config.start is not None:
            load_start(net, config.start, whole=config.stage == "branches", sha256=config.start_sha256)
        if config.stage == "branches":
            for part in (net.hubert, net.final):
                part.requires_grad_(False)
        if config.stage == "final":
            net.branches.requires_grad_(False)
        net.hubert.masked_spec_embed.requires_grad_(False)
        return net

    def initial_info(self, model: nn.Module) -> Info:
        return model_info(model, head=("branches", "final"))

    def describe(self) -> WorkloadInfo:
        info, depths = super().describe(), self.config.depths
        sizes = [0 if depth_of(depths, client) == 0 else size for client, size in enumerate(info.client_sizes)]
        return replace(info, client_sizes=sizes)

    def shard(self, client: int) -> RowShard:
        """Return a client's utterances; none for one that has no layer."""
        shard = super().shard(client)
        return RowShard(shard.rows[:0]) if depth_of(self.config.depths, client) == 0 else shard

    def train(
        self, job: Job, inputs: Inputs, shard: RowShard, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        """Train one client; it sends the arrays of the layers and exits it has."""
        update = super().train(job, inputs, shard, rule, rng)
        net, depth = as_exits(self.network), depth_of(self.config.depths, job.client)
        if depth is None or depth == net.num_layers or not update.num_examples:
            return update
        kept = {name: array for name, array in update.groups[MODEL].items() if is_held(net, name, depth)}
        return replace(update, groups={**update.groups, MODEL: kept})

    def local_training(self, model: nn.Module, job: Job, shard: RowShard, rule: LocalRule | None) -> LocalTraining:
        local = super().local_training(model, job, shard, rule)
        source, _ = self.examples(shard)
        config, net, stage = self.config, as_exits(model), self.config.stage_in(job.round)
        last = net.exits[-1] if stage == "branches" else depth_of(config.depths, job.client) or net.num_layers
        frozen = Frozen(net, branches=stage == "final") if config.stage == "two_stage" else None

        def loss_of(rows: Tensor) -> Tensor:
            if frozen is not None:
                frozen.remember()
            (waves, lengths), targets = source.batch(rows)
            counts, found = net.counts(lengths), list[Tensor]()
            frames = net.frames(waves[:, : int(lengths.max())].float() * SCALE, lengths)
            if stage == "final":
                return ctc(net.last(frames), counts, targets)
            for number, logits in net.outputs(frames):
                found.append(ctc(logits, counts, targets))
                if number == last:
                    break
            return total(found, len(net.exits), None if stage == "branches" else config.weight)

        return replace(local, loss_of=loss_of, after_step=None if frozen is None else frozen.restore)

    def evaluate(self, inputs: Inputs, shard: RowShard) -> Metrics:
        """Return word error rates: `wer` with early exits, `wer_full_depth`, `wer_exit_L`, and where utterances left.

        Rates are of the whole corpus: errors over words. `mean_exit_layer` counts the last layer for the final head.
        """
        with self.evaluating(inputs):
            rule, read = self.rule(inputs), self._read(shard)
            seconds = self._seconds(shard, rule) if self.config.measure_time else None
            outside = {name: self._rates(rows, rule, name) for name, rows in self._outside.items()}
        found = measured(read, rule.exits(read.table), self.places, seconds)
        return found | {name: mean for each in outside.values() for name, mean in each.items()}

    def exit_report(self, inputs: Inputs, shard: RowShard, examples: int, points: int) -> Info:
        """Return how errors trade against depth for every criterion, and a few transcripts.

        Args:
            inputs: the global model.
            shard: utterances, of which nothing was fitted to.
            examples: number of transcripts.
            points: thresholds of a curve.
        """
        with self.evaluating(inputs):
            dev, rule, read = self._dev_table(inputs), self.rule(inputs), self._read(shard)
            seconds = self._seconds(shard, rule) if self.config.measure_time else None
            rows = shard.rows
            known = self._corpus.test.noise_db[rows] if shard.held_out else np.full(len(rows), np.nan)
        tolerance = self.config.criterion.tolerance
        conditions = Conditions(points=points, tolerance=tolerance, noise_db=known, seconds=seconds)
        found = trade_off(read, read.table if dev is None else dev, rule, self.places, conditions)
        return {**found, "examples": _examples(read, rule, self.places, examples)}

    @property
    def places(self) -> tuple[int, ...]:
        """Return the layers of the exits, the last one the final head's."""
        return (*self.config.exits, as_exits(self.network).num_layers)

    def rule(self, inputs: Inputs) -> Rule:
        """Return when utterances leave, fitted to the dev set as the settings say; call it in `evaluating`."""
        settings = self.config.criterion
        dev = self._dev_table(inputs) if settings.needs_dev else None
        gate = fit_gate(dev) if settings.name == "learned" and dev is not None else None
        if settings.threshold == "calibrated" and dev is not None:
            return calibrated(settings.name, dev, settings.tolerance, gate)
        return Rule(settings.name, float(settings.threshold), gate)

    def _dev_table(self, inputs: Inputs) -> Table | None:
        """Return what the global model makes of the dev set; None without one."""
        record = inputs[MODEL]
        if self._dev is None:
            return None
        if self._read_of is None or self._read_of[0] is not record:
            net, rows = as_exits(self.network), np.arange(len(self._dev))
            self._read_of = record, read_all(net, self._dev, rows, self.evaluation_batch, self.device).table
        return self._read_of[1]

    def _rates(self, recordings: Recordings, rule: Rule, name: str) -> dict[str, Mean]:
        """Return the word error rates of recordings outside the domain."""
        rows = np.arange(len(recordings))
        table = read_all(as_exits(self.network), recordings, rows, self.evaluation_batch, self.device).table
        words, exits = float(table.words.sum()), rule.exits(table)
        return {
            f"wer_{name}": Mean(float(table.errors[rows, exits].sum()), words),
            f"wer_full_depth_{name}": Mean(float(table.errors[:, -1].sum()), words),
        }

    def _read(self, shard: RowShard) -> Transcripts:
        source, rows = self.examples(shard)
        return read_all(as_exits(self.network), source, rows, self.evaluation_batch, self.device)

    def _seconds(self, shard: RowShard, rule: Rule) -> Array:
        """Return the CPU seconds of each utterance to each exit, and of the model without branches, (n, B + 2)."""
        source, rows = self.examples(shard)
        net, found = as_exits(self.network), list[list[float]]()
        for row in rows.tolist():
            (waves, lengths), _ = source.batch(torch.tensor([row], device=self.device))
            found.append(exit_seconds(net, waves[0, : int(lengths[0])], rule, _REPEATS))
        return np.array(found, np.float64).reshape(len(rows), len(self.places) + 1)


def measured(read: Transcripts, exits: Array, places: tuple[int, ...], seconds: Array | None) -> dict[str, Mean]:
    """Return the metrics of an evaluation.

    Args:
        read: what the model made of the utterances.
        exits: exit of each, (n,), from 0.
        places: layers of the exits.
        seconds: of each utterance to each exit, and without branches, (n, B + 2); None if not measured.
    """
    table, count = read.table, float(len(read.table))
    words, index = float(table.words.sum()), np.arange(len(exits))
    found = {
        "loss": Mean(read.loss, count),
        "wer": Mean(float(table.errors[index, exits].sum()), words),
        "wer_full_depth": Mean(float(table.errors[:, -1].sum()), words),
        "mean_exit_layer": Mean(float(np.array(places)[exits].sum()), count),
    }
    for place, layer in enumerate(places):
        found[f"wer_exit_{layer}"] = Mean(float(table.errors[:, place].sum()), words)
        found[f"left_at_{layer}"] = Mean(float((exits == place).sum()), count)
    if seconds is not None:
        early, whole = float(seconds[index, exits].sum()), float(seconds[:, -1].sum())
        found["cpu_seconds"] = Mean(early, count)
        found["cpu_seconds_full_depth"] = Mean(whole, count)
        found["cpu_seconds_saved"] = Mean(whole - early, count)
    return found


def _examples(read: Transcripts, rule: Rule, places: tuple[int, ...], count: int) -> list[Info]:
    exits = rule.exits(read.table)
    chosen = np.linspace(0, max(len(exits) - 1, 0), min(count, len(exits))).round().astype(int)
    return [
        {
            "reference": read.references[row],
            "texts": list(read.texts[row]),
            "entropy": [float(value) for value in read.table.scores[row, :, 0]],
            "layer": places[exits[row]],
        }
        for row in chosen.tolist()
    ]


def build_workload(config: Config, experiment: Experiment) -> EarlyExitSpeech | MaskedSpeech:
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
    return MaskedSpeech(config, experiment) if config.stage == "pretrain" else EarlyExitSpeech(config, experiment)
