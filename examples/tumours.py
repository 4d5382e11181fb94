"""A network of your own on a table of your own: benign or malignant, by 30 measurements of a biopsy's cells."""

from sklearn.datasets import load_breast_cancer
from torch import nn

from fedloom.torch import Found, TorchConfig, TorchWorkload


class Config(TorchConfig):
    """Sizes of the network; `partition` and `training` are there already."""

    hidden: int = 16
    """Hidden neurons."""


class Tumours(TorchWorkload[Config]):
    """An MLP with one hidden layer; the loss is cross-entropy, since nothing else is said."""

    def model(self) -> nn.Module:
        hidden = self.config.hidden
        return nn.Sequential(nn.Linear(30, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def dataset(self) -> Found:
        x, y = load_breast_cancer(return_X_y=True)
        return (x - x.mean(0)) / x.std(0), y


build_workload = Tumours
