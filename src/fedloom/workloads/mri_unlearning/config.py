"""Settings of MRI reconstruction and unlearning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import DataPath, PlainWord
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads.mri_unlearning.procedures import PROCEDURES

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Anatomy = Literal["brain", "liver", "head", "macaque", "diffusion", "joint"]
"""`brain`: ICBM152 T1 (nilearn); `liver`: a T1 abdomen at five flip angles (mdreg); `head`, `macaque`: Colin-27 and
INIA19 T1 (Debian's mricron-data); `diffusion`: ten b0 slices of a head (dipy); `joint`: a drawn phantom."""


class Simulated(Settings):
    """Simulated acquisitions of real magnitude images that come with packages: no package has raw k-space.

    Each volume is cut along its axis into six slabs; the second and the fifth are held out, with gaps of at least 5 mm.
    """

    source: Literal["simulated"] = "simulated"
    retain: Annotated[tuple[Anatomy, ...], Field(min_length=1)] = ("brain",)
    """Anatomies that the model should know."""
    forget: tuple[Anatomy, ...] = ("liver",)
    """Anatomies whose influence is to be removed; none for plain reconstruction."""
    size: Annotated[int, Field(ge=16)] = 64
    """Side of an image; pixels."""
    slices: Count = 64
    """Training slices of each anatomy to retain."""
    forget_slices: Count = 12
    """Training slices of each anatomy to forget."""
    test_slices: Count = 16
    """Held-out slices of each anatomy."""
    coils: Count = 4
    """Receive coils, on a circle around the image; complex sensitivities whose root-sum-of-squares is 1."""
    noise: Annotated[float, Field(ge=0.0)] = 0.003
    """Standard deviation of the real and of the imaginary part of k-space's noise; images have maximum 1."""
    sites: Count = 1
    """Contiguous parts that each anatomy to retain is cut into, for one client each in the partition `natural`."""

    @pydantic.model_validator(mode="after")
    def _different(self) -> Self:
        names = [*self.retain, *self.forget]
        if len({*names}) < len(names):
            raise ConfigError(f"workload.data: expected different anatomies in retain and forget, got {names}")
        return self


class FastMri(Settings):
    """Folders of volumes in fastMRI's HDF5 layout, multi-coil or single-coil.

    A file has `kspace`, (slices, coils, h, w) or (slices, h, w), complex, and `reconstruction_rss` or
    `reconstruction_esc`, (slices, h', w'); without either the target is that of the full k-space.
    """

    source: Literal["fastmri"] = "fastmri"
    train_folder: DataPath
    """Folder of `.h5` files for training."""
    test_folder: DataPath
    """Folder of held-out `.h5` files."""
    forget: tuple[PlainWord, ...] = ("CORPD_FBK", "CORPDFS_FBK")
    """Acquisitions, by a file's attribute `acquisition`, whose influence is to be removed; the defaults are knees."""
    max_slices: Count | None = None
    """Middle slices used of each volume; None uses all."""


KspaceSource = Annotated[Simulated | FastMri, Field(discriminator="source")]


class MaskSettings(Settings):
    """The sampled columns of k-space. Training draws a mask per minibatch, held-out volumes have one each."""

    kind: Literal["equispaced", "equispaced_fraction", "random"] = "equispaced"
    """`equispaced`: every R-th column from a random offset, and the centre; `equispaced_fraction`: fewer, so that one
    of R columns is sampled in all; `random`: columns at random, one of R on average."""
    acceleration: Annotated[int, Field(ge=1)] = 4
    """R; the paper: 8."""
    centre_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.08
    """Share of columns, in the middle, that are always sampled; the paper: 0.04."""


class NetSettings(Settings):
    """The reconstruction network."""

    kind: Literal["varnet", "unet"] = "varnet"
    """`varnet`: unrolled, on multi-coil k-space (E2E-VarNet); `unet`: of the zero-filled magnitude image."""
    cascades: Count = 2
    """`varnet`: steps of the unrolled iteration; the paper: 12."""
    channels: Count = 8
    """Channels of the first level of the U-Nets; the paper: 18."""
    pools: Count = 2
    """Levels below the first; the paper: 4."""
    sensitivity_channels: Count = 4
    """`varnet`: of the U-Net that estimates coil sensitivities; the paper: 8."""
    sensitivity_pools: Count = 2
    """`varnet`: likewise; the paper: 4."""


class UnlearningSettings(Settings):
    """The procedures' numbers."""

    rounds: Annotated[int, Field(ge=0)] = 2
    """Last rounds of the run, in which procedures run; before them the original and the oracle are trained."""
    learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    """Step size in these rounds, constant; None takes `training.learning_rate`."""
    retain_share: Share = 0.1
    """Share of the retain slices that procedures may use, D_r'; `ft_full` uses all. At least one slice."""
    label_noise: Annotated[float, Field(ge=0.0)] = 0.3
    """lambda, standard deviation of the noise in noisy labels, relative to the volume's maximum; the paper's 1e-5 is
    about 0.04 of a knee volume's."""
    absolute_noise: bool = False
    """Whether noise is |N(0, 1)|, as in the released code; the paper has N(0, 1)."""
    ascent_weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Weight of the loss that `ga` and `ga_ft` maximise on forget slices."""
    gamma: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the sum of absolute parameters in `ga` and `ga_ft`; the paper has one and does not say it."""


class Config(TorchConfig):
    """Reconstruct images from undersampled multi-coil k-space, and remove what was learned of some anatomies.

    Models are trained side by side, none influences another. The original is trained on retain and forget slices, the
    oracle on retain slices alone; each procedure continues the original.
    """

    name: str = "mri_unlearning"
    data: KspaceSource = Simulated()
    """Source of k-space; its `source` selects the kind."""
    mask: MaskSettings = MaskSettings()
    net: NetSettings = NetSettings()
    oracle: bool = True
    """Whether the oracle is trained beside the original."""
    procedures: tuple[PlainWord, ...] = ("ft", "ga", "nl", "ga_ft", "nl_ft")
    """What removes the influence of the forget slices: `ft`, `ft_full` (fine-tuning on part and on all of the retain
    slices), `ga` (gradient ascent), `nl` (noisy labels), `ga_ft`, `nl_ft` (with fine-tuning). The last one is the run's
    `bta_db`, `kta_db`, `ua_db`."""
    unlearning: UnlearningSettings = UnlearningSettings()
    l1_weight: Annotated[float, Field(ge=0.0)] = 1e-5
    """Weight of L1 in the loss 1 - SSIM + weight L1."""
    training: TrainingSettings = TrainingSettings(
        optimizer="adamw", learning_rate=1e-3, batch_size=2, clip_norm=0.5, epochs=1
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.procedures:
            if name not in PROCEDURES:
                raise ConfigError(f"workload.procedures: expected some of {', '.join(PROCEDURES)}, got {name!r}")
        if len({*self.procedures}) < len(self.procedures):
            raise ConfigError(f"workload.procedures: expected different procedures, got {list(self.procedures)}")
        if self.procedures and not self.unlearning.rounds:
            raise ConfigError("workload.unlearning.rounds: expected at least 1 with procedures, got 0")
        if self.procedures and not self.data.forget:
            raise ConfigError(
                "workload.data.forget: procedures need something to forget, got nothing; set procedures = []"
            )
        return self

    @property
    def members(self) -> tuple[str, ...]:
        """Return the names of the models."""
        return ("original", *(("oracle",) if self.oracle else ()), *self.procedures)

    def rounds_needed_by(self) -> str:
        needed = f"workload.unlearning.rounds = {self.unlearning.rounds}" if self.procedures else ""
        return needed or super().rounds_needed_by()
