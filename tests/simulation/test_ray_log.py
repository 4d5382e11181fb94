"""The end of Ray's own log in a message about its failure."""

from pathlib import Path

from fedloom.simulation.ray_log import log_tail


def test_the_file_that_says_most_is_shown_and_its_last_lines_only(tmp_path: Path) -> None:
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    assert log_tail(tmp_path) == "" and log_tail(tmp_path / "none") == ""
    (logs / "raylet.err").touch()
    (logs / "worker-a.err").write_bytes(b":job_id:01\n" + b"".join(b"line %d \xff\n" % n for n in range(9000)))
    assert log_tail(tmp_path).splitlines() == [
        "",
        "Ray's log worker-a.err:",
        *(f"  line {n} \ufffd" for n in range(8995, 9000)),
    ]
    (logs / "raylet.err").write_text("no space left\n", encoding="utf-8")
    assert log_tail(tmp_path) == "\nRay's log raylet.err:\n  no space left"
