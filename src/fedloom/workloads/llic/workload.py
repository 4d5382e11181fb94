"""Learned image compression on an agent: photographs, the codec, training on crops, evaluation with real streams."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.extras import needed_by
from fedloom.core.protocols import Inputs, LocalRule
from fedloom.core.records import MODEL, Info, Job, JsonObject, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator, integer_seed
from fedloom.workloads._base.rows import RowData
from fedloom.workloads._base.task import RowTask, minibatches
from fedloom.workloads._data import cache
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.scope import choose_device, exact
from fedloom.workloads._torch.trainer import Trainer
from fedloom.workloads.llic.bitstream import ImageCodec
from fedloom.workloads.llic.config import Config, Rival
from fedloom.workloads.llic.crops import Crops, HeldOut
from fedloom.workloads.llic.measuring import Rivals, as_metrics, measure, transform_metrics
from fedloom.workloads.llic.net import Codec
from fedloom.workloads.llic.optimizer import CodecOptimizer
from fedloom.workloads.llic.personal import PersonalArrays
from fedloom.workloads.llic.photographs import Photograph, load_album
from fedloom.workloads.llic.quality import psnr
from fedloom.workloads.llic.rivals import missing
from fedloom.workloads.llic.showing import codec_report

_CPU = torch.device("cpu")


class LearnedCompression(RowTask[Config]):
    """A learned codec, trained on crops and measured by the bytes of held-out photographs.

    A client's personal arrays, if there are any, are its state between rounds and never part of an update.
    """

    keeps_client_state = True
    own_training = True
    evaluation_batch = 16

    def __init__(self, config: Config, experiment: Experiment) -> None:
        if config.rounds_needed_by():
            experiment.rounds_known(config.rounds_needed_by())
        self._album = load_album(config.data)
        self.crops = Crops(
            self._album.train, self._album.kinds, config.crop.size, choose_device(config.training.device)
        )
        self.photographs = HeldOut(self._album.test)
        self.rivals = Rivals(self._album.test)
        super().__init__(config, experiment)
        with exact(_CPU, seed=integer_seed(experiment.seed, "llic", "personal")):
            arrays = self.new_trainer(Codec(config), _CPU).arrays
        self.personal = PersonalArrays(config.personal, arrays)
        self._coded_with: tuple[Record, ImageCodec] | None = None
        """The last global model, and its image codec."""

    def dataset(self) -> RowData:
        kinds = self._album.kinds
        return RowData(
            train=self.crops,
            test=self.photographs,
            info={**self._album.info, "photographs": len(self._album.train), "num_labels": len(kinds)},
            sha256=cache.digest_of([self._album.sha256, self.config.crop.size]),
            labels=self.crops.kinds,
            num_labels=len(kinds),
            label_names=kinds,
            groups=self.crops.kinds,
        )

    def model(self) -> nn.Module:
        return Codec(self.config)

    def initial_info(self, model: nn.Module) -> Info:
        return {}

    def new_trainer(self, model: nn.Module, device: torch.device) -> Trainer:
        settings = self.config.training
        optimizer = partial(CodecOptimizer, codec=as_codec(model), settings=settings)
        return Trainer(model, settings.model_copy(update={"clip_norm": None}), device, optimizer=optimizer)

    def init(self, rng: np.random.Generator) -> Record:
        record = super().init(rng)
        return Record({MODEL: self.personal.shared(record.groups[MODEL])}, record.info)

    def train(
        self,
        job: Job,
        inputs: Inputs,
        shard: RowShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
        state: Record | None = None,
    ) -> Update:
        """Train one client; metrics are the training `loss`, `rate` and `distortion`, and `own_…` of held-back crops.

        `own_bits_per_pixel`, `own_psnr` and `own_loss` are of crops that the client holds back, by the model that it
        begins the round with.
        """
        joined = self.personal.joined(inputs, state)
        kept, held = self.held_back(shard.rows, job.client)
        own = self.own_metrics(joined, held) if len(held) and len(kept) else {}
        sums = np.zeros(3)
        local = replace(
            self.local_training(self.network, job, RowShard(kept), self.personal.rule(rule, inputs)),
            loss_of=partial(self._loss_of, self.config.crop.size_in(job.round, self.experiment.max_rounds or 1), sums),
        )
        update = self.trainer.train(joined, local, rng)
        if not update.num_examples:
            return replace(update, groups={MODEL: self.personal.shared(update.groups[MODEL])})
        arrays, kept_state = self.personal.update(update, inputs)
        count = float(sums[2])
        rate, distortion = float(sums[0]), float(sums[1])
        means = {
            "loss": Mean(rate + self.config.trade_off * distortion, count),
            "rate": Mean(rate, count),
            "distortion": Mean(distortion, count),
        }
        return replace(update, groups={MODEL: arrays}, metrics={**update.metrics, **means, **own}, state=kept_state)

    def _loss_of(self, size: int, sums: np.ndarray, rows: Tensor) -> Tensor:
        """Return the loss of crops near some rows; adds up rate, distortion and crops."""
        codec = as_codec(self.network)
        loss, rate, distortion = codec(self.crops.drawn(rows, size))
        if not math.isfinite(float(loss.detach())):
            raise ConfigError(
                f"workload llic: the loss is {float(loss.detach())} after {int(sums[2])} crops of this round; set a "
                "smaller workload.training.learning_rate"
            )
        sums += float(rate.detach()) * len(rows), float(distortion.detach()) * len(rows), len(rows)
        found: Tensor = loss + codec.entropy.prior.quantile_loss()
        return found

    def held_back(self, rows: np.ndarray, client: int) -> tuple[np.ndarray, np.ndarray]:
        """Split a client's rows into those trained on and those that it measures itself by."""
        share = self.config.own_share
        if not share or len(rows) < 2:
            return rows, rows[:0]
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        order = generator(self.experiment.seed, "llic", "own", client).permutation(len(rows))
        return rows[np.sort(order[count:])], rows[np.sort(order[:count])]

    def own_metrics(self, joined: Inputs, rows: np.ndarray) -> dict[str, Mean]:
        """Return the mean rate, PSNR and loss of crops, by ideal code lengths."""
        sums, pixels = np.zeros(3), self.config.crop.size**2
        with self.evaluating(joined):
            codec = as_codec(self.network)
            for batch in minibatches(rows, 1, self.device):
                (x,), _ = self.crops.batch(batch)
                found = codec.estimate(x)
                rate, mse = found.total / pixels, float((found.image - x).square().mean()) * 255.0**2
                distortion = mse if self.config.loss == "mse" else float(codec.distortion(found.image, x))
                sums += rate, min(psnr(mse), 100.0), rate + self.config.trade_off * distortion
        names = ("own_bits_per_pixel", "own_psnr", "own_loss")
        return {name: Mean(float(total), float(len(rows))) for name, total in zip(names, sums, strict=True)}

    def held_out(self, part: int, parts: int) -> RowShard | None:
        """Return a part of the held-out photographs; None if there are fewer photographs than parts and it has none.

        There is none either where each client is alone: no model is common to them.
        """
        if self.config.personal == "everything":
            return None
        shard = super().held_out(part, parts)
        return None if shard is None or shard.is_empty else shard

    def evaluate(self, inputs: Inputs, shard: RowShard, state: Record | None = None) -> Metrics:
        """Return means over held-out photographs of their real bytes and qualities, see `measuring.as_metrics`.

        On a client's own crops they are those of `own_metrics`, without `own_`. Where entropy models are personal, no
        model codes held-out photographs: metrics are of the transforms with latents rounded to whole numbers.
        """
        if not shard.held_out:
            found = self.own_metrics(self.personal.joined(inputs, state), shard.rows) if len(shard.rows) else {}
            return {name.removeprefix("own_"): mean for name, mean in found.items()}
        rows = [(int(row), self.photographs.photographs[int(row)]) for row in shard.rows]
        with self.coding(inputs, state) as codec:
            if self.config.personal == "entropy" and state is None:
                return transform_metrics(codec.codec, [photograph for _, photograph in rows], self.config)
            measured = [(row, photograph, measure(codec, photograph)) for row, photograph in rows]
        return as_metrics(measured, self.config, self.rivals)

    @contextmanager
    def coding(self, inputs: Inputs, state: Record | None = None) -> Iterator[ImageCodec]:
        """Return the image codec of the global model, on a CPU, in a reproducible scope."""
        record = inputs[MODEL]
        with exact(_CPU):
            if state is not None or self._coded_with is None or self._coded_with[0] is not record:
                self.trainer.load(self.personal.joined(inputs, state))
                with torch.inference_mode(False):
                    copied = copy.deepcopy(as_codec(self.network)).to(_CPU)
                self._coded_with = record, ImageCodec(copied)
            _, codec = self._coded_with
            if state is not None:
                self._coded_with = None
            yield codec

    def codec_report(self, inputs: Inputs, shard: RowShard, *, pictures: int, rivals: Sequence[Rival]) -> JsonObject:
        """Return what the monitor shows of the codec, on a shard's held-out photographs; see `showing`."""
        chosen = [self.photographs.photographs[int(row)] for row in shard.rows] if shard.held_out else []
        if not chosen or self.config.personal != "nothing":
            return {}
        with self.coding(inputs) as codec:
            return codec_report(codec, chosen, pictures=pictures, rivals=rivals)

    def held_out_photographs(self) -> tuple[Photograph, ...]:
        """Return the held-out photographs."""
        return self._album.test


def as_codec(model: nn.Module) -> Codec:
    """Return a model that is a codec.

    Raises:
        ConfigError: it is another one.
    """
    if not isinstance(model, Codec):
        raise ConfigError(f"workload llic: expected its own model, got a {type(model).__name__}")
    return model


def build_workload(config: Config, experiment: Experiment) -> LearnedCompression:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: photographs are missing on this machine, or invalid.
        ConfigError: a client would have no crops, a format is not available, or a required GPU is missing.
        PackageMissing: the extra `codec` is not installed.
    """
    with needed_by("workload 'llic'"):
        import constriction  # noqa: F401  # now rather than at the first evaluation
    for rival in config.rivals:
        if why := missing(rival):
            raise ConfigError(f"workload.rivals: {rival!r} is not available here ({why}); remove it")
    return LearnedCompression(config, experiment)
