"""Settings the low-rank strategies share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.core.setting_types import DataPath, PlainWord
from fedloom.strategies._low_rank.wire import Wire

Rank = Annotated[int, Field(ge=1)]


class LowRankSettings(PluginSettings):
    """Placement of adapters, further trained arrays, and the dtype on the wire."""

    targets: tuple[PlainWord, ...] = ("query", "value")
    """Layers with an adapter: patterns (`*`, `?`) match a full module name or its trailing components. The
    default matches the attention of BERT and ViT; Llama-like models have `q_proj` and `v_proj`, GPT-2 has `c_attn`."""
    scale: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 2.0
    """s in W + s·B A, for every rank (LoRA's alpha/r would change the function whenever the rank does)."""
    head: Literal["train", "freeze"] = "train"
    """`train`: the task's head is trained and sent with the adapters. `freeze`: it is not trained."""
    wire: Wire = "fp32"
    """Format of transfers, both ways: 32-bit floats, 16-bit floats, or 8-bit integers with a scale per 64 elements."""
    adapters: DataPath | None = None
    """Folder with adapters in PEFT's form to start from, such as `fedloom adapters export` writes; None makes fresh
    ones. They must be for the layers of `targets`, on the initial weights. Read once."""
    mu: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Weight of the proximal term on the arrays trained in adapter rounds (dimensionless); 0 disables it."""
    rate_factor: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """Factor of the clients' local step size in adapter rounds: factors tolerate larger steps than whole models."""


class HeterogeneousSettings(LowRankSettings):
    """The same, for methods whose clients may differ in rank."""

    client_ranks: tuple[Rank, ...] = ()
    """Largest rank of each client: client k gets entry k modulo the list's length. Empty means no limits."""
