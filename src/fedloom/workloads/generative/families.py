"""The members of the table: name, family, and what is known of their density. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Family = Literal["baseline", "energy", "vae", "gan", "autoregressive", "flow", "diffusion"]
Density = Literal["exact", "bound", "estimate", "none"]
"""`exact`: ln p(x) of the data as discretised (of the dequantised data, for flows); `bound`: a lower bound of it;
`estimate`: an integral solved numerically; `none`: no likelihood."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the table says of a member, whatever it learned."""

    family: Family
    title: str
    density: Density
    free_form: bool
    """Whether any network would do (the review's "free-form Jacobian"), or its form is restricted."""
    uses_labels: bool = False
    keeps_replay: bool = False
    """Whether a client stores Markov chains between its rounds."""


KINDS: Mapping[str, Kind] = {
    "histogram": Kind("baseline", "per-pixel histogram", "exact", False),
    "gaussian": Kind("baseline", "full-covariance Gaussian", "exact", False),
    "langevin": Kind("energy", "energy, Langevin with replay", "none", True, keeps_replay=True),
    "rbm": Kind("energy", "RBM, persistent chains", "exact", False, keeps_replay=True),
    "jem": Kind("energy", "JEM, energy of a classifier", "none", True, uses_labels=True, keeps_replay=True),
    "vae": Kind("vae", "VAE", "bound", True),
    "iwae": Kind("vae", "IWAE", "bound", True),
    "vqvae": Kind("vae", "VQ-VAE, learned prior", "bound", False),
    "gan": Kind("gan", "GAN, non-saturating", "none", True),
    "wgan_gp": Kind("gan", "WGAN-GP", "none", True),
    "hinge": Kind("gan", "GAN, hinge, spectral norm", "none", True),
    "made": Kind("autoregressive", "MADE", "exact", False),
    "pixelcnn": Kind("autoregressive", "PixelCNN", "exact", False),
    "transformer": Kind("autoregressive", "causal transformer", "exact", False),
    "realnvp": Kind("flow", "RealNVP", "exact", False),
    "glow": Kind("flow", "Glow", "exact", False),
    "maf": Kind("flow", "MAF", "exact", False),
    "flow_matching": Kind("flow", "flow matching", "estimate", True),
    "ddpm": Kind("diffusion", "DDPM", "bound", True),
    "ddim": Kind("diffusion", "DDPM sampled by DDIM", "bound", True),
    "score_sde": Kind("diffusion", "score SDE", "estimate", True),
}
"""All members, in the order of the table."""
