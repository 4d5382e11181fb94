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


def test_of_a_crash_the_first_lines_are_shown_and_of_rays_own_remarks_none(tmp_path: Path) -> None:
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    remarks = "[2026-01-01 10:00:00,000 I 12 12] core_worker.cc:517: Adjusted worker niceness to 15\n"
    crash = ["Fatal Python error: Segmentation fault", "", "Stack (most recent call first):"]
    frames = [f'  File "net.py", line {n} in train' for n in range(30)]
    (logs / "worker-a.err").write_text("\n".join([*crash, *frames, ""]) + remarks, encoding="utf-8")
    assert log_tail(tmp_path).splitlines()[2:] == [f"  {line}" for line in (crash[0], crash[2], *frames[:3])]
    (logs / "worker-a.err").write_text(remarks, encoding="utf-8")
    assert log_tail(tmp_path) == ""
