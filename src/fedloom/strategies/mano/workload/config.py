"""Settings of the estimation of accuracy without labels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import CodeRef, DataPath
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.settings import Available, Iid, ImageSource, PartitionSettings
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads._vision.settings import ModelSettings


class SuiteSettings(Settings):
    """The synthetic sets: 20 corruptions of the test images in each severity and bank."""

    banks: tuple[Literal["mild", "harsh"], ...] = ("mild", "harsh")
    """Strengths: `mild` is close to CIFAR-10-C's, `harsh` about three times that."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 2, 3, 4, 5)
    """Severities of each corruption."""
    images: Annotated[int, Field(ge=2)] = 1000
    """First so many test images that every set is made of, or all there are. Below 500 the scores are noisy."""


class StyleSettings(Settings):
    """A natural-like shift: each class is cut into styles, and training never sees some of them. A stand-in, ours."""

    clusters: Annotated[int, Field(ge=0)] = 0
    """Styles of each class: k-means clusters of its pixels; 0 trains on all images and makes no such sets."""
    unseen: Annotated[int, Field(ge=1)] = 1
    """Styles of each class that are not trained on, the smallest ones."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.clusters and self.unseen >= self.clusters:
            raise ConfigError(
                f"workload.styles.unseen: {self.unseen} of {self.clusters} clusters leave none to train on; lower it"
            )
        return self


class CifarC(Settings):
    """Sets in the layout of CIFAR-10-C: a folder with `labels.npy` and one `.npy` of images for each corruption.

    Images are (n, h, w, c) or (n, h, w), uint8; with five severities one after the other n is five times as many as
    the set has images. The family of a file is its name's first word.
    """

    layout: Literal["cifar-c"] = "cifar-c"
    folder: DataPath
    """The folder."""
    severities: Annotated[int, Field(ge=1)] = 5
    """Equal pieces each file is cut into, rising in severity."""


class SetFolders(Settings):
    """Sets as folders of pictures: `folder/SET/CLASS/picture`, classes named as in the training data."""

    layout: Literal["folders"] = "folders"
    folder: DataPath
    """The folder of sets."""


OwnSets = Annotated[CifarC | SetFolders, Field(discriminator="layout")]


class ProjNormSettings(Settings):
    """ProjNorm: the initial network, trained on each set under the model's own labels. By far the dearest score."""

    steps: Annotated[int, Field(ge=0)] = 0
    """Steps of each such training; the paper's are 500. 0 leaves the score out."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Step size, falling to 0 along a cosine; momentum 0.9."""
    batch_size: Annotated[int, Field(ge=1)] = 128


class Config(TorchConfig):
    """A classifier, and scores of it on shifted sets whose labels only tell how good the scores are."""

    name: str = "mano"
    data: ImageSource = Available()
    """Where the images come from; its `source` says which of the kinds it is."""
    partition: PartitionSettings = Iid()
    """How the training set is dealt to the clients; its `scheme` says which of the kinds it is."""
    train_examples: Annotated[int, Field(ge=1)] | None = None
    """Train on so many images only, drawn by the seed; None takes all but those held back."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the training images held back: the labelled source data that ATC and COTT need."""
    augment: Literal["none", "crop", "crop_flip"] = "none"
    """`crop`: zero-pad by 4 and cut out at random; `crop_flip`: and mirror half of the images."""
    model: ModelSettings = ModelSettings(name="cnn", norm="batch")
    classifier: CodeRef | None = None
    """A model of your own instead: `package.module:function` or `./file.py:function`, called with the images'
    (channels, height, width) and the number of classes. Code is found on the client, it never travels."""
    weights: DataPath | None = None
    """A safetensors file with the model's arrays to begin with."""
    frozen: bool = False
    """Do not train: score the model as it is, from `weights`."""
    second: bool = True
    """Train a second model from another seed beside the first, for AgreeScore."""
    training: TrainingSettings = TrainingSettings(learning_rate=0.05, momentum=0.9, batch_size=128, epochs=1)
    cosine: bool = True
    """The step size falls along half a cosine over the run's rounds."""
    suite: SuiteSettings = SuiteSettings()
    styles: StyleSettings = StyleSettings()
    sets: tuple[OwnSets, ...] = ()
    """Sets of your own to score, beside the suite; each one's `layout` says which of the kinds it is."""
    projnorm: ProjNormSettings = ProjNormSettings()
    batch_statistics: bool = False
    """Score with batch normalisation's statistics of each test batch of 128, as the released code does by scoring in
    training mode; accuracy stays that of the model as it is deployed."""

    spoilt_pieces: bool = False
    """Each piece of the held-out data is spoilt in its own way, as clients with shifts of their own are: an instrument
    to try a monitor on. Piece i gets corruption i modulo 20 of the mild bank, in severity 1 + (i modulo 5)."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.frozen and self.weights is None:
            raise ConfigError("workload.frozen: a model that is not trained needs workload.weights, a safetensors file")
        if self.frozen and self.second:
            raise ConfigError("workload.second: nothing is trained where workload.frozen is true; set second = false")
        return self
