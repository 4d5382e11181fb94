"""What installed selections ask of clients keeps to what every measure does."""

from __future__ import annotations

import pytest

from fedloom.core import registry
from fedloom.core.errors import UnsupportedFeature
from fedloom.core.records import Info
from fedloom.testing.measure import MeasureConformance

DIGITS: Info = {"data": {"source": "digits"}, "model": {"name": "mlp", "hidden": [8]}}
IMAGES: Info = {"name": "image_classification", **DIGITS}
SPIKING: Info = {"name": "spiking_classification", "time_steps": 4, **DIGITS}


def asks(name: str) -> bool:
    """Whether a selection asks for a measure in its first round."""
    suite = MeasureConformance()
    suite.name = name
    try:
        suite.asked()
    except LookupError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name in registry.names("selection") if asks(name)])
class TestMeasures(MeasureConformance):
    workload = SPIKING  # it has all that measures look at: outputs and firing rates

    @pytest.fixture(autouse=True)
    def _chosen(self, name: str) -> None:
        self.name = name


def test_some_selections_ask_and_some_do_not() -> None:
    assert asks("firing_credit") and not asks("uniform")


def test_a_measure_refuses_a_workload_that_lacks_what_it_needs() -> None:
    suite = MeasureConformance()
    suite.name, suite.workload = "firing_credit", IMAGES
    with pytest.raises(UnsupportedFeature, match="firing_credit"):
        suite.test_it_reports_numbers()
