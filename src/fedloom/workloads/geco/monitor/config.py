"""Settings of the monitor of explanations."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import PluginSettings, Settings
from fedloom.core.errors import ConfigError
from fedloom.workloads.geco.config import Generated, SentenceSource

Explainer = Literal[
    "random",
    "covariance",
    "saliency",
    "input_x_gradient",
    "integrated_gradients",
    "gradient_shap",
    "deep_lift",
    "kernel_shap",
    "lime",
    "occlusion",
    "guided_backprop",
    "deconvolution",
]
MODEL_FREE = ("random", "covariance")
"""Explainers that use no model."""
DOUBLED = ("saliency", "input_x_gradient", "guided_backprop", "deconvolution", "deep_lift", "gradient_shap")
"""Explainers that the released code applies to the embedding block's output, which the model then embeds once more."""


class ExplainerSettings(Settings):
    """How decisions are explained."""

    output: Literal["probability", "logit"] = "probability"
    """What is explained: the probability of the class, or its logit."""
    steps: Annotated[int, Field(ge=1)] = 50
    """Steps of `integrated_gradients`; the paper's are 200."""
    shap_samples: Annotated[int, Field(ge=1)] = 20
    """Samples of `gradient_shap`."""
    kernel_samples: Annotated[int, Field(ge=2)] = 25
    """Samples of `kernel_shap`."""
    lime_samples: Annotated[int, Field(ge=2)] = 100
    """Samples of `lime`."""
    legacy_double_embedding: bool = False
    """Start from the embedding block's output, which the model embeds a second time, as the released code does for
    gradient methods other than integrated gradients."""


class Config(PluginSettings):
    """Mass accuracy of explanations: the part of their weight on the words that carry an attribute."""

    name: str = "geco"
    data: Literal["held_out", "own"] = "held_out"
    """`held_out`: the test sentences are split into parts; `own`: clients explain decisions on their own sentences."""
    clients: Annotated[int, Field(ge=1)] = 4
    """Parts of `held_out`, or for `own` this many clients (at most all), drawn anew in each evaluated round."""
    explainers: Annotated[tuple[Explainer, ...], Field(min_length=1)] = (
        "random",
        "input_x_gradient",
        "integrated_gradients",
    )
    """What explains. `guided_backprop` and `deconvolution` are the plain gradient on networks without ReLU, such as
    BERT's; `covariance` uses no model, but training sentences."""
    explaining: ExplainerSettings = ExplainerSettings()
    sentences: Annotated[int, Field(ge=1)] | None = 20
    """Sentences of each client that are explained, the first ones; None explains all."""
    only_correct: bool = True
    """Score only sentences that every network of the run classifies correctly. Without true classes all are scored, for
    the predicted class."""
    source: SentenceSource = Generated(test_pairs=40)
    """Sentences for workloads that have none with known relevant words: the test pairs are explained; its `source`
    selects the kind."""
    send_values: bool = False
    """Send each sentence's mass accuracy besides the histograms, for exact medians."""
    examples: Annotated[int, Field(ge=0)] = 0
    """Sentences of each client that are sent with the importance of their words, for the report."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.explainers)) < len(self.explainers):
            raise ConfigError(f"monitor.explainers: expected different explainers, got {list(self.explainers)}")
        return self
