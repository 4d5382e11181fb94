"""Sites that have really joined: mutual TLS, policies, processes and data folders of their own, kills and restarts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shell import Shell

from fedloom.testing.fleet import wait_until

pytestmark = pytest.mark.slow
WORKLOADS = ("image_classification", "spiking_classification")
SIZES = {"east": 90, "north": 60, "west": 120}
DATA = '[workload.data]\nsource = "npz"\nfile = "$DATA/x.npz"\n'
IMAGES = f'[workload]\nname = "image_classification"\nmodel = {{ name = "mlp", hidden = [16, 8] }}\n{DATA}'
SPIKES = (
    f'[workload]\nname = "spiking_classification"\ntime_steps = 4\nmodel = {{ name = "mlp", hidden = [16] }}\n{DATA}'
)
LOW_RANK = 'targets = ["1", "3"]\nrank_max = 4\nrank_min = 2\ninitiating_rounds = 1\n'
EXPERIMENTS = {"fedavg": ("", IMAGES), "sfedca": ("", SPIKES), "sa_fedlora": (LOW_RANK, IMAGES)}
AS_ADMIN = ("--identity", "state/admin")


def text(name: str, rounds: int = 3, cohort: int | None = None, more: str = "", fine_tune: int = 0) -> str:
    strategy, workload = EXPERIMENTS[name]
    sampled = "" if cohort is None else f"cohort = {cohort}\n"
    head = f'name = "{name}"\nrounds = {rounds}\nclients = "nodes"\n{sampled}[round]\nmin_sites = 3\n{more}'
    tuned = f"[evaluation]\nfine_tune = {fine_tune}\n" if fine_tune else ""
    return f'{head}{tuned}[strategy]\nname = "{name}"\n{strategy}{workload}'


class Federation:
    """A server and its sites, each with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shells: list[Shell] = []
        self.server = self._shell("server")
        self.program, self.port, _ = self.server.serve(0)
        self.sites: dict[str, Any] = {}
        for number, (name, size) in enumerate(SIZES.items()):
            self._join(name, size, number)

    def _shell(self, name: str) -> Shell:
        folder = self.folder / name
        folder.mkdir()
        home = ("env", f"FEDLOOM_CACHE={folder / 'cache'}", f"XDG_CONFIG_HOME={folder / 'config'}", "OMP_NUM_THREADS=1")
        self._shells.append(Shell(folder, home))
        return self._shells[-1]

    def _join(self, name: str, size: int, number: int) -> None:
        shell, rng = self._shell(name), np.random.default_rng(number)
        data = shell.folder / "data"
        data.mkdir()
        y = rng.permutation(np.arange(size) % 3)
        x = rng.integers(0, 60, (size, 8, 8)) + 60 * y[:, None, None]
        np.savez(data / "x.npz", x_train=x.astype(np.uint8), y_train=y, x_test=x[:20].astype(np.uint8), y_test=y[:20])
        token = self.server.run("token", "create", "--name", name, *AS_ADMIN).strip()
        shell.run("join", token, *(f"--allow={workload}={data}" for workload in WORKLOADS))

    def start(self, names: Sequence[str]) -> None:
        """Start sites' agents, in this order."""
        for name in names:
            shell = next(shell for shell in self._shells if shell.folder.name == name)
            self.sites[name] = shell.start("client")
            wait_until(lambda name=name: name in self._online(), 60, f"{name} connecting")  # type: ignore[misc]

    def allow_sharing(self, *names: str) -> None:
        """Let models trained at sites alone be evaluated at others, by their policies."""
        for name in names:
            (policy,) = (self.folder / name).rglob("policy.toml")
            policy.write_text(f"share_local_model = true\n{policy.read_text(encoding='utf-8')}", encoding="utf-8")

    def kill(self, name: str) -> None:
        self.sites[name][0].kill()
        self.sites[name][0].wait()

    def restart_server(self) -> None:
        self.program.kill()
        self.program.wait()
        self.program, _, _ = self.server.serve(int(self.port))

    def submit(self, experiment: str) -> str:
        (self.server.folder / "x.toml").write_text(experiment, encoding="utf-8")
        return self.server.run("submit", "x.toml", *AS_ADMIN).strip().splitlines()[-1]

    def run_folder(self, run_id: str) -> Path:
        return self.server.folder / "state" / "runs" / run_id

    def rounds(self, run_id: str) -> list[Any]:
        path = self.run_folder(run_id) / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def result(self, run_id: str) -> Any:
        summary = self.run_folder(run_id) / "summary.json"
        logs = {name: log.read_text(encoding="utf-8")[-1500:] for name, (_, log) in self.sites.items()}
        wait_until(summary.exists, 240, f"the end of {run_id}; the sites said {logs}")
        found = json.loads(summary.read_text(encoding="utf-8"))
        assert (found["status"], found["error"]) == ("done", None), found
        return found

    def _online(self) -> str:
        lines = self.server.run("nodes", *AS_ADMIN).splitlines()
        return "\n".join(line for line in lines if " online " in line or " busy " in line)

    def close(self) -> None:
        for shell in self._shells:
            shell.close()


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setenv("COLUMNS", "250")
    with contextlib.closing(Federation(tmp_path)) as made:
        yield made


def test_every_strategy_trains_on_each_sites_own_data_with_the_same_bits(federation: Federation) -> None:
    federation.start(["west", "north", "east"])
    want = {}
    for name in EXPERIMENTS:
        run_id = federation.submit(text(name))
        want[name] = federation.result(run_id)["model_sha256"]
        info = json.loads((federation.run_folder(run_id) / "workload.json").read_text(encoding="utf-8"))
        assert [site["site"] for site in info["data"]["sites"]] == sorted(SIZES)
        assert info["client_sizes"] == [SIZES[name] for name in sorted(SIZES)]
        sampled = [record["cohort"] for record in federation.rounds(run_id)]
        assert all(record["num_examples"] == sum(info["client_sizes"][k] for k in cohort)
                   for record, cohort in zip(federation.rounds(run_id), sampled, strict=True))  # fmt: skip
    for name in SIZES:
        federation.kill(name)
    federation.start(["east", "west", "north"])
    runs = {name: federation.submit(text(name)) for name in EXPERIMENTS}
    assert {name: federation.result(run_id)["model_sha256"] for name, run_id in runs.items()} == want


def test_server_and_sites_may_be_killed(federation: Federation) -> None:
    federation.start(["west", "north", "east"])
    long = text("fedavg", rounds=12)
    want = federation.result(federation.submit(long))["model_sha256"]
    run_id = federation.submit(long)
    wait_until(lambda: len(federation.rounds(run_id)) >= 3, 60, "three rounds")
    federation.restart_server()
    assert federation.result(run_id)["model_sha256"] == want, "the sites have waited, and were waited for"
    assert not any(record["failures"] for record in federation.rounds(run_id))

    lossy = federation.submit(text("sfedca", rounds=60).replace("min_sites = 3", "min_sites = 1"))
    wait_until(lambda: len(federation.rounds(lossy)) >= 3, 60, "three rounds")
    federation.kill("north")
    wait_until(lambda: any(record["failures"] for record in federation.rounds(lossy)), 60, "a round without north")
    federation.start(["north"])
    federation.result(lossy)
    records = federation.rounds(lossy)
    assert {failure["client"] for record in records for failure in record["failures"]} == {1}
    assert not records[-1]["failures"] and 1 in records[-1]["cohort"], "the same client, when it is back"
    lines = (federation.run_folder(lossy) / "rosters.jsonl").read_text(encoding="utf-8").splitlines()
    joined = [site["name"] for line in lines for site in json.loads(line)["joined"]]
    assert joined == sorted(SIZES)


def test_models_of_sites_are_compared_where_their_policies_share_them(federation: Federation) -> None:
    federation.allow_sharing("east", "west")
    federation.start(["west", "north", "east"])
    runs = {name: federation.submit(text(name, rounds=2, fine_tune=1)) for name in EXPERIMENTS}
    for name, run_id in runs.items():
        matrix, sections = federation.result(run_id)["cross_sites"], federation.rounds(run_id)[-1]["sections"]
        assert matrix == sections["cross_sites"] and matrix["models"] == ["global", *sorted(SIZES)], name
        plain, tuned = ([one["metrics"] for one in sections[part]["sites"]] for part in ("sites", "sites_fine_tuned"))
        assert len(plain) == len(tuned) == 3, (name, sections)
        for metric, rows in matrix["metrics"].items():
            assert [row[0] for row in rows] == [one[metric] for one in plain]
            assert [row[2] for row in rows] == ["n/a"] * 3, "north does not share its model"
            own = [rows[0][1], rows[2][3]]  # the models of east and west at home: the global one, trained there
            assert own == [tuned[0][metric], tuned[2][metric]], (name, metric)
        assert "loss" in matrix["metrics"]
