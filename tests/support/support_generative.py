"""Small generative models and runs, for every test of the workload."""

from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.records import JsonObject
from fedloom.workloads.generative.config import Config
from fedloom.workloads.generative.making import makers
from fedloom.workloads.generative.member import Batch, Form, Member
from fedloom.workloads.generative.moments import Moments
from fedloom.workloads.generative.noise import DrawnNoise

TINY: dict[str, Any] = {
    "energy": {"channels": 4, "chains": 16, "steps": 2, "sampling_steps": 3, "hidden": 4, "gibbs_sampling_steps": 3},
    "vae": {"latent": 3, "hidden": [12], "iwae_samples": 2, "bound_samples": 3, "codes": 4, "book": 5, "width": 2},
    "gan": {"latent": 4, "channels": 4},
    "autoregressive": {"hidden": [20], "channels": 4, "blocks": 1, "width": 8, "layers": 1, "heads": 2},
    "flow": {
        "couplings": 2,
        "hidden": [8],
        "glow_steps": 2,
        "glow_channels": 4,
        "maf_layers": 2,
        "maf_hidden": [20],
        "matching_hidden": 8,
        "matching_blocks": 1,
        "solver_steps": 2,
    },
    "diffusion": {"hidden": 8, "blocks": 1, "steps": 4, "ddim_steps": 2},
}
"""Settings of the smallest networks."""


def generator(seed: int = 3) -> torch.Generator:
    """Torch's, with a seed."""
    return torch.Generator().manual_seed(seed)


def member(name: str, form: Form, seed: int = 1, **settings: Any) -> Any:
    """A member with the tiny settings, `settings` over them, its weights of a fixed seed."""
    config = Config.model_validate({**TINY, **settings})
    torch.manual_seed(seed)
    return makers(config, form)[name]()


def batch(form: Form, count: int = 8, seed: int = 3) -> Batch:
    """Random images and classes."""
    drawn = generator(seed)
    x = torch.randint(form.levels, (count, 1, form.height, form.width), generator=drawn)
    return Batch(x, torch.arange(count) % max(form.classes, 1), DrawnNoise(count, drawn), drawn)


def every_image(form: Form) -> Tensor:
    """All images there are, (M^D, 1, h, w)."""
    found = torch.tensor(list(product(range(form.levels), repeat=form.dims)))
    return found.reshape(-1, 1, form.height, form.width)


def stirred(made: Member, seed: int = 5, size: float = 0.5) -> Any:
    """The member with all weights moved at random, so that nothing is 0 or symmetric."""
    drawn = generator(seed)
    with torch.no_grad():
        for each in made.parameters():
            each.add_(size * torch.randn(each.shape, generator=drawn, dtype=torch.float32).to(each.dtype))
    return made


def experiment(workload: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    """One client, the digits; `workload` and other settings are laid over it."""
    base: dict[str, Any] = {"name": "generative", **TINY, "train_examples": 120, "members": ["made", "realnvp"]}
    return Experiment.parse(
        {
            "rounds": 2,
            "runtime": {"name": "inline"},
            "strategy": "fedavg",
            "evaluation": {"parts": 1},
            "workload": {**base, **(workload or {})},
            **settings,
        }
    )


def build(made: Experiment) -> Any:
    """The experiment's workload."""
    return registry.part("workloads", "generative", "workload").build_workload(made.workload, made)


class MadeUpCensus:
    """A workload that has nothing but a census, of features drawn for each client."""

    def census(
        self, inputs: object, shard: object, rng: np.random.Generator, *, samples: int, pictures: int
    ) -> JsonObject:
        """Return sums of random features; the samples of one member lie elsewhere."""
        own = np.tanh(rng.normal(size=(40, 4)))
        made = np.tanh(rng.normal(0.5, 1.0, size=(samples, 4)))
        member = {
            "moments": Moments.of(made).to_json(),
            "predicted": [samples // 2, samples - samples // 2, 0],
            "shares": [samples / 2, samples / 2, 0.0],
            "information": -0.3 * samples,
            "distance": [2.0 * samples, float(samples)],
            "seconds": 0.5,
            "parameters": 7,
            "pictures": "",
        }
        return {
            "form": [1, 1, 2],
            "classes": 3,
            "own": Moments.of(own).to_json(),
            "held_out": Moments.of(np.tanh(rng.normal(size=(30, 4)))).to_json(),
            "test_distance": [75.0, 30.0],
            "members": {"vae": member, "made": {**member, "distance": [2.6 * samples, float(samples)]}},
        }
