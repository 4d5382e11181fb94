"""Plug-ins in one file, with and without the base classes: sound ones load and run, others are refused by line."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedloom import api
from fedloom.cli import main
from fedloom.core import plugins
from fedloom.core.config import Experiment, PluginSettings, plugin_schema
from fedloom.core.contracts import conform
from fedloom.core.errors import PluginInvalid
from fedloom.core.kinds import Kind
from fedloom.core.protocols import (
    HasLogits,
    LocalRule,
    Measure,
    Monitor,
    Roster,
    Selection,
    Strategy,
    Watch,
)
from fedloom.core.records import MODEL, Info, Record, Update
from fedloom.core.registry import PartRef

HEAD = '''
from dataclasses import dataclass, replace
import numpy as np
from fedloom.core.config import PluginSettings
from fedloom.core.protocols import (
    ExtraReport, MonitorReading, MonitorRequest, Observation, Probe, WorkloadInfo
)
from fedloom.core.records import MODEL, Exchange, Mean, Record, Update

class Config(PluginSettings):
    """Nothing to set."""
'''
STRATEGY = (
    HEAD
    + '''
@dataclass(frozen=True)
class Weights:
    model: dict

class Own:
    State = Weights
    def __init__(self, name): self.name = name
    def init(self, model): return Weights(model.groups[MODEL])
    def plan(self, state, context):
        inputs = {MODEL: Record({MODEL: state.model})}
        return Exchange(jobs=context.jobs(), inputs=inputs, rules=(self.name,))
    def finish(self, state, total, context): return Weights(total.value()[MODEL])
    def arrays(self, state): return state.model

class Plus:
    """Leaves a mark on what a client sends."""
    def outgoing(self, update, knobs):
        return replace(update, groups={MODEL: {name: array + 1 for name, array in update.groups[MODEL].items()}})

def build_strategy(config, experiment): return Own(config.name)
def build_rule(): return Plus()
'''
)
SELECTION = (
    HEAD
    + """
@dataclass(frozen=True)
class Turn:
    start: int = 0

class Own:
    State = Turn
    def __init__(self, name): self.name = name
    def init(self, roster): return Turn()
    def choose(self, state, roster, size, rng, reports=()):
        return tuple((state.start + step) % roster.population for step in range(size))
    def observe(self, state, reports, probed=()): return Turn(state.start + sum(r.info["told"] == 7.0 for r in reports))
    def extra_report(self, state): return ExtraReport(measure=self.name)

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
    def read(self, reports, earlier):
        return MonitorReading(metrics={"seen": float(sum(report.num_examples for report in reports))}, info={})

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
    def init(self, rng): return Record({MODEL: {"w": np.ones(4, np.float32)}})
    def shard(self, client): return Shard(client)
    def held_out(self, part, parts): return None
    def evaluate(self, inputs, shard): return {}
    def train(self, job, inputs, shard, rule, rng):
        arrays = {"w": inputs[MODEL].groups[MODEL]["w"] + job.client}
        return Update(num_examples=shard.num_examples, groups={MODEL: arrays}, metrics={"loss": Mean(1.0, 1.0)})

def build_workload(config, experiment): return Own()
"""
)
PLUGINS = {"strategy": STRATEGY, "selection": SELECTION, "monitor": MONITOR, "workload": WORKLOAD}
KINDS = {"strategy": "strategies", "selection": "selection", "monitor": "monitors", "workload": "workloads"}
EXPERIMENT = Experiment.model_construct(rounds=2, clients=3, cohort=2, seed=1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a plug-in of a kind, with one text in it replaced; returns the file's path."""

    def written(kind: str, old: str = "", new: str = "") -> str:
        assert PLUGINS[kind].count(old) >= 1
        path = tmp_path / f"{kind}.py"
        path.write_text(PLUGINS[kind].replace(old, new, 1), encoding="utf-8")
        return str(path)

    return written


def load(kind: str, path: str) -> object:
    """Load the part of this kind that a file holds."""
    settings = PluginSettings.model_construct(name=path)
    match kind:
        case "strategy":
            return plugins.build_strategy(settings, EXPERIMENT)
        case "selection":
            return plugins.build_selection(settings)
        case "monitor":
            return plugins.build_monitor(settings)
        case "watch":
            return plugins.build_watch(settings)
        case "measure":
            return plugins.build_measure(path)
        case "rule":
            return plugins.build_rules([path])[0]
    return plugins.build_workload(settings, EXPERIMENT)


def line_of(path: str, text: str) -> int:
    """The number of the first line with this text."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def refused(kind: str, path: str, at: str, *said: str) -> None:
    """The file is refused, naming the line that begins with `at`, and saying all of this."""
    with pytest.raises(PluginInvalid) as caught:
        load(kind, path)
    message = str(caught.value)
    assert f"{path}, line {line_of(path, at)}" in message, message
    for text in said:
        assert text in message, message
    assert caught.value.exit_code == 2


def test_a_strategy_without_the_base_class_gets_its_defaults(write: Callable[..., str]) -> None:
    strategy = load("strategy", write("strategy"))
    assert isinstance(strategy, Strategy) and not strategy.evaluates
    state = strategy.init(Record({MODEL: {"w": np.ones(2, np.float32)}}))
    assert strategy.report(state) == {} and strategy.evaluation(state) is None
    assert [*strategy.model_inputs(state)] == [MODEL]
    strategy.close()


def test_a_strategy_with_an_evaluation_of_its_own_says_so_by_having_it(write: Callable[..., str]) -> None:
    path = write("strategy", "    def arrays(", '    def evaluation(self, state): return {"own": 1.0}\n    def arrays(')
    strategy = load("strategy", path)
    assert isinstance(strategy, Strategy) and strategy.evaluates
    assert strategy.evaluation(strategy.init(Record({MODEL: {}}))) == {"own": 1.0}


def test_a_selection_without_the_base_class_gets_its_defaults(write: Callable[..., str]) -> None:
    selection, roster = load("selection", write("selection")), Roster(population=3)
    assert isinstance(selection, Selection)
    state = selection.init(roster)
    assert selection.probe(state, roster, 2, np.random.default_rng(1)) is None
    assert selection.missed(state, [1]) is state and selection.grow(state, roster) is state
    assert selection.report(state) == {}
    extra = selection.extra_report(state)
    assert extra is not None and extra.measure.endswith("selection.py")


def test_a_rule_without_the_base_class_passes_through_what_it_has_no_hook_for(write: Callable[..., str]) -> None:
    rule = load("rule", write("strategy"))
    assert isinstance(rule, LocalRule)
    sent = rule.outgoing(Update(num_examples=1, groups={MODEL: {"w": np.zeros(2)}}), {})
    assert sent.groups[MODEL]["w"].tolist() == [1.0, 1.0]
    gradients = [np.ones(2)]
    rule.begin([(MODEL, "w")], {})
    rule.adjust_gradients(gradients, gradients, gradients, {})
    assert gradients[0].tolist() == [1.0, 1.0] and rule.state() is None


def test_a_measure_and_a_watch_may_be_functions(write: Callable[..., str]) -> None:
    measure, watch = load("measure", write("selection")), load("watch", write("monitor"))
    assert isinstance(measure, Measure) and isinstance(watch, Watch)
    rng, shard = np.random.default_rng(1), type("Ten", (), {"num_examples": 10})()
    update = Update(num_examples=10)
    assert measure(None, Record(), update, shard, rng, {}) == {"told": 7.0}
    assert measure.together(None, Record(), [update], [shard], [rng], [{}]) is None
    assert watch(None, {}, shard, rng).num_examples == 10
    watch.check(None)


def test_a_monitor_and_a_workload_need_no_base_class(write: Callable[..., str]) -> None:
    monitor = load("monitor", write("monitor"))
    assert isinstance(monitor, Monitor)
    assert monitor.request(3, np.random.default_rng(1)).clients == (0,)
    assert not isinstance(load("workload", write("workload")), HasLogits)


@pytest.mark.parametrize(
    ("kind", "old", "method"),
    [
        ("strategy", "    def arrays(self, state): return state.model\n", "arrays(state)"),
        ("selection", "    def init(self, roster): return Turn()\n", "init(roster)"),
        (
            "monitor",
            "    def request(self, population, rng): return MonitorRequest(clients=(0,))\n",
            "request(population",
        ),
        ("workload", "    def evaluate(self, inputs, shard): return {}\n", "evaluate(inputs, shard)"),
    ],
)
def test_a_missing_method_is_named(kind: str, old: str, method: str, write: Callable[..., str]) -> None:
    name = method.split("(")[0]
    refused(kind, write(kind, old), "class Own", f"Own has no method {name!r}", f"expected {method}")


@pytest.mark.parametrize(
    ("kind", "before", "misspelt", "meant"),
    [
        ("strategy", "    def arrays(", "reprot(self, state)", "report"),
        ("strategy", "    def arrays(", "evalution(self, state)", "evaluation"),
        ("selection", "    def observe(", "mised(self, state, clients)", "missed"),
        ("selection", "    def observe(", "prob(self, state, roster, size, rng)", "probe"),
        (
            "rule",
            "    def outgoing(",
            "adjust_gradient(self, gradients, parameters, anchor, knobs)",
            "adjust_gradients",
        ),
        ("workload", "    def evaluate(", "logit(self, inputs, shard)", "logits"),
    ],
)
def test_a_misspelt_optional_method_is_not_silently_ignored(
    kind: str, before: str, misspelt: str, meant: str, write: Callable[..., str]
) -> None:
    path = write("strategy" if kind == "rule" else kind, before, f"    def {misspelt}: return None\n{before}")
    name = misspelt.split("(")[0]
    refused(kind, path, f"def {name}(", f"found a method {name!r}", f"expected {meant!r}?")


def test_a_helper_with_an_underscore_or_a_name_unlike_any_hook_is_the_authors_own(write: Callable[..., str]) -> None:
    own = "    def _reprot(self): ...\n    def centre(self): ...\n    def arrays("
    assert isinstance(load("strategy", write("strategy", "    def arrays(", own)), Strategy)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ("(self, state, total)", "too many positional arguments"),
        ("(self, state, total, context, more)", "missing a required argument: 'more'"),
        ("(self, state, total, *, context)", "too many positional arguments"),
        ("(self, state, total, context, *, more)", "missing a required"),
    ],
)
def test_a_method_of_another_shape_is_shown_beside_the_expected_one(
    found: str, why: str, write: Callable[..., str]
) -> None:
    path = write("strategy", "def finish(self, state, total, context)", f"def finish{found}")
    shown = found.replace("(self, ", "(")
    refused("strategy", path, "def finish(", f"found finish{shown}, expected finish(state, total, context)", why)


@pytest.mark.parametrize(
    "found", ["(self, state, total, context, more=1)", "(self, *arguments)", "(self, state, total, context, **more)"]
)
def test_a_method_that_takes_more_than_it_is_given_will_do(found: str, write: Callable[..., str]) -> None:
    path = write("strategy", "def finish(self, state, total, context)", f"def finish{found}")
    assert isinstance(load("strategy", path), Strategy)


def test_a_measure_of_another_shape_is_refused(write: Callable[..., str]) -> None:
    path = write("selection", "def told(workload, model, update, shard, rng, knobs)", "def told(model, update)")
    refused("measure", path, "def told(", "(model, update)", "(workload, model, update, shard, rng, knobs)")


@pytest.mark.parametrize("kind", ["strategy", "selection"])
def test_a_plug_in_that_keeps_a_state_names_its_class(kind: str, write: Callable[..., str]) -> None:
    state = "    State = Weights\n" if kind == "strategy" else "    State = Turn\n"
    refused(kind, write(kind, state), "class Own", "Own has no State", "expected a class attribute State")


@pytest.mark.parametrize(("made", "found"), [("Own", "the class Own"), ("lambda: None", "a function")])
def test_an_object_is_expected_not_a_class_or_a_function(made: str, found: str, write: Callable[..., str]) -> None:
    path = write("strategy", "return Own(config.name)", f"return {made}")
    at = "class Own" if made == "Own" else "return lambda"
    refused("strategy", path, at, f"returned {found}", "expected an object of a class with arrays, finish, init, plan")


def test_what_the_build_function_is_called_with(write: Callable[..., str]) -> None:
    path = write("strategy", "def build_strategy(config, experiment)", "def build_strategy(config)")
    refused(
        "strategy", path, "def build_strategy", "found build_strategy(config)", "build_strategy(config, experiment)"
    )


@pytest.mark.parametrize(("made", "reported"), [("None", "returned None"), ("1 / 0", "ZeroDivisionError")])
def test_a_build_function_that_gives_nothing(made: str, reported: str, write: Callable[..., str]) -> None:
    path = write("strategy", "return Own(config.name)", f"return {made}")
    with pytest.raises(PluginInvalid, match=reported) as caught:
        load("strategy", path)
    assert path in str(caught.value)


def test_a_missing_build_function_is_named(write: Callable[..., str]) -> None:
    path = write("strategy", "def build_strategy(", "def make_strategy(")
    with pytest.raises(PluginInvalid, match="expected a function build_strategy, found none") as caught:
        load("strategy", path)
    assert path in str(caught.value)


def test_all_four_kinds_without_a_base_class_work_in_one_run(write: Callable[..., str]) -> None:
    """Two of three clients in turn; each sends w + k + 1, so w grows by the weighted mean of k + 1."""
    values = {kind: {"name": write(kind)} for kind in PLUGINS}
    experiment = Experiment.parse({"rounds": 2, "clients": 3, "cohort": 2, "runtime": {"name": "inline"}, **values})
    done = api.run(experiment, keep=False)
    w = 1.0 + (10 * 1 + 20 * 2) / 30  # clients 0 and 1, of 10 and 20 examples
    w += (30 * 3 + 10 * 1) / 40  # both reported 7.0, so the turn begins at client 2
    assert done.arrays["w"].tolist() == pytest.approx([w] * 4, rel=1e-6)
    assert [[*record.cohort] for record in done.history] == [[0, 1], [2, 0]]
    assert [(record.evaluation or {})["seen"] for record in done.history] == [10.0, 10.0]


@pytest.mark.parametrize(
    ("kind", "old", "new", "found"),
    [
        ("strategy", "def arrays(", "def array(", "Own has no method 'arrays'|found a method 'array'"),
        ("strategy", "def outgoing(self, update, knobs)", "def outgoing(self, update)", "found outgoing"),
        ("strategy", "import numpy", "import nothing_of_this_name", "nothing_of_this_name"),
        ("strategy", "return Own(config.name)", "return Own(config.name", "SyntaxError"),
        ("selection", "def extra_report(", "def extra_reports(", "found a method 'extra_reports'"),
        ("selection", "def told(workload, model", "def told(model", "found __call__"),
        ("monitor", "def request(self, population, rng)", "def request(self, population)", "found request"),
        ("workload", "def evaluate(self, inputs, shard)", "def evaluate(self, inputs)", "found evaluate"),
        ("workload on a process", "def evaluate(self, inputs, shard)", "def evaluate(self, inputs)", "found evaluate"),
    ],
)
def test_fedloom_run_refuses_them_with_status_2_and_leaves_no_folder(
    kind: str, old: str, new: str, found: str, write: Callable[..., str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kind, _, place = kind.partition(" on a ")
    parts = {each: write(each) for each in PLUGINS} | {kind: write(kind, old, new)}
    lines = "\n".join(f'{each} = "{path}"' for each, path in parts.items())
    file = tmp_path / "run.toml"
    file.write_text(f"rounds = 2\nclients = 3\n{lines}\n", encoding="utf-8")
    runtime = ["--runtime", place or "inline", "--workers", "1"]
    assert main(["run", str(file), "--out", str(tmp_path / "out"), *runtime]) == 2
    said = capsys.readouterr()
    assert re.search(found, said.err) and parts[kind] in said.err, said.err
    assert not (tmp_path / "out").exists()


def test_settings_of_a_file_without_a_config_are_refused(write: Callable[..., str]) -> None:
    path = write("strategy", "class Config(", "class Settings(")
    with pytest.raises(Exception, match="defines no class Config"):
        plugin_schema(KINDS["strategy"], path)


def test_a_method_that_one_object_alone_has_is_checked_although_its_class_was_found_sound() -> None:
    class Rule:
        def outgoing(self, update: Update, knobs: Info) -> Update:
            return update

    ref = PartRef(Kind.STRATEGY, "fedprox", "rule")
    conform(Rule(), LocalRule, ref)
    odd = Rule()
    vars(odd)["incomming"] = lambda inputs, job: inputs
    with pytest.raises(PluginInvalid, match=r"found a method 'incomming'.*expected 'incoming'"):
        conform(odd, LocalRule, ref)
