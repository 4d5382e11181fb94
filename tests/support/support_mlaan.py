"""Small networks that learn module by module, for every test of the workload."""

from typing import Any

import torch
from torch import Tensor

from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.workloads.mlaan.auxiliary import Plan
from fedloom.workloads.mlaan.config import Config
from fedloom.workloads.mlaan.heads import Batch
from fedloom.workloads.mlaan.learner import Contest

SHAPE = (1, 8, 8)


def plan(**settings: Any) -> Plan:
    """Nine modules of one narrow block each, images of 8 x 8, 4 classes."""
    base: dict[str, Any] = {"net": {"depth": 20, "widths": [4, 6, 8]}}
    return Plan(config=Config.model_validate({**base, **settings}), shape=SHAPE, classes=4, seed=3)


def contest(made: Plan, trained: tuple[int, int] | None = None) -> Contest:
    """Its networks with weights of a fixed seed, in training mode."""
    torch.manual_seed(5)
    return Contest(made, trained or (0, made.config.num_modules)).train()


def batch(count: int = 6) -> Batch:
    """Random images and classes."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, *SHAPE, generator=generator)
    return Batch(x, torch.arange(count) % 4, x.sigmoid())


def gradients(net: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients that are there, by parameter; they are removed."""
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    return found


def experiment(workload: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    """One client, the digits; `workload` and other settings are laid over it."""
    base: dict[str, Any] = {
        "name": "mlaan",
        "modes": ["dgl_mlaan"],
        "train_examples": 120,
        "net": {"depth": 14, "widths": [4, 6, 8]},
        "multilaminar": {"window": 2},
        "training": {"batch_size": 32, "learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
    }
    return Experiment.parse(
        {
            "rounds": 2,
            "runtime": {"name": "inline"},
            "strategy": "fedavg",
            **({} if settings.get("clients") == "nodes" else {"evaluation": {"parts": 1}}),
            "workload": {**base, **(workload or {})},
            **settings,
        }
    )


def build(made: Experiment) -> Any:
    """The experiment's workload."""
    return registry.part("workloads", "mlaan", "workload").build_workload(made.workload, made)
