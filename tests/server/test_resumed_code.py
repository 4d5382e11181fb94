"""A user's run is resumed with the code that it has copied only while whoever started the server allows that code."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from members import Members, members

from fedloom.client.control import ControlClient
from fedloom.client.results import ResultsClient
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, Forbidden
from fedloom.core.identity import Identity
from fedloom.server.access.gate import Caller
from fedloom.server.access.submission import Submissions
from fedloom.testing.fleet import wait_until

ROOT = Path(__file__).parents[2]
USER, ADMIN = Caller(id="1", name="ann", role="user"), Caller(id="2", name="root", role="admin")
Edit = Callable[[Path, Path], None]


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """A file that a server was started with."""
    return Path(shutil.copy(ROOT / "examples" / "clipped_steps.py", tmp_path))


@pytest.fixture
def fleet(tmp_path: Path, allowed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Members]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with members(tmp_path, allowed=(str(allowed),)) as fleet:
        yield fleet


@pytest.fixture
def run(fleet: Members, allowed: Path) -> tuple[Identity, str]:
    """A user's run with this code, stopped before it has begun."""
    ann = fleet.joined("ann", "user")
    with ControlClient(fleet.address, identity=ann) as control:
        run_id = control.submit(
            Experiment.parse(
                {
                    "name": "own", "rounds": 1, "clients": 2, "workload": "image_classification",
                    "strategy": {"name": str(allowed), "limit": 0.5},
                }
            )
        )  # fmt: skip
        control.stop(run_id)
    return ann, run_id


def resumed(fleet: Members, who: Identity, run_id: str) -> str:
    with ResultsClient(fleet.address, identity=who) as results:
        return results.resume(run_id).status


def test_it_is_while_the_code_is_allowed(fleet: Members, run: tuple[Identity, str]) -> None:
    ann, run_id = run
    assert resumed(fleet, ann, run_id) == "interrupted"
    wait_until(lambda: fleet.runs.state(run_id).status == "queued")


@pytest.mark.parametrize("how", ["removed", "changed", "replaced by a folder"])
def test_it_is_not_once_the_code_is_allowed_no_more(
    how: str, fleet: Members, run: tuple[Identity, str], allowed: Path
) -> None:
    ann, run_id = run
    allowed.unlink()
    if how == "changed":
        allowed.write_text("# the fault that was in it is mended\n", encoding="utf-8")
    elif how != "removed":
        allowed.mkdir()
    with pytest.raises(Forbidden, match=r"strategy.name = 'clipped_steps.py'"):
        resumed(fleet, ann, run_id)
    assert fleet.runs.state(run_id).status == "interrupted"
    assert resumed(fleet, fleet.admin, run_id) == "interrupted", "an administrator may"


def test_nothing_of_a_copy_is_imported_before(
    fleet: Members, run: tuple[Identity, str], allowed: Path, tmp_path: Path
) -> None:
    """Whoever changed the copy on the server, or the list of copies, gets no other code run by it."""
    ann, run_id = run
    folder = fleet.runs.folder_of(run_id)
    trap = f"from pathlib import Path\nPath({str(tmp_path / 'fired')!r}).touch()\n"
    copy = next((folder / "plugins").rglob("clipped_steps.py"))
    copy.write_text(trap, encoding="utf-8")
    with pytest.raises(Forbidden):
        resumed(fleet, ann, run_id)
    (folder / "plugins.json").unlink()
    with pytest.raises(FedloomError):
        resumed(fleet, ann, run_id)
    assert not (tmp_path / "fired").exists()


def test_a_run_without_code_of_its_own_is_resumed_by_any_server(fleet: Members) -> None:
    experiment = Experiment.parse({"name": "x", "rounds": 1, "strategy": "fedavg", "workload": "image_classification"})
    run_id = fleet.runs.submit(experiment.to_dict())
    for who in (USER, ADMIN):
        Submissions(()).admit_again(who, fleet.runs.folder_of(run_id))
