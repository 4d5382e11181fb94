"""The end of Ray's own log in a message about its failure."""

from pathlib import Path

from fedloom.simulation.ray_log import keep_logs, log_tail


def test_the_file_that_says_most_is_shown_and_its_last_lines_only(tmp_path: Path) -> None:
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    assert log_tail(tmp_path) == "" and log_tail(tmp_path / "none") == ""
    (logs / "raylet.err").touch()
    (logs / "worker-a.err").write_bytes(b":job_id:01\n" + b"".join(b"line %d \xff\n" % n for n in range(9000)))
    assert log_tail(tmp_path).splitlines() == [
        "",
        f"Ray's log {logs / 'worker-a.err'}:",
        *(f"  line {n} \ufffd" for n in range(8995, 9000)),
    ]
    (logs / "raylet.err").write_text("no space left\n", encoding="utf-8")
    assert log_tail(tmp_path) == f"\nRay's log {logs / 'raylet.err'}:\n  no space left"


def test_of_a_failed_ray_the_logs_alone_are_kept(tmp_path: Path) -> None:
    assert not keep_logs(tmp_path)
    session = tmp_path / "session_1"
    for name in ("logs/old", "sockets", "runtime_resources"):
        (session / name).mkdir(parents=True)
    (session / "logs" / "raylet.err").write_text("no space left\n", encoding="utf-8")
    (session / "node_ip_address.json").touch()
    (tmp_path / "session_latest").symlink_to(session)
    (tmp_path / "ray_current_cluster").touch()
    assert keep_logs(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "session_1",
        "session_1/logs",
        "session_1/logs/old",
        "session_1/logs/raylet.err",
    ]
