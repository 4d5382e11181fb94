"""Several rules in a row, each with a memory for every client; the workload beside them has its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from payload_channel import PayloadChannel
from support_paths import SUPPORT

from fedloom.client.executor import Executor
from fedloom.core.accumulators import UpdateList
from fedloom.core.messages import Group, GroupKey, GroupResult, PayloadRef, RunSpec
from fedloom.core.records import Array, Job, Record

RULE = """
from dataclasses import replace
import numpy as np
from fedloom.core.protocols import LocalRule
from fedloom.core.records import Record

class Rule(LocalRule):
    def restore(self, state):
        self.jobs = 0 if state is None else int(state.info["jobs"])
        self.sum = np.zeros(2) if state is None else state.groups["own"]["sum"]

    def incoming(self, inputs, job):
        model = {{"w": {incoming}}}
        return {{**inputs, "model": Record({{"model": model}})}}

    def outgoing(self, update, knobs):
        self.jobs += 1
        told = {{**update.info, "{name}": self.jobs, "order": [*update.info.get("order", []), "{name}"]}}
        if "model" not in update.groups:
            return replace(update, info=told)
        w = update.groups["model"]["w"]
        self.sum = self.sum + w
        return replace(update, groups={{"model": {{"w": {outgoing}}}}}, info=told)

    def state(self):
        return {state}

def build_rule():
    return Rule()
"""
KEPT = 'Record({"own": {"sum": self.sum}}, {"jobs": self.jobs})'
W = 'inputs["model"].groups["model"]["w"]'
MODEL = np.array([4.0, 8.0], np.float32)


@pytest.fixture
def rules(tmp_path: Path) -> dict[str, str]:
    """`double` sends twice the update and halves what came, `add` one more and one less; `silent` keeps nothing."""
    texts = {
        "double": {"incoming": f"{W} / 2", "outgoing": "w * 2", "state": KEPT},
        "add": {"incoming": f"{W} - 1", "outgoing": "w + 1", "state": KEPT},
        "silent": {"incoming": W, "outgoing": "w", "state": "None"},
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(RULE.format(name=name, **text), encoding="utf-8")
    return {name: str(tmp_path / f"{name}.py") for name in texts}


@pytest.fixture
def executor() -> Executor:
    executor = Executor(PayloadChannel(), "n")
    counting = {"name": str(SUPPORT / "counting.py"), "size": 2}
    executor.prepare(RunSpec(run_id="run", experiment={"rounds": 9, "strategy": "fedavg", "workload": counting}))
    return executor


def work(
    executor: Executor, rules: tuple[str, ...], round: int = 1, kind: str = "train", last: GroupResult | None = None
) -> GroupResult:
    inputs = {"model": PayloadRef(size=1, record=Record({"model": {"w": MODEL}}))}
    result = executor.work(
        Group(
            key=GroupKey("run", round, 0, 0),
            jobs=(Job(round=round, client=0, kind=kind),),
            inputs=inputs,
            accumulator="separate",
            rules=rules,
            states=last.states if last is not None else {},
        )
    )
    assert not result.failures, result.failures
    return result


def sent(result: GroupResult) -> np.ndarray[Any, Any]:
    assert result.total is not None and result.total.record is not None
    return UpdateList.from_record(result.total.record).updates[0][1].groups["model"]["w"]


def info(result: GroupResult) -> Mapping[str, Any]:
    return result.reports[0].info


def test_rules_see_what_comes_in_reverse_order_and_what_goes_in_order(
    executor: Executor, rules: dict[str, str]
) -> None:
    """Counting's first job gives 0.9 w + 0.01 (w + noise); with w = (4 - 1) / 2 for `double` before `add`."""
    plain = sent(work(executor, ()))
    noise = (plain - MODEL * np.float32(0.9)) / np.float32(0.01) - MODEL
    one, other = (rules["double"], rules["add"]), (rules["add"], rules["double"])
    cases: tuple[tuple[tuple[str, str], Array, Callable[[Array], Array]], ...] = (
        (one, (MODEL - 1) / 2, lambda w: 2 * w + 1),
        (other, MODEL / 2 - 1, lambda w: 2 * (w + 1)),
    )
    for order, came, went in cases:
        result = work(executor, order)
        want = went(came * np.float32(0.9) + np.float32(0.01) * (came + noise))
        np.testing.assert_allclose(sent(result), want, rtol=1e-5)
        assert info(result)["order"] == ["double" if rule == rules["double"] else "add" for rule in order]


def test_each_rule_and_the_workload_get_back_what_they_kept(executor: Executor, rules: dict[str, str]) -> None:
    both, sums = (rules["double"], rules["add"]), np.zeros(2)
    results: list[GroupResult] = []
    for round in (1, 2, 3):
        last = work(executor, both, round, last=results[-1] if results else None)
        results.append(last)
        assert (info(last)["double"], info(last)["add"]) == (round, round)
        assert last.reports[0].metrics["seen"].value == round - 1
        sums += sent(last) - 1  # what `add` got to send
    (state,) = last.states.values()
    assert state.record is not None
    parts = {part["name"]: part for part in state.record.info["parts"]}
    assert list(parts) == ["workload", f"rule {rules['double']}", f"rule {rules['add']}"]
    kept = state.record.groups[parts[f"rule {rules['add']}"]["groups"]["own"]]["sum"]
    np.testing.assert_allclose(kept, sums, rtol=1e-5)


def test_a_rule_counts_evaluations_too_which_leave_the_workloads_part_alone(
    executor: Executor, rules: dict[str, str]
) -> None:
    trained = work(executor, (rules["add"],))
    evaluated = work(executor, (rules["add"],), 2, "evaluate", trained)
    assert info(evaluated)["add"] == 2
    again = work(executor, (rules["add"],), 3, last=evaluated)
    assert info(again)["add"] == 3 and again.reports[0].metrics["seen"].value == 1


def test_what_a_rule_kept_stays_while_other_rules_are_used(executor: Executor, rules: dict[str, str]) -> None:
    first = work(executor, (rules["add"],))
    between = work(executor, (rules["double"],), 2, last=first)
    reported = info(work(executor, (rules["double"], rules["add"]), 3, last=between))
    assert {**reported, "order": 0} == {
        "double": 2, "add": 2, "order": 0,
    }  # fmt: skip


def test_a_rule_twice_has_two_memories(executor: Executor, rules: dict[str, str]) -> None:
    first = work(executor, (rules["add"], rules["add"]))
    (state,) = first.states.values()
    assert state.record is not None
    assert [part["name"] for part in state.record.info["parts"]][1:] == [
        f"rule {rules['add']}", f"rule {rules['add']} 2",
    ]  # fmt: skip


def test_where_nothing_new_is_kept_nothing_travels(executor: Executor, rules: dict[str, str]) -> None:
    trained = work(executor, (rules["add"],))
    assert work(executor, (rules["silent"],), 2, "evaluate", trained).states == {}
    assert work(executor, (), 2, "evaluate", trained).states == {}
