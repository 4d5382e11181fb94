"""Whole Flower apps: the template's form, and one that uses everything else."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_job import do_job

from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, ClientFailed, ConfigError, RunFailed, UnsupportedFeature
from fedloom.core.records import MODEL, Job, Record
from fedloom.core.seeds import generator
from fedloom.strategies.flower import apps as app_folders
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower.loader import load as load_app
from fedloom.strategies.flower.messages import Batch, waves
from fedloom.strategies.flower.records import join, split, to_array_record
from fedloom.strategies.flower.workload import config as client_config
from fedloom.strategies.flower.workload.workload import FlowerWorkload, build_workload
from fedloom.strategies.flower_app import config as server_config

torch.set_num_threads(1)


def same_arrays(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def server_half(one: Experiment) -> server_config.Config:
    """The settings of an app's ServerApp."""
    if not isinstance(one.strategy, server_config.Config):
        raise AssertionError(f"strategy {one.strategy.name!r} is no ServerApp")
    return one.strategy


def client_half(one: Experiment) -> client_config.Config:
    """The settings of an app's ClientApp."""
    if not isinstance(one.workload, client_config.Config):
        raise AssertionError(f"workload {one.workload.name!r} is no ClientApp")
    return one.workload


def test_an_apps_folder_is_an_experiment(apps: Path) -> None:
    one = load_app(apps / "quickstart")
    assert (one.name, one.rounds, one.clients, one.cohort) == ("quickstart", "open", 4, None)
    assert one.strategy.name == "flower_app" and one.workload.name == "flower"
    assert server_half(one).run_config == client_half(one).run_config
    assert Experiment.parse(one.to_dict()) == one


def test_overrides_reach_both_halves(apps: Path) -> None:
    overrides = [
        "rounds=5",
        "clients=2",
        "run_config.learning-rate=0.5",
        "node_config.site=north",
        "strategy.resume=none",
    ]
    one = load_app(apps / "quickstart", overrides)
    assert one.rounds == "open" and one.clients == 2 and server_half(one).resume == "none"
    for run_config in (server_half(one).run_config, client_half(one).run_config):
        assert run_config["num-server-rounds"] == 5
        assert run_config["learning-rate"] == 0.5
    assert client_half(one).node_config == {"site": "north"}
    nested = load_app(apps / "stateful", ["run_config.model.size=4"])
    assert server_half(nested).run_config["model.size"] == 4 and nested.clients == 10
    assert load_app(apps / "stateful", ["rounds=2"]).rounds == 2, "without a number of its own it is a limit"


def test_the_quickstart_runs_unchanged(apps: Path, run_app: Any, tmp_path: Path) -> None:
    path = tmp_path / "final.pt"
    one = load_app(apps / "quickstart", [f"run_config.save-to={path}"])
    run = run_app(one)
    assert len(run.history) == 3 and [len(each) for each in run.exchanges] == [2, 2, 2]  # train, then evaluate
    evaluation = run.strategy.evaluation(run.state)
    assert set(evaluation) == {"loss", "accuracy", "eval_loss", "eval_acc"} and evaluation["accuracy"] > 0.8
    assert set(run.strategy.report(run.state)) == {"train_loss"}
    saved = torch.load(path)
    assert same_arrays(run.strategy.arrays(run.state), {name: tensor.numpy() for name, tensor in saved.items()})
    assert run.exchanges[0][0].knobs["flower"]["content"][1]["values"] == {"lr": 0.1, "server-round": 1}
    assert list(run.exchanges[0][0].inputs) == [MODEL]  # one model for four clients


def test_it_gives_what_flowers_own_loop_gives(apps: Path, run_app: Any) -> None:
    """The same messages, by hand: the app's FedAvg.start with a grid that calls the app's clients."""
    one = load_app(apps / "quickstart", ["rounds=2"])
    run = run_app(one)
    workload = build_workload(client_half(one), one)

    class Direct(flwr.Grid):  # type: ignore[misc]
        def __init__(self) -> None:
            self.number, self.place = 0, 0

        set_run = run = create_message = push_messages = pull_messages = None

        def get_node_ids(self) -> list[int]:
            return [flwr.node_id(client) for client in range(4)]

        def send_and_receive(self, messages: Any, *, timeout: Any = None) -> list[Any]:
            replies = []
            for message in sorted(messages, key=lambda each: each.metadata.dst_node_id):
                client, kind = flwr.client_of(message.metadata.dst_node_id), message.metadata.message_type
                number = message.content["config"]["server-round"]
                groups, content = split(message.content)
                inputs = {group: Record({MODEL: arrays}) for group, arrays in groups.items()}
                job = Job(
                    round=number,
                    client=client,
                    kind=kind,
                    inputs=tuple(inputs),
                    knobs={"flower": {"content": content, "group_id": ""}},
                )
                rng = generator(one.seed, kind, number, 1 if kind == "train" else 2, client)
                update = do_job(workload, job, inputs, None, rng)
                replies.append(flwr.reply(join(update.groups, update.info["flower"]["content"]), message))
            return replies

    first = run.exchanges[0][0].inputs[MODEL].groups[MODEL]
    strategy = flwr.strategies.FedAvg()
    result = strategy.start(Direct(), to_array_record(first), num_rounds=2, train_config=flwr.ConfigRecord({"lr": 0.1}))
    assert same_arrays(run.state.model, {name: each.numpy() for name, each in result.arrays.items()})
    reported = run.strategy.report(run.state)
    assert reported == pytest.approx(dict(result.train_metrics_clientapp[2]))


@pytest.mark.parametrize("resume", ["snapshot", "replay"])
@pytest.mark.parametrize("app", ["quickstart", "stateful"])
def test_a_resumed_app_has_the_same_bits(app: str, resume: str, apps: Path, run_app: Any) -> None:
    overrides = ["clients=3", "node_config.speed=0.5", f"strategy.resume={resume}"]
    whole = run_app(load_app(apps / app, overrides))
    resumed = run_app(load_app(apps / app, overrides), resume_after=1)
    assert same_arrays(whole.state.model, resumed.state.model)
    assert whole.strategy.evaluation(whole.state) == resumed.strategy.evaluation(resumed.state)


def test_snapshots_do_not_grow_and_replays_do(apps: Path, run_app: Any) -> None:
    def sizes(resume: str) -> list[int]:
        run = run_app(load_app(apps / "quickstart", ["clients=3", f"strategy.resume={resume}"]))
        return [sum(array.nbytes for array in state.journal_arrays.values()) for state in run.history]

    small, growing = sizes("snapshot"), sizes("replay")
    assert small[0] == small[1] == small[2]
    assert growing[2] == 3 * growing[0]
    assert sizes("none") == [0, 0, 0]


def test_a_run_without_a_journal_says_so(apps: Path, run_app: Any) -> None:
    with pytest.raises(UnsupportedFeature, match=r"resume = .none."):
        run_app(load_app(apps / "quickstart", ["strategy.resume=none"]), resume_after=1)


def test_actions_node_config_state_mods_and_lifespan(apps: Path, run_app: Any) -> None:
    run = run_app(load_app(apps / "stateful", ["clients=3", "node_config.speed=0.5"]))
    kinds = [[exchange.jobs[0].kind for exchange in exchanges] for exchanges in run.exchanges]
    assert kinds == [["query", "train.personal", "evaluate.both"], ["train.personal", "evaluate.both"]]
    for client, state in run.client_states.items():
        kept = join(state.groups, state.info["content"])
        assert kept["seen"]["messages"] == 5  # one query, two trainings, two evaluations
        mine = kept["mine"]["v"].numpy()
        assert mine.dtype == np.float64 and np.all(mine > 2 * client) and np.all(mine < 2 * client + 2)
    assert set(run.strategy.evaluation(run.state)) == {"both/distance"}
    from stateful import client_app  # type: ignore[import-not-found]

    assert client_app.ALIVE == []


def workload_of(apps: Path, name: str, **settings: Any) -> FlowerWorkload:
    one = load_app(apps / name, ["clients=3", "node_config.speed=0.5"])
    return build_workload(client_half(one).model_copy(update=settings), one)


def message_job(kind: str, **config: Any) -> Job:
    content = [{"name": "global", "kind": "arrays", "group": MODEL, "order": ["w"]}]
    return Job(
        round=1,
        client=1,
        kind=kind,
        knobs={"flower": {"content": content, "group_id": "", "run_id": 1, "app_decides": False}},
    )


def test_a_reply_keeps_every_record(apps: Path) -> None:
    workload = workload_of(apps, "stateful")
    inputs = {MODEL: Record({MODEL: {"w": np.zeros(3)}})}
    update = do_job(workload, message_job("train.personal"), inputs, None, generator(1, "a"))
    assert set(update.groups) == {"shared", "head"} and update.num_examples == 10
    assert update.metrics["personal/loss"].weight == 10
    assert [update.metrics[f"personal/curve[{place}]"].value for place in (0, 1)] == [0.5, 0.25]
    reply = join(update.groups, update.info["flower"]["content"])
    assert list(reply) == ["shared", "head", "metrics", "stamp"]
    assert reply["metrics"]["curve"] == [0.5, 0.25] and reply["stamp"]["kind"] == "train.personal"
    again = do_job(workload, message_job("train.personal"), inputs, None, generator(1, "a"))
    assert same_arrays(update.groups["shared"], again.groups["shared"])
    other = do_job(workload, message_job("train.personal"), inputs, None, generator(2, "a"))
    assert not same_arrays(update.groups["shared"], other.groups["shared"])
    answered = do_job(workload, message_job("query"), inputs, None, generator(1, "a"))
    assert not answered.metrics, "a query is not training"
    properties = join(answered.groups, answered.info["flower"]["content"])["properties"]
    assert properties["raw"] == b"\x00\xff" and properties["alive"] == 1


def test_what_handlers_raise_goes_through(apps: Path) -> None:
    workload = workload_of(apps, "stateful")
    inputs = {MODEL: Record({MODEL: {"w": np.zeros(3)}})}
    with pytest.raises(ZeroDivisionError, match="own bug"):
        do_job(workload, message_job("train.broken"), inputs, None, generator(1, "a"))
    with pytest.raises(ValueError, match="No train function registered with name 'absent'"):
        do_job(workload, message_job("train.absent"), inputs, None, generator(1, "a"))
    answers_error = flwr.ClientApp()

    def train(message: Any, context: Any) -> Any:
        return flwr.reply(flwr.Error(7, "not today"), message)

    answers_error.train()(train)
    refusing = FlowerWorkload(answers_error, workload._config, 3)
    with pytest.raises(ClientFailed, match=r"client 1, round 1, train: .* error 7: not today"):
        do_job(refusing, message_job("train"), inputs, None, generator(1, "a"))


def test_arrays_that_our_strategies_cannot_average_are_named(apps: Path) -> None:
    answers_words = flwr.ClientApp()

    def train(message: Any, context: Any) -> Any:
        arrays = flwr.ArrayRecord({"w": flwr.Array(np.zeros(2)), "words": flwr.Array(np.array(["a", "b"]))})
        return flwr.reply(flwr.RecordDict({"learned": arrays}), message)

    answers_words.train()(train)
    workload = FlowerWorkload(answers_words, workload_of(apps, "stateful")._config, 3)
    inputs = {MODEL: Record({MODEL: {"w": np.zeros(2)}})}
    with pytest.raises(BadUpdate, match=r"client 1, round 4: arrays \['words'\] of record 'learned' have an encoding"):
        do_job(workload, Job(round=4, client=1), inputs, None, generator(1, "a"))


def test_our_own_strategy_trains_a_flower_app(apps: Path, run_app: Any) -> None:
    app = load_app(apps / "quickstart")
    table = app.workload.model_dump() | {"initial_arrays": "quickstart.task:Net"}
    one = Experiment.parse({"rounds": 1, "clients": 4, "strategy": "fedavg", "workload": table})
    workload = build_workload(client_half(one), one)
    initial = workload.init(generator(1, "init"))
    job = Job(round=1, client=2, knobs={"lr": 0.1})
    update = do_job(workload, job, {MODEL: initial}, None, generator(1, "b"))
    assert list(update.groups) == [MODEL] and update.num_examples == 240
    assert same_arrays(initial.groups[MODEL], workload.init(generator(1, "init")).groups[MODEL])
    median = {"name": "flower", "class": "FedMedian", "train_config": {"lr": 0.1}}
    run = run_app(Experiment.parse({"rounds": 1, "clients": 4, "strategy": median, "workload": table}))
    assert set(run.strategy.evaluation(run.state)) == {"eval_loss", "eval_acc"}
    assert len(run.exchanges[0]) == 2 and run.exchanges[0][1].jobs[0].kind == "evaluate"


def test_client_side_clipping_needs_its_mod(apps: Path, run_app: Any, tmp_path: Path) -> None:
    """With the mod in the app, the wrapper works; each update is then at most `clipping_norm` long."""
    folder = tmp_path / "clipped"
    shutil.copytree(apps / "quickstart", folder)
    module = folder / "quickstart" / "client_app.py"
    module.write_text(
        module.read_text(encoding="utf-8")
        .replace("app = ClientApp()", "from flwr.clientapp.mod import fixedclipping_mod\n\napp = ClientApp()")
        .replace("@app.train()", "@app.train(mods=[fixedclipping_mod])"),
        encoding="utf-8",
    )
    table = load_app(folder).workload.model_dump() | {"initial_arrays": "quickstart.task:Net"}
    wrapper = {"name": "client_fixed_clipping", "options": {"noise_multiplier": 0.0, "clipping_norm": 0.01}}
    strategy = {"name": "flower", "class": "FedAvg", "wrapper": wrapper, "train_config": {"lr": 0.1}}
    run = run_app(Experiment.parse({"rounds": 1, "clients": 2, "workload": table, "strategy": strategy}))
    start = run.exchanges[0][0].inputs[MODEL].groups[MODEL]
    moved = np.sqrt(sum(np.sum((run.state.model[name] - start[name]).astype(float) ** 2) for name in start))
    assert 0.0 < moved <= 0.01 + 1e-6


def edited(apps: Path, tmp_path: Path, file: str, old: str, new: str) -> Path:
    folder = tmp_path / "app"
    shutil.copytree(apps / "quickstart", folder)
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[tool.flwr.app.components]", "[tool.flwr.app.pieces]", "needs serverapp"),
        ('clientapp = "quickstart.client_app:app"', "", "needs clientapp"),
        ("[tool.flwr.app", "[tool.other.app", r"no table \[tool.flwr.app\]"),
        ("[project]", "[project", "not valid TOML"),
    ],
)
def test_broken_manifests_are_named(old: str, new: str, says: str, apps: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load_app(edited(apps, tmp_path, "pyproject.toml", old, new))


def test_a_folder_without_an_app(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pyproject.toml"):
        load_app(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "error", "says"),
    [
        ("quickstart/client_app.py", "app = ClientApp()", "app = 3", ConfigError, "got int|cannot be loaded"),
        ("quickstart/task.py", "import torch\n", "import torch, no_such_library\n", ConfigError, "no_such_library"),
        (
            "quickstart/server_app.py",
            "strategy = FedAvg(",
            "raise KeyError('lost')\n    FedAvg(",
            RunFailed,
            "KeyError",
        ),
        (
            "quickstart/server_app.py",
            "fraction_evaluate=",
            "min_train_nodes=9, min_available_nodes=9, fraction_evaluate=",
            UnsupportedFeature,
            "waits for more nodes than there are: this run has 4 clients",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(
    file: str, old: str, new: str, error: type[Exception], says: str, apps: Path, tmp_path: Path, run_app: Any
) -> None:
    with pytest.raises(error, match=says):
        run_app(load_app(edited(apps, tmp_path, file, old, new)))


def test_the_servers_settings_are_checked(apps: Path, run_app: Any) -> None:
    with pytest.raises(UnsupportedFeature, match="fraction-train"):
        run_app(load_app(apps / "quickstart", ["cohort=2"]))
    one = load_app(apps / "quickstart")
    from fedloom.core.config import PluginSettings
    from fedloom.strategies.flower_app.strategy import build_strategy

    with pytest.raises(UnsupportedFeature, match="workload 'image_classification'"):
        build_strategy(
            server_half(one), one.model_copy(update={"workload": PluginSettings(name="image_classification")})
        )


def test_a_batch_has_one_message_for_each_known_node() -> None:
    fine = flwr.RecordDict({"config": flwr.ConfigRecord({})})
    first, second, other = (flwr.instruction(fine, client, "train") for client in (0, 0, 1))
    assert [list(batch.messages) for batch in waves([first, second, other], [0, 1])] == [[0, 1], [0]]
    with pytest.raises(UnsupportedFeature, match="two messages"):
        Batch([first, second], [0])
    with pytest.raises(UnsupportedFeature, match="not one of this round's"):
        Batch([flwr.instruction(fine, 5, "train")], [0])


def hidden_size(net: object) -> int:
    """Outputs of the layer `hidden` of a model's class."""
    assert callable(net)
    made = net()
    assert isinstance(made, torch.nn.Module)
    hidden = made.get_submodule("hidden")
    assert isinstance(hidden, torch.nn.Linear)
    return hidden.out_features


def test_one_app_at_a_time(apps: Path, tmp_path: Path) -> None:
    """Two folders with a package of the same name do not mix."""
    other = edited(
        apps, tmp_path, "quickstart/task.py", "self.hidden = nn.Linear(64, 32)", "self.hidden = nn.Linear(64, 16)"
    )
    first = app_folders.load_component(apps / "quickstart", "quickstart.task:Net", "x")
    second = app_folders.load_component(other, "quickstart.task:Net", "x")
    assert hidden_size(first) == 32 and hidden_size(second) == 16


@pytest.mark.parametrize(
    "content",
    [
        {"a": ("arrays", {"x": np.arange(6, dtype=">i4").reshape(2, 3), "y": np.array(2 + 1j), "z": np.float64(3.0)})},
        {"m": ("metrics", {"i": 2**60, "f": 0.1, "l": [1.5, 2.5], "e": 1e-320})},
        {"c": ("config", {"b": b"\x00", "bs": [b"a", b""], "t": True, "s": "ä", "ss": ["x"], "i": [1, 2], "f": 1.0})},
    ],
)
def test_records_come_back_exactly(content: Any) -> None:
    kinds = {"metrics": flwr.MetricRecord, "config": flwr.ConfigRecord}
    record = flwr.RecordDict(
        {
            name: to_array_record(values) if kind == "arrays" else kinds[kind](values)
            for name, (kind, values) in content.items()
        }
    )
    import json

    groups, described = split(record)
    back = join(groups, json.loads(json.dumps(described)))
    assert back == record
    for name, (kind, values) in content.items():
        for key, value in values.items():
            if kind != "arrays":
                assert type(back[name][key]) is type(value)


def test_a_component_may_be_an_installed_module_but_not_what_that_imported(
    apps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Server and node allow modules by name before; the loader takes the module's own objects alone."""
    (tmp_path / "site_models_of_tests.py").write_text("import os\ndef make():\n    return 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = apps / "quickstart"
    found = app_folders.load_component(folder, "site_models_of_tests:make", "workload.initial_arrays")
    assert callable(found) and found() == 1
    for component in ("site_models_of_tests:os.abort", "site_models_of_tests:os", "os:abort", "this:x", "no_such:x"):
        with pytest.raises(ConfigError, match=r"workload\.initial_arrays"):
            app_folders.load_component(folder, component, "workload.initial_arrays")
