"""Settings of the generative families."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import PlainWord
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.settings import Digits, ImageSource
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads.generative.families import KINDS

Count = Annotated[int, Field(ge=1)]
Sizes = Annotated[tuple[Count, ...], Field(min_length=1)]


class EnergySettings(Settings):
    """`langevin`, `jem`, `rbm`."""

    channels: Count = 24
    """Channels of the first convolution of the energy network."""
    chains: Count = 512
    """Markov chains that a client stores between its rounds, the replay buffer."""
    steps: Count = 15
    """Langevin steps of a training step."""
    sampling_steps: Count = 120
    """Langevin steps of a sample, from noise."""
    hidden: Annotated[int, Field(ge=1, le=20)] = 14
    """Hidden units of the RBM, whose partition function is the sum over their 2^hidden states."""
    gibbs_steps: Count = 5
    """Gibbs steps k of the RBM's training step (PCD-k, or CD-k)."""
    gibbs_sampling_steps: Count = 200
    """Gibbs steps of the RBM's sample, from random pixels."""
    persistent: bool = True
    """Whether the RBM's negatives are persistent chains (PCD), or start at the minibatch (CD)."""


class VaeSettings(Settings):
    """`vae`, `iwae`, `vqvae`."""

    latent: Count = 16
    """Entries of z."""
    hidden: Sizes = (256,)
    """Units of each hidden layer of the encoder; the decoder's are the same in reverse."""
    iwae_samples: Annotated[int, Field(ge=2)] = 8
    """k of the bound that `iwae` maximises."""
    bound_samples: Count = 64
    """k of the importance-weighted bound that is reported as bits per dimension."""
    codes: Count = 16
    """Codes of an image, for `vqvae`."""
    book: Annotated[int, Field(ge=2)] = 32
    """Entries of the codebook."""
    width: Count = 4
    """Numbers of an entry."""


class GanSettings(Settings):
    """`gan`, `wgan_gp`, `hinge`."""

    latent: Count = 32
    """Entries of z."""
    channels: Annotated[int, Field(ge=4, multiple_of=4)] = 32
    """Channels of the networks' first layers."""
    critic_steps: Count = 1
    """Steps of the critic for one of the generator; of `wgan_gp` three times as many."""


class AutoregressiveSettings(Settings):
    """`made`, `pixelcnn`, `transformer`."""

    hidden: Sizes = (384, 384)
    """Units of MADE's hidden layers."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of MADE's inputs that is set to 0 in training."""
    channels: Annotated[int, Field(ge=2, multiple_of=2)] = 48
    """Channels of PixelCNN."""
    blocks: Count = 5
    """Residual blocks of PixelCNN."""
    width: Count = 48
    """Width of the transformer's tokens."""
    layers: Count = 2
    """Layers of the transformer."""
    heads: Count = 4
    """Heads of its attention; they divide `width`."""


class FlowSettings(Settings):
    """`realnvp`, `glow`, `maf`, `flow_matching`."""

    couplings: Annotated[int, Field(ge=2)] = 8
    """Coupling layers of RealNVP."""
    hidden: Sizes = (128, 128)
    """Units of the hidden layers of a coupling."""
    glow_steps: Count = 8
    """Steps of Glow."""
    glow_channels: Count = 48
    """Channels of the hidden layers of a Glow coupling."""
    maf_layers: Count = 5
    """Layers of MAF."""
    maf_hidden: Sizes = (192,)
    """Units of the hidden layers of a MAF layer."""
    matching_hidden: Count = 256
    """Units of the velocity network."""
    matching_blocks: Count = 3
    """Residual blocks of the velocity network."""
    solver_steps: Count = 40
    """Midpoint steps of a continuous flow's sample and density."""


class DiffusionSettings(Settings):
    """`ddpm`, `ddim`, `score_sde`."""

    hidden: Count = 256
    """Units of the network."""
    blocks: Count = 3
    """Residual blocks of the network."""
    steps: Annotated[int, Field(ge=2)] = 100
    """T, diffusion steps; of the score SDE, steps of its solver."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Noise by step of `ddpm` and `ddim`: `linear` is DDPM's own, `cosine` is for small images (Improved DDPM)."""
    ddim_steps: Count = 20
    """Steps of DDIM's samples."""


class Config(TorchConfig):
    """Generative models of grey images, of all families, trained side by side on the same minibatches.

    None influences another: a member has the bits it has alone. A small classifier is trained beside them, whose
    features the monitor `generative` measures distances on.
    """

    name: str = "generative"
    members: Annotated[tuple[PlainWord, ...], Field(min_length=1)] = (
        "histogram",
        "gaussian",
        "langevin",
        "vae",
        "gan",
        "made",
        "realnvp",
        "ddpm",
    )
    """The models. Baselines: `histogram`, `gaussian`. Energy: `langevin`, `rbm`, `jem`. VAE: `vae`, `iwae`, `vqvae`.
    GAN: `gan`, `wgan_gp`, `hinge`. Autoregressive: `made`, `pixelcnn`, `transformer`. Flow: `realnvp`, `glow`, `maf`,
    `flow_matching`. Diffusion: `ddpm`, `ddim`, `score_sde`."""
    bits_per_dim: tuple[PlainWord, ...] = ()
    """Members whose bits per dimension are measured; empty: all members that have a likelihood."""
    data: ImageSource = Digits()
    """Source of the images; its `source` selects the kind."""
    size: Annotated[int, Field(ge=2)] | None = None
    """Side that images are resized to, pixels; None leaves them."""
    levels: Annotated[int, Field(ge=2, le=256)] = 17
    """Grey levels M that pixels are rounded to, evenly spaced from black to white. Bits per dimension compare for equal
    `size` and `levels` only. The digits have 17."""
    train_examples: Count | None = None
    """Number of training images, drawn by the seed; None uses all."""
    energy: EnergySettings = EnergySettings()
    vae: VaeSettings = VaeSettings()
    gan: GanSettings = GanSettings()
    autoregressive: AutoregressiveSettings = AutoregressiveSettings()
    flow: FlowSettings = FlowSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    training: TrainingSettings = TrainingSettings(optimizer="adamw", learning_rate=1e-3, batch_size=64, epochs=1)

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the members whose bits per dimension are measured."""
        return self.bits_per_dim or tuple(name for name in self.members if KINDS[name].density != "none")

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = [name for name in (*self.members, *self.bits_per_dim) if name not in KINDS]
        if unknown:
            raise ConfigError(f"workload.members: expected some of {', '.join(KINDS)}, got {unknown[0]!r}")
        if len({*self.members}) < len(self.members):
            raise ConfigError(f"workload.members: expected different members, got {list(self.members)}")
        for name in self.bits_per_dim:
            self._check_measured(name)
        if self.autoregressive.width % self.autoregressive.heads:
            raise ConfigError(
                f"workload.autoregressive.heads: expected a divisor of width {self.autoregressive.width}, got "
                f"{self.autoregressive.heads}"
            )
        training = self.training
        if training.precision != "float32":
            raise ConfigError(f"workload.training.precision: expected 'float32' here, got {training.precision!r}")
        if training.clip_norm is not None:
            raise ConfigError(
                f"workload.training.clip_norm: would couple the members, got {training.clip_norm:g}; remove it. A "
                "member that needs it clips its own gradient"
            )
        return self

    def _check_measured(self, name: str) -> None:
        if KINDS[name].density == "none":
            able = [each for each, kind in KINDS.items() if kind.density != "none"]
            raise ConfigError(
                f"workload.bits_per_dim: {name!r} ({KINDS[name].title}) has no likelihood, so no bits per dimension; "
                f"remove it from the list. Members with one: {', '.join(able)}"
            )
        if name not in self.members:
            raise ConfigError(f"workload.bits_per_dim: expected some of workload.members, got {name!r}")
