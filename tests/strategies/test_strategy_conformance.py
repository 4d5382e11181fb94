"""Every strategy that is installed and needs nothing but arrays keeps to what all do, and so does its client half."""

from __future__ import annotations

from collections.abc import Mapping

import pydantic
import pytest
from made_up_clients import COMMON, VARIANTS, Federation

from fedloom.core import registry
from fedloom.testing.rule import RuleConformance
from fedloom.testing.strategy import StrategyConformance

NAMES = [name for name in registry.names("strategies") if name != "flower"]  # foreign objects keep their own state
FROZEN = frozenset({"layer.bias", "half", "scalar", "steps", "other.weight", "head.weight"})
"""Arrays of the made-up model that carry no adapter."""
CASES = [(name, settings) for name in NAMES for settings in VARIANTS.get(name, [{}])]


def words(case: tuple[str, Mapping[str, object]]) -> str:
    name, settings = case
    return "-".join([name, *map(str, settings.values())])


@pytest.mark.parametrize("case", CASES, ids=words)
class TestStrategies(StrategyConformance):
    @pytest.fixture(autouse=True)
    def _chosen(self, case: tuple[str, Mapping[str, object]]) -> None:
        self.name, self.settings = case
        self.may_stay = FROZEN if self.name in COMMON else frozenset()
        if self.name == "flasc" and "density_down" not in self.settings:
            self.may_stay |= {"layer.weight"}  # clients of round 1 read no entry of B = 0, so none is published
        try:
            self.federation()
        except pydantic.ValidationError:
            pytest.skip(f"{self.name} has settings without defaults; its own tests cover it")

    def federation(self) -> Federation:
        return Federation(self.name, self.settings)


@pytest.mark.parametrize("case", CASES, ids=words)
class TestRules(RuleConformance):
    @pytest.fixture(autouse=True)
    def _chosen(self, case: tuple[str, Mapping[str, object]]) -> None:
        self.name, self.settings = case
        try:
            self.exchange()
        except (LookupError, pydantic.ValidationError) as exc:
            pytest.skip(str(exc))

    def federation(self) -> Federation:
        return Federation(self.name, self.settings)
