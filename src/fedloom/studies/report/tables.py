"""The numbers of a study as text: cells of tables, in the page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedloom.reporting.quantities import NOTHING, bytes_text, count_text
from fedloom.reporting.study_part import NumberColumn
from fedloom.studies.claims import Verdict
from fedloom.studies.definition import Definition
from fedloom.studies.results import ArmResult, ScenarioResult
from fedloom.studies.statistics import LEVEL, Estimate

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a scenario's table."""

    name: str
    cell: Callable[[ArmResult], str]


def number(value: float, digits: int = 3) -> str:
    """Return a number with these decimals and a real minus."""
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """Return a difference, with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def interval(found: Estimate | None, *, sign: bool = False, digits: int = 3) -> str:
    """Return an estimate as `0.68 [0.52, 0.81]`; the level too if it is not 95 %, and no interval of a single seed."""
    if found is None:
        return NOTHING
    text = signed if sign else number
    if not math.isfinite(found.low):
        return text(found.value, digits)
    level = "" if found.level >= LEVEL else f" ({100 * found.level:.0f} %)"
    return f"{text(found.value, digits)} [{text(found.low, digits)}, {text(found.high, digits)}]{level}"


def p_text(p: float) -> str:
    """Return a p-value as `0.008`, or `<0.001`."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def result_columns(definition: Definition) -> list[Column]:
    """Return columns for the arms' learning, against the reference."""
    return [
        Column("seeds", lambda arm: str(len(arm.runs))),
        Column(f"final {definition.metric}", lambda arm: _mean(arm, "final")),
        Column("mean over rounds", lambda arm: _mean(arm, "auc")),
        Column("difference", lambda arm: interval(arm.estimates.get("auc_difference"), sign=True)),
        Column("rounds to target", rounds_text),
        Column("ratio", lambda arm: interval(arm.estimates.get("rounds_ratio"), digits=2)),
    ]


def equal_cost_columns() -> list[Column]:
    """Return columns that compare the arms with the reference at equal cost."""
    columns = []
    for cost, name in (("trainings", "trainings"), ("uplink", "values up"), ("bytes", "bytes")):
        columns += [
            Column(f"{name} to target", _ratio(f"{cost}_to_target_ratio")),
            Column(f"at equal {name}", _difference(f"auc_at_equal_{cost}_difference")),
        ]
    return columns


def client_columns(scenario: ScenarioResult, contributed: Sequence[NumberColumn]) -> list[Column]:
    """Return columns about the cohorts, if measured."""
    return _contributed(scenario, [each for each in contributed if each.table == "clients"])


def cost_columns(scenario: ScenarioResult, contributed: Sequence[NumberColumn]) -> list[Column]:
    """Return columns for the cost of a round, and those of the study's plug-ins."""
    columns = [
        Column("local trainings", lambda arm: _mean(arm, "local_trainings", 1)),
        Column("values down", lambda arm: _amount(arm, "params_down")),
        Column("values up", lambda arm: _amount(arm, "params_up")),
        Column("bytes down", lambda arm: _bytes(arm, "bytes_down")),
        Column("bytes up", lambda arm: _bytes(arm, "bytes_up")),
        Column("seconds", lambda arm: _mean(arm, "seconds", 2)),
    ]
    return columns + _contributed(scenario, [each for each in contributed if each.table == "costs"])


def _contributed(scenario: ScenarioResult, contributed: Sequence[NumberColumn]) -> list[Column]:
    """Return the columns whose number some arm has."""
    columns = []
    for each in contributed:
        if any(each.number in arm.estimates for arm in scenario.arms.values()):
            columns.append(Column(each.title, (_interval if each.interval else _of)(each.number, each.digits)))
            if each.difference:
                columns.append(Column("difference", _difference(f"{each.number}_difference", each.digits)))
    return columns


def rows(scenario: ScenarioResult, columns: Sequence[Column]) -> list[list[str]]:
    """Return a row for each arm that has finished runs: its name, then the columns."""
    return [[name, *(column.cell(arm) for column in columns)] for name, arm in scenario.arms.items() if arm.runs]


def rounds_text(arm: ArmResult) -> str:
    """Return the median of the rounds to target, and how many runs never reached it."""
    found = arm.estimates.get("rounds")
    if found is None:
        return NOTHING
    never = f" ({arm.censored} of {len(arm.runs)} never)" if arm.censored else ""
    return f"{found.value:g}{never}"


def numbers_text(verdict: Verdict) -> list[str]:
    """Return a claim's numbers: `rounds to target, ratio 0.68 [0.52, 0.81], p(less) 0.008`; p is the corrected one."""
    return [_number_text(name, found, verdict.corrected) for name, found in verdict.numbers.items()]


def _number_text(name: str, found: Estimate, corrected: Mapping[str, float]) -> str:
    digits = 2 if name.endswith("_ratio") else 3
    shown = [f"{_spoken(name)} {interval(found, sign=name.endswith('_difference'), digits=digits)}"]
    shown += [
        f"p({side}) {p_text(corrected[f'{name}.p_{side}'])}"
        for side in ("less", "greater")
        if f"{name}.p_{side}" in corrected
    ]
    return ", ".join(shown)


def _spoken(name: str) -> str:
    """Return a number's label: `auc_at_equal_trainings_difference` is `mean at equal trainings, difference`."""
    for ending in ("_ratio", "_difference"):
        if name.endswith(ending):
            return f"{_spoken(name.removesuffix(ending))}, {ending[1:]}"
    known = {"auc": "mean over rounds", "kl": "KL to uniform", "qcid": "QCID", "rounds": "rounds to target"}
    words = known.get(name, name.replace("_", " "))
    if name.startswith("auc_at"):
        words = name.replace("auc", "mean", 1).replace("_", " ")
    return words.replace(" auc", " AUC")


def _mean(arm: ArmResult, name: str, digits: int = 3) -> str:
    return number(arm.estimates[name].value, digits) if name in arm.estimates else NOTHING


def _of(name: str, digits: int) -> Callable[[ArmResult], str]:
    return lambda arm: _mean(arm, name, digits)


def _amount(arm: ArmResult, name: str) -> str:
    return count_text(round(arm.estimates[name].value)) if name in arm.estimates else NOTHING


def _bytes(arm: ArmResult, name: str) -> str:
    return bytes_text(arm.estimates[name].value) if name in arm.estimates else NOTHING


def _ratio(name: str) -> Callable[[ArmResult], str]:
    return lambda arm: interval(arm.estimates.get(name), digits=2)


def _difference(name: str, digits: int = 3) -> Callable[[ArmResult], str]:
    return lambda arm: interval(arm.estimates.get(name), sign=True, digits=digits)


def _interval(name: str, digits: int) -> Callable[[ArmResult], str]:
    return lambda arm: interval(arm.estimates.get(name), digits=digits)
