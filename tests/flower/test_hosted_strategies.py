"""Flower's strategies under our loop against the same objects called by hand, on the same updates."""

from typing import Any

import numpy as np
import pytest

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.errors import BadUpdate, ConfigError, RunFailed, UnknownName, UnsupportedFeature
from fedloom.core.records import MODEL, Mean, Record, RoundContext, Update
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower.grid import ClientsGrid
from fedloom.strategies.flower.records import from_array_record, to_array_record
from fedloom.strategies.flower.seeding import seeded

CLIENTS, ROUNDS = 7, 3
SIZES = [5, 20, 3, 8, 13, 1, 9]
PLAIN: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_learning_rate": 0.5, "server_momentum": 0.9},
    "FedProx": {"proximal_mu": 0.1},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
    "QFedAvg": {"client_learning_rate": 0.1, "q": 0.2},
    "FedAdam": {"eta": 0.05},
    "FedYogi": {"eta": 0.05},
    "FedAdagrad": {"eta": 0.05},
}
WRAPPERS: dict[str, dict[str, Any]] = {
    "server_fixed_clipping": {"noise_multiplier": 0.5, "clipping_norm": 0.3},
    "server_adaptive_clipping": {"noise_multiplier": 0.5, "initial_clipping_norm": 0.3, "clipped_count_stddev": 1.0},
}


def initial() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {"w": rng.normal(size=(4, 3)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)}


def local(model: dict[str, np.ndarray], number: int, client: int) -> tuple[dict[str, np.ndarray], float]:
    """A client's 'training': a step that depends on round, client and model."""
    rng = np.random.default_rng([number, client])
    return {name: (0.9 * array + rng.normal(size=array.shape)).astype(np.float32) for name, array in model.items()}, (
        float(rng.uniform(0.5, 2.0))
    )


def answer(job: Any, inputs: Any, state: Any, rng: Any) -> Update:
    model, loss = local(dict(inputs[MODEL].groups[MODEL]), job.round, job.client)
    examples = SIZES[job.client]
    return Update(num_examples=examples, groups={MODEL: model}, metrics={"loss": Mean(loss * examples, examples)})


def experiment(
    class_name: str, options: dict[str, Any], wrapper: dict[str, Any] | None = None, **extra: Any
) -> Experiment:
    table = {"name": "flower", "class": class_name, "options": options, **({"wrapper": wrapper} if wrapper else {})}
    workload = extra.pop("workload", PluginSettings(name="image_classification"))
    values = {"rounds": ROUNDS, "clients": extra.pop("clients", CLIENTS), "workload": workload, "seed": 11}
    return Experiment.model_validate({**values, "strategy": {**table, **extra}})


def by_hand(strategy: Any, loss_name: str) -> list[dict[str, np.ndarray]]:
    """Flower's own loop in ten lines; the arrays after each round, in Flower's own dtypes."""
    arrays, config, after = to_array_record(initial()), flwr.ConfigRecord(), []
    for number in range(1, ROUNDS + 1):
        context = RoundContext(round=number, cohort=(), population=CLIENTS, rounds=ROUNDS, seed=11)
        with seeded(context.rng("configure_train")):
            messages = strategy.configure_train(number, arrays, config, ClientsGrid(range(CLIENTS)))
        replies = []
        for message in sorted(messages, key=lambda each: each.metadata.dst_node_id):
            client = flwr.client_of(message.metadata.dst_node_id)
            sent = {
                name: each.astype(np.float32) for name, each in from_array_record(message.content["arrays"]).items()
            }
            model, loss = local(sent, number, client)
            metrics = flwr.MetricRecord({"loss": loss, "num-examples": SIZES[client]} | {loss_name: loss})
            replies.append(flwr.reply(flwr.RecordDict({"arrays": to_array_record(model), "m": metrics}), message))
        with seeded(context.rng("aggregate_train")), flwr.quiet():
            arrays, _ = strategy.aggregate_train(number, replies)
        after.append(from_array_record(arrays))
    return after


@pytest.mark.parametrize("name", PLAIN)
def test_equals_flowers_own_result(name: str, driven: Any) -> None:
    run = driven(experiment(name, PLAIN[name]), Record({MODEL: initial()}), answer)
    reference = by_hand(getattr(flwr.strategies, name)(**PLAIN[name]), "train_loss")
    for state, expected in zip(run.history, reference, strict=True):
        for key, array in run.strategy.arrays(state).items():
            assert array.dtype == np.float32  # the workload's dtype, where Flower has widened it
            np.testing.assert_allclose(array, expected[key], rtol=1e-6, atol=1e-6)
            if expected[key].dtype == np.float32:
                assert np.array_equal(array, expected[key])


@pytest.mark.parametrize("name", WRAPPERS)
def test_equals_flowers_own_differential_privacy(name: str, driven: Any) -> None:
    run = driven(
        experiment("FedAvg", {}, {"name": name, "options": WRAPPERS[name]}), Record({MODEL: initial()}), answer
    )
    kind = "Fixed" if "fixed" in name else "Adaptive"
    wrapper = getattr(flwr.strategies, f"DifferentialPrivacyServerSide{kind}Clipping")
    reference = by_hand(wrapper(flwr.strategies.FedAvg(), num_sampled_clients=CLIENTS, **WRAPPERS[name]), "loss")
    for state, expected in zip(run.history, reference, strict=True):
        for key, array in run.strategy.arrays(state).items():
            assert np.array_equal(array, expected[key])


@pytest.mark.parametrize("resume_after", [1, 2])
@pytest.mark.parametrize("name", ["FedAdam", "FedAvgM", "QFedAvg", "server_adaptive_clipping", "server_fixed_clipping"])
def test_a_resumed_run_has_the_same_bits(name: str, resume_after: int, driven: Any) -> None:
    wrapped = name in WRAPPERS
    one = experiment(
        "FedAvg" if wrapped else name,
        {} if wrapped else PLAIN[name],
        {"name": name, "options": WRAPPERS[name]} if wrapped else None,
    )
    whole = driven(one, Record({MODEL: initial()}), answer)
    resumed = driven(one, Record({MODEL: initial()}), answer, resume_after)
    for key, array in whole.strategy.arrays(whole.state).items():
        assert np.array_equal(array, resumed.strategy.arrays(resumed.state)[key])


def test_finish_needs_no_plan_before_it(driven: Any) -> None:
    """The object is brought to the state's place even when another process had asked the clients."""
    from fedloom.core.accumulators import UpdateList

    one = experiment("FedAdam", PLAIN["FedAdam"])
    run = driven(one, Record({MODEL: initial()}), answer)
    before, context = run.history[0], RoundContext(round=2, cohort=tuple(range(7)), population=7, rounds=3, seed=11)
    total = UpdateList()
    inputs = {MODEL: Record({MODEL: run.strategy.arrays(before)})}
    for job in context.jobs():
        total.add(answer(job, inputs, None, None), 1.0, job.client)
    again = run.strategy.finish(before, total, context)
    for key, array in run.strategy.arrays(run.history[1]).items():
        assert np.array_equal(array, run.strategy.arrays(again)[key])


def test_whole_cohort_one_payload_and_knobs_said_once(driven: Any) -> None:
    one = experiment("FedProx", {"proximal_mu": 0.25}, train_config={"lr": 0.5})
    exchange = driven(one, Record({MODEL: initial()}), answer).exchanges[0][0]
    assert [job.client for job in exchange.jobs] == list(range(CLIENTS))
    assert list(exchange.inputs) == [MODEL]
    assert exchange.knobs == {"lr": 0.5, "proximal-mu": 0.25, "server-round": 1, "mu": 0.25}
    assert exchange.rules == ("fedprox",) and exchange.accumulator == "separate"
    assert all(job.knobs == {} for job in exchange.jobs)


def test_the_process_keeps_its_own_random_numbers(driven: Any) -> None:
    import random

    random.seed(5)
    rng = np.random.RandomState(5)
    np.random.set_state(rng.get_state())  # noqa: NPY002
    expected = (random.Random(5).random(), rng.normal())
    wrapper = {"name": "server_fixed_clipping", "options": WRAPPERS["server_fixed_clipping"]}
    driven(experiment("FedAvg", {}, wrapper), Record({MODEL: initial()}), answer)
    assert (random.random(), np.random.normal()) == expected  # noqa: NPY002


def test_integers_and_bfloat16_keep_their_dtypes(driven: Any) -> None:
    import ml_dtypes

    start = {"steps": np.array([3, 4], np.int64), "w": np.ones(3, ml_dtypes.bfloat16)}

    def same(job: Any, inputs: Any, state: Any, rng: Any) -> Update:
        return Update(num_examples=job.client + 1, groups={MODEL: dict(inputs[MODEL].groups[MODEL])})

    run = driven(experiment("FedAvg", {}), Record({MODEL: start}), same)
    for key, array in run.strategy.arrays(run.state).items():
        assert array.dtype == start[key].dtype and np.array_equal(array, start[key])
    assert run.exchanges[1][0].inputs[MODEL].groups[MODEL]["w"].dtype == ml_dtypes.bfloat16


class Remembering(flwr.strategies.FedAvg):  # type: ignore[misc]
    """A user's strategy: keeps all kinds of things between rounds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rng = np.random.default_rng(0)
        self.seen: dict[int, tuple[float, np.ndarray]] = {}

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        config["lr"] = config.get("lr", 1.0) * 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        noise = float(self.rng.normal()) + sum(value for value, _ in self.seen.values())
        self.seen[server_round] = (noise, np.arange(3))
        moved = {name: array + np.float32(noise) for name, array in from_array_record(arrays).items()}
        return to_array_record(moved), metrics


class Hoarding(flwr.strategies.FedAvg):  # type: ignore[misc]
    """Keeps something that cannot be saved."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.lock = object()
        return super().aggregate_train(server_round, replies)


def test_a_users_class_resumes_with_its_own_memory(driven: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flwr.strategies, "Remembering", Remembering, raising=False)
    one = experiment("Remembering", {})
    whole = driven(one, Record({MODEL: initial()}), answer)
    resumed = driven(one, Record({MODEL: initial()}), answer, 2)
    assert np.array_equal(whole.state.model["w"], resumed.state.model["w"])
    assert [each[0].knobs["lr"] for each in resumed.exchanges] == [0.5, 0.25, 0.125]


def test_what_cannot_be_saved_is_named(driven: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flwr.strategies, "Hoarding", Hoarding, raising=False)
    with pytest.raises(UnsupportedFeature, match=r"Hoarding has attribute 'strategy.lock' of type builtins.object"):
        driven(experiment("Hoarding", {}), Record({MODEL: initial()}), answer)


@pytest.mark.parametrize(
    ("class_name", "options", "wrapper", "error", "says"),
    [
        ("Krumm", {}, None, UnknownName, "did you mean 'Krum'"),
        ("Krum", {"num_malicious": 1}, None, ConfigError, "did you mean 'num_malicious_nodes'"),
        ("FedAvg", {"fraction_train": 0.5}, None, ConfigError, "set `cohort`"),
        ("FedXgbBagging", {}, None, UnsupportedFeature, "XGBoost"),
        ("Bulyan", {"num_malicious_nodes": 2}, None, ConfigError, r"4 \* 2 \+ 3"),
        ("QFedAvg", {}, None, ConfigError, "client_learning_rate"),
        ("collections:OrderedDict", {}, None, UnsupportedFeature, "subclass of flwr.serverapp"),
        ("nowhere.at:All", {}, None, UnknownName, "cannot import"),
        ("FedAvg", {}, {"name": "client_fixed_clipping", "options": {}}, UnsupportedFeature, "Flower mod"),
        (
            "FedAvg",
            {},
            {"name": "server_fixed_clipping", "options": {"noise_multiplier": -1, "clipping_norm": 1}},
            ConfigError,
            "non-negative",
        ),
    ],
)
def test_bad_settings_say_what_to_do(
    class_name: str, options: Any, wrapper: Any, error: type[Exception], says: str, driven: Any
) -> None:
    with pytest.raises(error, match=says):
        driven(experiment(class_name, options, wrapper), Record({MODEL: initial()}), answer)


def test_bad_updates_are_named(driven: Any) -> None:
    def without_loss(job: Any, inputs: Any, state: Any, rng: Any) -> Update:
        return Update(num_examples=1, groups={MODEL: initial()}, metrics={"accuracy": Mean(1.0, 1.0)})

    def two_shapes(job: Any, inputs: Any, state: Any, rng: Any) -> Update:
        return Update(num_examples=1, groups={MODEL: {"w": np.zeros(2 + job.client % 2)}})

    with pytest.raises(BadUpdate, match="train_loss"):
        driven(experiment("QFedAvg", PLAIN["QFedAvg"]), Record({MODEL: initial()}), without_loss)
    with pytest.raises(RunFailed, match="FedMedian, aggregate_train, round 1"):
        driven(experiment("FedMedian", {}), Record({MODEL: initial()}), two_shapes)
    with pytest.raises(ConfigError, match="initial_arrays"):
        driven(experiment("FedMedian", {}), Record({MODEL: {}}), two_shapes)


def test_telemetry_is_off() -> None:
    import os

    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0" and os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
