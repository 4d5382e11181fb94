"""Makes members from settings, and joins them with the classifier into one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedloom.core.errors import ConfigError
from fedloom.core.seeds import integer_seed
from fedloom.workloads._torch.scope import exact
from fedloom.workloads.generative.autoregressive import CausalTransformer, Made, PixelCnn
from fedloom.workloads.generative.baselines import Gaussian, Histogram
from fedloom.workloads.generative.classifier import Classifier
from fedloom.workloads.generative.config import Config
from fedloom.workloads.generative.continuous import FlowMatching
from fedloom.workloads.generative.diffusion import Ddim, Ddpm, ScoreSde
from fedloom.workloads.generative.energy import Jem, LangevinEnergy
from fedloom.workloads.generative.flow import glow, maf, realnvp
from fedloom.workloads.generative.gan import HingeSpectral, NonSaturating, WassersteinGp
from fedloom.workloads.generative.member import Form, Member
from fedloom.workloads.generative.rbm import Rbm
from fedloom.workloads.generative.vae import Vae, VqVae

_CPU = torch.device("cpu")
CLASSIFIER = "classifier"
"""Name of the classifier among the parts of the model."""


def _energy(config: Config, form: Form) -> Mapping[str, Callable[[], Member]]:
    s = config.energy
    chain = (s.chains, s.steps, s.sampling_steps, s.channels)
    return {
        "langevin": lambda: LangevinEnergy(form, *chain),
        "jem": lambda: Jem(form, *chain),
        "rbm": lambda: Rbm(form, s.hidden, s.chains, s.gibbs_steps, s.gibbs_sampling_steps, s.persistent),
    }


def _vae(config: Config, form: Form) -> Mapping[str, Callable[[], Member]]:
    s = config.vae
    return {
        "vae": lambda: Vae(form, s.latent, s.hidden, 1, s.bound_samples),
        "iwae": lambda: Vae(form, s.latent, s.hidden, s.iwae_samples, s.bound_samples),
        "vqvae": lambda: VqVae(form, s.codes, s.book, s.width, s.hidden),
    }


def _gan(config: Config, form: Form) -> Mapping[str, Callable[[], Member]]:
    s = config.gan
    return {
        "gan": lambda: NonSaturating(form, s.latent, s.channels, s.critic_steps),
        "wgan_gp": lambda: WassersteinGp(form, s.latent, s.channels, 3 * s.critic_steps),
        "hinge": lambda: HingeSpectral(form, s.latent, s.channels, s.critic_steps),
    }


def _autoregressive(config: Config, form: Form) -> Mapping[str, Callable[[], Member]]:
    s = config.autoregressive
    return {
        "made": lambda: Made(form, s.hidden, dropout=s.dropout),
        "pixelcnn": lambda: PixelCnn(form, s.channels, s.blocks),
        "transformer": lambda: CausalTransformer(form, s.width, s.layers, s.heads),
    }


def _flow(config: Config, form: Form) -> Mapping[str, Callable[[], Member]]:
    s = config.flow
    return {
        "realnvp": lambda: realnvp(form, s.couplings, s.hidden),
        "glow": lambda: glow(form, s.glow_steps, s.glow_channels),
        "maf": lambda: maf(form, s.maf_layers, s.maf_hidden),
        "flow_matching": lambda: FlowMatching(form, s.matching_hidden, s.matching_blocks, s.solver_steps),
    }


def _diffusion(config: Config, form: Form) -> Mapping[str, Callable[[], Member]]:
    s = config.diffusion
    return {
        "ddpm": lambda: Ddpm(form, s.hidden, s.blocks, s.steps, s.schedule),
        "ddim": lambda: Ddim(form, s.hidden, s.blocks, s.steps, s.schedule, s.ddim_steps),
        "score_sde": lambda: ScoreSde(form, s.hidden, s.blocks, s.steps),
    }


def makers(config: Config, form: Form) -> Mapping[str, Callable[[], Member]]:
    """Return a maker for each member there is, by name."""
    return {
        "histogram": lambda: Histogram(form),
        "gaussian": lambda: Gaussian(form),
        **_energy(config, form),
        **_vae(config, form),
        **_gan(config, form),
        **_autoregressive(config, form),
        **_flow(config, form),
        **_diffusion(config, form),
    }


class Models(nn.Module):
    """The classifier and the members, each with weights of its own stream of randomness.

    Its output is the classifier's logits.

    Args:
        config: which members, and their settings.
        form: the images.

    Raises:
        ConfigError: a member cannot take images of this size, or needs classes and there are none.
    """

    def __init__(self, config: Config, form: Form) -> None:
        super().__init__()
        base, make = int(torch.randint(2**62, (1,))), makers(config, form)
        if "jem" in config.members and form.classes < 2:
            raise ConfigError("workload.members: 'jem' is a classifier, but the images have no classes; remove it")
        with exact(_CPU, integer_seed(base, CLASSIFIER)):
            self.classifier = Classifier(form)
        self.members: dict[str, Member] = {}
        for name in config.members:
            with exact(_CPU, integer_seed(base, name)):
                self.members[name] = make[name]()
            self.add_module(name, self.members[name])
        self.active: set[str] = set()
        """Players that have a gradient in the current step."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the classifier's logits of levels (b, 1, h, w), (b, classes)."""
        logits: Tensor = self.classifier(x)[1]
        return logits
