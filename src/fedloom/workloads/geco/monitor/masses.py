"""Mass accuracies of one client's sentences, for each network and explainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fedloom.core.records import Array, Info, JsonObject
from fedloom.core.seeds import integer_seed
from fedloom.workloads._pretrained.text_model import TextModel
from fedloom.workloads.geco.measures import histogram, mass_accuracy, word_importance
from fedloom.workloads.geco.monitor.config import Config
from fedloom.workloads.geco.monitor.explainers import random_importance, token_importance
from fedloom.workloads.geco.monitor.tasks import Task

_DIGITS = 6
"""Decimals of what is sent one by one."""


class Report:
    """Explains a task's sentences with every explainer, and summarises."""

    def __init__(self, config: Config, task: Task, models: Mapping[str, TextModel]) -> None:
        self._config, self._task, self._models = config, task, models
        tokens = next(iter(models.values())).tokens
        self._encoded = tokens.encode([each.words for each in task.sentences])
        self._predicted = {net: self._classes(model) for net, model in models.items()}
        self._versions = np.array([each.version for each in task.sentences], np.int64)

    def info(self) -> Info:
        """Return the report as JSON."""
        scored, config = self._scored(), self._config
        importance: dict[str, dict[str, list[Array]]] = {
            net: {explainer: self._importances(net, explainer, scored) for explainer in config.explainers}
            for net in self._models
        }
        masses = {
            net: {explainer: self._masses(rows, scored) for explainer, rows in each.items()}
            for net, each in importance.items()
        }
        chance = np.array([self._task.sentences[row].chance for row in scored])
        info: JsonObject = {
            "versions": list(self._task.versions),
            "sentences": self._by_version(np.arange(len(self._task.sentences))),
            "chance": self._histograms(chance, scored),
            "histograms": {
                net: {name: self._histograms(values, scored) for name, values in each.items()}
                for net, each in masses.items()
            },
        }
        if self._task.labelled:
            info["right"] = {
                net: self._by_version(np.flatnonzero(found == self._versions)) for net, found in self._predicted.items()
            }
        if config.send_values:
            info["scored"] = [[self._task.sentences[row].pair, int(self._versions[row])] for row in scored]
            info["values"] = {
                net: {name: [_rounded(value) for value in values] for name, values in each.items()}
                for net, each in masses.items()
            }
            info["chances"] = [_rounded(value) for value in chance]
        if config.examples:
            info["examples"] = [
                self._example(row, place, importance) for place, row in enumerate(scored[: config.examples])
            ]
        return info

    def _classes(self, model: TextModel) -> Array:
        """Return the predicted class of each sentence, (n,)."""
        device = next(model.parameters()).device
        found = np.zeros(len(self._encoded), np.int64)
        with torch.no_grad():
            for place, encoded in enumerate(self._encoded):
                ids = torch.from_numpy(encoded.ids)[None].to(device)
                found[place] = int(model(model.vectors(ids), torch.ones_like(ids)).argmax(1))
        return found

    def _scored(self) -> list[int]:
        """Return the sentences that are scored, by place."""
        everything = np.ones(len(self._task.sentences), bool)
        if self._task.labelled and self._config.only_correct:
            for found in self._predicted.values():
                everything &= found == self._versions
        return [int(row) for row in np.flatnonzero(everything)]

    def _importances(self, net: str, explainer: str, rows: Sequence[int]) -> list[Array]:
        return [self._importance(net, explainer, row) for row in rows]

    def _importance(self, net: str, explainer: str, row: int) -> Array:
        """Return the share of each word of a sentence, (n,)."""
        sentence, encoded = self._task.sentences[row], self._encoded[row]
        seed = integer_seed(sentence.pair, "geco", sentence.version)
        if explainer == "random":
            return random_importance(len(sentence.words), seed)
        if explainer == "covariance":
            assert self._task.pattern is not None
            return self._task.pattern.importance(sentence.words)
        target = sentence.version if self._task.labelled else int(self._predicted[net][row])
        tokens = token_importance(self._models[net], encoded, target, explainer, self._config.explaining, seed)
        return word_importance(tokens, encoded.words, len(sentence.words))

    def _masses(self, importances: Sequence[Array], rows: Sequence[int]) -> Array:
        return np.array(
            [mass_accuracy(each, self._task.sentences[row].mask) for each, row in zip(importances, rows, strict=True)]
        )

    def _histograms(self, values: Array, rows: Sequence[int]) -> list[list[int]]:
        """Return one histogram for each version."""
        versions = self._versions[np.asarray(rows, np.int64)]
        return [histogram(values[versions == version]) for version in range(len(self._task.versions))]

    def _by_version(self, rows: Array) -> list[int]:
        return [int(count) for count in np.bincount(self._versions[rows], minlength=len(self._task.versions))]

    def _example(self, row: int, place: int, importance: Mapping[str, Mapping[str, Sequence[Array]]]) -> JsonObject:
        sentence = self._task.sentences[row]
        return {
            "words": list(sentence.words),
            "mask": [int(each) for each in sentence.mask],
            "version": sentence.version,
            "shares": {
                net: {name: [_rounded(share) for share in _scaled(rows[place])] for name, rows in each.items()}
                for net, each in importance.items()
            },
        }


def _scaled(shares: Array) -> Array:
    total = float(shares.sum())
    return shares / total if total > 0.0 else shares


def _rounded(value: float) -> float | None:
    return round(float(value), _DIGITS) if np.isfinite(value) else None
