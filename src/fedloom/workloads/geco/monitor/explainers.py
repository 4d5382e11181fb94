"""Explanations of one sentence: an importance for each token of a classifier's decision, by Captum's methods.

Each sentence is explained by itself, and what is drawn follows from the sentence alone. So its bits depend neither on
the others nor on who explains it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import (
    Deconvolution,
    DeepLift,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Lime,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn

from fedloom.core.errors import UnsupportedFeature
from fedloom.core.records import Array
from fedloom.core.seeds import integer_seed
from fedloom.workloads._pretrained.text_model import Encoded, TextModel
from fedloom.workloads._torch.scope import exact
from fedloom.workloads.geco.monitor.config import DOUBLED, ExplainerSettings

_TOGETHER = 16
"""Changed sentences in a forward pass."""


@dataclass(frozen=True, slots=True)
class Question:
    """What an explainer gets: one sentence of t tokens."""

    model: nn.Module
    """Maps vectors (b, t, d) and a mask (b, t) to (b, K): probabilities or logits."""
    vectors: Tensor
    """The tokens' vectors, (1, t, d)."""
    baseline: Tensor
    """Vectors of the same sentence with padding in place of words, (1, t, d)."""
    features: Tensor
    """For methods that switch whole words: number of each token's word, (1, t, 1) int64; special tokens share one."""
    first: Tensor
    """Whether each token is the first of its word, (t,)."""
    target: int
    """The class whose output is explained."""
    settings: ExplainerSettings

    @property
    def mask(self) -> tuple[Tensor]:
        """Return the mask, all ones, as the model's further argument."""
        return (torch.ones(self.vectors.shape[:2], dtype=torch.int64, device=self.vectors.device),)


class _Outputs(nn.Module):
    """A text model's probabilities, or its logits."""

    def __init__(self, model: TextModel, output: str) -> None:
        super().__init__()
        self.model, self._shares = model, output == "probability"

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        mask = mask.expand(len(vectors), -1)
        found: Tensor = self.model(vectors, mask)
        return torch.softmax(found, 1) if self._shares else found


def token_importance(
    model: TextModel, encoded: Encoded, target: int, explainer: str, settings: ExplainerSettings, seed: int
) -> Array:
    """Return the signed importance of each token of a sentence, (t,), float64; 0 for padding and special tokens of
    methods that switch words.

    Args:
        model: the classifier.
        encoded: the sentence.
        target: the class that is explained.
        explainer: a name of `EXPLAINED`.
        settings: steps and samples.
        seed: for methods that draw samples.

    Raises:
        UnsupportedFeature: the explainer cannot serve the model.
    """
    device = next(model.parameters()).device
    with exact(device, seed=integer_seed(seed, "geco", explainer)), torch.enable_grad():
        question = _question(model, encoded, target, explainer, settings, device)
        with _quiet(), _serving(explainer, model):
            found = EXPLAINED[explainer](question)
        for parameter in model.parameters():
            parameter.grad = None
    values: Array = found.detach().double().cpu().numpy()
    return values


def _question(
    model: TextModel, encoded: Encoded, target: int, explainer: str, settings: ExplainerSettings, device: torch.device
) -> Question:
    ids = torch.from_numpy(encoded.ids)[None].to(device)
    special = torch.tensor([word is None for word in encoded.words], device=device)
    empty = torch.where(special[None], ids, torch.full_like(ids, model.tokens.pad_id))
    embed = model.vectors
    if settings.legacy_double_embedding and explainer in DOUBLED:
        if model.block is None:
            raise UnsupportedFeature(
                f"monitor.explaining.legacy_double_embedding: {type(model.network).__name__} has no embedding block to "
                "pass twice; set it to false"
            )
        embed = model.block
    numbers = [word for word in encoded.words if word is not None]
    words = [max(numbers, default=-1) + 1 if word is None else word for word in encoded.words]
    order = {word: place for place, word in enumerate(dict.fromkeys(words))}
    first = [word is not None and words.index(word) == place for place, word in enumerate(encoded.words)]
    with torch.no_grad():
        vectors, baseline = embed(ids), embed(empty)
    return Question(
        model=_Outputs(model, settings.output),
        vectors=vectors.clone().requires_grad_(True),
        baseline=baseline,
        features=torch.tensor([order[word] for word in words], device=device).reshape(1, -1, 1),
        first=torch.tensor(first, device=device),
        target=target,
        settings=settings,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Captum's remarks on hooks and gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _serving(explainer: str, model: TextModel) -> Iterator[None]:
    """Name explainer and model in what Captum or PyTorch raise."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as exc:
        raise UnsupportedFeature(
            f"monitor.explainers: {explainer!r} cannot serve the network {type(model.network).__name__}: "
            f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else 'no reason given'}; remove it"
        ) from exc


def _saliency(q: Question) -> Tensor:
    found: Tensor = Saliency(q.model).attribute(q.vectors, target=q.target, additional_forward_args=q.mask)
    return found[0].sum(1)


def _input_x_gradient(q: Question) -> Tensor:
    found: Tensor = InputXGradient(q.model).attribute(q.vectors, target=q.target, additional_forward_args=q.mask)
    return found[0].sum(1)


def _guided_backprop(q: Question) -> Tensor:
    found: Tensor = GuidedBackprop(q.model).attribute(q.vectors, target=q.target, additional_forward_args=q.mask)
    return found[0].sum(1)


def _deconvolution(q: Question) -> Tensor:
    found: Tensor = Deconvolution(q.model).attribute(q.vectors, target=q.target, additional_forward_args=q.mask)
    return found[0].sum(1)


def _integrated_gradients(q: Question) -> Tensor:
    found: Tensor = IntegratedGradients(q.model).attribute(
        q.vectors, q.baseline, target=q.target, additional_forward_args=q.mask, n_steps=q.settings.steps
    )
    return found[0].sum(1)


def _gradient_shap(q: Question) -> Tensor:
    """Mean gradient at random points between baseline and sentence, times their difference.

    Captum's draws from NumPy's global generator; this draws from the sentence's own.
    """
    shares = torch.rand(q.settings.shap_samples, 1, 1, dtype=q.vectors.dtype, device=q.vectors.device)
    change = (q.vectors - q.baseline).detach()
    points = (q.baseline + shares * change).requires_grad_(True)
    output = q.model(points, *q.mask)[:, q.target].sum()
    (gradient,) = torch.autograd.grad(output, points)
    return (gradient.mean(0) * change[0]).sum(1)


def _deep_lift(q: Question) -> Tensor:
    found: Tensor = DeepLift(q.model).attribute(q.vectors, q.baseline, target=q.target, additional_forward_args=q.mask)
    return found[0].sum(1)


def _kernel_shap(q: Question) -> Tensor:
    found: Tensor = KernelShap(q.model).attribute(
        q.vectors.detach(),
        q.baseline,
        target=q.target,
        additional_forward_args=q.mask,
        feature_mask=q.features,
        n_samples=q.settings.kernel_samples,
        perturbations_per_eval=_TOGETHER,
    )
    return found[0, :, 0] * q.first


def _lime(q: Question) -> Tensor:
    """Ridge regression on switched words, weighted as in the package `lime` for texts."""
    found: Tensor = Lime(q.model, interpretable_model=SkLearnRidge(alpha=1.0), similarity_func=_likeness).attribute(
        q.vectors.detach(),
        q.baseline,
        target=q.target,
        additional_forward_args=q.mask,
        feature_mask=q.features,
        n_samples=q.settings.lime_samples,
        perturbations_per_eval=_TOGETHER,
    )
    return found[0, :, 0] * q.first


def _likeness(original: Tensor, changed: Tensor, switches: Tensor, **_: object) -> float:
    """Return sqrt(exp(-d² / 25²)), d = 100 (1 - cosine) between the words that are on and all words."""
    on = float(switches.double().mean())
    return math.exp(-(((100.0 * (1.0 - math.sqrt(on))) / 25.0) ** 2) / 2.0)


def _occlusion(q: Question) -> Tensor:
    found: Tensor = Occlusion(q.model).attribute(
        q.vectors.detach(),
        (1, q.vectors.shape[2]),
        baselines=q.baseline,
        target=q.target,
        additional_forward_args=q.mask,
        perturbations_per_eval=_TOGETHER,
    )
    return found[0, :, 0]


EXPLAINED: Mapping[str, Callable[[Question], Tensor]] = {
    "saliency": _saliency,
    "input_x_gradient": _input_x_gradient,
    "integrated_gradients": _integrated_gradients,
    "gradient_shap": _gradient_shap,
    "deep_lift": _deep_lift,
    "kernel_shap": _kernel_shap,
    "lime": _lime,
    "occlusion": _occlusion,
    "guided_backprop": _guided_backprop,
    "deconvolution": _deconvolution,
}
"""The explainers that need a model, by name: importance of each token, (t,)."""


def random_importance(count: int, seed: int) -> Array:
    """Return the explainer that knows nothing: uniform random importances of n words, (n,), float64."""
    found: Array = np.random.Generator(np.random.PCG64(integer_seed(seed, "geco", "random"))).random(count)
    return found
