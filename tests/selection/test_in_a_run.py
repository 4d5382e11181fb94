"""Every selection in a run of the platform: with a linear model where it can, with a spiking network all of them."""

from collections.abc import Callable
from typing import Any

import pytest

from fedloom.api import RunResult, run
from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, UsageError
from fedloom.core.records import arrays_sha256

SPIKING = {
    "clients": 12,
    "cohort": 3,
    "rounds": 2,
    "seed": 5,
    "strategy": "fedavg",
    "evaluation": {"every": 0},
    "runtime": {"name": "inline"},
    "workload": {
        "name": "spiking_classification",
        "data": {"source": "digits"},
        "partition": {"scheme": "dirichlet", "alpha": 0.3},
        "model": {"name": "mlp", "hidden": [16]},
        "time_steps": 4,
        "training": {"learning_rate": 0.05, "epochs": 1, "batch_size": 16},
    },
}
PARAMETERS = 64 * 16 + 16 + 16 * 10 + 10


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def spiking(**values: Any) -> RunResult:
    workload = {**SPIKING["workload"], **values.pop("workload", {})}  # type: ignore[dict-item]
    return run(Experiment.parse({**SPIKING, **values, "workload": workload}), keep=False)


@pytest.mark.parametrize("name", registry.names("selection"))
def test_every_selection_runs_with_a_spiking_network(name: str) -> None:
    result = spiking(selection=name)
    for record in result.history:
        assert len(record.cohort) == len(set(record.cohort)) == 3
        assert set(record.cohort) <= set(record.candidates or record.cohort)
        assert not record.failures


LABELLED = ("fed_cbs", "label_oracle")
FIRING = ("firing_credit", "spike_activity")
OUTPUTS = ("predicted_credit",)


@pytest.mark.parametrize("name", registry.names("selection"))
def test_what_a_linear_model_cannot_give_is_reported(linear: Callable[..., Experiment], name: str) -> None:
    experiment = linear(selection=name, rounds=3, cohort=3)
    missing = {
        **dict.fromkeys(LABELLED, "label counts"),
        **dict.fromkeys(FIRING, "a spiking workload such as"),
        **dict.fromkeys(OUTPUTS, "needs a workload with class_errors"),
    }
    if name in missing:
        with pytest.raises(FedloomError, match=missing[name]) as reported:
            run(experiment, keep=False)
        assert isinstance(reported.value, UsageError) or name not in LABELLED
        return
    result = run(experiment, keep=False)
    assert [len(record.cohort) for record in result.history] == [3, 3, 3]


def test_as_many_candidates_as_places_is_uniform_selection_bit_for_bit() -> None:
    credited = spiking(selection={"name": "firing_credit", "oversampling": 1.0})
    uniform = spiking(selection="uniform")
    assert [record.cohort for record in credited.history] == [record.cohort for record in uniform.history]
    assert arrays_sha256(credited.arrays) == arrays_sha256(uniform.arrays)


@pytest.mark.parametrize(("rule", "floats"), [("shortlist-balance", 1 + 10), ("balance-all", 1 + 10), ("topm", 1)])
def test_traffic_is_d_models_down_and_m_models_with_the_credits_up(rule: str, floats: int) -> None:
    result = spiking(selection={"name": "firing_credit", "rule": rule, "candidates": 8})
    for record in result.history:
        assert len(record.candidates) == record.local_trainings == 8
        assert record.traffic.params_down == 8 * PARAMETERS
        assert record.traffic.params_up == 3 * PARAMETERS + 8 * floats


@pytest.mark.parametrize("encoder", [{"name": "direct"}, {"name": "poisson"}])
def test_without_learning_every_credit_is_zero(encoder: dict[str, Any]) -> None:
    training = {"learning_rate": 1e-30, "epochs": 1, "batch_size": 16}
    result = spiking(selection="firing_credit", workload={"encoder": encoder, "training": training})
    for record in result.history:
        assert {info["credit"] for info in record.probe.values()} == {0.0}
        assert record.cohort == record.candidates[:3]


def test_credits_are_reported_and_within_bounds() -> None:
    for norm in ("per_sample", "signed"):
        result = spiking(selection={"name": "firing_credit", "norm": norm, "layers": "all"}, rounds=1)
        reported = [info["credit"] for info in result.history[0].probe.values()]
        assert len(set(reported)) > 1 and all(-10 <= credit <= 10 for credit in reported)
