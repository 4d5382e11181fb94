"""`fedloom run SCRIPT.py`: a program that calls `flwr.simulation.run_simulation`."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedloom import api
from fedloom.core.errors import RunFailed, UnsupportedFeature, UsageError
from fedloom.strategies.flower.loader import describes, load

APPS = """
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client_app, server_app = ClientApp(), ServerApp()

class Model:
    step = 2.0

@client_app.train()
def train(message, context):
    import pickle
    model = pickle.loads(pickle.dumps(Model()))
    arrays = ArrayRecord([message.content["arrays"].to_numpy_ndarrays()[0] + model.step])
    return Message(RecordDict({"arrays": arrays, "m": MetricRecord({"num-examples": 1})}), reply_to=message)

@server_app.main()
def main(grid, context):
    FedAvg(fraction_evaluate=0.0).start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=2
    )
"""
OLDER = """
import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

class Client(NumPyClient):
    def fit(self, parameters, config):
        return [parameters[0] + 2.0], 1, {}

def server_fn(context):
    strategy = FedAvg(fraction_evaluate=0.0, initial_parameters=ndarrays_to_parameters([np.zeros(3)]))
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

client_app = ClientApp(client_fn=lambda context: Client().to_client())
server_app = ServerApp(server_fn=server_fn)
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a program; `beside` are modules of its folder."""
    before = list(sys.path)

    def write(text: str, name: str = "sim.py", **beside: str) -> Path:
        for module, content in beside.items():
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(content), encoding="utf-8")
        (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
        return tmp_path / name

    yield write
    sys.path[:] = before


def run(path: Path, *overrides: str) -> Any:
    return api.run(api.load(path, ["runtime.name=inline", *overrides]), keep=False)


CALLS = {
    "by keyword": "import flwr as fl\nfl.simulation.run_simulation(server_app=server_app, client_app=client_app, "
    "num_supernodes=3)",
    "by place": "from flwr.simulation import run_simulation\nrun_simulation(server_app, client_app, 3)",
    "another name": "from flwr.simulation import run_simulation as go\ngo(server_app, client_app, num_supernodes=3)",
    "its own module": "from flwr.simulation.run_simulation import run_simulation\n"
    "run_simulation(server_app, client_app, 3, 'ray', {'client_resources': {'num_cpus': 1}})",
    "under the guard": "import flwr.simulation\nif __name__ == '__main__':\n    flwr.simulation.run_simulation(\n"
    "        server_app, client_app, num_supernodes=np.int64(3), backend_config={'init_args': {}},\n"
    "        verbose_logging=True)",
    "in a function": "from flwr.simulation import run_simulation\ndef begin(count):\n"
    "    run_simulation(server_app, client_app, count)\nif __name__ == '__main__':\n    begin(3)",
    "with arguments": "import argparse\nfrom flwr.simulation import run_simulation\np = argparse.ArgumentParser()\n"
    "p.add_argument('--count', type=int, default=3)\nrun_simulation(server_app, client_app, p.parse_args().count)",
    "in one of two branches": "from flwr.simulation import run_simulation\nif False:\n"
    "    run_simulation(server_app, client_app, 9, backend_config={'client_resources': {'num_gpus': 1}})\n"
    "else:\n    run_simulation(server_app, client_app, 3)",
}


@pytest.mark.parametrize("apps", [APPS, OLDER], ids=["messages", "older"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_of_any_form_runs_its_apps(write: Write, apps: str, call: str) -> None:
    program = write(apps + CALLS[call])
    assert load(program).num_clients == 3
    result = run(program)
    (array,) = result.arrays.values()
    assert array.tolist() == [4.0, 4.0, 4.0], "two rounds of + 2"


def test_apps_in_modules_beside_the_program_and_processes_agree(
    write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    program = write(
        """
        import numpy as np
        from flwr.simulation import run_simulation
        from parts_of_programs import client_app, server_app
        print("WEIGHTS", np.random.rand())
        run_simulation(server_app=server_app, client_app=client_app, num_supernodes=2)
        """,
        parts_of_programs=APPS,
    )
    one = run(program)
    spread = api.run(api.load(program, ["runtime.name=process", "runtime.workers=2"]), keep=False)
    assert one.summary.model_sha256 == spread.summary.model_sha256
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("WEIGHTS")]
    assert len(said) == 2 and len(set(said)) == 1, (
        "shown once for each run, not for each agent; the generators are seeded"
    )


def test_what_follows_the_call_is_done_after_the_run(write: Write, tmp_path: Path) -> None:
    text = APPS.replace("FedAvg(", "result = FedAvg(").replace(
        "num_rounds=2\n    )", "num_rounds=2\n    )\n    seen.append(float(result.arrays.to_numpy_ndarrays()[0][0]))"
    )
    after = "from pathlib import Path\nPath(__file__).with_name('seen.txt').write_text(str(seen))"
    program = write(
        f"seen = []\n{text}\nfrom flwr.simulation import run_simulation\n"
        f"run_simulation(server_app, client_app, 2)\n{after}"
    )
    load(program)
    assert not (tmp_path / "seen.txt").exists(), "it waits at its call"
    assert run(program).summary.status == "done"
    assert (tmp_path / "seen.txt").read_text(encoding="utf-8") == "[4.0]"


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ("raise ValueError('no plot')", r"after run_simulation, sim\.py, line \d+: ValueError: no plot"),
        ("run_simulation(server_app, client_app, 5)", "called a second time"),
    ],
)
def test_what_follows_the_call_and_fails_is_named(write: Write, after: str, says: str) -> None:
    call = "from flwr.simulation import run_simulation\nrun_simulation(server_app, client_app, 2)"
    with pytest.raises(RunFailed, match=says):
        run(write(f"{APPS}\n{call}\n{after}"))


REFUSED = {
    "no call": ("print('hello')", "found no such call"),
    "never reached": (APPS + "from flwr.simulation import run_simulation", "ended without a call"),
    "a loop": (
        APPS + "from flwr.simulation import run_simulation\nfor n in (2, 3):\n"
        "    run_simulation(server_app, client_app, n)",
        r"line \d+: run_simulation is called in a loop",
    ),
    "start_server": ("import flwr as fl\nfl.server.start_server(server_address='x')", "it calls start_server"),
    "start_simulation": (
        "import flwr as fl\nfrom flwr.simulation import run_simulation\n"
        "fl.simulation.start_simulation(client_fn=None, num_clients=2)",
        "calls flwr's start_simulation, which is not supported",
    ),
    "raises": ("import flwr.simulation\nflwr.simulation.run_simulation\n1 / 0", r"sim\.py, line 3: ZeroDivisionError"),
    "a module that is missing": (
        "import no_such_package_at_all\nfrom flwr.simulation import run_simulation",
        r"line 1: ModuleNotFoundError.*Is everything the program needs installed",
    ),
    "required arguments": (
        "import argparse\nfrom flwr.simulation import run_simulation\np = argparse.ArgumentParser()\n"
        "p.add_argument('data')\np.parse_args()",
        "SystemExit: 2. It is run without arguments",
    ),
    "another app": (
        APPS + "from flwr.simulation import run_simulation\nrun_simulation(client_app, server_app, 2)",
        "server_app: expected a flwr ServerApp, got ClientApp",
    ),
    "no clients": (
        APPS + "from flwr.simulation import run_simulation\nrun_simulation(server_app, client_app, 0)",
        "num_supernodes: expected a number of clients from 1, got 0",
    ),
    "no program": ("def f(:", "cannot be read as a Python program: SyntaxError"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_program_that_is_no_run_is_refused_before_anything_starts(write: Write, what: str) -> None:
    text, says = REFUSED[what]
    with pytest.raises(UsageError, match=says):
        load(write(text))


@pytest.mark.parametrize("name", ["my-fed.sim.py", "mein experiment.py", "été.py", "flwr.py"])
def test_any_name_of_a_program_does(write: Write, name: str, tmp_path: Path) -> None:
    program = write(
        APPS + "from flwr.simulation import run_simulation\nrun_simulation(server_app, client_app, 2)", name
    )
    assert describes(program)
    experiment = api.load(program, ["runtime.name=inline"])
    result = api.run(experiment, out=tmp_path / "run")
    (array,) = result.arrays.values()
    assert array.tolist() == [4.0] * 3


def test_a_program_is_resumed_from_the_runs_copy(write: Write, tmp_path: Path) -> None:
    program = write(
        APPS.replace("num_rounds=2", "num_rounds=context.run_config.get('n', 2)")
        + "from flwr.simulation import run_simulation\nrun_simulation(server_app, client_app, 2)"
    )
    with pytest.raises(RunFailed, match="had not finished"):
        api.run(api.load(program, ["runtime.name=inline", "rounds=1"]), out=tmp_path / "run")
    program.unlink()
    resumed = api.resume(tmp_path / "run", overrides=["rounds=2"])
    (array,) = resumed.arrays.values()
    assert resumed.summary.status == "done" and array.tolist() == [4.0] * 3


@pytest.mark.parametrize("made_in", ["main", "the program"])
def test_secure_aggregation_is_refused_by_name_before_a_message(write: Write, made_in: str) -> None:
    make = "workflow = DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2))"
    lines = ["@server_app.main()", "def main(grid, context):", f"    {make}", "    workflow(grid, legacy(context))"]
    if made_in == "the program":
        lines = [make, *(line for line in lines if make not in line)]
    program = write(
        """
        import numpy as np
        from flwr.client import ClientApp
        from flwr.client.mod import secaggplus_mod
        from flwr.common import ndarrays_to_parameters
        from flwr.server import LegacyContext, ServerApp, ServerConfig
        from flwr.server.strategy import FedAvg
        from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
        from flwr.simulation import run_simulation

        client_app, server_app = ClientApp(client_fn=lambda context: None, mods=[secaggplus_mod]), ServerApp()

        def legacy(context):
            strategy = FedAvg(initial_parameters=ndarrays_to_parameters([np.zeros(3)]))
            return LegacyContext(context=context, config=ServerConfig(num_rounds=1), strategy=strategy)
        """
    )
    with program.open("a", encoding="utf-8") as file:
        file.write("\n".join(["", *lines, "run_simulation(server_app, client_app, 4)", ""]))
    with pytest.raises(UnsupportedFeature, match="SecAggPlusWorkflow, Flower's secure aggregation"):
        run(program)


def test_the_number_of_clients_says_where_it_came_from(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    program = write(APPS + "from flwr.simulation import run_simulation\nrun_simulation(server_app, client_app, 3)")
    with caplog.at_level("INFO"):
        load(program)
        load(program, ["clients=2"])
    assert "3 clients, as the app says" in caplog.text and "2 clients, by the setting `clients`" in caplog.text
