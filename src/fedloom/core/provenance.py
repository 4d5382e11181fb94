"""The code that a run begins with: the commit of the repository around it, and the packages that its parts import."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import pydantic

from fedloom.core.config import Experiment
from fedloom.core.errors import BadMessage, UsageError
from fedloom.core.imported_packages import versions
from fedloom.core.run_files import PLUGINS_LIST, PROVENANCE, RUN

_PATIENCE_S = 10.0
"""Seconds that one command of Git may take."""
_CODE = (".py", ".toml", ".ipynb")


class Repository(pydantic.BaseModel):
    """State of a Git repository."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    path: str
    """Absolute path of its working tree."""
    commit: str
    """Commit that is checked out, in hexadecimal."""
    changes_sha256: str = ""
    """Digest of what tracked files differ in from the commit, and of the code that Git neither tracks nor ignores,
    without that in runs' folders; empty if there is neither."""


_Digest = Annotated[str, pydantic.Field(pattern="^[0-9a-f]{0,64}$")]
_Short = Annotated[str, pydantic.Field(max_length=100)]


class SubmittedCode(pydantic.BaseModel):
    """The code of the machine that a run was submitted from: without paths."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    commit: _Digest = ""
    """Commit of the repository around the experiment's file; empty if there is none."""
    changes_sha256: _Digest = ""
    """As in `Repository`."""
    packages: Annotated[dict[_Short, _Short], pydantic.Field(max_length=500)] = {}
    """As in `Provenance`."""


class Provenance(pydantic.BaseModel):
    """Code that a run began with, besides the copies in its folder."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    repository: Repository | None = None
    """Repository around the experiment's file; None if there is none, or no Git."""
    packages: dict[str, str] = {}
    """Version of each installed package that the plug-ins and the code of settings import."""
    submitted: SubmittedCode | None = None
    """Of a run of a server: the submitter's code; `packages` are the server's."""

    def flat(self) -> dict[str, str]:
        """Return the recorded code by name, as reports and comparisons show it."""
        found = {f"package {name}": version for name, version in self.packages.items()}
        theirs = {} if self.submitted is None else self.submitted.packages
        for name, version in theirs.items():
            if self.packages.get(name) != version:
                found[f"package {name} of the submitter"] = version
        state = self.repository or self.submitted
        if state is None or not state.commit:
            return found
        changed = f", changed ({state.changes_sha256[:12]})" if state.changes_sha256 else ""
        return {"commit": f"{state.commit[:12]}{changed}", **found}

    def to_submit(self) -> SubmittedCode:
        """Return what a submission says of this code."""
        state = self.repository
        return SubmittedCode(
            commit="" if state is None else state.commit,
            changes_sha256="" if state is None else state.changes_sha256,
            packages=self.packages,
        )


def provenance(experiment: Experiment, source: Path | None = None) -> Provenance:
    """Return the code that a run begins with.

    Args:
        experiment: the run's.
        source: file or folder that it was read from. By default the first code that its settings refer to, or else the
            working directory. The packages that a Python file imports count, too.
    """
    code = [Path(each.path).expanduser().absolute() for each in experiment.code_files(apps=True)]
    if source is not None and source.suffix == ".py":
        code.append(source)
    around = source if source is not None else code[0] if code else Path.cwd()
    return Provenance(repository=repository(around), packages=versions(experiment, code))


def provenance_of_submission(experiment: Experiment, submitted: SubmittedCode | None) -> Provenance:
    """Return the code that a server's run begins with: the server's packages, and what the submitter says of theirs."""
    code = [Path(each.path).expanduser().absolute() for each in experiment.code_files(apps=True)]
    return Provenance(packages=versions(experiment, code), submitted=submitted)


def submitted_code(text: str) -> SubmittedCode | None:
    """Read what a submission says of its code; None if it says nothing.

    Raises:
        BadMessage: it is no such JSON.
    """
    try:
        return SubmittedCode.model_validate_json(text) if text else None
    except pydantic.ValidationError as exc:
        raise BadMessage(f"submit: the submitter's code is not what it should be: {exc.errors()[0]['msg']}") from exc


def repository(place: Path) -> Repository | None:
    """Return the state of the repository around a file or folder; None if there is none, or Git is missing or fails."""
    folder = place if place.is_dir() else place.absolute().parent
    try:
        root = _git(folder, "rev-parse", "--show-toplevel").decode().removesuffix("\n")
        commit = _git(folder, "rev-parse", "--verify", "HEAD").decode().strip()
        return Repository(path=root, commit=commit, changes_sha256=_changes(Path(root)))
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _changes(root: Path) -> str:
    """Return the digest of the differences between a working tree and its commit; empty if there are none."""
    changed = _git(root, "diff", "--no-ext-diff", "--no-textconv", "--binary", "HEAD")
    others = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
    digest = hashlib.sha256(changed)
    code = [path for name in filter(None, others) if _is_code(path := root / os.fsdecode(name), root)]
    for path in code:
        digest.update(os.fsencode(path.relative_to(root)) + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest() if changed or code else ""


def _is_code(path: Path, root: Path) -> bool:
    """Return whether a file is code or an experiment, and in no run's folder."""
    above = [folder for folder in path.parents if root in folder.parents]
    return path.suffix in _CODE and path.is_file() and not any((folder / RUN).is_file() for folder in above)


def _git(folder: Path, *arguments: str) -> bytes:
    """Return the output of a command of Git that reads; programs that a repository's configuration names do not run."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = {**inherited, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    return subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, check=True, timeout=_PATIENCE_S, env=environment
    ).stdout


def read_provenance(folder: Path) -> Provenance | None:
    """Read what a run began with; None if the run has not recorded it.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as exc:
        raise UsageError(f"{path}: not a run's provenance; the file is damaged ({exc.errors()[0]['msg']})") from exc


def changes_since(then: Provenance, experiment: Experiment, code: Sequence[Path]) -> Iterator[str]:
    """Yield a sentence for each part of the code outside the run's folder that differs from what the run began with.

    Args:
        then: what the run began with.
        experiment: the run's.
        code: files and folders of code that it refers to.
    """
    before, after = then.repository, None if then.repository is None else repository(Path(then.repository.path))
    if before is not None and after is not None and before != after:
        old, new = Provenance(repository=before).flat()["commit"], Provenance(repository=after).flat()["commit"]
        yield f"the repository {before.path} has changed since the run began: commit {old} then, {new} now"
    now = versions(experiment, code)
    for name, version in then.packages.items():
        if now.get(name, version) != version:
            yield f"package {name} has changed since the run began: version {version} then, {now[name]} now"


def recorded_code(folder: Path) -> dict[str, str]:
    """Return the code that a run began with by its name: copied files by their digest, the commit, the packages.

    Raises:
        UsageError: a file that says so is damaged.
    """
    found, path = read_provenance(folder), folder / PLUGINS_LIST
    try:
        copies = json.loads(path.read_bytes()) if path.is_file() else []
        digests = {f"code of {each['setting']}": f"SHA-256 {each['sha256'][:12]}" for each in copies}
    except (ValueError, TypeError, KeyError) as exc:
        raise UsageError(f"{path}: not a list of copied code; the file is damaged ({exc})") from exc
    return {**digests, **({} if found is None else found.flat())}
