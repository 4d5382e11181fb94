"""The git repository: commits by name, the base's files in a worktree, the state of the files here."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.same_bits.errors import WrongInput


@dataclass(frozen=True)
class Repository:
    """The checkout at `root`: a clone, or a worktree of one."""

    root: Path

    def resolve(self, name: str) -> str:
        """Return the whole name of a commit (40 hexadecimal digits).

        Raises:
            WrongInput: there is no such commit here.
        """
        found = self._try("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        if found is None:
            raise WrongInput(
                f"{name!r} is no commit of the repository {self.root}; "
                "give a commit's name (in a shallow clone, first: git fetch --unshallow)"
            )
        return found

    def commits_since(self, base: str) -> frozenset[str]:
        """Return the commits of BASE..HEAD.

        Raises:
            WrongInput: HEAD does not descend from BASE.
        """
        if self._try("merge-base", "--is-ancestor", base, "HEAD") is None:
            raise WrongInput(
                f"BASE must be HEAD or an ancestor of it; {base[:12]} is neither. Choose another, or rebase"
            )
        return frozenset(self._run("rev-list", f"{base}..HEAD").split())

    def is_dirty(self) -> bool:
        """Tell whether files differ from HEAD, untracked ones included."""
        return bool(self._run("status", "--porcelain"))

    def state(self) -> str:
        """Return a digest of HEAD and of every difference from it, to notice changes during a comparison."""
        parts = [self._run("rev-parse", "HEAD"), self._run("diff", "HEAD"), self._run("status", "--porcelain")]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def cache_folder(self) -> Path:
        """Return `.cache/same-bits` of the clone; its worktrees share it, and with it the base's results."""
        common = Path(self._run("rev-parse", "--path-format=absolute", "--git-common-dir"))
        home = common.parent if common.name == ".git" else self.root
        return home / ".cache" / "same-bits"

    def checkout(self, commit: str, cache: Path) -> Path:
        """Return a worktree with the files of a commit, made in the cache unless it is there unchanged.

        Comparisons that start together make it once.
        """
        place = cache / "trees" / commit[:12]
        place.parent.mkdir(parents=True, exist_ok=True)
        with (place.parent / f"{commit[:12]}.lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_clean(place, commit):
                self._remove(place)
                self._run("worktree", "add", "--quiet", "--detach", str(place), commit)
        return place

    def _remove(self, place: Path) -> None:
        if place.exists():
            shutil.rmtree(place)
        self._run("worktree", "prune")

    def _run(self, *arguments: str) -> str:
        ended = _git(self.root, *arguments)
        if ended.returncode != 0:
            raise WrongInput(f"git {' '.join(arguments)} failed in {self.root}: {ended.stderr.strip()}")
        return ended.stdout.strip()

    def _try(self, *arguments: str) -> str | None:
        ended = _git(self.root, *arguments)
        return ended.stdout.strip() if ended.returncode == 0 else None


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, encoding="utf-8", check=False)


def _is_clean(place: Path, commit: str) -> bool:
    """Tell whether a folder is a worktree of its own at this commit, with no file changed or added."""
    if not (place / ".git").is_file():
        return False
    head, status = _git(place, "rev-parse", "HEAD"), _git(place, "status", "--porcelain")
    return head.returncode == status.returncode == 0 and head.stdout.strip() == commit and not status.stdout.strip()
