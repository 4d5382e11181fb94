"""Gaussian splatting on an agent: the scene, sub-models in helpers, training and evaluation of a client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import HelperHandle, Helpers, Inputs, LocalRule, Resources, Workload, WorkloadInfo
from fedloom.core.records import MODEL, Job, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator
from fedloom.workloads._torch.scope import choose_device, exact
from fedloom.workloads.retinags.composer import Adjust, Composer, LocalPart, Part, Recipe
from fedloom.workloads.retinags.config import Config
from fedloom.workloads.retinags.density import FREE, Growth, densified, free_rows
from fedloom.workloads.retinags.files import read_colmap, read_transforms
from fedloom.workloads.retinags.loss import picture_loss, psnr, ssim
from fedloom.workloads.retinags.motorcycle import read_motorcycle
from fedloom.workloads.retinags.scene import Scene, View
from fedloom.workloads.retinags.splats import OPACITIES, POSITIONS, SHAPES, check_splats, from_points
from fedloom.workloads.retinags.state import STATISTICS, Rows, Table
from fedloom.workloads.retinags.submodel import SubModel
from fedloom.workloads.retinags.synthetic import make_scene
from fedloom.workloads.retinags.tree import Tree, median_tree, owners

OWN = "own"
"""The group of a client's state: Adam's moments, statistics, and the number of steps."""


@dataclass(frozen=True, slots=True)
class ViewShard:
    """Photographs of a client, or some that are held out."""

    views: tuple[View, ...]

    @property
    def num_examples(self) -> int:
        """Return the number of photographs."""
        return len(self.views)


class Splatting:
    """Splats of one scene, in boxes owned by sub-models; a client has photographs and composes the boxes' pictures."""

    keeps_client_state = True

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self.config, self.experiment = config, experiment
        self.scene = read_scene(config, experiment.seed)
        self.rounds = experiment.rounds_known("workload.rates.positions_end")
        self._device = choose_device(config.device)
        self._helpers: Helpers | None = None
        self._parts: dict[int, list[Part]] = {}
        self._handles: list[HelperHandle] = []
        self._check()

    def _check(self) -> None:
        clients, views = self.experiment.num_clients, len(self.scene.train)
        if clients > views:
            raise ConfigError(f"clients: expected at most {views}, the photographs to learn from, got {clients}")
        if self.config.density.every and clients > 1:
            raise ConfigError(
                "workload.density.every: splats of several clients are averaged by their numbers, so no client can "
                f"replace some; expected 0 for {clients} clients, got {self.config.density.every}"
            )
        if self.config.parts > min(len(self.scene.points), self.config.splats):
            raise ConfigError(
                f"workload.parts: expected at most {len(self.scene.points)}, the splats of this scene, got "
                f"{self.config.parts}"
            )

    def use_helpers(self, helpers: Helpers) -> None:
        self._helpers = helpers

    def describe(self) -> WorkloadInfo:
        scene = self.scene
        kind = "synthetic" if self.config.data.source == "synthetic" else "real"
        data = {"name": scene.source, "kind": kind, "views": len(scene.train), "held_out": len(scene.test)}
        sizes = [self.shard(client).num_examples for client in range(self.experiment.num_clients)]
        return WorkloadInfo(data=data, client_sizes=sizes)

    def init(self, rng: np.random.Generator) -> Record:
        scene = self.scene.thinned(self.config.splats, rng)
        arrays = from_points(scene.points, scene.colors)
        if room := self.config.density.room:
            free = {name: np.repeat(value[:1], room, 0) for name, value in arrays.items()}
            free[OPACITIES][:] = FREE
            arrays = {name: np.concatenate([value, free[name]]) for name, value in arrays.items()}
        return Record({MODEL: arrays})

    def shard(self, client: int) -> ViewShard:
        views, clients = self.scene.train, self.experiment.num_clients
        if self.config.views == "interleaved":
            return ViewShard(views[client::clients])
        first, stop = (len(views) * i // clients for i in (client, client + 1))
        return ViewShard(views[first:stop])

    def held_out(self, part: int, parts: int) -> ViewShard | None:
        views = self.scene.test[part::parts]
        return ViewShard(views) if views else None

    def train(
        self,
        job: Job,
        inputs: Inputs,
        shard: ViewShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
        state: Record | None = None,
    ) -> Update:
        """Train one client; metrics are its `loss`, `bytes_per_step` and `copies_per_step`."""
        rows, steps = rows_of(inputs[MODEL].groups[MODEL], state if self.config.keep_moments else None)
        count = self.config.steps
        with exact(torch.device("cpu")), self._fresh_after_failure():
            composer = self.composer(rows.values, self.config.parts)
            composer.load(rows, self.tree(rows.values, self.config.parts), steps)
            adjust = None if rule is None else _adjusted_by(rule, rows.values, job)
            losses = 0.0
            for i, index in enumerate(_order(len(shard.views), count, rng)):
                view = shard.views[index]
                losses += composer.step(view.camera, view.photograph, self.rates(job.round, i), adjust)
            rows = composer.unload()
        if not np.isfinite(losses) or any(not np.isfinite(value).all() for value in rows.values.values()):
            raise ConfigError(f"workload retinags: the loss of client {job.client} is not finite; set smaller rates")
        rows = self._densified(job.round, rows, rng)
        traffic = composer.traffic
        metrics = {
            "loss": Mean(losses, float(count)),
            "bytes_per_step": Mean(float(traffic.images + traffic.copies), float(count)),
            "copies_per_step": Mean(float(traffic.shared), float(count)),
        }
        kept = state_of(rows, steps + count) if self.config.keep_moments else None
        return Update(num_examples=len(shard.views), groups={MODEL: rows.values}, metrics=metrics, state=kept)

    def evaluate(self, inputs: Inputs, shard: ViewShard, state: Record | None = None) -> Metrics:
        """Return `psnr`, `ssim` and `loss` of the boxes' pictures, and `max_abs_difference` from one model's.

        The difference is the largest of a picture, averaged over the pictures; a shard without any has no metrics.
        `memory_per_part_mb` is of the largest sub-model's arrays, `balance` its splats relative to the mean.
        """
        if not shard.views:
            return {}
        rows, _ = rows_of(inputs[MODEL].groups[MODEL], None)
        sums, difference = np.zeros(3), 0.0
        with exact(torch.device("cpu")), self._fresh_after_failure(), torch.inference_mode(False), torch.no_grad():
            tree, pictures = self.tree(rows.values, self.config.parts), self.pictures(rows, shard.views)
            whole = pictures if self.config.parts == 1 else self.pictures(rows, shard.views, parts=1)
            for view, picture, one in zip(shard.views, pictures, whole, strict=True):
                photograph = torch.tensor(view.photograph)
                loss = float(picture_loss(picture, photograph, self.config.dissimilarity))
                sums += psnr(picture, photograph), float(ssim(picture, photograph)), loss
                difference += float((picture - one).abs().max()) / len(shard.views)
        live = ~free_rows(rows)
        number = owners(tree, rows.values[POSITIONS])
        shares = np.bincount(number, minlength=self.config.parts)
        balance = np.bincount(number[live], minlength=self.config.parts).max() * self.config.parts / live.sum()
        n, per_splat = float(len(shard.views)), rows.nbytes / len(rows.ids)
        constants = {
            "max_abs_difference": difference,
            "memory_per_part_mb": float(shares.max()) * per_splat / 1e6,
            "balance": float(balance),
            "splats": float(live.sum()),
        }
        found = {name: Mean(float(value), n) for name, value in zip(("psnr", "ssim", "loss"), sums, strict=True)}
        return found | {name: Mean(value * n, n) for name, value in constants.items()}

    def pictures(self, rows: Rows, views: Sequence[View], parts: int | None = None) -> list[torch.Tensor]:
        """Return what splats look like in some views, drawn by `parts` boxes, one being in this process."""
        parts = parts or self.config.parts
        composer = self.composer(rows.values, parts)
        composer.load(rows, self.tree(rows.values, parts), 0)
        return [composer.render(view.camera) for view in views]

    def composer(self, values: Mapping[str, np.ndarray], parts: int) -> Composer:
        """Return a composer of sub-models that run where the settings say."""
        recipe = Recipe(self.config.background, self.config.dissimilarity, self.config.degree)
        if parts not in self._parts:
            self._parts[parts] = [self._start(i, parts) for i in range(parts)]
        return Composer(self._parts[parts], recipe)

    @contextlib.contextmanager
    def _fresh_after_failure(self) -> Iterator[None]:
        """Stop all sub-models if one fails, so that the job, repeated, starts others."""
        try:
            yield
        except BaseException:
            self._parts.clear()
            for handle in self._handles:
                handle.stop()
            self._handles.clear()
            raise

    def _start(self, number: int, parts: int) -> Part:
        if parts == 1 or not self.config.helpers or self._helpers is None:
            return LocalPart(SubModel(number, str(self._device), "float32"))
        wanted = Resources(cpus=self.config.cpus)
        handle = self._helpers.start(SubModel, number, str(self._device), "float32", resources=wanted)
        self._handles.append(handle)
        return handle

    def tree(self, values: Mapping[str, np.ndarray], parts: int) -> Tree:
        """Return boxes of equal numbers of splats."""
        live = values[OPACITIES] > FREE + 1
        return median_tree(values[POSITIONS][live].astype(np.float64), parts)

    def rates(self, round_number: int, step: int) -> dict[str, float]:
        """Return the step sizes in a round (from 1) at a step of it (from 0), by array."""
        rates, total = self.config.rates, max(self.rounds * self.config.steps - 1, 1)
        progress = min(((round_number - 1) * self.config.steps + step) / total, 1.0)
        first, last = rates.positions, rates.positions_end
        positions = first * (last / first) ** progress if first and last else first * (1 - progress)
        found = {name: float(value) for name, value in rates.model_dump().items() if name in SHAPES}
        return found | {POSITIONS: positions * self.scene.extent}

    def _densified(self, round_number: int, rows: Rows, rng: np.random.Generator) -> Rows:
        settings = self.config.density
        if not settings.every or round_number % settings.every or round_number > settings.until:
            return rows
        growth = Growth(settings.slope, settings.size, settings.opacity)
        found = densified(rows, growth, self.scene.extent, rng.standard_normal((len(rows.ids), 2, 3)))
        if int((~free_rows(found)).sum()) < self.config.parts:
            raise ConfigError(f"workload.density: pruning leaves fewer splats than the {self.config.parts} parts")
        return found


def read_scene(config: Config, seed: int) -> Scene:
    """Return the scene that settings name; a synthetic one follows from the seed.

    Raises:
        DataMissing: it is absent or invalid.
    """
    data = config.data
    if data.source == "synthetic":
        size = (data.width, data.height)
        return make_scene(data.views, data.held_out, size, data.splats, generator(seed, "retinags", "scene"))
    if data.source == "motorcycle":
        return read_motorcycle(data.downscale)
    read = read_colmap if data.source == "colmap" else read_transforms
    return read(Path(data.folder), data.downscale, data.hold_out)


def rows_of(arrays: Mapping[str, np.ndarray], state: Record | None) -> tuple[Rows, int]:
    """Return a model's splats with the moments of a client's state, if there is one, and the steps done.

    Raises:
        DataMissing: the splats are invalid.
    """
    check_splats(arrays, "the model")
    rows = Rows.fresh({name: np.array(arrays[name]) for name in SHAPES})
    if state is None:
        return rows, 0
    own = state.groups[OWN]
    first, second = ({name: np.array(own[f"{which}.{name}"]) for name in SHAPES} for which in ("first", "second"))
    statistics = {name: np.array(own[f"statistics.{name}"]) for name in STATISTICS}
    return Rows(rows.ids, rows.values, first, second, statistics), int(own["steps"][0])


def state_of(rows: Rows, steps: int) -> Record:
    """Return what a client stores between its rounds."""
    own = {f"first.{name}": value for name, value in rows.first.items()}
    own |= {f"second.{name}": value for name, value in rows.second.items()}
    own |= {f"statistics.{name}": value for name, value in rows.statistics.items()}
    return Record({OWN: {**own, "steps": np.array([steps], np.int64)}})


def _order(views: int, steps: int, rng: np.random.Generator) -> list[int]:
    """Return the views of a round's steps: all of them in random order, again and again."""
    found = list[int]()
    while len(found) < steps:
        found += rng.permutation(views).tolist()
    return found[:steps]


def _adjusted_by(rule: LocalRule, anchor: Table, job: Job) -> Adjust:
    names, start = list(SHAPES), [torch.tensor(anchor[name]) for name in SHAPES]
    rule.begin([(MODEL, name) for name in names], job.knobs)

    def adjust(gradients: Table, values: Table) -> None:
        tensors = ([torch.from_numpy(table[name]) for name in names] for table in (gradients, values))
        slopes, parameters = tensors
        rule.adjust_gradients(slopes, parameters, start, job.knobs)

    return adjust


def build_workload(config: Config, experiment: Experiment) -> Splatting:
    """Return the workload a `Config` describes.

    Raises:
        DataMissing: the scene is missing on this machine, or invalid.
        ConfigError: there are more clients than photographs, more parts than splats, or a required GPU is missing.
    """
    return Splatting(config, experiment)


def _checked(workload: Splatting) -> Workload[ViewShard]:
    return workload
