"""Adapters on modules: the same function as the merged weight, and as PEFT's, both ways."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedloom.core.errors import ConfigError, UnsupportedFeature
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank.layers import Layer, chosen_layers
from fedloom.strategies._low_rank.peft_files import AdapterFile, export_adapters, import_adapters
from fedloom.workloads._adapters.layers import LoraLayer, attach, merge
from fedloom.workloads._adapters.targets import adaptable, model_info, output_layer


class Net(nn.Module):
    """One of each kind: an embedding, a convolution, a Conv1D, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.picture = nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1)
        self.attention = nn.ModuleDict({"query": nn.Linear(6, 8), "c_attn": Conv1D(5, 6)})
        self.closed = nn.MultiheadAttention(6, 2)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        x = self.words(ids)
        return self.picture(images), self.attention["c_attn"](x), self.head(torch.tanh(self.attention["query"](x)))


TARGETS = ["words", "picture", "query", "c_attn"]
HEAD = ("head.weight", "head.bias")


def targeted(model: nn.Module) -> dict[str, Layer]:
    """The modules with adapters, as a server knows them."""
    return chosen_layers(model_info(model, head=["head"]), TARGETS, 1)


def net() -> Net:
    torch.manual_seed(3)
    return Net().double()


def inputs() -> tuple[Tensor, Tensor]:
    rng = generator(5, "inputs")
    return torch.from_numpy(rng.integers(0, 11, (2, 7))), torch.from_numpy(rng.standard_normal((2, 2, 9, 8)))


def fill(layers: dict[str, LoraLayer], rank: int) -> None:
    rng = generator(4, "factors")
    for layer in layers.values():
        layer.rank = rank
        for tensor in (layer.a, layer.b):
            tensor.data.copy_(torch.from_numpy(rng.standard_normal(tuple(tensor.shape))))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_adapters_function_is_that_of_the_merged_weight(rank: int) -> None:
    model, plain = net(), net()
    layers, detach = attach(model, TARGETS, rank_max=3, scale=1.7)
    assert list(layers) == ["words", "picture", "attention.query", "attention.c_attn"]
    before = plain(*inputs())
    for got, want in zip(model(*inputs()), before, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)  # B is zero
    fill(layers, rank)
    adapted = model(*inputs())
    merge(plain, layers)
    detach()
    for got, want, was, free in zip(adapted, plain(*inputs()), before, model(*inputs()), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        assert (got - was).abs().max() > 0.1
        torch.testing.assert_close(free, was, rtol=0, atol=0)


def test_a_smaller_rank_is_a_slice_and_leaves_shapes_and_the_rest_alone() -> None:
    model = net()
    layers, _ = attach(model, ["query"], rank_max=4, scale=2.0)
    layer = layers["attention.query"]
    fill(layers, 2)
    sum(out.sum() for out in model(*inputs())).backward()
    assert layer.a.grad is not None and layer.b.grad is not None
    assert layer.a.grad.shape == (4, 6) and layer.b.grad.shape == (8, 4)
    assert layer.a.grad[:2].abs().min() > 0 and not layer.a.grad[2:].any() and not layer.b.grad[:, 2:].any()


def test_the_scale_does_not_jump_when_the_rank_does() -> None:
    """The trap of alpha/r: with B's last columns zero, rank 4 and rank 2 are the same function."""
    model = net()
    layers, _ = attach(model, ["query"], rank_max=4, scale=2.0)
    fill(layers, 4)
    layers["attention.query"].b.data[:, 2:] = 0.0
    at_four = model(*inputs())[2]
    layers["attention.query"].rank = 2
    torch.testing.assert_close(model(*inputs())[2], at_four, rtol=1e-12, atol=1e-12)


def test_gates_stand_between_the_factors() -> None:
    module = nn.Linear(4, 3).double()
    shape = adaptable(nn.ModuleDict({"m": module}))["m"]
    layer = LoraLayer(module, shape, 2, 0.5, gated=True)
    fill({"m": layer}, 2)
    assert layer.e is not None
    layer.e.data.copy_(torch.tensor([2.0, -3.0]))
    x = torch.randn(5, 4, dtype=torch.float64)
    want = module(x) + 0.5 * x @ (layer.b @ torch.diag(layer.e) @ layer.a).T
    torch.testing.assert_close(layer.hook(module, (x,), module(x)), want, rtol=1e-12, atol=1e-12)


class TestTargets:
    def test_what_a_pattern_means(self) -> None:
        names = list(adaptable(net()))
        assert names == ["words", "picture", "attention.query", "attention.c_attn", "head"]  # not closed, not grouped

    @pytest.mark.parametrize(
        ("targets", "words"),
        [
            (["qeury"], r"'qeury'.*Did you mean 'query'\?.*5 layers.*words, picture, query, c_attn, head"),
            (["query", "v_proj"], "no layer matches 'v_proj'"),
            (["attention"], "no layer matches 'attention'"),
            ([], "at least one pattern"),
        ],
    )
    def test_a_pattern_that_means_nothing_lists_what_exists(self, targets: list[str], words: str) -> None:
        with pytest.raises(ConfigError, match=f"(?s){words}"):
            attach(net(), targets, rank_max=2, scale=1.0)

    @pytest.mark.parametrize("rank", [0, 7])
    def test_a_rank_that_does_not_fit(self, rank: int) -> None:
        with pytest.raises(ConfigError, match=rf"rank {rank} is invalid for 'attention.query': expected 1 to 6"):
            attach(net(), ["query"], rank_max=rank, scale=1.0)

    def test_the_server_gets_everything_but_the_head_and_what_is_frozen(self) -> None:
        model = net()
        model.words.requires_grad_(False)
        info = model_info(model, head=[output_layer(model)[0]])
        assert info["head"] == ["head.weight", "head.bias"]
        assert info["adaptable"] == {
            "picture": {"kind": "conv2d", "weight": "picture.weight", "out": 4, "in": 18, "kernel": [3, 3]},
            "attention.query": {"kind": "linear", "weight": "attention.query.weight", "out": 8, "in": 6},
            "attention.c_attn": {"kind": "conv1d", "weight": "attention.c_attn.weight", "out": 5, "in": 6},
        }


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")  # PEFT has one such setting for a mixture of modules
class TestPeft:
    """Equal outputs with the `peft` package."""

    def export(self, folder: Path) -> tuple[tuple[Tensor, ...], AdapterFile]:
        model = net()
        layers, _ = attach(model, TARGETS, rank_max=3, scale=1.7)
        fill(layers, 3)
        layers["attention.query"].rank = 2  # a rank of its own
        pairs = {name: [t.detach().numpy() for t in layer.active] for name, layer in layers.items()}
        head = {"head.weight": model.head.weight.detach().numpy() * 2, "head.bias": np.ones(3)}
        model.head.weight.data *= 2
        model.head.bias.data[:] = 1.0
        a, b = {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}
        made = AdapterFile(a=a, b=b, scale=1.7, head=head)
        export_adapters(folder, targeted(model), made)
        return model(*inputs()), made

    def test_what_we_write_gives_peft_the_same_outputs(self, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        want, _ = self.export(tmp_path)
        theirs = peft.PeftModel.from_pretrained(net(), str(tmp_path), autocast_adapter_dtype=False)
        for got, expected in zip(theirs(*inputs()), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("rslora", [False, True])
    def test_what_peft_writes_gives_us_the_same_outputs(self, tmp_path: Path, rslora: bool) -> None:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(
            r=3,
            lora_alpha=5,
            target_modules=TARGETS,
            rank_pattern={"query": 2},
            alpha_pattern={"query": 7},
            modules_to_save=["head"],
            fan_in_fan_out=True,
            use_rslora=rslora,
        )
        theirs = peft.get_peft_model(net().float(), config)
        rng = generator(6, "peft")
        for name, parameter in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32))
        theirs.save_pretrained(str(tmp_path))
        ids, images = inputs()
        want = theirs(ids, images.float())
        model = net().float()
        read = import_adapters(tmp_path, targeted(model), HEAD, scale=2.0)
        layers, _ = attach(model, TARGETS, rank_max=3, scale=2.0)
        for name, layer in layers.items():
            layer.rank = len(read.a[name])
            for tensor, array in zip(layer.active, (read.a[name], read.b[name]), strict=True):
                tensor.data.copy_(torch.from_numpy(array))
        model.load_state_dict({name: torch.from_numpy(array) for name, array in read.head.items()}, strict=False)
        for got, expected in zip(model(ids, images.float()), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    def test_there_and_back_is_the_same(self, tmp_path: Path) -> None:
        _, made = self.export(tmp_path)
        read = import_adapters(tmp_path, targeted(net()), HEAD)
        assert read.scale == pytest.approx(1.7)
        for mine, theirs in ((made.a, read.a), (made.b, read.b), (made.head, read.head)):
            assert mine.keys() == theirs.keys()
            for name, array in mine.items():
                np.testing.assert_allclose(theirs[name], array, rtol=1e-6)

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (
                lambda t: t.pop("base_model.model.attention.query.lora_B.weight"),
                r"4 modules .*: 1 keys \(attention\.query\.lora_B\) missing, 0 keys left over",
            ),
            (
                lambda t: t.update({"base_model.model.nowhere.lora_A.weight": np.ones((2, 2))}),
                r"0 keys missing, 1 keys \(base_model\.model\.nowhere\.lora_A\.weight\) left over",
            ),
            (lambda t: t.pop("base_model.model.head.bias"), r"1 keys \(head\.bias\) missing"),
            (lambda t: t.clear(), r"8 keys \(words\.lora_A, picture\.lora_A, .*, …\) missing"),
            (
                lambda t: t.update({"base_model.model.attention.query.lora_B.weight": np.ones((9, 2))}),
                r"A \(2, 6\) and B \(9, 2\) do not fit module 'attention\.query'; expected A \(r, 6\) and B \(8, r\)",
            ),
        ],
        ids=["missing", "left-over", "half a head", "empty", "shape"],
    )
    def test_keys_missing_or_left_over_are_named(self, tmp_path: Path, spoil: Any, words: str) -> None:
        from safetensors.numpy import load_file, save_file

        self.export(tmp_path)
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        spoil(tensors)
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        with pytest.raises(ConfigError, match=words):
            import_adapters(tmp_path, targeted(net()), HEAD)

    def test_more_than_a_product_is_refused(self, tmp_path: Path) -> None:
        self.export(tmp_path)
        path = tmp_path / "adapter_config.json"
        path.write_text(
            path.read_text(encoding="utf-8").replace('"use_dora": false', '"use_dora": true'), encoding="utf-8"
        )
        with pytest.raises(UnsupportedFeature, match="use_dora"):
            import_adapters(tmp_path, targeted(net()), HEAD)


def test_a_copied_model_carries_no_adapter_of_the_original() -> None:
    model = net()
    _, detach = attach(model, ["query"], rank_max=2, scale=1.0)
    detach()
    assert not copy.deepcopy(model).attention["query"]._forward_hooks
