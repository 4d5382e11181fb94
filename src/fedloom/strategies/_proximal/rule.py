"""The gradient of the proximal term: the client half of FedProx, and a part of others'."""

from __future__ import annotations

import numpy as np

from fedloom.core.errors import BadMessage
from fedloom.core.protocols import LocalRule, Tensors
from fedloom.core.records import Info


class ProximalTerm(LocalRule):
    """Pulls local weights w towards the global weights w_t they started from."""

    def adjust_gradients(self, gradients: Tensors, parameters: Tensors, anchor: Tensors, knobs: Info) -> None:
        """Add mu * (w - w_t), the gradient of mu/2 ||w - w_t||², to each gradient in place.

        Li et al. 2020, equation 2: the penalty is mu/2 times the *squared* distance. With mu = 0 nothing is touched.

        Args:
            gradients: gradient of F_k, one NumPy array or torch tensor per trained array, any floating dtype.
            parameters: local weights w, same order, shapes and kind; read-only.
            anchor: global weights w_t as received, same order, shapes and kind; read-only.
            knobs: reads `mu` (dimensionless, >= 0).

        Raises:
            BadMessage: the job carries no usable `mu`.
        """
        mu = _mu(knobs)
        if mu == 0.0 or not gradients:
            return
        if isinstance(gradients[0], np.ndarray):
            for gradient, w, w_t in zip(gradients, parameters, anchor, strict=True):
                np.add(gradient, mu * (w - w_t), out=gradient, casting="same_kind")
            return
        import torch  # here, so that a server or a NumPy workload never pays for it

        with torch.no_grad():
            distance = torch._foreach_sub(list(parameters), list(anchor))
            torch._foreach_add_(list(gradients), distance, alpha=mu)


def _mu(knobs: Info) -> float:
    value = knobs.get("mu")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0.0:
        raise BadMessage(
            f"rule 'fedprox': expected knob 'mu' as a number >= 0, got {value!r} among knobs {sorted(knobs)}. "
            "Do server and client run the same strategy?"
        )
    return float(value)
