"""Runs presets with the files of one tree, by fedloom's command line alone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.same_bits.errors import WrongInput
from benchmarks.same_bits.outcome import Failed, NoData, Outcome, StrangeSummary, read_done
from benchmarks.same_bits.plan import RUNTIMES, Job

LIMIT_S = 600.0
"""Seconds after which a run is given up; one that needs more belongs into `shortened.toml`."""
_FOREIGN = ("FEDLOOM_", "FLWR_", "GIT_", "PYTHON", "RAY_", "XDG_")
_PRESET = re.compile(r"([a-z0-9][a-z0-9-]*) {2,}\S")
_MISSING = re.compile(r"^(?:[\w.]+\.)?DataMissing: (.+)", re.MULTILINE)


def environment(source: Path, home: Path) -> dict[str, str]:
    """Return the variables of a run: the tree's package first, one thread, nothing of the user's but data sets."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    hub = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return {
        **kept,
        **dict.fromkeys(threads, "1"),
        "PYTHONPATH": str(source),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HOME": hub,
        "HF_HUB_OFFLINE": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@dataclass
class Tree:
    """The files of one commit, or those here, and a scratch folder for the runs made with them.

    Prepared data is kept in the scratch folder, one cache for each runtime: no run reads what another tree, another
    comparison or the other runtime has prepared.
    """

    name: str
    root: Path
    scratch: Path
    kept: frozenset[str] = frozenset()
    """Presets whose inline run's folder others need."""
    _running: set[int] = field(default_factory=set)
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Make sure that Python imports fedloom from this tree.

        Raises:
            WrongInput: it does not.
        """
        _, stdout, stderr = self._python("import", ["-c", "import fedloom; print(fedloom.__file__)"], {})
        found = Path(stdout.strip() or "/")
        if not found.resolve().is_relative_to((self.root / "src").resolve()):
            raise WrongInput(
                f"{self.name}: expected to import fedloom from {self.root / 'src'}, "
                f"got {stdout.strip() or stderr.strip()!r}"
            )

    def presets(self) -> frozenset[str]:
        """Return the names of the tree's presets.

        Raises:
            WrongInput: `fedloom list presets` fails or prints no preset.
        """
        code, stdout, stderr = self._python("list", ["-m", "fedloom", "list", "presets"], {})
        names = preset_names(stdout)
        if code != 0 or not names:
            raise WrongInput(f"{self.name}: `fedloom list presets` ended with {code}: {stdout}{stderr}")
        return names

    def run(self, job: Job) -> Outcome:
        """Run a preset in a folder of its own."""
        folder = self.scratch / job.name
        if job.length.needs is not None:
            (folder / "runs").mkdir(parents=True)
            (folder / "runs" / job.length.needs).symlink_to(self._run_folder(job.length.needs))
        out = self._run_folder(job.preset) if job.preset in self.kept and job.runtime == "inline" else folder / "out"
        settings = [part for each in job.length.settings for part in ("--set", each)]
        options = [*settings, *RUNTIMES[job.runtime], "--out", str(out), "--json", "--debug"]
        cache = {"FEDLOOM_CACHE": str(self.scratch / f"cache-{job.runtime}")}
        begin = time.monotonic()
        code, stdout, stderr = self._python(job.name, ["-m", "fedloom", "run", job.preset, *options], cache)
        ended = outcome(code, stdout, stderr, out, time.monotonic() - begin)
        shutil.rmtree(folder, ignore_errors=True)  # of a killed run, a worker may still be writing
        return ended

    def stop(self) -> None:
        """Kill the runs that are being made, and start no other."""
        with self._lock:
            self._stopped = True
            for pid in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def _run_folder(self, preset: str) -> Path:
        """The folder of a preset's inline run, where another preset finds it."""
        return self.scratch / "runs" / preset

    def _python(self, name: str, arguments: list[str], more: Mapping[str, str]) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of Python in a folder of its own; the status is -9 after `LIMIT_S`."""
        folder = self.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        variables = {**environment(self.root / "src", folder / "home"), **more}
        with self._lock:
            if self._stopped:
                return -signal.SIGKILL, "", "stopped"
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,
            )
            self._running.add(process.pid)
        try:
            stdout, stderr = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            stderr += f"\nno end after {LIMIT_S:.0f} s: give it fewer rounds in shortened.toml"
        finally:
            with self._lock:
                self._running.discard(process.pid)
        return process.returncode, stdout, stderr


def preset_names(listing: str) -> frozenset[str]:
    """Return the first column of what `fedloom list presets` prints, its heading left out."""
    matches = (_PRESET.match(line) for line in listing.splitlines())
    return frozenset(match[1] for match in matches if match)


def outcome(code: int, stdout: str, stderr: str, out: Path, seconds: float) -> Outcome:
    """Tell how a run ended from the exit status and the streams of `fedloom run --json --debug`."""
    if code == 0:
        try:
            return read_done(stdout, out, seconds)
        except StrangeSummary as exc:
            return Failed(str(exc))
    missing = _MISSING.search(stderr)
    if code == 2 and missing:
        return NoData(missing[1])
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return Failed(f"exit {code}: {lines[-1] if lines else 'nothing on stderr'}")
