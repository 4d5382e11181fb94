"""SFedCA, the server half: federated averaging. Which clients are averaged is the selection's, `firing_credit`."""

from __future__ import annotations

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.strategies.fedavg.strategy import FedAvg
from fedloom.strategies.sfedca.config import SELECTION, Config


def build_strategy(config: Config, experiment: Experiment) -> FedAvg:
    """Return federated averaging: w_{t+1} = Σ (n_k / n) w_k over the m of d candidates that `firing_credit` chooses.

    A reconstruction from the abstract of "SFedCA: Credit Assignment-Based Active Client Selection Strategy for Spiking
    Federated Learning" (Zhan et al., arXiv 2406.12200).

    Raises:
        ConfigError: the experiment has another selection.
    """
    found = experiment.selection.name
    if found != SELECTION:
        raise ConfigError(
            f"selection.name: {found!r} with strategy 'sfedca', which is federated averaging of the clients that "
            f"{SELECTION!r} chooses. Expected {SELECTION!r}, whose candidate_draw says how candidates are drawn; with "
            'another selection set strategy = "fedavg"'
        )
    return FedAvg()
