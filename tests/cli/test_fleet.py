from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedloom.cli import main
from fedloom.client import app as client_app
from fedloom.client import control as control_module
from fedloom.client import supervisor
from fedloom.client.control import NodeRow, RunRow
from fedloom.core.config import Experiment
from fedloom.core.errors import ServerUnreachable
from fedloom.core.events import Notice, RunFinished
from fedloom.core.history import RunSummary
from fedloom.core.protocols import Sink
from fedloom.core.provenance import SubmittedCode
from fedloom.server import standing
from fedloom.server.store.run_store import event_json

SERVER = ["--server", "10.0.0.1:7070"]


class FakeControl:
    """Stands where `client.control.ControlClient` does; what it was asked is in `asked`."""

    asked: list[Any]
    status = "done"
    ends_early = False
    run_rows: Sequence[RunRow] = ()
    node_rows: Sequence[NodeRow] = ()

    def __init__(self, server: str, *, token: str = "") -> None:
        if server == "10.0.0.9:1":
            raise ServerUnreachable(f"no server answers at {server}")
        self.asked.append(("connect", server, token))

    def __enter__(self) -> FakeControl:
        return self

    def __exit__(self, *exc: object) -> None:
        self.asked.append("close")

    def submit(self, experiment: Experiment, say: Callable[[str], None], code: SubmittedCode | None) -> str:
        assert code is not None
        say("it waits for a node")
        self.asked.append(experiment)
        return "r7"

    def runs(self) -> Sequence[RunRow]:
        return self.run_rows

    def nodes(self) -> Sequence[NodeRow]:
        return self.node_rows

    def stop(self, run_id: str) -> str:
        self.asked.append(("stop", run_id))
        return "running"

    def watch(self, run_id: str) -> Iterator[dict[str, Any]]:
        yield event_json(Notice(run_id=run_id, message="it goes on"))
        if not self.ends_early:
            yield event_json(RunFinished(run_id=run_id, summary=self.summary(run_id)))

    def summary(self, run_id: str) -> RunSummary:
        return RunSummary(
            run_id=run_id, run_dir=None, name="x", status=self.status, rounds=3, metrics={}, bytes_up=1, bytes_down=1,
            params_up=1, params_down=1, wire_bytes_up=1, wire_bytes_down=1, seconds=1, model_sha256=None,
            num_parameters=1, seed=1, group_size=1, runtime="fleet", workers=1, failures=0, error="3 of 5 answered",
        )  # fmt: skip


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> type[FakeControl]:
    kind = type("Control", (FakeControl,), {"asked": []})
    monkeypatch.setattr(control_module, "ControlClient", kind)
    return kind


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("s3cret\n", encoding="utf-8")
    return tmp_path / "token"


def test_an_experiment_is_queued(
    control: type[FakeControl], tmp_path: Path, token_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.toml").write_text(
        'rounds = 1\nstrategy = "fedavg"\nworkload = "image_classification"\n', encoding="utf-8"
    )
    arguments = ["submit", str(tmp_path / "x.toml"), *SERVER, "--set", "rounds=5", "--token-file", str(token_file)]
    assert main(arguments) == 0
    assert control.asked == [
        ("connect", "10.0.0.1:7070", "s3cret"),
        Experiment.load(tmp_path / "x.toml", ["rounds=5"]),
        "close",
    ]
    assert capsys.readouterr() == ("r7\n", "it waits for a node\n")


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_runs_are_a_table(control: type[FakeControl], capsys: pytest.CaptureFixture[str]) -> None:
    control.run_rows = [
        RunRow(run_id="[red]r1", name="x", owner="ann", status="failed", rounds_done=3, rounds=9, error="why\nmore")
    ]
    assert main(["runs", *SERVER]) == 0
    assert words(capsys.readouterr().out) == [
        ["run", "name", "owner", "status", "rounds", "error"],
        ["[red]r1", "x", "ann", "failed", "3/9", "why", "more"],
    ]


def test_nodes_are_a_table(control: type[FakeControl], capsys: pytest.CaptureFixture[str]) -> None:
    control.node_rows = [
        NodeRow(node="pi-3", state="online", facts={"cpus": 4}, wire_bytes_down=2000, wire_bytes_up=1000,
                groups_done=1234, last_seen_s=0.5, labels={"site": "lab"})
    ]  # fmt: skip
    assert main(["nodes", *SERVER]) == 0
    assert " ".join(capsys.readouterr().out.split()) == (
        "node state groups up down last seen labels facts pi-3 online 1,234 1.00 kB 2.00 kB 0.50 s ago site=lab cpus 4"
    )


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("failed", 1), ("interrupted", 130)])
def test_a_watched_run_decides_the_exit_code(
    control: type[FakeControl], capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    control.status = status
    assert main(["watch", "r7", *SERVER, "--json"]) == code
    shown = capsys.readouterr()
    assert json.loads(shown.out)["status"] == status
    assert "it goes on" in shown.err


def test_a_stream_that_breaks_off_is_a_failure(control: type[FakeControl], capsys: pytest.CaptureFixture[str]) -> None:
    control.ends_early = True
    assert main(["watch", "r7", *SERVER]) == 1
    assert "the stream of run 'r7' ended before the run did" in capsys.readouterr().err


def test_a_run_is_stopped(control: type[FakeControl], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "r7", *SERVER]) == 0
    assert ("stop", "r7") in control.asked
    assert capsys.readouterr().out == "r7 was running\n"


def test_an_unreachable_server_is_said_to_be_so(control: type[FakeControl], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes", "--server", "10.0.0.9:1"]) == 1
    assert capsys.readouterr().err == "fedloom: no server answers at 10.0.0.9:1\n"


def test_a_server_is_started_with_the_options_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[standing.ServerSettings] = []

    def serve(
        settings: standing.ServerSettings,
        sinks: Sequence[Sink],
        *,
        on_ready: Callable[[str], None],
        on_finished: Callable[[Path], None],
    ) -> None:
        asked.append(settings)
        on_ready("0.0.0.0:9000")
        (tmp_path / "experiment.toml").write_text("rounds = 1\n", encoding="utf-8")
        on_finished(tmp_path)

    monkeypatch.setattr(standing, "serve", serve)
    assert main(["serve", "--host", "0.0.0.0", "--port", "9000", "--state", str(tmp_path), "--metrics-port", "9100",
                 "--insecure", "--insecure", "--token-file", str(token_file)]) == 0  # fmt: skip
    assert asked == [
        standing.ServerSettings(host="0.0.0.0", port=9000, state=tmp_path, metrics_port=9100, token="s3cret")
    ]
    shown = capsys.readouterr().out
    assert "listening on 0.0.0.0:9000" in shown
    assert f"report: {tmp_path}/report.html" in shown


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `fedloom client` work in the test's own process, not in a child."""
    monkeypatch.setattr(supervisor, "supervised", contextlib.nullcontext)


def test_a_client_is_started_with_the_options_given(monkeypatch: pytest.MonkeyPatch, token_file: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(client_app, "run_client", lambda *args, **kwargs: asked.append((args, kwargs)))
    assert main(["client", *SERVER, "--name", "pi-3", "--token-file", str(token_file)]) == 0
    assert asked == [(("10.0.0.1:7070",), {"name": "pi-3", "token": "s3cret", "proxy": "", "node_values": {}})]


@pytest.mark.parametrize("content", ["", "two words\n", "a\nb\n"])
def test_a_token_file_holds_one_word(
    control: type[FakeControl], token_file: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    token_file.write_text(content, encoding="utf-8")
    assert main(["nodes", *SERVER, "--token-file", str(token_file)]) == 2
    assert "expected one word, the token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nodes"], "Join a server first: fedloom join - <TOKEN-FILE"),
        (["client"], "Join a server first: fedloom join - <TOKEN-FILE"),
        (["nodes", "--token-file", __file__], "--token-file needs --server"),
        (["client", "--name", "x"], "--name and --token-file need --server"),
        (["serve", "--insecure", "--host", "0.0.0.0"], "repeat --insecure"),
        (["serve", "--token-file", __file__], "members join with `fedloom token create`"),
        (["join", "nonsense"], "expected a join token"),
        (["token", "create", "--name", "x", "--ttl", "soon"], "Join a server first"),
        (["nodes", *SERVER, "--token-file", "/nowhere/token"], "'/nowhere/token' does not exist"),
        (["serve", "--port", "70000"], "70000"),
        (["watch", *SERVER], "Missing argument 'RUN'"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_taken_port_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        call = [sys.executable, "-m", "fedloom", "serve", "--port", str(port), "--state", str(tmp_path / "state")]
        plain = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
        ended = subprocess.run(call, capture_output=True, encoding="utf-8", timeout=60, env=plain)
    assert ended.returncode == 2
    said = f"fedloom: cannot listen on 127.0.0.1:{port}: the port is in use, or the address is not this machine's."
    assert ended.stderr.startswith(said) and "add_port" not in ended.stderr


@pytest.mark.parametrize(("clients", "notes"), [("3", 1), ('"nodes"', 0)])
def test_data_of_each_node_is_pointed_out_where_clients_are_virtual(
    control: type[FakeControl], tmp_path: Path, capsys: pytest.CaptureFixture[str], clients: str, notes: int
) -> None:
    (tmp_path / "x.toml").write_text(
        f'rounds = 1\nclients = {clients}\nstrategy = "fedavg"\n[workload]\nname = "image_classification"\n'
        'data = { source = "npz", file = "$DATA/x.npz" }\n',
        encoding="utf-8",
    )
    assert main(["submit", str(tmp_path / "x.toml"), *SERVER]) == 0
    said = capsys.readouterr()
    assert said.out == "r7\n"
    assert said.err.count("every node splits its $DATA among 3 virtual clients") == notes


def test_a_users_workload_that_reads_data_of_nodes_is_submitted_untried(
    control: type[FakeControl], tmp_path: Path
) -> None:
    code = (
        "from pathlib import Path\nfrom fedloom.core.config import PluginSettings\n"
        "from fedloom.core.setting_types import DataPath\n"
        'class Config(PluginSettings):\n    file: DataPath = "$DATA/table.csv"\n'
        "def build_workload(config, experiment):\n    return Path(config.file).read_text()\n"
    )
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    (tmp_path / "x.toml").write_text(
        'rounds = 1\nclients = "nodes"\nstrategy = "fedavg"\nworkload = "./mine.py"\n', encoding="utf-8"
    )
    assert main(["submit", str(tmp_path / "x.toml"), *SERVER]) == 0
    assert [one.of_sites for one in control.asked if isinstance(one, Experiment)] == [True]
