"""Which loss reaches which weights, and the limits in which MLAAN is its base or end-to-end learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support_mlaan import batch, contest, gradients, plan
from torch import Tensor, nn

from fedloom.workloads.mlaan.heads import ConvHead, supervised_contrast
from fedloom.workloads.mlaan.steps import LocalSteps

BANDS = [("greedy", 1), ("dgl", 1), ("infopro", 1), ("auglocal", 1), ("dgl_lam", 1)]
BANDS += [("dgl_mlm", 2), ("dgl_mlaan", 2), ("dgl_mlaan", 3), ("infopro_mlaan", 3), ("auglocal_mlaan", 2)]


def influence(steps: LocalSteps, module: int) -> set[int]:
    """Modules of the backbone with a gradient after the backward pass of one module's loss alone; -1 is the stem."""
    inputs, given = {0: batch().x}, batch()
    for number in range(module + 1):
        loss, output = steps.loss_of(number, inputs, given)
        inputs[number + 1] = output.detach()
    assert loss is not None
    steps.backbone.zero_grad(set_to_none=True)
    loss.backward()
    found = {number for number, block in enumerate(steps.backbone.blocks) if _reached(block)}
    assert _reached(steps.backbone.classifier) == (module == 8)
    return found | ({-1} if _reached(steps.backbone.stem) else set())


def _reached(part: nn.Module) -> bool:
    return any(p.grad is not None and bool((p.grad != 0).any()) for p in part.parameters())


@pytest.mark.parametrize(("name", "window"), BANDS)
def test_a_loss_reaches_the_modules_of_its_window_and_no_other(name: str, window: int) -> None:
    steps = contest(plan(modes=[name], multilaminar={"window": window})).steps[name]
    for module in range(9):
        start = max(0, module - window + 1)
        assert influence(steps, module) == {*range(start, module + 1)} | ({-1} if start == 0 else set())


def test_without_a_window_of_its_own_an_early_module_learns_from_later_ones_only() -> None:
    made = plan(modes=["dgl_mlm"], multilaminar={"window": 3, "early": "members"})
    steps = contest(made).steps["dgl_mlm"]
    inputs = {0: batch().x}
    owns = []
    for module in range(9):
        loss, output = steps.loss_of(module, inputs, batch())
        inputs[module + 1] = output.detach()
        owns.append(loss is not None)
    assert owns == [False, False] + 7 * [True]


def test_a_window_of_one_without_leaps_is_the_base() -> None:
    settings: dict[str, Any] = {"multilaminar": {"window": 1, "independent": 0.0, "cascade": 1.0}}
    base, layered = (contest(plan(modes=[name], **settings)) for name in ("dgl", "dgl_mlm"))
    mine, theirs = base.steps["dgl"], layered.steps["dgl_mlm"]
    theirs.auxiliary.load_state_dict(mine.auxiliary.state_dict(), strict=False)
    with torch.no_grad():  # heads are drawn by mode
        for module in range(8):
            theirs.auxiliary.head(module, "cascade").load_state_dict(
                mine.auxiliary.head(module, "cascade").state_dict()
            )
    mine.gradients(batch()), theirs.gradients(batch())
    left, right = gradients(mine.backbone), gradients(theirs.backbone)
    assert left.keys() == right.keys() and len(left) > 50
    for name, each in left.items():
        assert torch.equal(each, right[name]), name


def test_a_window_over_all_modules_with_the_last_loss_alone_is_end_to_end_learning() -> None:
    cascade = {"window": 9, "independent": 0.0, "cascade": 1.0, "early": "members"}
    whole, layered = (contest(plan(modes=[name], multilaminar=cascade)) for name in ("end_to_end", "dgl_mlm"))
    mine, theirs = whole.steps["end_to_end"], layered.steps["dgl_mlm"]
    mine.gradients(batch()), theirs.gradients(batch())
    left, right = gradients(mine.backbone), gradients(theirs.backbone)
    assert left.keys() == right.keys()
    for name, each in left.items():
        assert torch.equal(each, right[name]), name
    statistics = dict(mine.backbone.named_buffers())
    assert statistics and all(
        torch.equal(each, dict(theirs.backbone.named_buffers())[name]) for name, each in statistics.items()
    )


def test_running_statistics_move_once_a_batch_or_in_every_pass() -> None:
    moved = {}
    for kind in ("once", "repeated"):
        steps = contest(plan(modes=["dgl_mlm"], multilaminar={"window": 3, "statistics": kind})).steps["dgl_mlm"]
        before = steps.backbone.get_buffer("blocks.2.norm1.running_mean").clone()
        steps.gradients(batch())
        moved[kind] = steps.backbone.get_buffer("blocks.2.norm1.running_mean") - before
    # block 2 is run by itself, and in the cascades of modules 2, 3 and 4: 1 - 0.9^4 of the way instead of 0.1
    assert torch.allclose(moved["repeated"], moved["once"] * (1 - 0.9**4) / 0.1, atol=1e-6)


def test_the_weights_of_the_two_losses_scale_their_gradients() -> None:
    def of(**weights: float) -> dict[str, Tensor]:
        steps = contest(plan(modes=["dgl_mlm"], multilaminar={"window": 2, **weights})).steps["dgl_mlm"]
        steps.gradients(batch())
        return gradients(steps.backbone)

    both, one, other = (
        of(independent=0.3, cascade=0.7),
        of(independent=1.0, cascade=0.0),
        of(independent=0.0, cascade=1.0),
    )
    for name, each in both.items():
        assert torch.allclose(each, 0.3 * one[name] + 0.7 * other[name], atol=1e-5), name


def test_infopro_is_reconstruction_and_task_with_weights_by_module() -> None:
    made = plan(modes=["infopro"], infopro={"reconstruction": [5.0, 0.2], "task": [0.05, 0.5]})
    steps = contest(made).steps["infopro"]
    given = batch()
    h = steps.run(0, given.x)
    head = steps.auxiliary.head(0, "cascade")
    network, decoder = head.get_submodule("network"), head.get_submodule("decoder")
    assert given.pixels is not None
    expected = 5.0 * F.binary_cross_entropy(decoder(h), given.pixels) + 0.05 * F.cross_entropy(network(h), given.y)
    assert torch.allclose(head.loss(h, h, given), expected)
    assert isinstance(network, ConvHead) and decoder(h).shape == given.x.shape
    last = steps.auxiliary.head(7, "cascade")
    for number in range(1, 8):
        h = steps.run(number, h)
    expected = 0.2 * F.binary_cross_entropy(last.get_submodule("decoder")(h), given.pixels)
    expected = expected + 0.5 * F.cross_entropy(last.get_submodule("network")(h), given.y)
    assert torch.allclose(last.loss(h, h, given), expected)


def test_supervised_contrast_by_hand() -> None:
    f = F.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), dim=1)
    # classes 0, 0, 1: image 2 has no partner; for 0 and 1 the partner is the other, the rest of the softmax image 2
    s = f @ f.T / 0.5
    first = -(s[0, 1] - torch.logsumexp(s[0, 1:], 0))
    second = -(s[1, 0] - torch.logsumexp(s[1, [0, 2]], 0))
    found = supervised_contrast(f, torch.tensor([0, 0, 1]), 0.5)
    assert torch.allclose(found, (first + second) / 2)
    assert supervised_contrast(f, torch.tensor([0, 1, 2]), 0.5) == 0.0


@pytest.mark.parametrize("name", ["infopro", "infopro_mlaan"])
def test_contrast_gives_every_module_but_the_last_a_gradient(name: str) -> None:
    steps = contest(plan(modes=[name], infopro={"loss": "contrast"})).steps[name]
    loss = steps.gradients(batch(8))
    assert torch.isfinite(loss) and len(gradients(steps.backbone)) == len(list(steps.backbone.parameters()))


def test_a_range_of_modules_leaves_the_others_without_gradients() -> None:
    made = plan(modes=["dgl_mlaan"], multilaminar={"window": 3})
    net = contest(made, (3, 6))
    steps = net.steps["dgl_mlaan"]
    before = {name: each.clone() for name, each in steps.backbone.named_buffers()}
    steps.gradients(batch())
    reached = {name.split(".")[1] for name in gradients(steps.backbone)}
    assert reached == {"3", "4", "5"}
    moved = {name.split(".")[1] for name, each in steps.backbone.named_buffers() if not torch.equal(each, before[name])}
    assert moved == {"3", "4", "5"}
    assert not any(name.startswith(("cascade0", "cascade6")) for name, _ in steps.auxiliary.named_parameters())
