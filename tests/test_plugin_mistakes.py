# ruff: noqa: E501  # a mistake is a line
"""Mistakes in plug-ins, of every kind: `check`, `run` and `submit` name the user's file and line, and leave nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mistakes import expect_refusal, through_commands

from fedloom import api
from fedloom.cli import main
from fedloom.core.errors import RunFailed

HEAD = '''
from dataclasses import dataclass, field, replace
import numpy as np
from fedloom.core.config import PluginSettings
from fedloom.core.protocols import (
    ExtraReport, MonitorReading, MonitorRequest, Observation, Probe, WorkloadInfo
)
from fedloom.core.records import MODEL, Exchange, Job, Mean, Record, Update

class Config(PluginSettings):
    """Nothing to set."""
'''
STRATEGY = (
    HEAD
    + """
@dataclass(frozen=True)
class Weights:
    model: dict
    extra: object = None

class Own:
    State = Weights
    def __init__(self, name): self.name = name
    def init(self, model): return Weights(model.groups[MODEL])
    def plan(self, state, context):
        inputs = {MODEL: Record({MODEL: state.model})}
        return Exchange(jobs=context.jobs(), inputs=inputs, rules=(self.name,))
    def finish(self, state, total, context): return Weights(total.value()[MODEL])
    def arrays(self, state): return state.model
    def report(self, state): return {}

class Own_rule:
    def incoming(self, inputs, job): return inputs
    def outgoing(self, update, knobs): return update

def build_strategy(config, experiment): return Own(config.name)
def build_rule(): return Own_rule()
"""
)
SELECTION = (
    HEAD
    + """
@dataclass(frozen=True)
class Turn:
    start: int = 0
    seen: dict = field(default_factory=dict)

class Own:
    State = Turn
    def __init__(self, name): self.name = name
    def init(self, roster): return Turn()
    def probe(self, state, roster, size, rng): return None
    def choose(self, state, roster, size, rng, reports=()): return tuple(range(size))
    def observe(self, state, reports, probed=()): return Turn(state.start + 1)
    def extra_report(self, state): return ExtraReport(measure=self.name)
    def report(self, state): return {}

def told(workload, model, update, shard, rng, knobs): return {"told": 7.0}
def build_selection(config): return Own(config.name)
def build_measure(): return told
"""
)
MONITOR = (
    HEAD
    + """
class Own:
    def request(self, population, rng): return MonitorRequest(clients=(0,))
    def read(self, reports, earlier): return MonitorReading(metrics={"seen": 1.0}, info={})

def watched(workload, inputs, shard, rng): return Observation(num_examples=shard.num_examples, info={})
def build_monitor(config): return Own()
def build_watch(config): return watched
"""
)
WORKLOAD = (
    HEAD
    + """
class Shard:
    def __init__(self, client): self.num_examples = 10 * (client + 1)

class Own:
    def describe(self):
        return WorkloadInfo(data={"name": "own", "kind": "synthetic", "licence": None, "sha256": None})
    def init(self, rng): return Record({MODEL: {"w": np.ones(4, np.float32), "b": np.zeros(2, np.float32)}})
    def shard(self, client): return Shard(client)
    def held_out(self, part, parts): return Shard(part)
    def evaluate(self, inputs, shard): return {"loss": Mean(1.0, 1.0)}
    def train(self, job, inputs, shard, rule, rng):
        arrays = {name: array + 1 for name, array in inputs[MODEL].groups[MODEL].items()}
        return Update(num_examples=shard.num_examples, groups={MODEL: arrays}, metrics={"loss": Mean(1.0, 1.0)})

def build_workload(config, experiment): return Own()
"""
)
REPORT = (
    STRATEGY + "\nfrom fedloom.reporting.plugins import Contribution\ndef build_report(run): return Contribution()\n"
)
FILES = {
    "strategy": STRATEGY,
    "selection": SELECTION,
    "monitor": MONITOR,
    "workload": WORKLOAD,
    "report": REPORT,
}
TENSOR = "__import__('torch').zeros(4)"
FINISH = "def finish(self, state, total, context): return Weights(total.value()[MODEL])"
PLAN = "        return Exchange(jobs=context.jobs(), inputs=inputs, rules=(self.name,))"
CHOOSE = "def choose(self, state, roster, size, rng, reports=()): return tuple(range(size))"
OBSERVE = "def observe(self, state, reports, probed=()): return Turn(state.start + 1)"
UPDATE = (
    '        return Update(num_examples=shard.num_examples, groups={MODEL: arrays}, metrics={"loss": Mean(1.0, 1.0)})'
)
READ = 'def read(self, reports, earlier): return MonitorReading(metrics={"seen": 1.0}, info={})'
TOLD = 'def told(workload, model, update, shard, rng, knobs): return {"told": 7.0}'
OUTGOING = "def outgoing(self, update, knobs): return update"
WATCHED = "def watched(workload, inputs, shard, rng): return Observation(num_examples=shard.num_examples, info={})"


def finish(body: str) -> str:
    return FINISH.replace("return Weights(total.value()[MODEL])", body)


def update(**changed: str) -> str:
    parts = {
        "num_examples": "shard.num_examples",
        "groups": "{MODEL: arrays}",
        "metrics": '{"loss": Mean(1.0, 1.0)}',
        **changed,
    }
    return f"        return Update({', '.join(f'{name}={value}' for name, value in parts.items())})"


MISTAKES: dict[str, tuple[str, str, str, str, str]] = {
    # the file's kind, what stands there, what stands there instead, a text of the line that is named, what is said
    "no import": ("strategy", "import numpy as np", "import no_such_package", "no_such_package", "ModuleNotFoundError"),
    "no syntax": ("strategy", "class Own:", "class Own", "class Own", "SyntaxError: expected ':'"),
    "an import that raises": ("selection", "import numpy as np", "import numpy as np; 1 / 0", "1 / 0", "ZeroDivision"),
    "no syntax in a workload": ("workload", "class Own:", "class Own(:", "class Own(:", "SyntaxError"),
    "no import in a workload": ("workload", "import numpy as np", "from numpy import nothing", "nothing", "ImportError"),
    "no State": ("strategy", "    State = Weights\n", "", "class Own:", "Own has no State"),
    "a State that is no dataclass": ("strategy", "State = Weights", "State = dict", "class Own:", "frozen dataclass"),
    "a missing method": ("strategy", "    def arrays(self, state): return state.model\n", "", "class Own:", "no method 'arrays'"),
    "a misspelt method": ("selection", "def observe(", "def obserev(", "def obserev(", "expected 'observe'?"),
    "other parameters": ("strategy", "finish(self, state, total, context)", "finish(self, total)", "def finish", "(total)"),
    "a class": ("monitor", "return Own()", "return Own", "class Own", "the class Own"),
    "nothing built": ("workload", "experiment): return Own()", "experiment): Own()", "", "returned None"),
    "another state": ("strategy", FINISH, finish("return total.value()[MODEL]"), "def finish", "found a dict, expected a Weights"),
    "no state": ("strategy", FINISH, finish("Weights(total.value()[MODEL])"), "def finish", "found None, expected a Weights"),
    "a tensor in the state": ("strategy", "return Weights(model.groups[MODEL])", f"return Weights({{'w': {TENSOR}}})", "def init", ".detach().cpu().numpy()"),
    "a set in the state": ("strategy", "return Weights(model.groups[MODEL])", "return Weights(model.groups[MODEL], {1})", "def init", "field 'extra' of the state is a set"),
    "a state changed in place": ("strategy", FINISH, finish("state.model['w'] = total.value()[MODEL]['w']; return replace(state)"), "def finish", "found the state changed in place"),
    "an array changed in place": ("strategy", FINISH, finish("state.model['w'][...] = 0; return state"), "def finish", "found a write to an array it was given"),
    "an array added to in place": ("strategy", FINISH, finish("\n            w = state.model['w']\n            w += 1\n            return state"), "w += 1", "a + b instead of a += b"),
    "not a number": ("strategy", FINISH, finish("return Weights({k: v * np.nan for k, v in total.value()[MODEL].items()})"), "def finish", "not finite (NaN or infinity)"),
    "an infinity": ("strategy", FINISH, finish("return Weights({k: v * 0 + np.float32(np.inf) for k, v in total.value()[MODEL].items()})"), "def finish", "not finite"),
    "an array lost": ("strategy", FINISH, finish("return Weights({'w': total.value()[MODEL]['w']})"), "def arrays", "array 'b' is missing"),
    "an array renamed": ("strategy", FINISH, finish("return Weights({k + '_': v for k, v in total.value()[MODEL].items()})"), "def arrays", "array 'b' is missing, expected float32"),
    "arrays of another dtype": ("strategy", FINISH, finish("return Weights({k: v.astype(np.float64) for k, v in total.value()[MODEL].items()})"), "def arrays", "array 'b' is float64"),
    "no exchange": ("strategy", PLAN, "        return context.jobs()", "def plan", "found a tuple, expected an Exchange or None"),
    "an input that is none": ("strategy", PLAN, "        return Exchange(jobs=context.jobs(), inputs={MODEL: state.model})", "def plan", "input 'model' is a dict, expected a Record"),
    "an input that is missing": ("strategy", PLAN, "        return Exchange(jobs=context.jobs(inputs=('weights',)), inputs=inputs)", "def plan", "jobs read the input 'weights'"),
    "a tensor as input": ("strategy", PLAN, f"        return Exchange(jobs=context.jobs(), inputs={{MODEL: Record({{MODEL: {{'w': {TENSOR}}}}})}})", "def plan", "array 'w' is a Tensor"),
    "a client that is none": ("strategy", PLAN, "        return Exchange(jobs=(Job(round=context.round, client=99, inputs=(MODEL,)),), inputs=inputs)", "def plan", "found a job of client 99"),
    "a rule that is none": ("strategy", PLAN, "        return Exchange(jobs=context.jobs(), inputs=inputs, rules=('fedavg',))", "def plan", "names the rule 'fedavg'"),
    "an accumulator that is none": ("strategy", PLAN, "        return Exchange(jobs=context.jobs(), inputs=inputs, accumulator='fedavg')", "def plan", "names the accumulator 'fedavg'"),
    "a report of arrays": ("strategy", "def report(self, state): return {}", "def report(self, state): return {'w': state.model['w']}", "def report", "write float(…) or .tolist()"),
    "a method that raises": ("strategy", FINISH, finish("return total.nothing"), "def finish", "AttributeError: 'RunningMean' object has no attribute 'nothing'"),
    "a rule that returns nothing": ("strategy", OUTGOING, OUTGOING.replace("return update", "update"), "def outgoing", "expected a fedloom.core.records.Update"),
    "a rule that loses an array": ("strategy", OUTGOING, OUTGOING.replace("return update", "return replace(update, groups={MODEL: {'w': update.groups[MODEL]['w']}})"), "def outgoing", "lacks 'b'"),
    "a rule of tensors": ("strategy", OUTGOING, OUTGOING.replace("return update", f"return replace(update, groups={{MODEL: {{'w': {TENSOR}, 'b': update.groups[MODEL]['b']}}}})"), "def outgoing", ".detach().cpu().numpy()"),
    "a client chosen twice": ("selection", CHOOSE, CHOOSE.replace("tuple(range(size))", "(0,) * size"), "def choose", "found 0 more than once"),
    "a client outside": ("selection", CHOOSE, CHOOSE.replace("range(size)", "range(1, 9)"), "def choose", "found 4, expected a tuple of distinct clients (int) from 0 to 3"),
    "a negative client": ("selection", CHOOSE, CHOOSE.replace("range(size)", "range(-1, 1)"), "def choose", "found -1"),
    "clients of numpy": ("selection", CHOOSE, CHOOSE.replace("range(size)", "rng.permutation(4)[:size]"), "def choose", "write int(client) or .tolist()"),
    "one client": ("selection", CHOOSE, CHOOSE.replace("tuple(range(size))", "0"), "def choose", "found a int"),
    "no clients": ("selection", CHOOSE, CHOOSE.replace("return tuple(range(size))", "range(size)"), "def choose", "found None"),
    "names of clients": ("selection", CHOOSE, CHOOSE.replace("tuple(range(size))", "('a', 'b')"), "def choose", "found 'a'"),
    "a selection without State": ("selection", "    State = Turn\n", "", "class Own:", "Own has no State"),
    "observe without a result": ("selection", OBSERVE, OBSERVE.replace("return ", ""), "def observe", "found None, expected a Turn"),
    "observe in place": ("selection", OBSERVE, OBSERVE.replace("return Turn(state.start + 1)", "state.seen['a'] = 1; return state"), "def observe", "changed in place"),
    "a probe that is none": ("selection", "def probe(self, state, roster, size, rng): return None", "def probe(self, state, roster, size, rng): return (0, 1)", "def probe", "found a tuple, expected a Probe or None"),
    "an extra report that is none": ("selection", "return ExtraReport(measure=self.name)", "return self.name", "def extra_report", "expected an ExtraReport"),
    "a report of a selection": ("selection", "def report(self, state): return {}", "def report(self, state): return state.start", "def report", "found a int, expected a dict"),
    "a measure without a result": ("selection", TOLD, TOLD.replace("return ", ""), "def told", "expected a dict of numbers by name"),
    "a measure that raises": ("selection", TOLD, TOLD.replace('{"told": 7.0}', "workload.nothing"), "def told", "AttributeError"),
    "a measure of another shape": ("selection", "def told(workload, model, ", "def told(model, ", "def told(", "found __call__"),
    "a request that is none": ("monitor", "return MonitorRequest(clients=(0,))", "return (0,)", "def request", "expected a MonitorRequest"),
    "a watched client outside": ("monitor", "clients=(0,)", "clients=(7,)", "def request", "found 7"),
    "a reading that is none": ("monitor", READ, READ.replace('return MonitorReading(metrics={"seen": 1.0}, info={})', "return {}"), "def read", "expected a MonitorReading"),
    "a reading of words": ("monitor", READ, READ.replace("1.0", "'many'"), "def read", "metric 'seen' is a str, expected a number"),
    "a reading that raises": ("monitor", READ, READ.replace("1.0", "reports[9]"), "def read", "IndexError"),
    "a watch that raises": ("monitor", WATCHED, WATCHED.replace("shard.num_examples", "shard.count"), "def watched", "AttributeError"),
    "no update": ("workload", UPDATE, "        return arrays", "def train", "returned "),
    "an array missing in an update": ("workload", UPDATE, update(groups="{MODEL: {'w': arrays['w']}}"), "def train", "lacks 'b'"),
    "an array renamed in an update": ("workload", UPDATE, update(groups="{MODEL: {'w': arrays['w'], 'bias': arrays['b']}}"), "def train", "has 'bias', which is not declared"),
    "an update of another dtype": ("workload", UPDATE, update(groups="{MODEL: {k: v.astype(np.float64) for k, v in arrays.items()}}"), "def train", "array.astype(np.float32)"),
    "an update of another shape": ("workload", UPDATE, update(groups="{MODEL: {k: v[:1] for k, v in arrays.items()}}"), "def train", "has shape (1,)"),
    "a tensor in an update": ("workload", UPDATE, update(groups=f"{{MODEL: {{'w': {TENSOR}, 'b': arrays['b']}}}}"), "def train", ".detach().cpu().numpy()"),
    "metrics that are numbers": ("workload", UPDATE, update(metrics="{'loss': 1.0}"), "def train", "expected Mean(sum, weight)"),
    "a negative number of examples": ("workload", UPDATE, update(num_examples="-1"), "def train", "an integer of at least 0"),
    "half an example": ("workload", UPDATE, update(num_examples="0.5"), "def train", "num_examples of 'train'"),
    "an evaluation of numbers": ("workload", '{"loss": Mean(1.0, 1.0)}\n    def train', '{"loss": 1.0}\n    def train', "def evaluate", "expected Mean(sum, weight)"),
    "a training that raises": ("workload", "array + 1", "array + self.rate", "self.rate", "AttributeError: 'Own' object has no attribute 'rate'"),
    "a shard without a size": ("workload", "self.num_examples = 10", "self.size = 10", "num_examples", "AttributeError"),
    "an initial model of tensors": ("workload", "np.ones(4, np.float32)", TENSOR, "def init", ".detach().cpu().numpy()"),
    "a description that is none": ("workload", 'return WorkloadInfo(data={"name": "own", "kind": "synthetic", "licence": None, "sha256": None})', "return {}", "def describe", "expected a WorkloadInfo"),
    "an initial model without a record": ("workload", 'return Record({MODEL: {"w": np.ones(4, np.float32), "b": np.zeros(2, np.float32)}})', "return {}", "def init", "expected a Record"),
    "a report that is none": ("report", "return Contribution()", "return {}", "", "returned a dict, expected a fedloom.reporting.plugins.Contribution"),
}  # fmt: skip


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[[str, str, str], tuple[Path, Path]]:
    """Writes a plug-in with a mistake, and an experiment that names it."""

    def written(kind: str, old: str, new: str) -> tuple[Path, Path]:
        source = FILES[kind]
        assert source.count(old) >= 1, old
        plugin, toml = tmp_path / "mine.py", tmp_path / "mine.toml"
        plugin.write_text(source.replace(old, new, 1), encoding="utf-8")
        section = "strategy" if kind == "report" else kind
        named = {"strategy": "fedavg", "workload": "fedloom.testing.linear", section: "./mine.py"}
        lines = [f'{key} = "{value}"' for key, value in named.items()]
        base = 'rounds = 2\nclients = 4\ncohort = 2\nruntime = { name = "inline" }\n'
        toml.write_text(base + "\n".join(lines) + "\n", encoding="utf-8")
        return plugin, toml

    return written


WRITTEN_AT_THE_END = [("report", "run")]
"""A report is written when the run is done, which a fault of it does not undo."""


@pytest.mark.parametrize(
    ("kind", "old", "new", "at", "said", "command"), through_commands(MISTAKES, never=WRITTEN_AT_THE_END)
)
def test_a_mistake_is_named(
    kind: str,
    old: str,
    new: str,
    at: str,
    said: str,
    command: str,
    experiment: Callable[[str, str, str], tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    plugin, toml = experiment(kind, old, new)
    expect_refusal(command, toml, plugin, at, said, capsys)


def test_sound_files_pass(experiment: Callable[..., tuple[Path, Path]], capsys: pytest.CaptureFixture[str]) -> None:
    for kind in FILES:
        plugin, toml = experiment(kind, "", "")
        assert main(["check", str(plugin)]) == 0 and main(["check", str(toml)]) == 0, capsys.readouterr().err
        assert "one round with two clients succeeded" in capsys.readouterr().out


def test_a_file_without_a_plug_in_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n", encoding="utf-8")
    assert main(["check", "empty.py"]) == 2
    assert "expected a plug-in, a file that defines one of build_strategy" in capsys.readouterr().err


def test_workers_mistakes_are_named_too_and_later_ones_keep_the_run(
    experiment: Callable[[str, str, str], tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin, toml = experiment("workload", UPDATE, update(metrics="{'loss': 1.0}"))
    code = main(["run", str(toml), "--runtime", "process", "--workers", "1", "--out", str(tmp_path / "run")])
    assert code == 2 and capsys.readouterr().err.splitlines()[-1].startswith(f"fedloom: {plugin}, line ")
    assert not (tmp_path / "run").exists()
    wrong = finish("return total if context.round == 2 else Weights(total.value()[MODEL])")
    plugin, toml = experiment("strategy", FINISH, wrong)
    with pytest.raises(
        RunFailed, match=r"finish: found a RunningMean.* In round 2; the run can be resumed from round 1"
    ):
        api.run(api.load(toml), out=tmp_path / "late")
    assert (tmp_path / "late").exists()
