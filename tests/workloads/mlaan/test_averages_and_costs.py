"""Moving averages of later blocks, the activation meter, and what each mode costs."""

from __future__ import annotations

import pytest
import torch
from support_mlaan import SHAPE, batch, contest, gradients, plan
from torch import nn

from fedloom.workloads.mlaan.auxiliary import Plan
from fedloom.workloads.mlaan.config import Config
from fedloom.workloads.mlaan.costs import measure
from fedloom.workloads.mlaan.memory import ActivationMeter
from fedloom.workloads.mlaan.net import Backbone


def test_an_average_of_a_constant_block_is_the_closed_form() -> None:
    steps = contest(plan(modes=["dgl_lam"], leap={"momentum": 0.9})).steps["dgl_lam"]
    start = {name: each.clone() for name, each in steps.averages.arrays().items()}
    current = dict(steps.backbone.named_parameters())
    with torch.no_grad():
        for name in start:
            current[name].add_(1.0)
    for _ in range(7):
        steps.end()
    for name, each in steps.averages.arrays().items():
        expected = 0.9**7 * start[name] + (1 - 0.9**7) * current[name]
        assert torch.allclose(each, expected, atol=1e-6), name


def test_an_average_learns_nothing_and_sees_a_step_one_batch_later() -> None:
    net = contest(plan(modes=["dgl_lam"], leap={"momentum": 0.5}))
    steps = net.steps["dgl_lam"]
    name, block = next(iter(steps.averages.blocks.items()))
    mine, theirs = block.get_parameter("conv1.weight"), steps.backbone.get_parameter(f"blocks.{name}.conv1.weight")
    assert not any(p is each for p in net.parameters() for each in steps.averages.arrays().values())
    steps.gradients(batch())
    steps.end()
    assert torch.equal(mine, theirs) and mine.grad is None  # still the common start
    with torch.no_grad():
        theirs.add_(1.0)  # the optimiser's step
    assert not torch.equal(mine, theirs)
    before = mine.clone()
    steps.gradients(batch())
    steps.end()
    assert torch.allclose(mine, before + 0.5 * (theirs - before))


@pytest.mark.parametrize(("average", "count"), [("updated", 3), ("frozen", 3), ("none", 0)])
def test_kinds_of_averages(average: str, count: int) -> None:
    # first blocks of the chains of nine modules: the entries (2,0), (3,0), then blocks 7 and 8
    steps = contest(plan(modes=["dgl_lam"], leap={"average": average})).steps["dgl_lam"]
    assert len(steps.averages.blocks) == (4 if count else 0)
    start = {name: each.clone() for name, each in steps.averages.arrays().items()}
    with torch.no_grad():
        for p in steps.backbone.parameters():
            p.add_(1.0)
    steps.end()
    moved = [not torch.equal(each, start[name]) for name, each in steps.averages.arrays().items()]
    assert all(moved) == (average != "frozen") or not count


@pytest.mark.parametrize("wiring", ["first", "whole"])
def test_leaped_features_by_hand(wiring: str) -> None:
    steps = contest(plan(modes=["dgl_lam"], leap={"wiring": wiring})).steps["dgl_lam"]
    z, copied = torch.randn(3, 4, 8, 8), steps.auxiliary.copied[0]
    chain = steps.auxiliary.chain(0)
    averaged = [steps.averages.blocks.get(number) for number in copied]
    found = steps.averages.leaped(z, copied, chain)
    if wiring == "first":
        assert averaged[0] is not None
        expected = chain[0](z) + averaged[0](z)
        for block in chain[1:]:
            expected = block(expected)
    else:
        assert all(averaged)
        expected = nn.Sequential(*chain)(z) + nn.Sequential(*[each for each in averaged if each])(z)
    assert torch.equal(found, expected) and found.shape == (3, 8, 2, 2)


def test_the_meter_counts_each_saved_storage_once_and_no_parameter() -> None:
    weight, x = torch.ones(3, 3, requires_grad=True), torch.ones(5, 3)
    meter = ActivationMeter([weight])
    with meter.measuring():
        hidden = x @ weight  # saves x (60 bytes) and the weight
        out = (hidden * hidden).sum()  # saves hidden twice, (5, 3): 60 bytes
    assert meter.peak == 60 + 60
    out.backward()
    del out, hidden
    with meter.measuring():
        again = (x @ weight).sum()
    assert meter.peak == 120 and torch.isfinite(again)  # the first graph's tensors were released


def costs(name: str, depth: int, **settings: object) -> int:
    config = Config.model_validate(
        {"modes": [name], "net": {"depth": depth, "widths": [4, 6, 8]}, "multilaminar": {"window": 2}, **settings}
    )
    made = Plan(config=config, shape=(1, 8, 8), classes=4, seed=1)
    return measure(made, (0, config.num_modules), 8)[name].activation_bytes


def test_activations_are_flat_in_depth_where_end_to_end_learning_grows_with_it() -> None:
    depths = {9: 20, 15: 32, 21: 44}
    whole = [costs("end_to_end", depth) for depth in depths.values()]
    per_block = (whole[2] - whole[0]) / 12
    assert whole[1] == pytest.approx(whole[0] + 6 * per_block, rel=0.01)  # linear
    for name in ("greedy", "dgl", "dgl_mlaan"):
        found = [costs(name, depth) for depth in depths.values()]
        assert max(found) <= 1.03 * min(found), name
    assert costs("greedy", 32) < costs("dgl", 32) < costs("dgl_mlaan", 32) < 0.65 * whole[1]


@pytest.mark.parametrize(("depth", "backbone"), [(32, 0.467), (110, 1.73)])
def test_parameters_of_backbone_and_copies(depth: int, backbone: float) -> None:
    config = Config.model_validate({"modes": ["dgl_lam"], "net": {"depth": depth}})
    made = Plan(config=config, shape=(3, 32, 32), classes=10, seed=1)
    net = Backbone(config.net, 3, 10)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(backbone, abs=0.006)  # as He et al. print
    sizes = [sum(p.numel() for p in block.parameters()) for block in net.blocks]
    # a block of c channels has two convolutions of 9 c^2 weights and two normalisations of 2 c
    assert sizes[-1] == 2 * 9 * 64**2 + 2 * 2 * 64
    copied = sum(sizes[number] for blocks in made.copied(config.parsed_modes[0]) for number in blocks)
    # the released lists give 3.17 and 11.4 million: the rule copies more blocks for late modules
    assert copied / 1e6 == pytest.approx({32: 3.24, 110: 13.59}[depth], abs=0.01)


def test_measuring_changes_nothing() -> None:
    made = plan(modes=["dgl_mlaan"])
    assert measure(made, (0, 9), 4) == measure(made, (0, 9), 4)
    assert measure(made, (0, 3), 4)["dgl_mlaan"].parameter_bytes < measure(made, (0, 9), 4)["dgl_mlaan"].parameter_bytes
    assert made.shape == SHAPE and not gradients(contest(made))
