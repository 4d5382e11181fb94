"""Settings of learned image compression."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import DataPath
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Iid, PartitionSettings
from fedloom.workloads._torch.settings import TrainingSettings

Width = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Kernel = Annotated[int, Field(ge=1)]
Rival = Literal["jpeg", "jpeg444", "webp", "avif", "jpeg2000", "jxl"]
"""An image format that learned compression is compared with."""
PAD = 64
"""Heights and widths are filled up to multiples of this many pixels, in the encoder and in the decoder."""


class Photographs(Settings):
    """Photographs that come with scikit-image and scikit-learn, and those of Debian's packages where installed.

    Held out: astronaut, chelsea, coffee, rocket, china. The others are for training. Kinds of image are people,
    nature, objects and textures.
    """

    source: Literal["photographs"] = "photographs"
    wallpapers: bool = True
    """Train with the photographs of Debian's packages mate-backgrounds and lomiri-wallpapers-16.04, too, where they are
    installed. Changes the result between machines that have them and machines that have not."""
    longest: Annotated[int, Field(ge=64)] = 1024
    """Longer sides of photographs for training are shrunk to this, which removes the traces of JPEG; pixels."""


class Folders(Settings):
    """Folders of photographs of the user's own. Kinds of image are the sub-folders of the training folder, if any."""

    source: Literal["folders"] = "folders"
    train_folder: DataPath
    """Folder with photographs for training, sub-folders included."""
    test_folder: DataPath | None = None
    """Folder with held-out photographs, which are not trained with if it lies in the other; None holds out every fifth
    of the training folder, in order of names."""
    longest: Annotated[int, Field(ge=64)] = 1024
    """Longer sides of photographs for training are shrunk to this; pixels."""
    test_longest: Annotated[int, Field(ge=64)] | None = None
    """Longer sides of held-out photographs are shrunk to this; None leaves them as they are."""


ImageSource = Annotated[Photographs | Folders, Field(discriminator="source")]


class TransformSettings(Settings):
    """The analysis and the synthesis transform."""

    kind: Literal["llic", "elic", "stf", "tcm"] = "llic"
    """`llic`: large-kernel transforms that adapt to each image; the others are the plain transforms of ELIC, STF and
    TCM, as baselines."""
    blocks: tuple[Count, Count, Count, Count] = (1, 1, 3, 1)
    """`llic`: pairs of a spatial and a channel block after each step down."""
    synthesis_blocks: tuple[Count, Count, Count, Count] = (1, 3, 1, 1)
    """`llic`: pairs before each step up."""
    kernels: tuple[Kernel, Kernel, Kernel, Kernel] = (11, 11, 9, 9)
    """`llic`: K of each stage of the analysis, odd; mirrored in the synthesis."""
    generator: Literal["pooled", "grid", "delta", "static"] = "pooled"
    """`llic`: what makes the depth-wise kernels. `pooled`: global average pooling and two layers; `grid`: average
    pooling to K x K and two layers, the map is the kernel; `delta`: a learned kernel plus a `grid`; `static`: a learned
    kernel, the same for all images."""
    channel_factors: bool = True
    """`llic`: false leaves the self-conditioned factors of channels out."""
    gate: bool = True
    """`llic`: false leaves the gates out."""
    up: Literal["sub_pixel", "residual"] = "sub_pixel"
    """`llic`: steps up. `sub_pixel`: one sub-pixel convolution and inverse GDN; `residual`: two convolutions and a
    shortcut."""
    embedding: Width = 48
    """`stf`: channels of the first stage; they double three times, to the latent's."""
    depths: tuple[Width, Width, Width, Width] = (2, 2, 6, 2)
    """`stf`: attention blocks of each stage."""
    head: Width = 16
    """`stf`: width of an attention head."""
    heads: tuple[Width, Width, Width] = (8, 16, 32)
    """`tcm`: width of an attention head in each stage."""
    mixed_blocks: Width = 2
    """`tcm`: mixed blocks of a stage."""
    window: Width = 8
    """`stf`, `tcm`: side of an attention window."""

    @pydantic.model_validator(mode="after")
    def _odd(self) -> Self:
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ConfigError(f"workload.transform.kernels: expected odd sizes, got {list(self.kernels)}")
        return self


class EntropySettings(Settings):
    """The entropy model: what is known of a latent value before it is coded."""

    kind: Literal["elic", "stf", "tcm"] = "elic"
    """`elic`: groups of channels, each in two passes over a checkerboard; `stf`: slices of channels; `tcm`: slices with
    windowed attention."""
    hyper: Width = 192
    """Channels of the hyper-latent z."""
    groups: tuple[Width, ...] = ()
    """`elic`: channels of each group; empty takes shares 1/20, 1/20, 1/10, 1/5 and 3/5, as 16, 16, 32, 64, 192 of
    320."""
    slices: Annotated[int, Field(ge=1)] | None = None
    """`stf`, `tcm`: slices of equal width; None takes 10 and 5."""
    support: Annotated[int, Field(ge=0)] = 5
    """`stf`, `tcm`: earlier slices, the first ones, that a slice's model sees."""
    context: tuple[Width, ...] = (224, 128)
    """Widths of the layers between a context and its parameters: two for `elic` and `tcm`, four (224, 176, 128, 64)
    for `stf`."""
    attention: Width = 128
    """`tcm`: channels of the attention before each slice's model."""
    mixed: Width = 256
    """`tcm`: channels of the hyper-transforms' blocks."""
    head: Width = 16
    """`tcm`: width of an attention head of a slice."""
    hyper_head: Width = 32
    """`tcm`: width of an attention head of the hyper-transforms."""
    window: Width = 8
    """`tcm`: side of a slice's attention window; the hyper-transforms' is half of it."""


class CropSettings(Settings):
    """Training crops."""

    size: Annotated[int, Field(ge=PAD)] = 64
    """Side of a crop; a multiple of 64 pixels, one place of the hyper-latent."""
    last: Annotated[int, Field(ge=PAD)] = 128
    """Side in the last rounds."""
    change: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    """Share of the rounds after which crops have the last size; the paper: 256, then 512 after 0.6."""

    @pydantic.model_validator(mode="after")
    def _fit(self) -> Self:
        if self.size % PAD or self.last % PAD:
            raise ConfigError(f"workload.crop: expected multiples of {PAD} pixels, got {self.size} and {self.last}")
        return self

    def size_in(self, round_number: int, rounds: int) -> int:
        """Return the side of crops in a round, from 1."""
        return self.last if round_number > self.change * rounds else self.size


class Config(TorchConfig):
    """Learned compression of photographs, with real bitstreams."""

    name: str = "llic"
    data: ImageSource = Photographs()
    """Source of the photographs; its `source` selects the kind."""
    partition: PartitionSettings = Iid()
    """Partition of the training crops; its `scheme` selects the kind. With `natural` clients are kinds of image."""
    transform: TransformSettings = TransformSettings()
    entropy: EntropySettings = EntropySettings()
    channels: tuple[Width, Width, Width] = (192, 192, 192)
    """Channels after the first three steps down; the paper's N three times."""
    latent: Width = 320
    """M, channels of the latent."""
    loss: Literal["mse", "ms_ssim"] = "mse"
    """Distortion D. `mse`: 255^2 MSE, images from 0 to 1; `ms_ssim`: 1 - MS-SSIM, for crops of 176 pixels and more."""
    trade_off: Annotated[float, Field(gt=0.0)] = 0.013
    """Lambda of the loss, bits per pixel + lambda D. The paper: 0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483 for `mse`,
    2.4, 4.58, 8.73, 16.64, 31.73, 60.5 for `ms_ssim`."""
    crop: CropSettings = CropSettings()
    quantile_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Step size of the hyper-prior's quantiles, which have a loss of their own."""
    personal: Literal["nothing", "entropy", "everything"] = "nothing"
    """What of the model never leaves a client. `entropy`: the entropy model (hyper-transforms, contexts, prior), the
    transforms are averaged; `everything`: each client trains alone."""
    own_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a client's crops that it does not train on, and measures itself by at the start of each round:
    `own_bits_per_pixel`, `own_psnr`, `own_loss` among the metrics of training."""
    rivals: tuple[Rival, ...] = ("jpeg", "avif")
    """Formats whose bits for the same PSNR are among the metrics of an evaluation."""
    training: TrainingSettings = TrainingSettings(
        optimizer="adamw", learning_rate=1e-4, batch_size=8, clip_norm=1.0, epochs=1
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        transform, entropy = self.transform, self.entropy
        if entropy.groups and (entropy.kind != "elic" or sum(entropy.groups) != self.latent):
            raise ConfigError(
                f"workload.entropy.groups: expected channels that add up to workload.latent = {self.latent}, of the "
                f"kind 'elic'; got {list(entropy.groups)} for {entropy.kind!r}"
            )
        if entropy.kind == "elic" and not entropy.groups and self.latent < 5:
            raise ConfigError(f"workload.latent: expected at least 5 for five groups of channels, got {self.latent}")
        if entropy.kind != "elic" and self.latent % self.num_slices:
            raise ConfigError(
                f"workload.entropy.slices: {self.num_slices} slices do not divide workload.latent = {self.latent}"
            )
        if len(entropy.context) != self.context_layers:
            raise ConfigError(
                f"workload.entropy.context: expected {self.context_layers} widths for {entropy.kind!r}, got "
                f"{list(entropy.context)}"
            )
        if transform.kind == "stf" and self.latent != 8 * transform.embedding:
            raise ConfigError(
                f"workload.latent: STF's transform makes 8 x workload.transform.embedding = {8 * transform.embedding} "
                f"channels, got {self.latent}"
            )
        self._check_heads()
        self._check_training()
        return self

    def _check_heads(self) -> None:
        transform, entropy = self.transform, self.entropy
        wanted = list[tuple[str, int, int]]()
        if transform.kind == "stf":
            wanted.append(("transform.head", transform.embedding, transform.head))
        if transform.kind == "tcm":
            wanted += [
                ("transform.heads", c // 2, head) for c, head in zip(self.channels, transform.heads, strict=True)
            ]
        if entropy.kind == "tcm":
            wanted.append(("entropy.head", entropy.attention, entropy.head))
            wanted.append(("entropy.hyper_head", entropy.mixed // 2, entropy.hyper_head))
        for key, width, head in wanted:
            if width < head or width % head:
                raise ConfigError(f"workload.{key}: heads of width {head} do not divide {width} channels")

    def _check_training(self) -> None:
        training = self.training
        if training.optimizer != "adamw":
            raise ConfigError(f"workload.training.optimizer: expected 'adamw', got {training.optimizer!r}")
        if self.loss == "ms_ssim" and min(self.crop.size, self.crop.last) < 176:
            raise ConfigError(
                f"workload.crop: MS-SSIM needs crops of at least 176 pixels, got {self.crop.size} and {self.crop.last}"
            )

    def rounds_needed_by(self) -> str:
        crop = self.crop
        changes = crop.size != crop.last and 0.0 < crop.change < 1.0
        return f"workload.crop.change = {crop.change}" if changes else super().rounds_needed_by()

    @property
    def num_slices(self) -> int:
        """Return the slices of `stf` and `tcm`."""
        return self.entropy.slices or (10 if self.entropy.kind == "stf" else 5)

    @property
    def context_layers(self) -> int:
        """Return how many widths `entropy.context` has."""
        return 4 if self.entropy.kind == "stf" else 2

    @property
    def channel_groups(self) -> tuple[int, ...]:
        """Return the channels that are coded together, in order."""
        if self.entropy.kind != "elic":
            return (self.latent // self.num_slices,) * self.num_slices
        if self.entropy.groups:
            return self.entropy.groups
        first = max(self.latent // 20, 1)
        groups = (first, first, max(self.latent // 10, 1), max(self.latent // 5, 1))
        return (*groups, self.latent - sum(groups))
