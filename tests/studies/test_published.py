"""Published numbers: the file gives back what was measured, pages follow from it, and a changed number is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom.core.seeds import generator
from fedloom.reporting.example_scores import ExampleScores
from fedloom.studies import held_out, machine, pages, published
from fedloom.studies.claims import Outcome
from fedloom.studies.comparison import RunNumbers, ScenarioNumbers
from fedloom.studies.definition import Definition
from fedloom.studies.published import Measurement, Published
from fedloom.studies.worker import do_run

CLAIM = {
    "id": "A", "text": "More clients are better.", "arm": "many",
    "checks": [{"of": "final_difference", "at_least": 0.0}],
}  # fmt: skip
MACHINE = {"processor": "An abacus", "torch": "9.9", "capability": "AVX2", "date": "2026-01-02"}


def measured(gain: float, *, seeds: int = 4, scores: bool = True) -> Measurement:
    """Four seeds of two arms on 100 examples; `many` is right on as many more examples as the gain says."""
    rng, arms = generator(1, "published"), dict[str, dict[int, RunNumbers]]()
    for arm, rate in (("few", 0.5), ("many", 0.5 + gain)):
        arms[arm] = {}
        for seed in range(5, 5 + seeds):
            right = tuple(int(each) for each in np.arange(100) < round(100 * rate) + int(rng.integers(2)))
            numbers = {"final": sum(right) / 100, "auc": rate, "rounds": 3.0, "bytes_up": 1e6 / 3, "bytes_down": 5.0}
            found = {"final": ExampleScores(right, "some labels")} if scores else {}
            arms[arm][seed] = RunNumbers(numbers=numbers, scores=found)
    equal = {"many": {seed: {"auc_at_equal_bytes": gain} for seed in range(5, 5 + seeds)}}
    return Measurement(
        command="fedloom study little",
        machine=MACHINE,
        scenarios={"base": ScenarioNumbers(target=0.45, arms=arms, equal=equal)},
        ratios=("coverage",),
    )


@pytest.fixture
def definition(study: Callable[..., dict[str, Any]]) -> Definition:
    return Definition.parse(study(metric="accuracy", better="higher", claims=[CLAIM]))


def test_the_file_gives_back_what_was_measured(tmp_path: Path) -> None:
    made = Published(study="little", measurements=(measured(0.1), measured(0.2, scores=False)))
    less = {"x": ExampleScores((1, 0, -1, -1, 0, 1, 1, 0, -1), "others")}
    arms = {"few": {5: RunNumbers(numbers={"x": -1 / 9}, scores=less)}}
    odd = Measurement(command="c", machine={}, scenarios={"s": ScenarioNumbers(target=float("nan"), arms=arms)})
    for each in (made, Published(study="odd", measurements=(odd,))):
        path = tmp_path / f"{each.study}.json"
        published.write(each, path)
        again = published.read(path)
        published.write(again, tmp_path / "again.json")
        assert path.read_text(encoding="utf-8") == (tmp_path / "again.json").read_text(encoding="utf-8")
        assert again.study == each.study
        for ours, theirs in zip(each.measurements, again.measurements, strict=True):
            assert (ours.command, ours.machine, ours.ratios) == (theirs.command, theirs.machine, theirs.ratios)
            for name, scenario in ours.scenarios.items():
                other = theirs.scenarios[name]
                assert {arm: list(runs) for arm, runs in scenario.arms.items()} == {
                    arm: list(runs) for arm, runs in other.arms.items()
                }
                for arm, runs in scenario.arms.items():
                    for seed, run in runs.items():
                        assert other.arms[arm][seed].scores == run.scores
                        assert other.arms[arm][seed].numbers == pytest.approx(run.numbers, rel=1e-5)
                assert other.equal == scenario.equal


def test_verdicts_follow_from_the_file_and_must_be_replicated(definition: Definition) -> None:
    def page(*gains: float) -> str:
        made = Published(study="little", measurements=tuple(measured(gain) for gain in gains))
        return pages.section(definition, made).splitlines()[-3]

    outcomes = {gain: measured(gain).verdicts(definition)[0].outcome for gain in (0.2, 0.0, -0.2)}
    assert outcomes == {0.2: "supported", 0.0: "undecided", -0.2: "not supported"}
    assert page(0.2).endswith("supported |") and page(0.2, 0.25).endswith("**supported** |")
    assert page(0.2, -0.2).endswith("**undecided** |") and ": not supported |" in page(0.2, -0.2)


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["supported"], "supported"),
        (["supported", "supported"], "supported"),
        (["supported", "undecided"], "undecided"),
        (["not supported", "supported"], "undecided"),
        (["not supported", "not supported", "not supported"], "not supported"),
    ],
)
def test_a_verdict_that_changes_is_undecided(outcomes: list[Outcome], verdict: Outcome) -> None:
    assert published.replicated(outcomes) == verdict


def test_a_section_names_machine_command_budgets_and_what_few_seeds_show(definition: Definition) -> None:
    text = pages.section(definition, Published(study="little", measurements=(measured(0.1), measured(0.1))))
    for expected in (
        "**Measured** 2026-01-02: An abacus, instruction set AVX2, torch 9.9.",
        "**Replication** 2026-01-02",
        "fedloom study little",
        "| bytes up, down |",
        "With 4 seeds an interval reaches 1.6 standard deviations",
        "0.062",
    ):
        assert expected in text, text
    # t with three degrees of freedom is 3.18, over √4 it is 1.6; 1 / 2⁴ is 0.0625


def test_a_difference_that_the_test_set_cannot_resolve_is_undecided(definition: Definition) -> None:
    """Every seed is better by the same one example of 100: no spread over seeds, but one example is no evidence.

    d_i is 1 for one example and 0 for 99: mean 0.01, standard deviation 0.1, standard error 0.01, t 1.984.
    """
    runs = {
        arm: {
            seed: RunNumbers(
                numbers={"final": right / 100},
                scores={"final": ExampleScores((1,) * right + (0,) * (100 - right), "the same")},
            )
            for seed in range(8)
        }
        for arm, right in (("few", 50), ("many", 51))
    }
    made = Measurement(command="", machine={}, scenarios={"base": ScenarioNumbers(target=0.5, arms=runs)})
    found = made.estimates(definition)["base"]["many"]["final_difference"]
    assert found.value == pytest.approx(0.01) and found.sampling == pytest.approx(0.01)
    assert (found.low, found.high) == pytest.approx((0.01 - 1.984 * 0.01, 0.01 + 1.984 * 0.01), abs=1e-5)
    assert [each.outcome for each in made.verdicts(definition)] == ["undecided"]
    bare = {arm: {s: replace(run, scores={}) for s, run in each.items()} for arm, each in runs.items()}
    alone = replace(made, scenarios={"base": ScenarioNumbers(target=0.5, arms=bare)})
    assert [each.outcome for each in alone.verdicts(definition)] == ["supported"]  # by seeds alone
    apart = {
        arm: {s: replace(r, scores={"final": replace(r.scores["final"], examples=str(s))}) for s, r in each.items()}
        for arm, each in runs.items()
    }
    others = replace(made, scenarios={"base": ScenarioNumbers(target=0.5, arms=apart)})
    assert others.estimates(definition)["base"]["many"]["final_difference"].sampling is None  # sets of their own


def test_every_page_is_what_its_numbers_give() -> None:
    """What `make study-pages` checks: nothing on a page is typed by hand."""
    for page, text in pages.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page}: run python -m fedloom.studies.pages"


def test_a_changed_number_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study_file: Any) -> None:
    folder = tmp_path / "method"
    definition_file = study_file(metric="accuracy", better="higher", claims=[CLAIM])
    made = Published(study=str(definition_file), measurements=(measured(0.2),))
    published.write(made, folder / "measurements" / "little.json")
    (folder / "STUDY.md").write_text(
        f"# Page\n\n<!-- study {definition_file} -->\n<!-- end {definition_file} -->\n", encoding="utf-8"
    )
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert pages.main(["--check"]) == 1  # the section is empty
    assert pages.main([]) == 0 and pages.main(["--check"]) == 0
    file = folder / "measurements" / "little.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["measurements"][0]["scenarios"]["base"]["arms"]["many"]["numbers"]["final"][0] = 0.9
    file.write_text(json.dumps(values), encoding="utf-8")
    assert pages.main(["--check"]) == 1
    shutil.copy(folder / "STUDY.md", tmp_path / "kept")
    (folder / "STUDY.md").write_text("# Page without markers\n", encoding="utf-8")
    with pytest.raises(Exception, match="expected the lines"):
        pages.pages()


def test_a_worker_notes_the_machine_and_which_examples_are_right(tmp_path: Path) -> None:
    from fedloom.core.config import Experiment

    made = Experiment.parse(
        {
            "rounds": 1, "clients": 4, "cohort": 2, "strategy": "fedavg", "evaluation": {"parts": 1},
            "runtime": {"name": "inline"},
            "workload": {"name": "image_classification", "data": {"source": "digits"}, "model": {"name": "mlp"}},
        }
    )  # fmt: skip
    folder = tmp_path / "run"
    assert do_run(folder, made.to_dict(), lambda **values: None) == {"ended": "done", "error": ""}
    found = held_out.read(folder)
    assert found is not None and found[0].shape == (359,)
    last = json.loads((folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert found[0].mean() == pytest.approx(last["evaluation"]["accuracy"])
    noted = machine.read(folder)
    assert noted["processor"] and noted["torch"] and noted["capability"] and noted["date"] >= "2026"
    assert machine.common([noted, {**noted, "capability": "other"}])["capability"].count(", ") == 1


def test_bits_are_packed_and_unpacked() -> None:
    bits = generator(1, "bits").random(359) < 0.7
    assert (held_out.unpack(held_out.pack(bits), 359) == bits).all() and len(held_out.pack(bits)) == 90
