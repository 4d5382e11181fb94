"""Pages of studies from their published numbers: `python -m fedloom.studies.pages`.

A method's folder has `STUDY.md` and, in `measurements/`, one file for each published study. The page has a section
between `<!-- study NAME -->` and `<!-- end NAME -->`, which is computed from the file and the study's definition: where
and how it was measured, the tables, and the verdict of each claim in every measurement.

    python -m fedloom.studies.pages                     write all sections
    python -m fedloom.studies.pages --check             fail if a page and its file differ: `make study-pages`
    python -m fedloom.studies.pages --add STUDY FOLDER COMMAND
                                                        add the runs in FOLDER to the study's file, and write its page

The first measurement added is the measurement, later ones are replications. COMMAND is what was typed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import fedloom
from fedloom.core import definitions
from fedloom.core.errors import UsageError
from fedloom.reporting.page import write_page
from fedloom.reporting.quantities import NOTHING, bytes_text, count_text
from fedloom.studies import published
from fedloom.studies.claims import Outcome, Verdict
from fedloom.studies.definition import Definition
from fedloom.studies.definition_files import load
from fedloom.studies.grid import expand
from fedloom.studies.parts import StudyParts
from fedloom.studies.published import Measurement, Published
from fedloom.studies.report.tables import interval, number, numbers_text
from fedloom.studies.results import analyse
from fedloom.studies.statistics import FEW, NORMAL, Estimate, what_seeds_show

ROOT = Path(fedloom.__file__).parent
PAGE, FOLDER = "STUDY.md", "measurements"
_RULE = (
    "Margins, directions and primary claims are those of the study's file. A claim is supported if the whole 95 % "
    "interval lies within its bounds, not supported if none of it does, undecided otherwise or if a replication's "
    "verdict differs. “Test set ±” is what the sampling of the held-out examples alone adds to a difference of final "
    "values, by the examples that one of the two models gets right; it is part of these intervals. Other intervals are "
    "over seeds alone. p is of primary claims only, after Holm's correction."
)
Found = Mapping[str, Estimate]
Cell = Callable[[Found], str]


def section(definition: Definition, made: Published) -> str:
    """Return the text between a study's markers."""
    parts = []
    for place, each in enumerate(made.measurements):
        parts += [_heading(place, each), *_tables(definition, each)]
    parts.append(_claims(definition, made.measurements))
    few = min(len(runs) for each in made.measurements for s in each.scenarios.values() for runs in s.arms.values())
    if few <= FEW:
        parts.append(what_seeds_show(few))
    return "\n\n".join(part for part in parts if part)


def pages() -> dict[Path, str]:
    """Return what each page of the tree should be.

    Raises:
        UsageError: a page lacks the markers of a study whose numbers are next to it.
    """
    texts: dict[Path, str] = {}
    for path in sorted(ROOT.glob(f"**/{FOLDER}/*.json")):
        page = path.parent.parent / PAGE
        made = published.read(path)
        text = texts.get(page) or page.read_text(encoding="utf-8")
        begin, end = f"<!-- study {made.study} -->\n", f"<!-- end {made.study} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise UsageError(f"{page}: expected the lines {begin.strip()!r} and {end.strip()!r}, found at most one")
        texts[page] = before + begin + "\n" + section(load(made.study)[0], made) + "\n\n" + end + after
    return texts


def add(study: str, folder: Path, command: str) -> Path:
    """Add the finished runs of a folder to a study's published numbers; returns the file."""
    definition, _ = load(study)
    grid = expand(definition)
    ratios = StudyParts.of({(each.scenario, each.arm): each.experiment for each in grid}.values()).ratios(definition)
    result = analyse(definition, grid, folder)
    if not result.done:
        raise UsageError(f"{folder}: no finished run of study {study!r}")
    path = definitions.found("studies")[study].parent.parent / FOLDER / f"{study}.json"
    earlier = published.read(path).measurements if path.is_file() else ()
    made = published.measurement(result, sorted(ratios), command)
    published.write(Published(study=study, measurements=(*earlier, made)), path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, check or extend; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedloom.studies.pages", description="Pages of published studies")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page and its file differ")
    parser.add_argument("--add", nargs=3, metavar=("STUDY", "FOLDER", "COMMAND"), help="add a study's finished runs")
    options = parser.parse_args(arguments)
    if options.add:
        add(options.add[0], Path(options.add[1]), options.add[2])
    differing = [page for page, text in pages().items() if page.read_text(encoding="utf-8") != text]
    for page in differing:
        if options.check:
            print(f"{page.relative_to(ROOT)} differs from its numbers; run python -m fedloom.studies.pages")
        else:
            write_page(page, pages()[page])
            print(f"wrote {page.relative_to(ROOT)}")
    return 1 if options.check and differing else 0


def _heading(place: int, each: Measurement) -> str:
    machine = dict(each.machine)
    name = "Measured" if place == 0 else "Replication" if place == 1 else f"Replication {place}"
    where = [machine.get("processor", "processor not recorded")]
    where += [f"instruction set {machine['capability']}"] if "capability" in machine else []
    where += [f"{library} {machine[library]}" for library in ("torch", "numpy", "python") if library in machine]
    return f"**{name}** {machine.get('date', 'on an unknown date')}: {', '.join(where)}.\n\n```\n{each.command}\n```"


def _tables(definition: Definition, each: Measurement) -> list[str]:
    """Return a table for each scenario and each group of arms that the study compares."""
    made, shown = each.estimates(definition), []
    for name, scenario in each.scenarios.items():
        title = definition.conditions[name].title or name
        head = f"{title[:1].upper()}{title[1:]}: target {number(scenario.target)}"
        for group, arms in (definition.tables or {"": tuple(scenario.arms)}).items():
            measured = [arm for arm in arms if arm in scenario.arms]
            if measured:
                caption = f"{head}. {group}".rstrip(" .")
                rows = {f"`{arm}`: {definition.arms[arm].title or arm}": made[name][arm] for arm in measured}
                shown.append(f"{caption}. Trainings, values and bytes are a round's.\n\n{_table(definition, rows)}")
    return [*shown, f"Tuning: {definition.grid}"] if definition.grid else shown


def _table(definition: Definition, arms: Mapping[str, Found]) -> str:
    columns: list[tuple[str, Cell]] = [
        ("seeds", lambda f: str(f["final"].count) if "final" in f else NOTHING),
        (f"final {definition.metric}", lambda f: _value(f, "final")),
        ("difference", lambda f: interval(f.get("final_difference"), sign=True)),
        ("test set ±", lambda f: _resolution(f.get("final_difference"))),
        ("mean over rounds, difference", lambda f: interval(f.get("auc_difference"), sign=True)),
        ("rounds to target", lambda f: f"{f['rounds'].value:g}" if "rounds" in f else NOTHING),
        ("ratio", lambda f: interval(f.get("rounds_ratio"), digits=2)),
        ("at equal trainings", lambda f: interval(f.get("auc_at_equal_trainings_difference"), sign=True)),
        ("at equal bytes", lambda f: interval(f.get("auc_at_equal_bytes_difference"), sign=True)),
        ("trainings", lambda f: _value(f, "local_trainings", 1)),
        ("values up", lambda f: count_text(round(f["params_up"].value)) if "params_up" in f else NOTHING),
        ("bytes up, down", _bytes),
    ]
    rows = [[arm, *(cell(found) for _, cell in columns)] for arm, found in arms.items()]
    lines = [["arm", *(name for name, _ in columns)], ["---"] * (len(columns) + 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _claims(definition: Definition, made: Sequence[Measurement]) -> str:
    verdicts = [{(v.claim, v.scenario): v for v in each.verdicts(definition)} for each in made]
    keys = dict.fromkeys(key for each in verdicts for key in each)
    head = ["claim", "arm, scenario", "claimed", *(_column(place) for place in range(len(made))), "verdict"]
    lines = [head, ["---"] * len(head)]
    for key in keys:
        found = [each.get(key) for each in verdicts]
        known = [each for each in found if each is not None]
        first = known[0]
        claimed = ", ".join(first.bounds) or "no bound"
        cells = [first.text, f"`{first.arm}`, {first.scenario}", f"primary; {claimed}" if first.primary else claimed]
        lines.append(
            [*cells, *(_result(each) for each in found), _verdict([each.outcome for each in known], len(made))]
        )
    shown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{_RULE}\n\n{shown}" if keys else ""


def _column(place: int) -> str:
    return "measured" if place == 0 else "replication" if place == 1 else f"replication {place}"


def _result(verdict: Verdict | None) -> str:
    return NOTHING if verdict is None else f"{'; '.join(numbers_text(verdict))}: {verdict.outcome}"


def _verdict(outcomes: Sequence[Outcome], measurements: int) -> str:
    found = published.replicated(outcomes)
    if found == "reported":
        return "reported"
    return f"**{found}**" if len(outcomes) > 1 else f"{found}, not replicated" if measurements > 1 else found


def _value(found: Found, name: str, digits: int = 3) -> str:
    return number(found[name].value, digits) if name in found else NOTHING


def _resolution(found: Estimate | None) -> str:
    return NOTHING if found is None or found.sampling is None else number(NORMAL * found.sampling)


def _bytes(found: Found) -> str:
    if "bytes_up" not in found:
        return NOTHING
    return f"{bytes_text(found['bytes_up'].value)}, {bytes_text(found['bytes_down'].value)}"


if __name__ == "__main__":
    sys.exit(main())
