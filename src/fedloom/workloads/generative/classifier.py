"""The classifier whose features the distances are of. It is trained beside the members, from the clients' labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.workloads.generative.member import Form

FEATURES = 16
"""Features of an image, each from -1 to 1."""


class Classifier(nn.Module):
    """Two convolutions, a layer of features, and logits; the same for all members.

    Args:
        form: the images.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        flat = 32 * (-(-form.height // 2)) * (-(-form.width // 2))
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(flat, FEATURES),
            nn.Tanh(),
        )
        self.last = nn.Linear(FEATURES, max(form.classes, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (b, 16) and the logits (b, classes) of levels (b, 1, h, w)."""
        features = self.body(self.form.scaled(x))
        return features, self.last(features)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(self(x)[1], y)


def features_of(classifier: Classifier, x: Tensor, batch: int = 512) -> tuple[Tensor, Tensor]:
    """Return features (n, 16) and class shares (n, classes) of levels (n, 1, h, w), both float64."""
    pieces = [classifier(part) for part in torch.split(x, batch)]
    features, logits = (torch.cat(each) for each in zip(*pieces, strict=True))
    return features.double(), logits.double().softmax(1)
