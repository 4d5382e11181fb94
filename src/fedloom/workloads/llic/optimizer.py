"""One optimiser for a codec: the quantiles of its prior have a step size of their own, and are never clipped."""

from __future__ import annotations

from torch import Tensor

from fedloom.workloads._torch.optimizers import AdamW, clip_by_norm
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads.llic.net import Codec


class CodecOptimizer:
    """AdamW on all parameters, with `quantile_rate` for the quantiles; `clip_norm` is of the others' gradients.

    Args:
        parameters: of the codec.
        codec: whose they are.
        settings: the optimiser.
    """

    def __init__(self, parameters: list[Tensor], codec: Codec, settings: TrainingSettings) -> None:
        own = codec.entropy.prior.quantiles.data_ptr()
        self._places = [place for place, each in enumerate(parameters) if each.data_ptr() != own]
        self._own = [place for place, each in enumerate(parameters) if each.data_ptr() == own]
        self._rest = AdamW([parameters[place] for place in self._places], settings)
        self._quantiles = AdamW([parameters[place] for place in self._own], settings)
        self._clip_norm = settings.clip_norm
        self._factor = codec.config.quantile_rate / settings.learning_rate
        self.base_rate = self.rate = settings.learning_rate

    def reset(self) -> None:
        """Reset all state: a new client begins."""
        self._rest.reset()
        self._quantiles.reset()

    def step(self, gradients: list[Tensor]) -> None:
        """Move the parameters; the gradients may be changed."""
        self._rest.rate, self._quantiles.rate = self.rate, self.rate * self._factor
        rest = [gradients[place] for place in self._places]
        if self._clip_norm is not None:
            clip_by_norm(rest, self._clip_norm)
        self._rest.step(rest)
        if self._own:
            self._quantiles.step([gradients[place] for place in self._own])
