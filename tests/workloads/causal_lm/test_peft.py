"""Adapters out of a run and into one, with the `peft` package on the other side: equal outputs, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support_rounds import build
from tests.workloads.causal_lm.conftest import TARGETS, Make

from fedloom import api
from fedloom.api import RunResult
from fedloom.cli.app import main
from fedloom.core import registry
from fedloom.core.errors import UsageError
from fedloom.core.records import arrays_sha256
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank.export import export

peft = pytest.importorskip("peft")
pytestmark = [  # PEFT has one such setting for a mixture of modules, and asks transformers by an older name
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
IDS = torch.tensor([[2, 5, 7, 3, 9, 11]])
SA = {"name": "sa_fedlora", "initiating_rounds": 1, "rank_max": 4, "rank_min": 2, "shrink": "fold"}


def logits(model: Any) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model.eval()(input_ids=IDS).logits.numpy()
    return found


def pretrained(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder))


def merged(result: RunResult, checkpoint: Path) -> np.ndarray:
    """Logits of the run's final model."""
    model = pretrained(checkpoint)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in result.arrays.items()}, strict=False)
    return logits(model)


def first_state(experiment: Any) -> Any:
    """A strategy and its state before round 1."""
    part = registry.part("strategies", experiment.strategy.name, "strategy")
    strategy = part.build_strategy(experiment.strategy, experiment)
    return strategy, strategy.init(build(experiment).init(generator(1, "init")))


@pytest.fixture
def exported(make: Make, tmp_path: Path) -> Path:
    """Adapters of a short run on the GPT-2; only they were changed."""
    api.run(make("gpt2", {"name": "fedlora", "targets": TARGETS["gpt2"], "rank": 3}), out=tmp_path / "run")
    return export(api.saved_state(tmp_path / "run"), tmp_path / "adapters").folder


class TestOut:
    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_peft_computes_what_the_run_ended_with(
        self, make: Make, checkpoints: dict[str, Path], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = api.run(make(kind, {**SA, "targets": TARGETS[kind]}, rounds=4), out=tmp_path / "run")
        out = tmp_path / "adapters"
        assert main(["adapters", "export", str(tmp_path / "run"), "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert "adapters of round 4: 4 modules, rank 2\n" in said and "base.safetensors" in said
        model = pretrained(checkpoints[kind])
        base = {name: torch.from_numpy(array) for name, array in load_file(out / "base.safetensors").items()}
        assert not model.load_state_dict(base, strict=False).unexpected_keys
        theirs = logits(peft.PeftModel.from_pretrained(model, str(out)))
        np.testing.assert_allclose(theirs, merged(result, checkpoints[kind]), rtol=1e-4, atol=1e-5)
        assert np.abs(theirs - logits(pretrained(checkpoints[kind]))).max() > 1e-2

    @pytest.mark.parametrize(
        "settings",
        [
            {"name": "fedlora", "rank": 3},
            {"name": "ffa_lora", "rank": 3},
            {"name": "fed_adalora", "rank_max": 4, "rank_min": 2},
        ],
        ids=lambda settings: settings["name"],
    )
    def test_on_a_base_that_stayed_the_checkpoint_is_enough(
        self, make: Make, checkpoints: dict[str, Path], settings: dict[str, Any], tmp_path: Path
    ) -> None:
        result = api.run(make("gpt2", {**settings, "targets": TARGETS["gpt2"]}), out=tmp_path / "run")
        written = export(api.saved_state(tmp_path / "run"), tmp_path / "adapters")
        assert written.base is None and not (written.folder / "base.safetensors").exists()
        name = peft.PeftConfig.from_pretrained(str(written.folder)).base_model_name_or_path
        assert name == str(checkpoints["gpt2"])
        theirs = logits(peft.PeftModel.from_pretrained(pretrained(Path(name)), str(written.folder)))
        np.testing.assert_allclose(theirs, merged(result, checkpoints["gpt2"]), rtol=1e-4, atol=1e-5)

    def test_what_cannot_be_exported_says_why(self, make: Make, tmp_path: Path, exported: Path) -> None:
        api.run(make(), out=tmp_path / "plain")
        with pytest.raises(UsageError, match="strategy 'fedavg' trains no adapters; its model is in"):
            export(api.saved_state(tmp_path / "plain"), tmp_path / "new")
        whole = {**SA, "targets": ["c_attn"], "initiating_rounds": 3}
        api.run(make("gpt2", {**whole, "heating": 0, "cooling": 0}), out=tmp_path / "whole")
        with pytest.raises(UsageError, match=r"round 3 trained whole models.*3 such rounds of 3"):
            export(api.saved_state(tmp_path / "whole"), tmp_path / "new")
        with pytest.raises(UsageError, match="is not empty; choose a new or empty folder"):
            export(api.saved_state(tmp_path / "run"), exported)
        with pytest.raises(UsageError, match="does not exist"):
            export(api.saved_state(tmp_path / "nowhere"), tmp_path / "new")
        assert not (tmp_path / "new").exists()


class TestIn:
    @pytest.mark.parametrize(
        "settings",
        [
            {"name": "fedlora", "rank": 3, "scale": 0.5},
            {"name": "ffa_lora", "rank": 5},
            {"name": "flora", "rank": 4},
            {"name": "flexlora", "rank": 3},
            {"name": "hetlora", "rank": 3},
            {"name": "fed_adalora", "rank_max": 4, "rank_min": 2},
            {"name": "sa_fedlora", "init_mode": "lora", "rank_max": 4, "rank_min": 2},
            {"name": "spd_cfl", "rank_max": 4, "rank_min": 2},
        ],
        ids=lambda settings: settings["name"],
    )
    def test_a_run_begins_with_what_another_ended_with(
        self, make: Make, exported: Path, settings: dict[str, Any]
    ) -> None:
        """Whatever its scale and rank; and the first round goes on from there."""
        made = make("gpt2", {**settings, "targets": TARGETS["gpt2"], "adapters": str(exported)}, rounds=1)
        strategy, state = first_state(made)
        before = api.run(make("gpt2", {"name": "fedlora", "targets": TARGETS["gpt2"], "rank": 3}), keep=False)
        for name, array in strategy.arrays(state).items():
            np.testing.assert_allclose(array, before.arrays[name], rtol=1e-4, atol=1e-5)
        went_on = api.run(made, keep=False)
        fresh = api.run(make("gpt2", {**settings, "targets": TARGETS["gpt2"]}, rounds=1), keep=False)
        assert went_on.history[0].metrics["loss"] < fresh.history[0].metrics["loss"]

    def test_what_peft_wrote_gives_its_outputs(self, make: Make, checkpoints: dict[str, Path], tmp_path: Path) -> None:
        config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["c_attn"], fan_in_fan_out=True)
        theirs = peft.get_peft_model(pretrained(checkpoints["gpt2"]), config)
        rng = generator(6, "peft")
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.data = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32))
        theirs.save_pretrained(str(tmp_path / "theirs"))
        start = {"name": "fedlora", "targets": ["c_attn"], "rank": 2, "adapters": str(tmp_path / "theirs")}
        strategy, state = first_state(make("gpt2", start))
        model = pretrained(checkpoints["gpt2"])
        arrays = {name: torch.from_numpy(array) for name, array in strategy.arrays(state).items()}
        model.load_state_dict(arrays, strict=False)
        np.testing.assert_allclose(logits(model), logits(theirs), rtol=1e-4, atol=1e-4)

    def test_a_resumed_run_does_not_need_the_folder_again(self, make: Make, exported: Path, tmp_path: Path) -> None:
        start = {"name": "fedlora", "targets": TARGETS["gpt2"], "rank": 3, "adapters": str(exported)}
        whole = api.run(make("gpt2", start), out=tmp_path / "again")
        shutil.rmtree(exported)
        sorted((tmp_path / "again" / "checkpoints").glob("round-*"))[-1].unlink()
        assert arrays_sha256(api.resume(tmp_path / "again").arrays) == arrays_sha256(whole.arrays)


class TestRefused:
    """Through the command line: exit code 2, a message that names what is wrong, and no folder left."""

    def refused(self, make: Make, strategy: dict[str, Any], capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
        import tomli_w

        settings = {"targets": TARGETS["gpt2"], "rank": 3} if strategy["name"] == "fedlora" else {}
        made = make("gpt2", {**settings, **strategy}, **changes)
        Path("experiment.toml").write_text(tomli_w.dumps(made.to_dict()), encoding="utf-8")
        assert main(["run", "experiment.toml", "--out", "refused"]) == 2
        assert not Path("refused").exists()
        return capsys.readouterr().err

    def test_adapters_for_other_modules(self, make: Make, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
        start = {"name": "fedlora", "adapters": str(exported)}
        said = self.refused(make, {**start, "targets": ["c_attn"]}, capsys)
        assert "2 modules" in said and "0 keys missing, 4 keys (base_model.model.transformer.h.0.mlp.c_fc.lora" in said
        said = self.refused(make, {**start, "targets": [*TARGETS["gpt2"], "mlp.c_proj"]}, capsys)
        assert "4 keys (transformer.h.0.mlp.c_proj.lora_A" in said and "missing, 0 keys left over" in said

    def test_adapters_made_on_other_weights(
        self, make: Make, checkpoints: dict[str, Path], exported: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = Path("other")
        shutil.copytree(checkpoints["gpt2"], other)
        weights = load_file(other / "model.safetensors")
        weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"] + np.float32(0.01)
        save_file(weights, other / "model.safetensors", {"format": "pt"})
        changes = {"workload.model.checkpoint": str(other.resolve())}
        said = self.refused(make, {"name": "fedlora", "adapters": str(exported)}, capsys, **changes)
        with safe_open(exported / "adapter_model.safetensors", "numpy") as file:
            noted = file.metadata()["fedloom.base_sha256"]
        assert f"were made on weights with digest {noted[:16]}…, this run's have " in said

    def test_whole_model_rounds_a_rank_too_high_and_no_folder(
        self, make: Make, exported: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = {**SA, "targets": TARGETS["gpt2"], "adapters": str(exported)}
        assert "set strategy.initiating_rounds = 0, or strategy.init_mode" in self.refused(make, whole, capsys)
        low = {"name": "fedlora", "rank": 2, "adapters": str(exported)}
        assert "rank 3 for module" in self.refused(make, low, capsys)
        nowhere = {"name": "fedlora", "adapters": "nowhere"}
        assert "expected an adapter in PEFT's form" in self.refused(make, nowhere, capsys)
