"""Numbers a node may send: each is checked where it enters, and what is added up of them stays finite.

A node over the network changes a few numbers of its answers; it is named, another node does its work, and the run has
the bits of one without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fedloom import api
from fedloom.core import frames
from fedloom.core.accumulators import BUILTIN, IntegerSum, MeanOfSenders, MetricsOnly, RunningMean, UpdateList
from fedloom.core.accumulators.senders import MAX_ENTRY
from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, RunFailed
from fedloom.core.messages import Channel, FromAgent, Group, GroupKey, GroupResult, PayloadRef, ToAgent
from fedloom.core.records import MODEL, ClientFailure, ClientReport, Exchange, Job, Mean, Record, Update
from fedloom.server.fleet.numbers import bounded_times, check_reports
from fedloom.server.fleet.vetting import SumTerms, vet_sum, within
from fedloom.server.rounds.record import sum_metrics
from fedloom.testing.faults import ForwardingChannel
from fedloom.testing.fleet import run_on_fleet

Make = Callable[..., Experiment]
KEY = GroupKey("run", 1, 0, 0)
JOBS = (Job(round=1, client=0), Job(round=1, client=1))
SIZES = {MODEL: 1000}
LARGEST = float(np.finfo(np.float32).max)


def report(client: int = 0, **fields: Any) -> ClientReport:
    return ClientReport(client=client, **{"num_examples": 3, "seconds": 0.1, **fields})


def result(*reports: ClientReport, **fields: Any) -> GroupResult:
    return GroupResult(key=KEY, total=None, reports=reports, **fields)


class TestCounts:
    @pytest.mark.parametrize("field", ["num_examples", "bytes_down", "bytes_up", "params_down", "params_up"])
    @pytest.mark.parametrize("value", [-1, 2**63, 2**64 - 1])
    def test_that_cannot_be(self, field: str, value: int) -> None:
        with pytest.raises(BadUpdate, match=f"client 0: {field} must be from 0 to"):
            check_reports(result(report(**{field: value})), JOBS, SIZES, 1 << 34)

    @pytest.mark.parametrize("field", ["num_trained", "num_retrained"])
    def test_a_client_trains_once(self, field: str) -> None:
        with pytest.raises(BadUpdate, match=f"{field} must be from 0 to 1, got 2"):
            check_reports(result(report(**{field: 2})), JOBS, SIZES, 1 << 34)

    def test_nobody_reads_more_than_was_sent(self) -> None:
        check_reports(result(report(bytes_down=1000, params_down=250)), JOBS, SIZES, 1 << 34)
        with pytest.raises(BadUpdate, match="bytes_down must be from 0 to 1000, got 1001"):
            check_reports(result(report(bytes_down=1001)), JOBS, SIZES, 1 << 34)
        failure = ClientFailure(client=1, round=1, stage="train", error="E", message="", bytes_down=1001)
        with pytest.raises(BadUpdate, match="client 1: bytes_down"):
            check_reports(result(failures=(failure,)), JOBS, SIZES, 1 << 34)

    @pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, -1.0, -5e-324])
    def test_weights_of_metrics(self, weight: float) -> None:
        with pytest.raises(BadUpdate, match="weight of metric 'loss' must be a number of at least 0"):
            check_reports(result(report(metrics={"loss": Mean(1.0, weight)})), JOBS, SIZES, 1 << 34)


class TestTimes:
    def test_are_no_longer_than_the_exchange(self) -> None:
        failure = ClientFailure(client=1, round=1, stage="train", error="E", message="", seconds=1e308)
        came = result(report(seconds=1e308), report(1, seconds=2.0), failures=(failure,), busy_s=math.inf)
        bound = bounded_times(came, 5.0)
        assert [each.seconds for each in bound.reports] + [each.seconds for each in bound.failures] == [
            5.0,
            2.0,
            5.0,
        ] and bound.busy_s == 5.0

    @given(st.floats(), st.floats(), st.floats(0, 1e6))
    def test_whatever_comes(self, seconds: float, busy_s: float, limit_s: float) -> None:
        bound = bounded_times(result(report(seconds=seconds), busy_s=busy_s), limit_s)
        assert 0 <= bound.busy_s <= limit_s and 0 <= bound.reports[0].seconds <= limit_s

    def test_that_can_be_stay_as_they_are(self) -> None:
        came = result(report())
        assert bounded_times(came, 5.0) is came


class TestMetrics:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_value_that_is_none_is_left_out_and_named(self, bad: float) -> None:
        reports = [report(metrics={"loss": Mean(6.0, 3.0)}), report(7, metrics={"loss": Mean(bad, 3.0)})]
        total, left_out = sum_metrics(reports)
        assert total == {"loss": Mean(6.0, 3.0)} and left_out == {"loss": [7]}

    def test_so_is_one_that_makes_the_sum_infinite(self) -> None:
        total, left_out = sum_metrics([report(c, metrics={"loss": Mean(1.5e308, 1.0)}) for c in (1, 2)])
        assert total == {"loss": Mean(1.5e308, 1.0)} and left_out == {"loss": [2]}

    def test_a_number_of_weight_zero_counts_for_nothing(self) -> None:
        total, left_out = sum_metrics([report(metrics={"a": Mean(5.0, 0.0), "b": Mean(0.0, 0.0)})])
        assert math.isnan(total["a"].value) and total["b"] == Mean(0.0, 0.0) and left_out == {"a": [0]}


def arrays(value: float = 1.0, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {"w": np.full(3, value, np.float32), "b": np.full((), value, np.float32), **more}


def exchange(**fields: Any) -> Exchange:
    return Exchange(jobs=JOBS, inputs={MODEL: Record({MODEL: arrays(0.0)})}, **fields)


def check(
    kind: Any,
    total: Record,
    asked: Exchange | None = None,
    examples: tuple[int, int] = (3, 5),
    by_examples: bool = True,
) -> None:
    """What is done with a sum of clients 0 and 1 that came over the network."""
    asked = asked or exchange()
    terms = SumTerms.of(kind, asked, by_examples=by_examples, parts=len(asked.jobs))
    came = result(*(report(client, num_examples=count) for client, count in enumerate(examples)))
    partial = vet_sum(kind, asked.inputs[MODEL], total, [0, 1])
    terms.check(partial, total, came, asked.jobs)


def total_of(
    kind: Any, *updates: dict[str, dict[str, np.ndarray]], weights: tuple[float, float] = (3.0, 5.0)
) -> Record:
    total = kind()
    for client, (groups, weight) in enumerate(zip(updates, weights, strict=True)):
        total.add(Update(num_examples=(3, 5)[client], groups=groups), weight, client)
    record: Record = total.record()
    return record


GOOD = {MODEL: arrays()}


class TestASum:
    @pytest.mark.parametrize("kind", [RunningMean, UpdateList, MeanOfSenders])
    def test_as_it_should_be_is_taken(self, kind: Any) -> None:
        check(kind, total_of(kind, GOOD, GOOD), exchange(updates="subset") if kind is MeanOfSenders else None)

    def test_that_weighs_each_client_one(self) -> None:
        check(RunningMean, total_of(RunningMean, GOOD, GOOD, weights=(1.0, 1.0)), by_examples=False)
        with pytest.raises(BadUpdate, match=r"has weight 8\.0; 2 clients with 8 examples have 2\.0"):
            check(RunningMean, total_of(RunningMean, GOOD, GOOD), by_examples=False)

    def test_that_weighs_as_the_jobs_say(self) -> None:
        jobs = tuple(replace(job, weight=0.5) for job in JOBS)
        check(RunningMean, total_of(RunningMean, GOOD, GOOD, weights=(1.5, 2.5)), replace(exchange(), jobs=jobs))

    @pytest.mark.parametrize("weight", [0.0, 5e-324, 7.999, 8.001, 1e30, 1.7e308])
    def test_of_another_weight(self, weight: float) -> None:
        good = total_of(RunningMean, GOOD, GOOD)
        with pytest.raises(BadUpdate, match=r"the sum has weight .* 2 clients with 8 examples have 8"):
            check(RunningMean, Record(good.groups, {**good.info, "weight": weight}))

    @pytest.mark.parametrize("kind", [RunningMean, UpdateList])
    @pytest.mark.parametrize(
        "groups",
        [
            {},
            {MODEL: {}},
            {MODEL: {"w": arrays()["w"]}},
            {MODEL: arrays(extra=np.ones(1, np.float32))},
            {MODEL: arrays(), "other": arrays()},
            {"other": arrays()},
            {MODEL: {**arrays(), "w": np.ones(4, np.float32)}},
            {MODEL: {**arrays(), "w": np.ones(3, np.float64)}},
            {MODEL: {**arrays(), "w": np.ones(3, np.float16)}},
            {MODEL: {**arrays(), "w": np.ones(3, np.int8)}},
        ],
        ids=str,
    )
    def test_with_other_arrays_than_declared(self, kind: Any, groups: Any) -> None:
        with pytest.raises(BadUpdate):
            check(kind, total_of(kind, groups, groups))

    @pytest.mark.parametrize("kind", [RunningMean, UpdateList, IntegerSum])
    def test_of_named_arrays(self, kind: Any) -> None:
        asked, one = exchange(updates={"a": ("x",)}), {"a": {"x": np.ones(2, np.int64)}}
        check(kind, total_of(kind, one, one), asked)
        for odd in ({"a": {"x": np.ones(2, np.int64), "y": np.ones(2, np.int64)}}, {"b": one["a"]}, {**one, "b": {}}):
            with pytest.raises(BadUpdate, match="do not have exactly the exchange's arrays"):
                check(kind, total_of(kind, odd, odd), asked)

    def test_of_no_arrays_has_none(self) -> None:
        good = total_of(MetricsOnly, {}, {})
        check(MetricsOnly, good)
        with pytest.raises(BadUpdate, match="expected no arrays"):
            check(MetricsOnly, Record(GOOD, good.info))

    def test_of_parked_updates_has_none(self) -> None:
        check(UpdateList, total_of(UpdateList, {}, {}), exchange(park=True))
        with pytest.raises(BadUpdate, match="exactly"):
            check(UpdateList, total_of(UpdateList, GOOD, GOOD), exchange(park=True))

    def test_so_large_that_the_next_one_would_overflow(self) -> None:
        half = total_of(RunningMean, {MODEL: arrays(LARGEST / 16.5)}, {MODEL: arrays(LARGEST / 16.5)})
        check(RunningMean, half)  # (3 + 5) / 16.5 of the largest number, twice, is no infinity
        with pytest.raises(BadUpdate, match="so large that 2 such sums could not be added up"):
            check(RunningMean, total_of(RunningMean, {MODEL: arrays(LARGEST / 15)}, {MODEL: arrays(LARGEST / 15)}))

    @pytest.mark.parametrize("entry", [-1.0, math.nan, math.inf, 1e30])
    def test_with_weights_of_arrays_out_of_range(self, entry: float) -> None:
        good = total_of(MeanOfSenders, GOOD, GOOD)
        weights = {name: np.full(weight.shape, entry) for name, weight in good.groups["weights"].items()}
        with pytest.raises(BadUpdate):
            check(MeanOfSenders, Record({**good.groups, "weights": weights}, good.info), exchange(updates="subset"))
        odd = Update(num_examples=1, groups={MODEL: arrays(), "weights": {"w": np.array(entry)}})
        with pytest.raises(BadUpdate, match=re.escape(f"each from 0 to {MAX_ENTRY:g}")):
            MeanOfSenders().add(odd, 1.0, 0)

    def test_of_updates_that_say_other_things_than_their_reports(self) -> None:
        good = total_of(UpdateList, GOOD, GOOD)
        with pytest.raises(BadUpdate, match="client 1: its update has other examples"):
            check(UpdateList, good, examples=(3, 6))

    @given(
        st.sampled_from(sorted(BUILTIN)),
        st.dictionaries(
            st.sampled_from(["count", "weight", "dtypes", "updates"]),
            st.one_of(st.none(), st.integers(-3, 3), st.floats(), st.text(max_size=2), st.just({}), st.just([{}])),
        ),
        st.dictionaries(st.sampled_from([MODEL, "weights", "0:model", "1:model"]), st.just(arrays()), max_size=4),
    )
    def test_of_any_other_form_is_refused_and_never_an_internal_error(self, name: str, info: Any, groups: Any) -> None:
        kind = BUILTIN[name]
        try:
            check(kind, Record(groups, info))
        except BadUpdate:
            return
        total = kind.from_record(Record(groups, info))
        assert total.count == 2


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8), st.integers(1, 9))
def test_sums_that_were_found_small_enough_never_overflow(values: list[float], parts: int) -> None:
    array = np.array(values, np.float32)
    if within(array, parts):
        total = np.zeros_like(array)
        for _ in range(parts):
            total = total + array
        assert np.isfinite(total).all()
    else:
        assert np.abs(array).max() > LARGEST / parts


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_a_merge_that_fails_leaves_the_total_as_it_was(name: str) -> None:
    """So the other nodes' work is not lost with that of one whose sum does not fit."""
    dtype = np.int64 if name == "integers" else np.float32
    total, other = BUILTIN[name](), BUILTIN[name]()
    total.add(Update(num_examples=1, groups={MODEL: {"a": np.ones(2, dtype), "b": np.ones(2, dtype)}}), 1.0, 0)
    other.add(Update(num_examples=1, groups={MODEL: {"a": np.ones(2, dtype), "b": np.ones(5, dtype)}}), 1.0, 1)
    before = bytes(frames.encode(total.record()))
    try:
        total.merge(other)
    except BadUpdate:
        assert bytes(frames.encode(total.record())) == before


class Liar(ForwardingChannel):
    """Trains honestly and changes a few numbers of its answers to the rounds' training."""

    def __init__(self, inner: Channel, case: str) -> None:
        super().__init__(inner)
        self._case, self._asked = case, KEY

    def receive(self, timeout_s: float) -> ToAgent | None:
        message = self.inner.receive(timeout_s)
        self._asked = message.key if isinstance(message, Group) else self._asked
        return message

    @property
    def _lies(self) -> bool:
        return self._asked.round > 0 and self._asked.exchange == 0

    def store(self, record: Record, run_id: str) -> PayloadRef:
        if self._lies and self._case in ("overflow", "missing", "added", "weight", "tiny weight"):
            groups = {g: dict(named) for g, named in record.groups.items()}
            info = dict(record.info)
            if self._case == "overflow":
                groups = {g: {n: np.full_like(a, 3e38) for n, a in named.items()} for g, named in groups.items()}
            if self._case == "missing":
                groups[MODEL].pop("b")
            if self._case == "added":
                groups[MODEL]["more"] = np.ones(3, np.float32)
            if self._case in ("weight", "tiny weight"):
                info["weight"] = 1e30 if self._case == "weight" else 5e-324
            record = Record(groups, info)
        return self.inner.store(record, run_id)

    def send(self, message: FromAgent) -> None:
        if isinstance(message, GroupResult) and message.reports and message.key.round > 0 and not message.key.exchange:
            change: Callable[[ClientReport], ClientReport] = {
                "metrics": lambda r: replace(r, metrics={n: Mean(m.sum, -9 * m.weight) for n, m in r.metrics.items()}),
                "seconds": lambda r: replace(r, seconds=1e308),
                "counters": lambda r: replace(r, bytes_up=2**64 - 1),
                "not a number": lambda r: replace(
                    r, metrics={n: Mean(math.nan, m.weight) for n, m in r.metrics.items()}
                ),
            }.get(self._case, lambda r: r)
            message = replace(message, reports=tuple(map(change, message.reports)))
            message = replace(message, busy_s=1e308) if self._case == "seconds" else message
        super().send(message)


@pytest.mark.parametrize(
    "case", ["overflow", "missing", "added", "weight", "tiny weight", "metrics", "counters", "seconds", "not a number"]
)
def test_a_node_that_lies_in_numbers_is_named_and_changes_nothing(linear: Make, case: str) -> None:
    experiment = linear(rounds=3, round={"group_size": 1})
    want = api.run(experiment, keep=False)
    count = iter(range(100))

    def first_lies(channel: Channel) -> Any:
        return Liar(channel, case) if next(count) == 0 else channel

    outcome = run_on_fleet(experiment, workers=2, shared_memory=False, wrap=first_lies)
    assert outcome.error is None, outcome.error
    assert outcome.summary.model_sha256 == want.summary.model_sha256
    for record, honest in zip(outcome.history, want.history, strict=True):
        assert not record.failures
        assert math.isfinite(record.timing.training_s) and record.timing.training_s < 60
        if case == "seconds":
            assert not record.refusals
        elif case == "not a number":
            named = record.sections.get("left_out", {}).get("training", {})
            for name, value in record.metrics.items():
                assert math.isfinite(value) == (len(named.get(name, ())) < len(record.cohort))
        else:
            assert record.metrics == honest.metrics
    if case not in ("seconds", "not a number"):
        assert any(record.refusals.keys() == {"agent-0"} for record in outcome.history)


INFINITE = """
import numpy as np
from fedloom.strategies.fedavg.config import Config
from fedloom.strategies.fedavg.strategy import FedAvg, GlobalModel


class Grows(FedAvg):
    def finish(self, state, total, context):
        model = super().finish(state, total, context).model
        return GlobalModel({n: a * np.float32(np.inf if context.round == 2 else 1) for n, a in model.items()})


def build_strategy(config, experiment):
    return Grows()
"""


def test_a_model_that_is_not_finite_is_neither_saved_nor_trained_on(linear: Make, tmp_path: Path) -> None:
    """All numbers that came are finite, and the strategy makes infinity of them."""
    (tmp_path / "grows.py").write_text(INFINITE, encoding="utf-8")
    experiment = linear(rounds=3, strategy={"name": str(tmp_path / "grows.py")})
    with pytest.raises(RunFailed, match=r"grows\.py, line 8 .*'w' of model is not finite .* resumed from round 1"):
        api.run(experiment, out=tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("round-*"))
    assert [path.name[:12] for path in checkpoints] == ["round-000001"]
    saved = [*checkpoints, *(tmp_path / "run").glob("model/*.safetensors")]
    assert all(np.isfinite(array).all() for path in saved for array in load_file(path).values())
