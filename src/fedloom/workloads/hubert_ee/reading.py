"""Runs a model over utterances: transcripts, scores and word errors at every exit; real stops; CPU time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import Array
from fedloom.workloads._base.rows import RowSource
from fedloom.workloads._base.task import minibatches
from fedloom.workloads.hubert_ee.criteria import Criterion, greedy, scores
from fedloom.workloads.hubert_ee.exits import SCORES, Rule, Table
from fedloom.workloads.hubert_ee.losses import ctc
from fedloom.workloads.hubert_ee.net import EarlyExit
from fedloom.workloads.hubert_ee.vocabulary import decode

SCALE = 1.0 / 32768.0
"""Stored samples times this are from -1 to 1."""


@dataclass(frozen=True, slots=True)
class Transcripts:
    """What a model makes of utterances at every exit, the final head's last."""

    table: Table
    texts: tuple[tuple[str, ...], ...]
    """For each utterance, its transcript at each exit."""
    references: tuple[str, ...]
    loss: float
    """Sum over utterances of the final head's loss."""


def read_all(net: EarlyExit, source: RowSource, rows: Array, batch_size: int, device: torch.device) -> Transcripts:
    """Run a model, in evaluation mode, over utterances.

    Args:
        net: the model.
        source: waves and lengths, and targets.
        rows: of the source, (n,), int64.
        batch_size: utterances of a forward pass.
        device: of the work.
    """
    found: list[list[list[float]]] = []
    texts: list[tuple[str, ...]] = []
    references, loss = list[str](), 0.0
    for batch in minibatches(rows, batch_size, device):
        (waves, lengths), targets = source.batch(batch)
        counts = net.counts(lengths)
        exits = net(waves[:, : int(lengths.max())].float() * SCALE, lengths)
        loss += float(ctc(exits[-1], counts, targets)) * len(batch)
        for row, target in enumerate(targets.tolist()):
            cut = [each[row, : int(counts[row])] for each in exits]
            references.append(decode(target[1 : target[0] + 1]))
            texts.append(tuple(greedy(each) for each in cut))
            found.append([scores(each) for each in cut[:-1]])
    return Transcripts(_table(found, texts, references, len(net.exits)), tuple(texts), tuple(references), loss)


def transcribe(net: EarlyExit, wave: Tensor, rule: Rule) -> tuple[str, int]:
    """Return one utterance's transcript and the layer it left at; no layer above it is run.

    Args:
        net: the model, in evaluation mode.
        wave: samples, (n,), int16.
        rule: when to leave.
    """
    criterion, length = Criterion(rule), torch.tensor([len(wave)], device=wave.device)
    found, number = torch.zeros(0), 0
    for number, logits in net.outputs(net.frames(wave[None].float() * SCALE, length)):
        found = logits[0]
        if number < net.num_layers and criterion.leaves(found):
            break
    return greedy(found), number


def exit_seconds(net: EarlyExit, wave: Tensor, rule: Rule, repeats: int) -> list[float]:
    """Return the CPU seconds of one utterance at batch 1 until each exit, decided and decoded; medians of repeats.

    The last number but one is the final head's with all branches before it; the last one is that of the model without
    branches.
    """
    length = torch.tensor([len(wave)], device=wave.device)
    taken: list[list[float]] = []
    for _ in range(repeats):
        criterion, begin, marks = Criterion(rule), time.process_time(), list[float]()
        for number, logits in net.outputs(net.frames(wave[None].float() * SCALE, length)):
            if number < net.num_layers:
                criterion.leaves(logits[0])
            else:
                greedy(logits[0])
            marks.append(time.process_time() - begin)
        begin = time.process_time()
        greedy(net.last(net.frames(wave[None].float() * SCALE, length))[0])
        taken.append([*marks, time.process_time() - begin])
    return [statistics.median(each) for each in zip(*taken, strict=True)]


def word_errors(reference: str, hypothesis: str) -> int:
    """Return substitutions, insertions and deletions of words, by jiwer."""
    import jiwer  # here, so that only an evaluation needs the extra

    found = jiwer.process_words(reference, hypothesis)
    return int(found.substitutions + found.insertions + found.deletions)


def _table(
    found: Sequence[Sequence[Sequence[float]]],
    texts: Sequence[Sequence[str]],
    references: Sequence[str],
    branches: int,
) -> Table:
    count = len(references)
    errors = [[word_errors(text, each) for each in row] for text, row in zip(references, texts, strict=True)]
    agreeing = np.ones((count, branches), np.int64)
    for n, row in enumerate(texts):
        for branch in range(1, branches):
            agreeing[n, branch] = agreeing[n, branch - 1] + 1 if row[branch] == row[branch - 1] else 1
    return Table(
        np.array(found, np.float64).reshape(count, branches, len(SCORES)),
        np.array(errors, np.float64).reshape(count, branches + 1),
        np.array([len(text.split()) for text in references], np.float64),
        agreeing,
    )
