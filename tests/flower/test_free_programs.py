"""An app's `main` is a free program: what it sends goes out, it ends the run, what it measures is shown."""

import logging
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom import api
from fedloom.api import RunResult
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, RunFailed, UnsupportedFeature
from fedloom.strategies.flower.loader import load

MANIFEST = """
[project]
name = "made-up"
[tool.flwr.app.components]
serverapp = "{name}_server:app"
clientapp = "{name}_client:app"
[tool.flwr.app.config]
num-server-rounds = 3
broken = -1
least = 2
"""
SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg, Result

app = ServerApp()

def all_nodes(grid, kind, **records):
    ids = sorted(grid.get_node_ids())
    return [Message(RecordDict(records), dst_node_id=node, message_type=kind) for node in ids]
"""
CLIENT = """
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
"""
PLUS_ONE = """
@app.train()
def train(message, context):
    number = context.node_config["partition-id"]
    if number == context.run_config.get("broken", -1):
        raise RuntimeError("the sensor is broken")
    arrays = ArrayRecord([message.content["arrays"].to_numpy_ndarrays()[0] + 1])
    metrics = MetricRecord({"loss": 1.0 + number, "num-examples": 1 + number, "per_class": [0.25, 0.5]})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"loss": 3.0, "num-examples": 5})}), reply_to=message)
"""
Make = Callable[..., Path]
RunApp = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write an app; its modules have names of its own, since a process forgets none of another test's."""

    def make(name: str, main: str, client: str = PLUS_ONE) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pyproject.toml").write_text(MANIFEST.format(name=name), encoding="utf-8")
        (folder / f"{name}_server.py").write_text(SERVER + textwrap.dedent(main), encoding="utf-8")
        (folder / f"{name}_client.py").write_text(CLIENT + textwrap.dedent(client), encoding="utf-8")
        return folder

    return make


def run(folder: Path, *overrides: str) -> RunResult:
    return api.run(load(folder, ["clients=2", "runtime.name=inline", *overrides]), keep=False)


def test_what_is_pushed_and_never_pulled_is_sent_in_order(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(
        "pushing",
        """
        @app.main()
        def main(grid, context):
            for _ in range(3):
                grid.push_messages(all_nodes(grid, "train.note", m=MetricRecord({"add": 1})))
                replies = grid.send_and_receive(all_nodes(grid, "query.total", m=MetricRecord({"add": 0})))
                print("TOTALS", [reply.content["m"]["total"] for reply in replies])
            once_more = [all_nodes(grid, "train.note", m=MetricRecord({"add": 1})) for _ in range(2)]
            twice = grid.push_messages(once_more[0] + once_more[1])
            print("PULLED", len(list(grid.pull_messages(twice))), "and", len(list(grid.pull_messages(twice))))
            grid.push_messages(all_nodes(grid, "train.note", m=MetricRecord({"add": 5})))
            print("RUN", grid.run.run_id == context.run_id)
        """,
        """
        @app.train("note")
        def note(message, context):
            old = context.state["m"]["total"] if "m" in context.state else 0
            context.state["m"] = MetricRecord({"total": old + message.content["m"]["add"]})
            print("NOTED", context.state["m"]["total"])
            return Message(RecordDict({}), reply_to=message)

        @app.query("total")
        def total(message, context):
            return Message(RecordDict({"m": context.state["m"]}), reply_to=message)
        """,
    )
    assert run(folder).summary.status == "done"
    said = [line for line in capsys.readouterr().out.splitlines() if line.isupper() or line[:3].isupper()]
    totals = [line for line in said if line.startswith("TOTALS")]
    assert totals == ["TOTALS [1, 1]", "TOTALS [2, 2]", "TOTALS [3, 3]"], "as under Flower"
    assert "PULLED 4 and 0" in said and "RUN True" in said
    assert [line for line in said if line.startswith("NOTED")][-2:] == ["NOTED 10", "NOTED 10"], "sent before the end"


def test_the_run_ends_when_main_returns(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(
        "stepping",
        """
        @app.main()
        def main(grid, context):
            list(grid.send_and_receive(all_nodes(grid, "train.warmup", m=MetricRecord({"x": 0}))))
            for number in range(context.run_config["num-server-rounds"]):
                for step in ("forward", "backward"):
                    list(grid.send_and_receive(all_nodes(grid, f"train.{step}", m=MetricRecord({"x": 0}))))
            print("MAIN DONE")
        """,
        """
        def answer(loss):
            def handle(message, context):
                return Message(RecordDict({"m": MetricRecord({"loss": loss})}), reply_to=message)
            return handle

        app.train("warmup")(answer(0.5))
        app.train("forward")(answer(1.0))
        app.train("backward")(answer(2.0))
        """,
    )
    result = run(folder, "rounds=4")
    assert "MAIN DONE" in capsys.readouterr().out and result.summary.status == "done"
    shown = [dict(record.metrics) for record in result.history]
    both = {"forward/loss": 1.0, "backward/loss": 2.0}
    assert shown == [{"warmup/loss": 0.5, **both}, both, both, both], "a type's second batch begins a round"


def test_an_app_that_a_limit_cuts_off_has_not_finished(make: Make) -> None:
    folder = make(
        "endless",
        """
        @app.main()
        def main(grid, context):
            while True:
                list(grid.send_and_receive(all_nodes(grid, "train", arrays=ArrayRecord([np.zeros(1)]))))
        """,
    )
    manifest = (folder / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(manifest.replace("num-server-rounds", "patience"), encoding="utf-8")
    with pytest.raises(RunFailed, match=r"stopped after 2 exchanges, the app had not finished.*Raise `rounds`"):
        run(folder, "rounds=2")


def test_records_of_any_kind_arrive_whole(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(
        "carrying",
        """
        @app.main()
        def main(grid, context):
            raw = np.arange(6, dtype="float32").tobytes()
            odd = ArrayRecord({"w": Array(dtype="float32", shape=(6,), stype="numpy.ndarray", data=raw),
                               "z": Array(np.full(3, 1j, np.complex64)), "none": Array("", (0,), "own", b"")})
            config = ConfigRecord({"blob": bytes(range(256)) * 400, "many": [b"", b"ab"], "text": "x"})
            messages = all_nodes(grid, "train", odd=odd, config=config)
            for place, message in enumerate(messages):  # each node's own record under one name
                message.content["own"] = ArrayRecord([np.full(2, float(place))])
            for reply in grid.send_and_receive(messages):
                same = all(reply.content["odd"][name].data == odd[name].data for name in odd)
                print("BACK", same, dict(reply.content["config"]) == dict(config), reply.content["own"]["sum"])
        """,
        """
        @app.train()
        def train(message, context):
            own = float(message.content["own"].to_numpy_ndarrays()[0].sum())
            content = {"odd": message.content["odd"], "config": message.content["config"]}
            return Message(RecordDict({**content, "own": MetricRecord({"sum": own})}), reply_to=message)
        """,
    )
    result = run(folder)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("BACK")] == [
        "BACK True True 0.0",
        "BACK True True 2.0",
    ]
    blob = 256 * 400
    (record,) = result.history
    for sent in (record.traffic.bytes_up, record.traffic.bytes_down):
        assert 2 * blob < sent < 2 * blob * 1.02, "bytes are sent once, as bytes, and counted"


START = """
        @app.main()
        def main(grid, context):
            strategy = FedAvg(min_available_nodes=2, min_train_nodes=1, min_evaluate_nodes=1)
            result = strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=2)
            print("TRAIN", dict(result.train_metrics_clientapp[2]))
"""


def test_training_and_evaluation_are_measured_apart(make: Make) -> None:
    last = run(make("folding", START)).history[-1]
    trained = {"loss": (1 * 1.0 + 2 * 2.0) / 3, "per_class[0]": 0.25, "per_class[1]": 0.5}
    assert dict(last.metrics) == pytest.approx(trained)
    assert last.evaluation == {"loss": 3.0}


@pytest.mark.parametrize("api_name", ["messages", "older"])
def test_an_error_of_a_client_is_the_apps_business(
    make: Make, capsys: pytest.CaptureFixture[str], api_name: str
) -> None:
    folder = make("failing", START) if api_name == "messages" else older(make)
    result = run(folder, "run_config.broken=0", "clients=3")
    assert result.summary.status == "done" and len(result.history) >= 2
    assert result.history[-1].info["errors"] == 1.0
    if api_name == "messages":  # clients 1 and 2 with 2 and 3 examples, losses 2 and 3
        said = capsys.readouterr().out
        assert float(said.partition("TRAIN {'loss': ")[2].partition(",")[0]) == pytest.approx((2 * 2.0 + 3 * 3.0) / 5)
    with pytest.raises(Exception, match="the sensor is broken"):
        run(folder, "run_config.broken=0", "clients=3", "round.quorum_fraction=1.0")


def test_who_decides_about_errors_survives_the_file_of_a_run(make: Make) -> None:
    """A resumed or submitted run is read with all its defaults written out."""
    folder = make("surviving", START)
    for overrides, decides in (
        ([], True),
        (["round.quorum_fraction=1.0"], False),
        (["strategy.errors=failures"], False),
    ):
        one = load(folder, overrides)
        again = Experiment.parse(one.to_dict())
        assert one.strategy.decides_about_failures() is again.strategy.decides_about_failures() is decides


def older(make: Make) -> Path:
    """An app of the API before messages."""
    folder = make("older", "")
    (folder / "older_server.py").write_text(
        textwrap.dedent("""
        from flwr.server import ServerApp, ServerAppComponents, ServerConfig
        from flwr.server.strategy import FedAvg

        def mean(rows):
            return {"accuracy": sum(n * row["accuracy"] for n, row in rows) / sum(n for n, _ in rows)}

        def server_fn(context):
            strategy = FedAvg(
                fraction_fit=1.0, min_fit_clients=2, min_available_clients=context.run_config.get("least", 2),
                on_fit_config_fn=lambda number: {"step": 0.5 * number},
                evaluate_fn=lambda number, arrays, config: (float(arrays[0].sum()), {"number": number}),
                evaluate_metrics_aggregation_fn=mean,
            )
            return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=3))

        app = ServerApp(server_fn=server_fn)
        """),
        encoding="utf-8",
    )
    (folder / "older_client.py").write_text(
        textwrap.dedent("""
        import numpy as np
        from flwr.client import ClientApp, NumPyClient

        class Client(NumPyClient):
            def __init__(self, number, broken):
                self.number, self.broken = number, broken

            def get_parameters(self, config):
                return [np.zeros(2, np.float32)]

            def fit(self, parameters, config):
                if self.number == self.broken:
                    raise RuntimeError("the sensor is broken")
                step = config["step"] * (1 + self.number)
                return [parameters[0] + step], 1 + self.number, {"seen": float(self.number)}

            def evaluate(self, parameters, config):
                return float(parameters[0][0]), 4, {"accuracy": 0.5 + self.number / 4}

        def client_fn(context):
            return Client(context.node_config["partition-id"], context.run_config.get("broken", -1)).to_client()

        app = ClientApp(client_fn=client_fn)
        """),
        encoding="utf-8",
    )
    return folder


def test_the_older_api_has_the_numbers_it_has_under_flower(make: Make) -> None:
    result = run(older(make))
    # Clients of 1 and 2 examples add step and 2 step, so each round adds (1·1 + 2·2)/3 · step = 5/3 · number/2.
    wanted = np.float32(0)
    for number in (1, 2, 3):
        wanted += 5 / 3 * 0.5 * number
    (array,) = result.arrays.values()
    np.testing.assert_allclose(array, [wanted, wanted], rtol=1e-6)
    evaluations = [record.evaluation for record in result.history]
    assert len(evaluations) == 3 and evaluations[-1] is not None
    # `loss` is the server's own (the sum of two elements), the clients' of that name (one element) is beside it.
    expected = {"loss": 2 * wanted, "clients_loss": wanted, "accuracy": 0.625, "number": 3.0}
    assert dict(evaluations[-1]) == pytest.approx(expected, rel=1e-6)
    assert dict(result.history[-1].metrics) == {"seen": pytest.approx((0 * 1 + 1 * 2) / 3)}


def test_the_older_api_has_the_same_bits_in_processes_and_after_a_resume(make: Make, run_app: RunApp) -> None:
    folder = older(make)
    whole = run(folder)
    spread = api.run(load(folder, ["clients=2", "runtime.name=process", "runtime.workers=2"]), keep=False)
    assert spread.summary.model_sha256 == whole.summary.model_sha256
    one = load(folder, ["clients=2"])
    resumed, unbroken = run_app(one, resume_after=1), run_app(one)
    states = [dict(each.strategy.arrays(each.state)) for each in (resumed, unbroken)]
    assert [array.tobytes() for array in states[0].values()] == [array.tobytes() for array in states[1].values()]


def test_waiting_for_clients_that_never_come_is_refused(make: Make) -> None:
    with pytest.raises(UnsupportedFeature, match="waits for 9 clients, this run has 2"):
        run(older(make), "run_config.least=9")


OWN_START = """
        class Mine(FedAvg):
            def start(self, grid, initial_arrays, num_rounds=3, timeout=3600, train_config=None,
                      evaluate_config=None, evaluate_fn=None):
                result, arrays = Result(), initial_arrays
                if evaluate_fn:
                    evaluate_fn(0, arrays)
                for number in range(1, num_rounds + 1):
                    replies = grid.send_and_receive(self.configure_train(number, arrays, ConfigRecord(), grid))
                    arrays, metrics = self.aggregate_train(number, replies)
                    evaluate_fn(number, arrays)
                result.arrays = arrays
                return result

        @app.main()
        def main(grid, context):
            Mine(fraction_evaluate=0.0).start(
                grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=3,
                evaluate_fn=lambda number, arrays: MetricRecord({"accuracy": number / 10}),
            )
"""


def test_a_start_of_the_apps_own_is_watched(make: Make) -> None:
    result = run(make("own_start", OWN_START))
    (array,) = result.arrays.values()
    assert array.tolist() == [3, 3, 3], "the model of the last aggregation, not the one sent before it"
    assert [record.evaluation for record in result.history] == [{"accuracy": 0.1}, {"accuracy": 0.2}, {"accuracy": 0.3}]


def test_the_apps_own_log_is_shown_and_flowers_chatter_is_not(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    main = START.replace("            print(", "            log(INFO, 'RESULT is %s', 42)\n            print(")
    folder = make("logging_app", "from logging import INFO\nfrom flwr.common import log\n" + textwrap.dedent(main))
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        run(folder)
    finally:
        logger.removeHandler(caplog.handler)
    lines = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    assert "RESULT is 42" in lines and not [line for line in lines if "configure_train" in line]


def test_a_failing_main_is_named_by_the_apps_own_line(make: Make) -> None:
    folder = make("raising", "@app.main()\ndef main(grid, context):\n    raise KeyError('missing')\n")
    line = (
        (folder / "raising_server.py").read_text(encoding="utf-8").splitlines().index("    raise KeyError('missing')")
    )
    with pytest.raises(RunFailed, match=rf"raising_server\.py, line {line + 1}: .*main.*KeyError: 'missing'"):
        run(folder)


def test_a_number_of_clients_that_nobody_named_is_a_warning(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    assert load(make("unnumbered", START)).num_clients == 10
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "10 clients, by default; the app names no number, change it with --set clients=N")
    ]


def test_a_misspelt_key_of_the_apps_configuration_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"run_config\.num-server-round: .*did you mean .num-server-rounds"):
        load(make("misspelt", START), ["run_config.num-server-round=2"])


@pytest.mark.parametrize("runtime", ["inline", "process"])
@pytest.mark.parametrize("gone", [1, 2])
def test_replies_that_do_not_come_reach_the_app_as_errors(
    make: Make, capsys: pytest.CaptureFixture[str], runtime: str, gone: int
) -> None:
    """A handler that ends its process sends no reply; the app goes on, even where none of the clients replies."""
    folder = make(
        f"leaving_{runtime}_{gone}",
        """
        @app.main()
        def main(grid, context):
            for _ in range(2):
                replies = grid.send_and_receive(all_nodes(grid, "train", m=MetricRecord({"x": 0})))
                print("CODES", sorted(reply.error.code if reply.has_error() else 0 for reply in replies))
        """,
        f"""
        @app.train()
        def train(message, context):
            if context.node_config["partition-id"] < {gone}:
                raise SystemExit(3)
            return Message(RecordDict({{"m": MetricRecord({{"loss": 1.0}})}}), reply_to=message)
        """,
    )
    result = run(folder, f"runtime.name={runtime}")
    assert result.summary.status == "done" and [record.info["errors"] for record in result.history] == [gone, gone]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CODES")]
    assert said == [f"CODES {[0] * (2 - gone) + [4] * gone}"] * 2
    assert all(len(record.failures) == gone for record in result.history), "the round names them, too"


def test_each_client_of_a_simulation_may_have_values_of_its_own(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(
        "valued",
        """
        @app.main()
        def main(grid, context):
            for reply in grid.send_and_receive(all_nodes(grid, "query", m=MetricRecord({"x": 0}))):
                print("GOT", dict(reply.content["c"]))
        """,
        """
        @app.query()
        def query(message, context):
            return Message(RecordDict({"c": ConfigRecord(dict(context.node_config))}), reply_to=message)
        """,
    )
    run(folder, 'node_config=[{path="/a"},{path="/b"}]')
    wanted = [f"GOT {{'partition-id': {n}, 'num-partitions': 2, 'path': '/{'ab'[n]}'}}" for n in (0, 1)]
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("GOT")] == wanted
    with pytest.raises(ConfigError, match="expected one table for each of 2 clients, got a list of 1"):
        run(folder, 'node_config=[{path="/a"}]')
