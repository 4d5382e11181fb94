"""A reader who types every command of a page: on machines with homes of their own, with shorter runs.

The addresses, ports, folders and ids of a page become those of this machine, and long runs have few rounds. Nothing
else is changed. `NOT_RUN` says which commands are not typed, and why.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedloom_docs_pages import ROOT, Block

NOT_RUN: Mapping[str, str] = {
    r"(sudo|apt-get|systemctl|journalctl|shred|deploy/edge/\S+)\b": "changes the machine",
    r"(docker|kubectl|kustomize|podman|\(cd deploy/kubernetes|\(umask 077; kubectl)": "needs containers",
    r"(ray|\(umask 077; ray) |export RAY_": "needs machines of a cluster",
    r"fedloom .*--ray-address": "needs a cluster of Ray; tests/simulation/test_ray_clusters.py has one",
    r"(\.venv/bin/)?pip |python3? -m pip ": "installs packages",
    r"make (demo|test|test-slow|check|format|bench|bench-fleet|install|fuzz|chaos)\b": "a target of its own in CI",
    r"\. \.venv/bin/activate": "the commands are those of an environment that is active",
    r"export (FEDLOOM_IMAGE|PROMETHEUS_IMAGE|FEDLOOM_ADDRESS|CLIENTS)": "needs containers",
    r"fedloom join --proxy": "needs a proxy; tests/client/test_proxy.py has one",
}
"""Commands that are not typed, by their beginning, and why."""
SHORTER: Mapping[str, str] = {
    r"^(fedloom (?:run|submit) \S*(?:fedlora|lora)\S*.*)": r"\1 --set rounds=4 --set clients=4 --set cohort=2",
    r"^(fedloom run mano\b.*)": r"\1 --set rounds=1 --set clients=2",
    r"^(fedloom submit fashion-mnist-fedavg .*)": r"\1 --set workload.training.max_steps=2",
    r"^(fedloom (?:run|submit) .*)": r"\1 --set rounds=3",
    r"^fedloom resume (\S+) --rounds \d+": r"fedloom resume \1 --rounds 5",
    r"^(fedloom study sfedca\b.*)": r"\1 --set rounds=1 --seeds 2 --only 'iid/random' --only 'iid/topm' --jobs 1",
    r"^python -m benchmarks\.chaos --schedules.*": "python -m benchmarks.chaos --schedules 1 --seed 7",
    r"^python -m benchmarks\.chaos --first.*": "python -m benchmarks.chaos --first 19 --schedules 1 --json chaos.json",
    r"^python -m benchmarks\.chaos\.kills": "python -m benchmarks.chaos.kills --help",
    r"^python -m benchmarks\.fuzz.*": "python -m benchmarks.fuzz --count 100",
    r"^python -m benchmarks\.idle.*": "python -m benchmarks.idle --help",
    r"^python -m benchmarks\.broadcast.*": "python -m benchmarks.broadcast --agents 2 --megabytes 1",
    r"^python -m benchmarks\.endurance.*": "python -m benchmarks.endurance --rounds 5",
}
"""Commands whose work is shortened."""
_TIMEOUT_S = 240.0
_ID = re.compile(r"\b\d{8}-\d{6}-[a-z0-9-]+-[0-9a-f]{4}\b")


class Failed(AssertionError):
    """A command did not do what the page shows."""


@dataclass
class Machine:
    """One machine of the page: a home, a working folder, the environment its shell has."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)


class PageReader:
    """Types a page's commands in order.

    Args:
        folder: the working folder, with the examples; homes of machines lie beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = ""
        """What the last block printed."""
        self.skipped: list[tuple[str, str]] = []
        self._machines: dict[str, Machine] = {}
        self._background: list[subprocess.Popen[bytes]] = []
        self._run_id = ""
        self._ports = _free_ports()

    def read(self, block: Block, mark: Sequence[str]) -> None:
        """Do what a block's comment says.

        Args:
            block: of the page.
            mark: its words: `run`, `parse`, `save NAME`, `output`, `files`; and `on MACHINE`.
        """
        words, machine = (mark[: mark.index("on")], mark[mark.index("on") + 1]) if "on" in mark else (mark, "here")
        match list(words):
            case ["save", name]:
                (self.folder / name).write_text(block.text, encoding="utf-8")
            case ["output"]:
                check_output(block.text, self.output)
            case ["files"]:
                check_files(block.text, self._newest_run())
            case ["run" | "parse"] if block.language == "python":
                self.output = self._type([sys.executable, "-c", block.text], machine)
            case ["run" | "parse" as how, *_]:
                lines = command_lines(block.text)
                self.output = "".join(self._line(line, machine, shorter=how == "parse") for line in lines)

    def close(self) -> None:
        """End what still runs."""
        for process in reversed(self._background):
            process.terminate()
        while self._background:
            process = self._background.pop()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _line(self, line: str, machine: str, *, shorter: bool) -> str:
        """Type one command line, with less work if `shorter` is set; returns what it printed."""
        reason = next((why for pattern, why in NOT_RUN.items() if re.match(pattern, line)), None)
        if reason is not None:
            self.skipped.append((line, reason))
            return ""
        if line.startswith("export "):
            name, _, value = self._here(line.removeprefix("export ")).partition("=")
            self._machine(machine).environment[name] = value
            return ""
        if re.match(r"fedloom (token|node|audit|join) ", line) and not self._background:
            self._serve()
        typed = self._here(line)
        typed = without_ray(shortened(typed) if shorter else typed)
        if re.match(r"fedloom (serve|client)\b", typed):
            return self._start(typed, machine)
        if typed.startswith("fedloom watch"):  # a reader ends the watch
            return self._watch(typed, machine)
        if typed.startswith("fedloom delete"):  # a reader waits for the end of what is resumed
            self._type(["bash", "-c", typed.replace("delete", "watch", 1)], machine)
        said = self._type(["bash", "-c", typed], machine, at=ROOT if "-m benchmarks" in typed else None)
        found = _ID.search(said)
        if found and typed.startswith(("fedloom submit", "fedloom run")):
            self._run_id = found[0]
        if re.match(r"fedloom (node|token) revoke", typed):
            self._join_again(machine)
        return said

    def _serve(self) -> None:
        """Start the server that a page presupposes, and be its administrator."""
        self._machine("here").environment["FEDLOOM_IDENTITY"] = str(self.folder.parent / "srv" / "admin")
        self._start(self._here("fedloom serve --host 0.0.0.0 --state /srv/fedloom"), "here")
        self._type(["fedloom", "token", "create", "--name", "first", "--out", "first.token"], "here")

    def _here(self, line: str) -> str:
        """Return a line with the addresses, folders and ids of this machine."""
        for there, here in (
            ("fedloom.example.org", "127.0.0.1"),
            ("--host 0.0.0.0", "--host 127.0.0.1"),
            ("/srv/fedloom", str(self.folder.parent / "srv")),
            ("/data/fashion-mnist", "/usr/share/datasets/fashion-mnist"),
            ("127.0.0.1:7070", f"127.0.0.1:{self._ports[0]}"),
        ):
            line = line.replace(there, here)
        line = re.sub(r"--(metrics-)?port \d+", lambda m: f"--metrics-port {self._ports[2]}" if m[1] else "", line)
        if line.startswith("fedloom serve"):
            line += f" --port {self._ports[0]} --enroll-port {self._ports[1]}"
        if "<id>" in line:
            line = line.replace("runs/<id>", shlex.quote(str(self._newest_run().relative_to(self.folder))))
        if "0123456789ab" in line:
            line = line.replace("0123456789ab", self._token_id())
        return _ID.sub(lambda match: self._run_id or match[0], line)

    def _newest_run(self) -> Path:
        runs = sorted((self.folder / "runs").glob("*/experiment.toml"), key=lambda path: path.stat().st_mtime)
        if not runs:
            self._type(["bash", "-c", "fedloom run digits-fedavg --runtime inline --set rounds=2"], "here")
            return self._newest_run()
        return runs[-1].parent

    def _token_id(self) -> str:
        rows = self._type(["fedloom", "token", "list"], "here").splitlines()
        unused = [row for row in rows if " 0 of " in row]
        return str(re.findall(r"\b[0-9a-f]{12}\b", "\n".join(unused or rows))[-1])

    def _machine(self, name: str) -> Machine:
        if name not in self._machines:
            home = self.folder.parent / f"home-{name}"
            home.mkdir()
            self._machines[name] = Machine(home)
        return self._machines[name]

    def _environment(self, name: str) -> dict[str, str]:
        machine = self._machine(name)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FEDLOOM_", "XDG_", "RAY_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        cache = str(self.folder.parent / "cache")
        fixed = {"PATH": path, "HOME": str(machine.home), "FEDLOOM_CACHE": cache, "OMP_NUM_THREADS": "1"}
        return {**kept, **fixed, **machine.environment}

    def _type(self, command: Sequence[str], machine: str, at: Path | None = None) -> str:
        done = subprocess.run(
            command,
            cwd=at or self.folder,
            env=self._environment(machine),
            capture_output=True,
            encoding="utf-8",
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise Failed(
                f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
            )
        return done.stdout + done.stderr

    def _start(self, line: str, machine: str) -> str:
        """Start a server or a client, which runs until the page's end; returns once it says that it is ready."""
        if line.startswith("fedloom serve"):
            self.close()  # another server of the page
        log = self.folder / f"background-{len(self._background)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                shlex.split(line), cwd=self.folder, env=self._environment(machine), stdout=out, stderr=out
            )
        self._background.append(process)
        ready = "listening" if line.startswith("fedloom serve") else "connecting"
        end = time.monotonic() + 60
        while ready not in (said := log.read_text(encoding="utf-8")):
            if process.poll() is not None or time.monotonic() > end:
                raise Failed(
                    f"{line} is not {ready!r} after a minute, or has ended ({process.poll()}):\n{said[-3000:]}"
                )
            time.sleep(0.2)
        return said

    def _watch(self, line: str, machine: str) -> str:
        process = subprocess.Popen(
            shlex.split(line),
            cwd=self.folder,
            env=self._environment(machine),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, _ = process.communicate(timeout=8)
            if process.returncode:
                raise Failed(f"{line} ended with {process.returncode}:\n{said[-3000:]}")
            return said
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        return said

    def _join_again(self, machine: str) -> None:
        """Have a device in place of a revoked one."""
        name = f"again-{len(self._background)}"
        self._machines["device"] = Machine(self.folder.parent / f"home-{name}")
        self._machines["device"].home.mkdir()
        self._type(["bash", "-c", f"fedloom token create --name {name} --label site=lab --out {name}.token"], machine)
        allow = "--allow image_classification=/usr/share/datasets/fashion-mnist"
        self._type(["bash", "-c", f"fedloom join - {allow} <{name}.token"], "device")
        self._start("fedloom client", "device")


def shortened(line: str) -> str:
    """Return a line whose work takes seconds."""
    for pattern, replacement in SHORTER.items():
        changed, count = re.subn(pattern, replacement, line)
        if count:
            return changed
    return line


def without_ray(line: str) -> str:
    """Return a line that runs an experiment in its own process, where it does not say where."""
    here = re.match(r"fedloom (run|resume)\b", line) and not re.match(r"fedloom resume \d{8}-\d{6}", line)
    return f"{line} --runtime inline" if here and "--runtime" not in line else line


def command_lines(text: str) -> list[str]:
    """Return a block's command lines, those over several lines as one, without comments."""
    joined = text.replace("\\\n", " ")
    return [re.sub(r"\s+#\s.*$", "", line).strip() for line in joined.splitlines() if line.strip() and line[0] != "#"]


def check_output(shown: str, printed: str) -> None:
    """Compare a page's sample with what was printed: the same lines in order, whatever the numbers, ids and times.

    Raises:
        Failed: a line of the sample is not printed.
    """
    rest = [_masked(line) for line in printed.splitlines()]
    for line in filter(str.strip, shown.splitlines()):
        if line.split()[0] == "runtime":  # where it runs is this reader's choice
            continue
        wanted = _masked(line)
        found = next((place for place, each in enumerate(rest) if wanted in each), None)
        if found is None:
            raise Failed(f"the page shows\n  {line}\nwhich was not printed:\n{printed[-3000:]}")
        rest = rest[found + 1 :]


def check_files(shown: str, run: Path) -> None:
    """Check that a run's folder has the files that a page lists, but for those that it says are there sometimes.

    Raises:
        Failed: one is missing.
    """
    for line in shown.splitlines()[1:]:
        for name in re.findall(r"(?:^| {2})([a-z]+(?:\.[a-z]+|/))", line[:40]):
            sometimes = name in ("plugins/", "data.json", "answers/", "clients/", "rosters.jsonl")
            if not sometimes and not (run / name).exists():
                raise Failed(f"the page lists {name!r}, {run} has {sorted(path.name for path in run.iterdir())}")


def _masked(line: str) -> str:
    """Return a line with numbers, ids, digests and units of size and time replaced."""
    line = _ID.sub("<id>", line)
    line = re.sub(r"\b[0-9a-f]{12,}\b", "<hex>", line)
    line = re.sub(r"[-+]?\d[\d,.]*(e[-+]?\d+)?", "#", line)
    line = re.sub(r"# (B|kB|MB|GB|s|ms|min)\b", "# <unit>", line)
    return re.sub(r"\s+", " ", line).strip()


def _free_ports() -> list[int]:
    """Return three ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
