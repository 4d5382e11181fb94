"""The parts of `make same-bits`, and the whole on a repository whose fedloom is a script of a few lines."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from benchmarks.same_bits import __main__ as program
from benchmarks.same_bits import intended
from benchmarks.same_bits.compare import Outcomes, run_base, run_presets, verdict
from benchmarks.same_bits.errors import WrongInput
from benchmarks.same_bits.intended import Entry, Kind, counting, judge, read_entries
from benchmarks.same_bits.machine import digest, switches
from benchmarks.same_bits.outcome import (
    Done,
    Failed,
    NoData,
    Outcome,
    StrangeSummary,
    decode,
    differences,
    encode,
    numbers,
    read_done,
)
from benchmarks.same_bits.plan import Job, Length, Lengths, full, in_order, job, read_lengths
from benchmarks.same_bits.repository import Repository
from benchmarks.same_bits.store import Store, open_store
from benchmarks.same_bits.tree import environment, outcome, preset_names

from fedloom import api

ROOT = Path(__file__).parents[2]
NAN = float("nan")


def done(sha: str = "aa", loss: float | None = 0.5, rounds: tuple[float | None, ...] = (0.7, 0.5)) -> Done:
    return Done(sha, {"loss": loss}, tuple({"metrics.loss": each} for each in rounds), 1.0)


def both(one: Outcome) -> Outcomes:
    return {"inline": one, "process": one}


# Comparing results


def test_equal_results_differ_in_nothing_but_seconds() -> None:
    assert differences(done(), Done("aa", {"loss": 0.5}, done().rounds, 99.0)) == []


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (done(sha="bb"), ["model_sha256 aa -> bb"]),
        (done(loss=math.nextafter(0.5, 1.0)), ["loss 0.5 -> 0.5000000000000001"]),
        (done(loss=None), ["loss 0.5 -> None"]),
        (done(rounds=(0.7, 0.6)), ["round 2: metrics.loss 0.5 -> 0.6"]),
        (done(rounds=(0.7,)), ["rounds 2 -> 1"]),
        (Done("aa", {"accuracy": 0.5}, done().rounds, 1.0), ["loss is gone", "accuracy is new"]),
        (Failed("exit 1: no"), ["done, model_sha256 aa -> failed: exit 1: no"]),
    ],
)
def test_one_bit_is_a_difference(here: Outcome, said: list[str]) -> None:
    assert differences(done(), here) == said


def test_nan_equals_nan_and_its_form_in_json() -> None:
    for left in (NAN, None):
        for right in (NAN, None):
            assert differences(done(loss=left, rounds=(left,)), done(loss=right, rounds=(right,))) == []
    assert differences(done(loss=NAN), done(loss=0.5)) == ["loss nan -> 0.5"]


def test_a_kept_result_is_read_as_it_was() -> None:
    kept = decode(encode(done(loss=0.1 + 0.2, rounds=(NAN, None, 1e-310))))
    assert differences(kept, done(loss=0.1 + 0.2, rounds=(NAN, None, 1e-310))) == []
    with pytest.raises(StrangeSummary, match="model_sha256"):
        decode("{}")


def test_numbers_of_a_record_have_paths_and_leave_seconds_out() -> None:
    info = {"ranks": {"query": 4}, "sets": [{"score": 0.5, "name": "clean"}, {"score": None}], "aggregation_s": 1.0}
    assert dict(numbers(info | {"client_seconds": {"1": 2.0}}, "info")) == {
        "info.ranks.query": 4,
        "info.sets[0].score": 0.5,
        "info.sets[1].score": None,
    }


def summary(**values: object) -> str:
    return json.dumps({"status": "done", "model_sha256": "aa", "metrics": {"loss": 0.5}} | values)


def records(folder: Path, *evaluations: object) -> Path:
    lines = [
        json.dumps({"metrics": {"loss": 0.5}, "evaluation": each, "timing": {"total_s": 1}}) for each in evaluations
    ]
    (folder / "rounds.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_run_is_read_from_its_summary_and_records(tmp_path: Path) -> None:
    found = read_done("progress\n" + summary() + "\n", records(tmp_path, None, {"accuracy": 0.25}), 3.0)
    assert (found.model_sha256, found.metrics, found.seconds) == ("aa", {"loss": 0.5}, 3.0)
    assert found.rounds[1]["evaluation.accuracy"] == 0.25 and found.rounds[1]["metrics.loss"] == 0.5
    assert not any("timing" in name for name in found.rounds[1])


@pytest.mark.parametrize(
    ("stdout", "said"),
    [
        ("", "got nothing"),
        ("done", "expected JSON"),
        (summary(status="failed"), "status"),
        (summary(model_sha256=None), "model_sha256"),
        (summary(metrics={"loss": "low"}), "loss"),
    ],
)
def test_a_summary_in_another_form_is_no_result(stdout: str, said: str, tmp_path: Path) -> None:
    ended = outcome(0, stdout, "", records(tmp_path, None), 1.0)
    assert isinstance(ended, Failed) and said in ended.message


def test_missing_data_is_distinguished_from_other_wrong_input(tmp_path: Path) -> None:
    trace = "Traceback …\nfedloom.core.errors.DataMissing: no files in /usr/share\nfedloom: no files in /usr/share\n"
    assert outcome(2, "", trace, tmp_path, 1.0) == NoData("no files in /usr/share")
    assert isinstance(outcome(1, "", trace, tmp_path, 1.0), Failed), "a run that began and failed is no skipped one"
    assert isinstance(outcome(2, "", "fedloom.core.errors.ConfigError: rounds\n", tmp_path, 1.0), Failed)


# Plan


def test_the_table_of_lengths_is_sound_and_names_presets() -> None:
    lengths = read_lengths()
    assert set(lengths) == set(api.presets()), "a preset came or went: say in shortened.toml how it is run"
    assert lengths["digits-fedavg"].settings == (), "what takes seconds is run in full"
    assert lengths["digits-vit-sa-fedlora"].needs == "fashion-vit-pretrain"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a]\nrounds = 3", r"\[a\]: expected a table with settings"),
        ('[a]\nsettings = ["rounds"]', "key=value"),
        ("[a]\nneeds = 3", "preset's name"),
        ('[a]\nseconds = "long"', "number"),
        ('[a]\nneeds = "b"', r"\[a\] needs 'b'"),
        ('[a]\nneeds = "b"\n[b]\nneeds = "c"\n[c]', r"\[a\] needs 'b'"),
    ],
)
def test_a_wrong_table_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "shortened.toml").write_text(text, encoding="utf-8")
    with pytest.raises(WrongInput, match=said):
        read_lengths(tmp_path / "shortened.toml")


LENGTHS: Lengths = {
    "long": Length(("rounds=2",), seconds=50.0),
    "start": Length(("rounds=3",), seconds=1.0),
    "goes-on": Length((), needs="start", seconds=20.0),
}


def test_a_preset_that_the_table_lacks_is_run_in_full() -> None:
    assert job("new", "inline", LENGTHS).length.settings == ()
    assert job("long", "inline", LENGTHS).length.settings == ("rounds=2",)
    assert job("long", "inline", full(LENGTHS)).length.settings == ()


def test_needed_runs_come_first_then_the_longest() -> None:
    jobs = [job(preset, "inline", LENGTHS) for preset in ("new", "goes-on", "long")]
    assert [each.preset for each in in_order(jobs, LENGTHS)] == ["start", "long", "new", "goes-on"]
    assert in_order([job("new", "process", LENGTHS)], LENGTHS) == [job("new", "process", LENGTHS)]


def test_the_key_of_a_run_changes_with_its_length_and_that_of_what_it_needs() -> None:
    other = {**LENGTHS, "start": Length(("rounds=4",))}
    for preset in ("start", "goes-on"):
        assert job(preset, "inline", LENGTHS).key != job(preset, "inline", other).key
    slower = {**LENGTHS, "long": Length(("rounds=2",), seconds=60.0)}
    assert job("long", "inline", LENGTHS).key == job("long", "inline", slower).key


# Kept results


def test_results_are_kept_by_commit_machine_and_length(tmp_path: Path) -> None:
    machine: dict[str, object] = {"capability": "AVX2", "torch": "2.0"}
    mine = open_store(tmp_path, "a" * 40, machine)
    mine.put(job("long", "inline", LENGTHS), done())
    assert open_store(tmp_path, "a" * 40, dict(reversed(machine.items()))).get(job("long", "inline", LENGTHS)) == done()
    assert mine.get(job("long", "process", LENGTHS)) is None
    assert mine.get(job("long", "inline", full(LENGTHS))) is None
    assert open_store(tmp_path, "b" * 40, machine).get(job("long", "inline", LENGTHS)) is None
    for other in ({"capability": "AVX512"}, {"torch": "2.1"}):
        assert open_store(tmp_path, "a" * 40, {**machine, **other}).get(job("long", "inline", LENGTHS)) is None


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    store, long = Store(tmp_path), job("long", "inline", LENGTHS)
    store.put(long, done())
    (tmp_path / f"{long.name}.json").write_text("{", encoding="utf-8")
    assert store.get(long) is None


def test_switches_of_kernels_are_part_of_the_machine() -> None:
    assert switches({"ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell", "LANG": "C"}) == {
        "ATEN_CPU_CAPABILITY": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
    }
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_a_run_sees_nothing_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FEDLOOM_CACHE", "RAY_ADDRESS", "PYTHONHASHSEED", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "/theirs")
    variables = environment(tmp_path / "src", tmp_path / "home")
    assert "/theirs" not in variables.values()
    assert variables["PYTHONPATH"] == str(tmp_path / "src") and variables["HOME"] == str(tmp_path / "home")
    assert variables["OMP_NUM_THREADS"] == "1" and variables["FLWR_TELEMETRY_ENABLED"] == "0"


# Intended differences


def entry(preset: str = "a", commit: str = "c1", full_length_only: bool = False) -> Entry:
    return Entry(preset, commit, "a better sum", full_length_only)


def test_an_entry_counts_if_its_commit_lies_between() -> None:
    assert counting([entry(commit="c1"), entry(commit="old")], {"c1", "c2"}) == [entry(commit="c1")]


@pytest.mark.parametrize(
    ("lines", "entries", "short", "kind"),
    [
        ([], [], True, Kind.EQUAL),
        (["x"], [], True, Kind.DIFFERS),
        (["x"], [entry()], True, Kind.EXCUSED),
        ([], [entry()], True, Kind.NEEDLESS),
        ([], [entry(full_length_only=True)], True, Kind.EQUAL),
        (["x"], [entry(full_length_only=True)], True, Kind.DIFFERS),
        ([], [entry(full_length_only=True)], False, Kind.NEEDLESS),
        (["x"], [entry(full_length_only=True)], False, Kind.EXCUSED),
    ],
)
def test_what_an_entry_excuses(lines: list[str], entries: list[Entry], short: bool, kind: Kind) -> None:
    assert judge(lines, entries, shortened=short).kind is kind


def test_only_needless_entries_and_differences_fail() -> None:
    assert {kind for kind in Kind if not kind.passes} == {Kind.DIFFERS, Kind.NEEDLESS}


def write_entry(folder: Path, **values: object) -> Path:
    given = {"preset": "a", "commit": "c1", "reason": "a better sum"} | values
    lines = [f"{key} = {json.dumps(value)}" for key, value in given.items() if value is not None]
    (folder / "intended.toml").write_text("[[intended]]\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder / "intended.toml"


def unknown(name: str) -> str:
    raise WrongInput(f"{name!r} is no commit")


def test_entries_are_read(tmp_path: Path) -> None:
    assert read_entries(lambda name: f"{name} whole", write_entry(tmp_path)) == [entry(commit="c1 whole")]


@pytest.mark.parametrize(
    "values", [{"reason": None}, {"reason": " "}, {"commit": 3}, {"why": "x"}, {"full_length_only": 1}]
)
def test_an_entry_in_another_form_is_refused(values: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match=r"intended\.toml: entry 1: expected"):
        read_entries(lambda name: name, write_entry(tmp_path, **values))
    with pytest.raises(WrongInput, match="entry 1: 'c1' is no commit"):
        read_entries(unknown, write_entry(tmp_path))


# Verdicts


@pytest.mark.parametrize(
    ("base", "here", "kind", "said"),
    [
        (None, None, Kind.SKIPPED, "BASE lacks it"),
        (both(NoData("no images")), None, Kind.SKIPPED, "no data: no images"),
        (both(done()), both(done()), Kind.EQUAL, ""),
        (both(done()), both(done("bb")), Kind.EXCUSED, "inline: model_sha256 aa -> bb"),
        (both(done()), None, Kind.EXCUSED, "the preset is gone"),
        (both(Failed("x")), both(done()), Kind.EXCUSED, "inline: failed: x -> done"),
        (both(done()), both(Failed("x")), Kind.DIFFERS, "inline: failed: x"),
        (both(Failed("x")), both(Failed("x")), Kind.DIFFERS, "inline: failed: x"),
        (both(done()), both(NoData("x")), Kind.DIFFERS, "inline: no data here, but in BASE: x"),
        (both(done()), {"inline": done(), "process": done("bb")}, Kind.DIFFERS, "inline and process here: model"),
    ],
)
def test_verdict(base: Outcomes | None, here: Outcomes | None, kind: Kind, said: str) -> None:
    """An entry for the preset counts in every case: it excuses a changed result, never a broken run."""
    entries = [] if kind is Kind.EQUAL else [entry()]
    found = verdict("a", base, here, entries, short=True)
    assert found.kind is kind and said in "; ".join(found.lines)


def test_an_entry_excuses_only_its_preset() -> None:
    assert verdict("b", both(done()), both(done("bb")), [entry("a")], short=True).kind is Kind.DIFFERS


class Recorder:
    """A runner that makes up its results and notes what it was given."""

    def __init__(self, outcomes: Mapping[str, Outcome] | None = None) -> None:
        self.outcomes, self.jobs = outcomes or {}, list[Job]()
        self.stopped = False

    def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        return self.outcomes.get(job.preset, done(job.preset))

    def stop(self) -> None:
        self.stopped = True


def silent(ended: int, total: int, job: Job, outcome: Outcome) -> None:
    assert 1 <= ended <= total


def test_a_second_comparison_does_not_run_the_base(tmp_path: Path) -> None:
    first, second = Recorder({"absent": NoData("x")}), Recorder({"absent": NoData("x")})
    presets = ("long", "goes-on", "absent")
    found = run_base(first, presets, LENGTHS, Store(tmp_path), silent)
    assert set(found) == set(presets) and all(set(each) == {"inline", "process"} for each in found.values())
    assert sorted(each.preset for each in first.jobs) == ["absent"] * 2 + ["goes-on"] * 2 + ["long"] * 2 + ["start"]
    assert run_base(second, presets, LENGTHS, Store(tmp_path), silent) == found
    assert {each.preset for each in second.jobs} == {"absent"}, "missing data may be here the next time"


def test_a_run_whose_start_has_no_data_is_skipped_with_it() -> None:
    runner = Recorder({"start": NoData("no images")})
    found = run_presets(runner, ["goes-on"], LENGTHS, silent)
    assert found == {"goes-on": both(NoData("needs start: no images"))}
    assert [each.preset for each in runner.jobs] == ["start"]


def test_an_interruption_stops_the_runs() -> None:
    def interrupt(ended: int, total: int, job: Job, outcome: Outcome) -> None:
        raise KeyboardInterrupt

    runner = Recorder()
    with pytest.raises(KeyboardInterrupt):
        run_presets(runner, ["long"], LENGTHS, interrupt)
    assert runner.stopped


def test_presets_are_the_first_column_of_the_listing() -> None:
    listing = "presets           \ndigits-fedavg   The demo: fast\nscale-10k       Scale: many\n\n"
    assert preset_names(listing) == {"digits-fedavg", "scale-10k"}


# The whole

FEDLOOM = """
import json, pathlib, sys
BITS = {bits!r}
def main():
    if sys.argv[1] == "list":
        print("presets\\n" + "\\n".join(f"{{name}}   A preset" for name in BITS))
        return
    preset, out = sys.argv[2], pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    if preset == "absent":
        print("fedloom.core.errors.DataMissing: no images", file=sys.stderr)
        sys.exit(2)
    out.mkdir(parents=True)
    (out / "rounds.jsonl").write_text('{{"metrics": {{"loss": NaN}}}}\\n')
    print(json.dumps({{"status": "done", "model_sha256": BITS[preset], "metrics": {{"loss": float("nan")}}}}))
"""


class Project:
    """A git repository whose fedloom knows a few presets and the bits of each."""

    def __init__(self, root: Path) -> None:
        self.root, self.repository = root, Repository(root)
        (root / "src" / "fedloom").mkdir(parents=True)
        (root / "src" / "fedloom" / "__init__.py").touch()
        self._versions = 0
        (root / "src" / "fedloom" / "__main__.py").write_text(
            "from fedloom.cli import main\nmain()\n", encoding="utf-8"
        )
        (root / ".gitignore").write_text(".cache/\n__pycache__/\n", encoding="utf-8")
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(self.root), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.strip()

    def write(self, bits: Mapping[str, str]) -> None:
        """Write the program, each version with a time of its own: bytecode of an older one is not taken for it."""
        file = self.root / "src" / "fedloom" / "cli.py"
        file.write_text(FEDLOOM.format(bits=dict(bits)), encoding="utf-8")
        self._versions += 1
        os.utime(file, (1_000_000_000 + self._versions,) * 2)

    def commit(self, **bits: str) -> str:
        """Commit a fedloom with these bits for its presets, given as `a_b` for `a-b`."""
        self.write(bits)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "Another version")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "intended.toml").touch()
    monkeypatch.setattr(program, "read_entries", lambda resolve: read_entries(resolve, tmp_path / "intended.toml"))
    return Project(tmp_path / "project")


def compare(project: Project, base: str) -> int:
    return program.compare(project.repository, base, None, {"short": Length(("rounds=1",))})


def test_a_comparison_from_end_to_end(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = project.commit(steady="1", short="2", absent="")
    project.commit(steady="1", short="2", absent="", fresh="3")
    assert compare(project, base[:10]) == 0
    first = capsys.readouterr()
    assert "2 equal, 2 skipped" in first.out and "BASE lacks it" in first.out and "no data: no images" in first.out
    assert first.err.count("] base ") == 1 + 6, "the first line, and three presets run twice"

    changed = project.commit(steady="1", short="9", absent="", fresh="3")
    assert compare(project, base) == 1
    second = capsys.readouterr()
    assert "inline: model_sha256 2 -> 9" in second.out and second.err.count("] base ") == 1 + 2, "the others are kept"

    write_entry(tmp_path, preset="short", commit=changed)
    assert compare(project, base) == 0
    assert f"short  {changed[:12]}: a better sum" in capsys.readouterr().out
    assert compare(project, changed) == 0, "the entry does not count: its commit is not after the base"
    assert "1 more, whose commits lie elsewhere, do not count" in capsys.readouterr().out

    write_entry(tmp_path, preset="steady", commit=changed)
    assert compare(project, base) == 1
    out = capsys.readouterr().out
    assert "NEEDLESS ENTRY" in out and "DIFFERS" in out


def test_uncommitted_changes_are_compared_and_said(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    base = project.commit(steady="1")
    project.write({"steady": "2"})
    assert compare(project, base) == 1
    captured = capsys.readouterr()
    assert "with uncommitted changes" in captured.err and "model_sha256 1 -> 2" in captured.out


def test_it_works_in_a_worktree_which_shares_the_results(project: Project, tmp_path: Path) -> None:
    base = project.commit(steady="1")
    assert compare(project, base) == 0
    project.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "beside"))
    beside = Repository(tmp_path / "beside")
    assert beside.cache_folder() == project.repository.cache_folder() == project.root / ".cache" / "same-bits"
    assert program.compare(beside, base, None, {}) == 0


def test_a_corrupted_base_is_checked_out_again(project: Project) -> None:
    base = project.commit(steady="1")
    place = project.repository.checkout(base, project.repository.cache_folder())
    (place / "src" / "fedloom" / "cli.py").write_text("spoilt", encoding="utf-8")
    assert project.repository.checkout(base, project.repository.cache_folder()) == place
    assert "spoilt" not in (place / "src" / "fedloom" / "cli.py").read_text(encoding="utf-8")


def test_a_change_during_the_comparison_makes_it_void(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = project.commit(steady="1")

    def change(*arguments: object) -> dict[str, Outcomes]:
        (project.root / "src" / "fedloom" / "cli.py").write_text("changed", encoding="utf-8")
        return {"steady": both(done("1", NAN, (NAN,)))}

    monkeypatch.setattr(program, "run_presets", change)
    assert compare(project, base) == 1
    assert "files changed during the comparison" in capsys.readouterr().out


@pytest.mark.parametrize("base", ["0123456789", "--force", "side"])
def test_a_base_that_is_no_ancestor_is_wrong_input(project: Project, base: str) -> None:
    project.commit(steady="1")
    project.git("switch", "--quiet", "--create", "side")
    project.commit(steady="2")
    project.git("switch", "--quiet", "-")
    with pytest.raises(WrongInput, match=r"no commit|ancestor"):
        compare(project, base)


def test_a_tree_that_is_not_imported_is_wrong_input(project: Project) -> None:
    base = project.commit(steady="1")
    (project.root / "src" / "fedloom" / "__init__.py").write_text(
        '__file__ = "/elsewhere/fedloom/__init__.py"\n', encoding="utf-8"
    )
    with pytest.raises(WrongInput, match="expected to import fedloom from"):
        compare(project, base)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--base", "0123456789"], "no commit"), (["--base", "HEAD", "--only", "stedy"], "no preset stedy")],
)
def test_wrong_input_ends_with_2(
    arguments: list[str],
    said: str,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project.commit(steady="1")
    monkeypatch.setattr(program, "ROOT", project.root)
    assert program.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_the_list_of_intended_differences_is_sound() -> None:
    assert all(each.preset for each in read_entries(lambda name: name, intended.INTENDED))
