"""Settings of the estimation of accuracy without labels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import CodeRef, DataPath
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Iid, PartitionSettings
from fedloom.workloads._data.settings import Available, ImageSource
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads._vision.settings import ModelSettings


class SuiteSettings(Settings):
    """The synthetic sets: 20 corruptions of the test images in each severity and bank."""

    banks: tuple[Literal["mild", "harsh"], ...] = ("mild", "harsh")
    """Strengths: `mild` is close to CIFAR-10-C's, `harsh` about three times that."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 2, 3, 4, 5)
    """Severities of each corruption."""
    images: Annotated[int, Field(ge=2)] = 1000
    """Test images per shifted set, taken from the start; capped at the test-set size. Below 500 the scores are
    noisy."""


class StyleSettings(Settings):
    """A natural-like shift: each class is cut into styles, some of which training never sees; our substitute."""

    clusters: Annotated[int, Field(ge=0)] = 0
    """Styles of each class: k-means clusters of its pixels; 0 trains on all images and makes no such sets."""
    unseen: Annotated[int, Field(ge=1)] = 1
    """Styles of each class that are not trained on, the smallest ones."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.clusters and self.unseen >= self.clusters:
            raise ConfigError(
                f"workload.styles.unseen: {self.unseen} of {self.clusters} clusters leave none for training; lower it"
            )
        return self


class CifarC(Settings):
    """Sets in the layout of CIFAR-10-C: a folder with `labels.npy` and one `.npy` of images for each corruption.

    Images are (n, h, w, c) or (n, h, w), uint8; with five severities one after the other n is five times as many as
    the set has images. The family of a file is the first word of its name.
    """

    layout: Literal["cifar-c"] = "cifar-c"
    folder: DataPath
    """The folder."""
    severities: Annotated[int, Field(ge=1)] = 5
    """Equal parts each file is split into, rising in severity."""


class SetFolders(Settings):
    """Sets as folders of pictures: `folder/SET/CLASS/picture`, classes named as in the training data."""

    layout: Literal["folders"] = "folders"
    folder: DataPath
    """The folder of sets."""


OwnSets = Annotated[CifarC | SetFolders, Field(discriminator="layout")]


class ProjNormSettings(Settings):
    """ProjNorm: the initial network, trained on each set with the model's own labels. The most expensive score."""

    steps: Annotated[int, Field(ge=0)] = 0
    """Steps of each such training; the paper's are 500. 0 disables the score."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Step size, falling to 0 along a cosine; momentum 0.9."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images per step."""


class Config(TorchConfig):
    """A classifier, and its scores on shifted sets whose labels are used only to judge the scores."""

    name: str = "mano"
    data: ImageSource = Available()
    """Source of the images; its `source` selects the kind."""
    partition: PartitionSettings = Iid()
    """Partition of the training set; its `scheme` selects the kind."""
    train_examples: Annotated[int, Field(ge=1)] | None = None
    """Number of training images, drawn by the seed; None uses all but those held back."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Fraction of the training images held back: the labelled source data that ATC and COTT need."""
    augment: Literal["none", "crop", "crop_flip"] = "none"
    """`crop`: zero-pad by 4 and crop at random; `crop_flip`: also mirror half of the images."""
    model: ModelSettings = ModelSettings(name="cnn", norm="batch")
    classifier: CodeRef | None = None
    """Your own model instead: `package.module:function` or `./file.py:function`, called with the images'
    (channels, height, width) and the number of classes. Code must be on the client; it is never sent."""
    weights: DataPath | None = None
    """A safetensors file with the initial model's arrays."""
    frozen: bool = False
    """Do not train: score the unchanged model of `weights`."""
    second: bool = True
    """Train a second model from another seed next to the first, for AgreeScore."""
    training: TrainingSettings = TrainingSettings(learning_rate=0.05, momentum=0.9, batch_size=128, epochs=1)
    cosine: bool = True
    """The step size falls along half a cosine over the run's rounds."""
    suite: SuiteSettings = SuiteSettings()
    styles: StyleSettings = StyleSettings()
    sets: tuple[OwnSets, ...] = ()
    """Your own sets to score, besides the suite; each one's `layout` selects the kind."""
    projnorm: ProjNormSettings = ProjNormSettings()
    batch_statistics: bool = False
    """Score with batch normalisation's statistics of each test batch of 128, as the released code does by scoring in
    training mode; accuracy is that of the deployed model."""

    spoilt_pieces: bool = False
    """Each part of the held-out data is corrupted differently, like clients with individual shifts: an instrument
    to test a monitor. Part i gets corruption i modulo 20 of the mild bank, in severity 1 + (i modulo 5)."""

    def rounds_needed_by(self) -> str:
        return "workload.cosine = true" if self.cosine else self.training.rounds_needed_by

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.frozen and self.weights is None:
            raise ConfigError("workload.frozen: a model that is not trained needs workload.weights, a safetensors file")
        if self.frozen and self.second:
            raise ConfigError("workload.second: nothing is trained if workload.frozen is true; set second = false")
        return self

    def clients_have_state(self) -> bool:
        return False
