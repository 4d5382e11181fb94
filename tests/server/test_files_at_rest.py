"""What a server and a node write is for their own user: modes, folders others can enter, policies others can write."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shell import Shell

from fedloom.client.app import run_member
from fedloom.client.control import ControlClient
from fedloom.core import local_token
from fedloom.core.config import Experiment
from fedloom.core.errors import Unauthenticated, UsageError
from fedloom.core.files import require_private_folder, require_unwritable_by_others
from fedloom.testing.fleet import wait_until


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with contextlib.closing(Shell(tmp_path)) as made:
        yield made


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_files_of_a_running_server_are_private_and_its_users_commands_find_its_token(
    shell: Shell, tmp_path: Path, linear: Callable[..., Experiment]
) -> None:
    program, port, log = shell.serve(0, "--insecure")
    wait_until(lambda: "--token-file" in log.read_text(encoding="utf-8"))
    assert re.search(r"the token for callers is in state/token", log.read_text(encoding="utf-8"))
    address = f"127.0.0.1:{port}"
    shell.start("client", "--server", address, "--name", "n1")
    with ControlClient(address, local_token.find(address)) as control:
        run_id = control.submit(linear(rounds=1))
        wait_until(lambda: control.runs()[0].status == "done", 60)
    state = tmp_path / "state"
    loose = {str(path): oct(path.stat().st_mode) for path in [state, *state.rglob("*")] if path.stat().st_mode & 0o077}
    assert not loose and (state / "runs" / run_id).is_dir()
    token = (state / "token").read_text(encoding="utf-8").strip()
    assert len(token) >= 32
    published = tmp_path / "state-home" / "fedloom" / "tokens" / port
    assert published.read_text(encoding="utf-8").strip() == token and published.stat().st_mode & 0o777 == 0o600
    published.unlink()  # as for another user
    with ControlClient(address, local_token.find(address)) as control, pytest.raises(Unauthenticated, match="no token"):
        control.runs()
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == 0
    state.chmod(0o755)
    assert "chmod -R go= state" in shell.run("serve", "--state", "state", "--insecure", code=2)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711, 0o701, 0o720, 0o777])
def test_a_folder_others_can_enter_is_refused_with_the_command_that_repairs_it(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "a state"
    require_private_folder(folder, "the state folder")  # not there yet
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UsageError, match=r"mode .* chmod -R go= '.*a state'"):
        require_private_folder(folder, "the state folder")
    folder.chmod(0o700)
    require_private_folder(folder, "the state folder")


@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o666, 0o700), (0o664, 0o700), (0o602, 0o700), (0o600, 0o777)])
def test_a_policy_others_can_write_or_replace_is_refused(tmp_path: Path, file_mode: int, folder_mode: int) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    policy, link = folder / "policy.toml", tmp_path / "link.toml"
    policy.write_text("", encoding="utf-8")
    link.symlink_to(policy)
    policy.chmod(file_mode)
    folder.chmod(folder_mode)
    for each in (policy, link):
        with pytest.raises(UsageError, match="chmod go-w"):
            require_unwritable_by_others(each, "the policy")
    policy.chmod(0o644)
    folder.chmod(0o755)
    require_unwritable_by_others(link, "the policy")


def test_a_node_with_such_a_policy_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from members import members

    with members(tmp_path / "m") as fleet:
        identity = fleet.joined("n")
        policy = identity.folder / "policy.toml"
        policy.write_text("", encoding="utf-8")
        policy.chmod(0o666)
        monkeypatch.setattr("os.umask", lambda mask: 0)  # this process is not a node for good
        with pytest.raises(UsageError, match=r"other users can write .*policy\.toml"):
            run_member(identity.folder)


@pytest.mark.parametrize(
    ("server", "found"),
    [
        ("127.0.0.1:7070", True),
        ("localhost:7070", True),
        ("127.0.0.1:7071", False),
        ("192.0.2.1:7070", False),
        ("nobody.invalid:7070", False),
        ("127.0.0.1", False),
        ("127.0.0.1:http", False),
    ],
)
def test_a_token_is_found_for_this_machine_and_its_port_only(server: str, found: bool) -> None:
    file = local_token.publish(7070, "secret")
    assert file is not None
    assert local_token.find(server) == ("secret" if found else "")
    file.chmod(0o644)
    assert not local_token.find(server), "others may have read or written it"


def test_a_servers_token_stays_the_same_and_private(tmp_path: Path) -> None:
    token = local_token.own_token(tmp_path)
    assert local_token.own_token(tmp_path) == token and (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(UsageError, match="is readable by other users"):
        local_token.own_token(tmp_path)
