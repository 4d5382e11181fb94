"""Settings of the estimation of accuracy without labels, the server half."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Federated averaging, then in the last round the scores of all sets. Needs the workload `mano`."""

    name: str = "mano"
    eta: float = 5.0
    """Threshold on the criterion: at or below it logits are normalised by the truncated exponential."""
    criterion: Literal["ce", "kl"] = "ce"
    """`ce`: the printed criterion, never below ln K; `kl`: minus ln K, the divergence alone."""
    branch: Literal["fixed", "per_set", "first", "softmax", "taylor"] = "fixed"
    """Normalisation of logits. `fixed`: decided once, by the criterion of all sets together; `per_set`: the printed
    rule, whose scores do not compare across branches; `first`: by the first set's criterion, as the released code does;
    or always the one named."""
    whole_set: bool = True
    """One norm over each whole set; false uses the released code's mean over batches of 128."""
    parts: Annotated[int, Field(ge=1)] = 8
    """Parts the sets are split into, scored in parallel."""
