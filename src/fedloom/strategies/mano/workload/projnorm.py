"""ProjNorm: distance of a network fine-tuned on the model's labels from one fine-tuned on the source.

Yu et al. 2022, "Predicting Out-of-Distribution Error with the Projection Norm". The initial network is trained on a set
under the labels the model gives it, and, once, on source images under theirs; the score is minus the distance of the
two in parameters. In the paper the initial network is pretrained; here it is the one training began with.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.records import Array
from fedloom.strategies.mano.workload.config import ProjNormSettings

_MOMENTUM = 0.9


def trained_parameters(
    initial: nn.Module, images: Tensor, labels: Array, settings: ProjNormSettings, rng: np.random.Generator
) -> Tensor:
    """Return all trainable parameters as one vector after the steps; the initial network is unchanged."""
    model = copy.deepcopy(initial).train()
    truth = torch.from_numpy(np.asarray(labels, np.int64)).to(images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=_MOMENTUM)
    order = np.empty(0, np.int64)
    for step in range(settings.steps):
        if len(order) < min(settings.batch_size, len(labels)):
            order = rng.permutation(len(labels))
        rows, order = torch.from_numpy(order[: settings.batch_size]), order[settings.batch_size :]
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), truth[rows]).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def projection_norm(reference: Tensor, projected: Tensor) -> float:
    """Minus the Euclidean distance."""
    return -float((reference.double() - projected.double()).norm())
