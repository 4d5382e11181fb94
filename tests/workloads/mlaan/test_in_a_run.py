"""Whole runs: one client through server and agent against a plain PyTorch loop, clients with parts of the network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from killed_runs import killed_and_resumed
from support_mlaan import build, experiment
from torch import Tensor, nn

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, Interrupted
from fedloom.core.protocols import LocalRule
from fedloom.core.records import MODEL, Arrays, Info, Job, Record, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.testing.workload import Spy, WorkloadConformance
from fedloom.torch import load_model
from fedloom.workloads.mlaan.config import Config
from fedloom.workloads.mlaan.net import Backbone, Classifier, untracked

SMALL: dict[str, Any] = {
    "net": {"depth": 8, "widths": [4, 6, 8]},
    "multilaminar": {"window": 2},
    "train_examples": 100,
    "training": {"batch_size": 32, "learning_rate": 0.1, "momentum": 0.9},
}


def loop(made: Experiment, mode: str) -> dict[str, Tensor]:
    """A whole run as a plain loop of PyTorch: two rounds are two epochs; `mode` is `end_to_end`, `dgl_lam` or `mlaan`.

    Three blocks, a module each. From fedloom come the backbone's and the heads' classes, the data and the streams.
    """
    workload, window = build(made), 2
    assert isinstance(made.workload, Config)
    torch.manual_seed(int(generator(1, "init", 0, 0, 0).integers(2**63)))
    net = Backbone(made.workload.net, 1, 10).train()
    parts = [nn.Sequential(net.stem, net.blocks[0]), net.blocks[1], net.blocks[2]]
    heads = nn.ModuleDict()
    for module in (0, 1):
        for path in ("cascade", "independent"):
            torch.manual_seed(int(generator(1, "mlaan", "dgl_mlaan", module, path).integers(2**63)))
            heads[f"{path}{module}"] = Classifier([4, 6, 8][module] if path == "independent" else 8, 10)
    copies = [nn.ModuleList(untracked(copy.deepcopy(net.blocks[b])) for b in blocks) for blocks in ([1, 2], [2])]
    averages = {b: copy.deepcopy(copies[0][b - 1]).requires_grad_(False) for b in (1, 2)}
    trained = [*net.parameters()] if mode == "end_to_end" else [*net.parameters(), *heads.parameters()]
    trained += [] if mode == "end_to_end" else [p for chain in copies for p in chain.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)

    def leaped(module: int, z: Tensor) -> Tensor:
        chain = copies[module]
        z = chain[0](z) + averages[module + 1](z)
        return chain[1](z) if len(chain) > 1 else z

    def local_losses(x: Tensor, y: Tensor) -> None:
        inputs = [x]
        for module in range(3):
            out = parts[module](inputs[module])
            start, z = max(0, module - window + 1), inputs[max(0, module - window + 1)]
            norms = [each for part in parts for each in part.modules() if isinstance(each, nn.BatchNorm2d)]
            for each in norms:
                each.momentum = 0.0
            for number in range(start, module + 1):
                z = parts[number](z)
            for each in norms:
                each.momentum = 0.1
            if module == 2:
                one, other = net.classifier(out), net.classifier(z)
            else:
                one = heads[f"independent{module}"](out)
                other = heads[f"cascade{module}"](leaped(module, z))
            (0.001 * F.cross_entropy(one, y) + 0.999 * F.cross_entropy(other, y)).backward()
            inputs.append(out.detach())

    data, rows = workload.data.train, workload.shard(0).rows
    for number in (1, 2):
        rng = generator(1, "train", number, 0, 0)
        torch.manual_seed(int(rng.integers(2**63)))
        for batch in torch.split(torch.from_numpy(rows[rng.permutation(len(rows))]), 32):
            (x,), y = data.batch(batch)
            optimizer.zero_grad()
            if mode == "end_to_end":
                F.cross_entropy(net(x), y).backward()
            else:
                local_losses(x, y)
                for block, each in averages.items():
                    for mine, theirs in zip(each.parameters(), net.blocks[block].parameters(), strict=True):
                        mine.data.lerp_(theirs.data, 1 - 0.995)
            optimizer.step()
    return {name: each.detach() for name, each in net.state_dict().items()}


@pytest.mark.parametrize("mode", ["end_to_end", "dgl_mlaan"])
def test_one_client_through_the_server_is_a_plain_loop_bit_for_bit(mode: str) -> None:
    made = experiment({**SMALL, "modes": [mode]})
    expected = loop(made, mode)
    found = api.run(made, keep=False).arrays
    assert found.keys() == {f"{mode}.{name}" for name in expected}
    for name, each in expected.items():
        assert np.array_equal(found[f"{mode}.{name}"], each.numpy()), name


def test_the_loop_is_sensitive_to_the_average_and_to_the_window() -> None:
    made = experiment({**SMALL, "modes": ["dgl_mlaan"]})
    shas = {api.run(made.override(change), keep=False).summary.model_sha256 for change in CHANGES}
    assert len(shas) == len(CHANGES)


CHANGES: list[list[str]] = [
    [],
    ["workload.leap.average=frozen"],
    ["workload.leap.wiring=whole"],
    ["workload.multilaminar.window=3"],
    ["workload.multilaminar.independent=0.5"],
    ["workload.keep_momentum=false"],
    ["workload.leap.at_round=reset"],
]


def test_modes_side_by_side_have_the_bits_they_have_alone() -> None:
    modes = ["end_to_end", "greedy", "infopro_mlaan"]
    together = api.run(experiment({**SMALL, "modes": modes}), keep=False)
    for mode in modes:
        alone = api.run(experiment({**SMALL, "modes": [mode]}), keep=False)
        assert arrays_sha256(alone.arrays) == arrays_sha256(
            {name: each for name, each in together.arrays.items() if name.startswith(f"{mode}.")}
        )
        mine, theirs = alone.history[-1].evaluation or {}, together.history[-1].evaluation or {}
        assert {f"{name}_{mode}": value for name, value in mine.items()}.items() <= theirs.items()
    assert theirs["accuracy"] == theirs["accuracy_infopro_mlaan"]


@pytest.mark.parametrize(
    "runtime", [{"name": "process", "workers": 2}, pytest.param({"name": "ray", "workers": 2}, marks=pytest.mark.slow)]
)
def test_runtimes_have_equal_bits(runtime: dict[str, Any]) -> None:
    fleet: dict[str, Any] = {"fleet": [[1, 3], [1, 1], [2, 3]], "modes": ["dgl", "dgl_mlaan"]}
    common: dict[str, Any] = {"clients": 3, "strategy": "partial"}
    inline = api.run(experiment({**SMALL, **fleet}, **common), keep=False)
    other = api.run(experiment({**SMALL, **fleet}, **common, runtime=runtime), keep=False)
    assert inline.summary.model_sha256 == other.summary.model_sha256
    assert [record.evaluation for record in inline.history] == [record.evaluation for record in other.history]


@pytest.mark.parametrize("moment", ["RoundFinished", "ClientsDone"], ids=["between rounds", "inside a round"])
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, moment: str) -> None:
    settings: dict[str, Any] = {"clients": 3, "checkpoint": {"every": 1}, "round": {"group_size": 1}}
    made = experiment({**SMALL, "modes": ["auglocal_mlaan"]}, rounds=4, **settings)
    whole = api.run(made, out=tmp_path / "whole")

    class Stop:
        seen = 0

        def write(self, event: Any) -> None:
            if type(event).__name__ != moment:
                return
            self.seen += 1
            if self.seen == (2 if moment == "RoundFinished" else 5):  # one for each of three clients in a round
                raise KeyboardInterrupt

        def close(self) -> None: ...

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        api.run(made, out=tmp_path / "cut", sinks=[Stop()])
    assert api.resume(tmp_path / "cut").summary.model_sha256 == whole.summary.model_sha256


@pytest.mark.slow
def test_a_run_killed_inside_a_round_and_resumed_has_the_same_bits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"clients": 3, "checkpoint": {"every": 1}, "runtime": {"name": "process", "workers": 2}}
    made = experiment({**SMALL, "modes": ["dgl_mlaan"]}, rounds=6, **settings)
    whole = api.run(made, out=tmp_path / "whole")
    assert killed_and_resumed(made, tmp_path, after=2) == whole.summary.model_sha256


def one(made: Experiment, client: int, model: Arrays, rule: LocalRule | None = None) -> Any:
    workload = build(made)
    job = Job(round=1, client=client)
    given = {MODEL: Record({MODEL: model})}
    return workload.train(job, given, workload.shard(client), rule, generator(1, "train", client))


def initial(made: Experiment) -> Arrays:
    return {name: np.array(each) for name, each in build(made).init(generator(1, "init")).groups[MODEL].items()}


def test_a_client_sends_the_arrays_of_its_modules_and_the_server_averages_over_senders() -> None:
    made = experiment(
        {**SMALL, "fleet": [[1, 1], [2, 3], [1, 3], [0, 0]], "keep_momentum": False},
        clients=4,
        rounds=1,
        strategy="partial",
        round={"weighting": "uniform"},
    )
    model = initial(made)
    sent = [one(made, client, model).groups[MODEL] for client in range(3)]
    owners = [{name.split(".")[1] + name.split(".")[2] * ("blocks" in name) for name in each} for each in sent]
    assert owners[0] == {"stem", "blocks0"} and owners[1] == {"blocks1", "blocks2", "classifier"}
    assert owners[2] == owners[0] | owners[1] and not any("auxiliary" in name for each in sent for name in each)
    start = api.run(made.override(["workload.fleet=[[0,0],[1,1],[2,3],[1,3]]"]), keep=False)
    assert (start.history[-1].info or {})["partial"] == {"arrays": len(model), "unsent": 0}
    assert start.history[-1].local_trainings == 3  # a client without modules trains nothing
    result = api.run(made, keep=False)
    assert result.arrays.keys() == model.keys() and result.history[-1].local_trainings == 3
    weak = api.run(made.override(["workload.fleet=[[1,1]]"]), keep=False)
    untouched = [name for name in model if name.split(".")[1] != "stem" and ".blocks.0." not in name]
    assert untouched and all("classifier" in n or "blocks" in n for n in untouched)
    assert (weak.history[-1].info or {})["partial"]["unsent"] == len(untouched)


def test_a_partial_fleet_under_a_strategy_for_whole_models_fails_with_the_missing_array() -> None:
    with pytest.raises(FedloomError, match=r"lacks 'dgl_mlaan.blocks.1.conv1.weight'"):
        api.run(experiment({**SMALL, "fleet": [[1, 1]]}), keep=False)


def test_auxiliary_arrays_stay_in_the_clients_state_or_are_sent() -> None:
    made = experiment({**SMALL, "modes": ["dgl_mlaan"]})
    update = one(made, 0, initial(made))
    assert set(update.groups) == {MODEL} and all(name.startswith("dgl_mlaan.") for name in update.groups[MODEL])
    assert set(update.state.groups) == {"auxiliary", "averages", "velocity"}
    sent = made.override(["workload.auxiliary=sent", "workload.leap.at_round=reset", "workload.keep_momentum=false"])
    model = initial(sent)
    assert model.keys() > update.groups[MODEL].keys()
    other = one(sent, 0, model)
    assert other.groups[MODEL].keys() == model.keys() and other.state is None
    # the same first round: only where the arrays lie differs
    for name, each in update.groups[MODEL].items():
        assert np.array_equal(each, other.groups[MODEL][name]), name
    for name, each in update.state.groups["auxiliary"].items():
        assert np.array_equal(each, other.groups[MODEL][name]), name


def test_a_rule_sees_shared_arrays_only() -> None:
    made, spy = experiment({**SMALL, "modes": ["dgl_mlaan"]}), Spy()
    one(made, 0, initial(made), spy)
    assert {name for _, name in spy.trained} <= initial(made).keys() and set(spy.steps) == {len(spy.trained)}


def test_the_exported_model_is_the_backbone_alone(tmp_path: Path) -> None:
    made = experiment({**SMALL, "modes": ["dgl_mlaan"]})
    result = api.run(made, out=tmp_path / "run")
    model = load_model(tmp_path / "run")
    assert not any("auxiliary" in name for name in model.state_dict())
    workload = build(made)
    shard = workload.held_out(0, 1)
    logits, labels = workload.logits({MODEL: Record({MODEL: result.arrays})}, shard)
    (x,), _ = workload.data.test.batch(torch.arange(50))
    with torch.no_grad():
        assert np.array_equal(model(x[:50]).numpy(), logits[:50])
    accuracy = float((logits.argmax(1) == labels).mean())
    assert (result.history[-1].evaluation or {})["accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_a_last_minibatch_of_one_is_left_out_and_leaves_no_gradient() -> None:
    made = experiment(
        {**SMALL, "train_examples": 33, "modes": ["dgl", "dgl_mlaan"], "net": {**SMALL["net"], "stem_stride": 2}},
        rounds=1,
    )
    whole, cut = (api.run(each, keep=False) for each in (made, made.override(["workload.training.max_steps=1"])))
    assert whole.summary.model_sha256 == cut.summary.model_sha256


class TestConformance(WorkloadConformance):
    name = "mlaan"
    settings: Info = {**SMALL, "train_examples": 300}  # noqa: RUF012
