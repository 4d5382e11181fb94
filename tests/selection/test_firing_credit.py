"""Selection by firing credit: probe, measure, choice, impossible claims."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from selecting import Build, Examples, Fits, Reports, probed

from fedloom.core.errors import BadMessage, ConfigError, UsageError
from fedloom.core.plugins import build_measure
from fedloom.core.protocols import Roster, Shard
from fedloom.core.records import MODEL, Array, Arrays, Info, Record, Update
from fedloom.core.seeds import generator
from fedloom.selection.firing_credit.measure import layered
from fedloom.selection.firing_credit.rates import Layers

ROSTER = Roster(population=50, sizes=(20,) * 50, label_counts=((10, 10, 0),) * 50)


@dataclass
class Spiking:
    """A workload whose rates are its array's, after the spikes of the encoder's noise were drawn."""

    noise: float = 0.0

    def __post_init__(self) -> None:
        self.calls: list[tuple[str, bool, float]] = []

    def firing_rates(
        self,
        arrays: Arrays,
        shard: Shard,
        rng: np.random.Generator,
        *,
        layers: Layers = "output",
        per_sample: bool = False,
    ) -> dict[str, Array]:
        drawn = rng.uniform()
        self.calls.append((layers, per_sample, drawn))
        output = arrays["r"] + self.noise * drawn
        hidden = np.repeat(output[..., :1], 8, axis=-1)
        if not per_sample:
            output, hidden = output.mean(0), hidden.mean(0)
        return {"output": output} if layers == "output" else {"hidden": hidden, "output": output}


BEFORE = np.array([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]])
AFTER = np.array([[0.5, 0.5, 0.25], [0.0, 0.0, 0.25]])  # changes of the means: 0, -1/4, 0


def measured(workload: object, name: str = "firing_credit", seed: int = 1, **knobs: object) -> Info:
    measure = build_measure(name)
    model, update = Record({MODEL: {"r": BEFORE}}), Update(num_examples=2, groups={MODEL: {"r": AFTER}})
    settings = {"norm": "l1", "layers": "output", "gain": True, **knobs}
    return measure(workload, model, update, Examples(2), generator(seed, "measure"), settings)


def test_the_measure_reports_credit_and_gain() -> None:
    assert measured(Spiking()) == {"credit": 0.25, "gain": [0.0, -0.25, 0.0]}
    assert measured(Spiking(), gain=False) == {"credit": 0.25}
    # |1/2| + 0 + |1/4| and |1/2| + |1/2| + |1/4|
    assert measured(Spiking(), norm="per_sample") == {"credit": (0.75 + 1.25) / 2, "gain": [0.0, -0.25, 0.0]}


def test_rates_seen_in_passing_replace_the_passes() -> None:
    """First epoch (0.5, 0.25), last (0.25, 0.75): Δ = (-0.25, 0.5); hidden Δ = 0.5 in one of four neurons."""
    measure = build_measure("firing_credit")
    traces = {
        "first/hidden1": np.zeros(4),
        "last/hidden1": np.array([0.5, 0.0, 0.0, 0.0]),
        "first/output": np.array([0.5, 0.25]),
        "last/output": np.array([0.25, 0.75]),
    }
    update = Update(num_examples=2, traces=traces)
    knobs = {"norm": "l1", "layers": "output", "measurement": "training", "gain": True}
    reported = measure(object(), Record({}), update, Examples(2), generator(1), knobs)
    assert reported == {"credit": 0.75, "gain": [-0.25, 0.5]}
    reported = measure(
        object(), Record({}), update, Examples(2), generator(1), {**knobs, "layers": "all", "gain": False}
    )
    assert reported == {"credit": (0.75 + 0.5 * 2 / 4) / 2}
    with pytest.raises(UsageError, match="'object' traces none"):
        measure(object(), Record({}), Update(num_examples=2), Examples(2), generator(1), knobs)


def test_samples_cannot_be_compared_in_passing(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"norm: .per_sample. compares each example before and after"):
        build("firing_credit", measurement="training", norm="per_sample")


def test_before_and_after_see_the_same_encoder_noise() -> None:
    workload = Spiking(noise=1.0)
    assert measured(workload)["credit"] == pytest.approx(0.25)
    (_, _, first), (_, _, second) = workload.calls
    assert first == second
    measured(workload, seed=2)
    assert workload.calls[2][2] != first


def test_all_layers_count_alike_however_wide() -> None:
    before = {"hidden": np.zeros(8), "output": np.zeros(2)}
    after = {"hidden": np.full(8, 0.5), "output": np.array([1.0, 0.5])}
    assert layered(before, after, "l1") == (4.0 * 2 / 8 + 1.5) / 2
    assert layered(before, after, "l2") == pytest.approx((np.sqrt(2.0) * np.sqrt(2 / 8) + np.sqrt(1.25)) / 2)
    assert measured(Spiking(), layers="all")["credit"] == (0.0 + 0.25) / 2  # the hidden layer repeats class 0
    full = {name: np.ones_like(rates) for name, rates in before.items()}
    assert layered(before, full, "l1") == 2.0  # never above the output layer's bound


@pytest.mark.parametrize("name", ["firing_credit", "spike_activity"])
def test_a_workload_without_spikes_is_rejected_with_what_is_needed(name: str) -> None:
    class ImageClassification:
        pass

    with pytest.raises(
        UsageError,
        match=rf"'{name}' needs .*firing_rates.*ImageClassification.*a spiking workload such as",
    ):
        measured(ImageClassification(), name, resolution="neurons")


def test_the_probe_draws_and_passes_the_measure_its_settings(build: Build) -> None:
    selection = build("firing_credit", norm="l2", layers="all")
    probe = probed(selection, selection.init(ROSTER), ROSTER, 5, generator(1, "selection", 1))
    assert (probe.kind, probe.measure, len(probe.candidates)) == ("train", "firing_credit", 20)
    assert probe.knobs == {"norm": "l2", "layers": "all", "measurement": "passes", "gain": True}
    plain = build("firing_credit", rule="topm")
    assert probed(plain, plain.init(ROSTER), ROSTER, 5, generator(1)).knobs["gain"] is False
    unknown = Roster(population=50)  # then only the gains say how large a credit can be
    assert probed(plain, plain.init(unknown), unknown, 5, generator(1)).knobs["gain"] is True


def test_as_many_candidates_as_places_is_uniform_selection(build: Build, reports: Reports) -> None:
    selection, uniform = build("firing_credit", oversampling=1.0), build("uniform")
    for round in range(1, 6):
        probe = probed(selection, selection.init(ROSTER), ROSTER, 7, generator(3, "selection", round))
        rates = generator(round).uniform(-1, 1, (7, 3))
        reported = reports(probe.candidates, credit=np.abs(rates).sum(1).tolist(), gain=rates.tolist())
        chosen = selection.choose(selection.init(ROSTER), ROSTER, 7, generator(3, "choice", round), reported)
        assert chosen == uniform.choose(uniform.init(ROSTER), ROSTER, 7, generator(3, "selection", round))


def test_the_default_rule_balances_the_shortlist(build: Build, reports: Reports) -> None:
    selection = build("firing_credit")
    gains = [[0.9, 0, 0], [0.8, -0.1, 0], [0, 0.7, 0], [0, 0, 0.6], [0.1, 0.1, 0.1], [0, 0.2, 0]]
    credit = [0.9, 0.9, 0.7, 0.6, 0.3, 0.2]
    reported = reports([9, 4, 7, 1, 30, 2], credit=credit, gain=gains)
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), reported) == (9, 7)
    reported = reports([9, 4, 7, 1, 30, 2], credit=credit, gain=gains, examples=[10, 10, 10, 90, 10, 10])
    # n_k counts: against 9 of client 9, 7 is nearer than 54
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), reported) == (9, 7)
    reported = reports([9, 4, 7, 1, 30, 2], credit=credit, gain=gains, examples=[10, 10, 1, 15, 10, 10])
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), reported) == (9, 1)  # 9 : 9 beats 9 : 0.7
    assert build("firing_credit", rule="topm").choose(selection.init(ROSTER), ROSTER, 2, generator(1), reported) == (
        9,
        4,
    )


@pytest.mark.parametrize("claim", [1e9, 3.01, -0.5, float("nan"), float("inf"), "all", None])
def test_nobody_wins_by_claiming(build: Build, reports: Reports, claim: object) -> None:
    for rule in ("topm", "shortlist-balance", "softmax", "lowest"):
        selection = build("firing_credit", rule=rule)
        state = selection.init(ROSTER)
        reported = reports([9, 4, 7, 1], credit=[0.1, claim, 0.2, 0.3], gain=[[0.1, 0, 0]] * 4)
        assert 4 not in selection.choose(state, ROSTER, 3, generator(1), reported)
        state = selection.observe(selection.observe(state, [], reported), [], reported)
        assert selection.report(state) == {"flagged_credits": 2, "flagged_clients": {"4": 2}}
        assert selection.choose(state, ROSTER, 4, generator(1), reported) == (9, 4, 7, 1)


def test_gains_beyond_what_rates_allow_do_not_win_either(build: Build, reports: Reports) -> None:
    selection = build("firing_credit")
    reported = reports(
        [9, 4, 7, 1], credit=[0.1, 2.9, 0.2, 0.3], gain=[[0.1, 0, 0], [0, 50.0, 0], [0, 0.1, 0], [0.2, 0, 0]]
    )
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), reported) == (9, 7)


def test_clients_of_another_version_are_distinguished_from_liars(build: Build, reports: Reports) -> None:
    selection = build("firing_credit")
    with pytest.raises(BadMessage, match="expects 'credit' in the candidates' reports, but none of 2 has it"):
        selection.choose(selection.init(ROSTER), ROSTER, 1, generator(1), reports([1, 2]))


def test_equal_credits_leave_the_choice_to_the_draw(build: Build, reports: Reports, fits: Fits) -> None:
    """Without learning all credits are 0; over 2,000 rounds no client is preferred."""
    selection = build("firing_credit", oversampling=2.0)
    counts: Counter[int] = Counter()
    state = selection.init(ROSTER)
    for round in range(2000):
        probe = probed(selection, state, ROSTER, 5, generator(1, "selection", round))
        reported = reports(probe.candidates, credit=[0.0] * 10, gain=[[0.0] * 3] * 10)
        chosen = selection.choose(state, ROSTER, 5, generator(1, "choice", round), reported)
        assert chosen == probe.candidates[:5]
        counts.update(chosen)
    assert fits([counts[k] for k in range(50)], [2000 * 5 / 50] * 50)


def test_cyclic_candidates_take_turns_in_random_order(build: Build) -> None:
    selection = build("firing_credit", candidate_draw="cyclic", candidates=20)
    state, seen = selection.init(ROSTER), []
    for round in range(5):
        candidates = probed(selection, state, ROSTER, 5, generator(1, round)).candidates
        assert list(candidates) != sorted(candidates)
        seen.append(candidates)
        state = selection.observe(state, [])
    assert Counter(client for drawn in seen for client in drawn) == Counter(dict.fromkeys(range(50), 2))
    assert sorted(seen[0]) == list(range(20)) and sorted(seen[2]) == [*range(10), *range(40, 50)]


def test_candidates_by_examples_follow_sizes(build: Build) -> None:
    roster = Roster(population=3, sizes=(0, 5, 5))
    selection = build("firing_credit", candidate_draw="examples", candidates=2)
    assert sorted(probed(selection, selection.init(roster), roster, 1, generator(1)).candidates) == [1, 2]
    with pytest.raises(UsageError, match="'firing_credit' needs the number of examples"):
        selection.init(Roster(population=3))


@pytest.mark.parametrize(
    "settings",
    [{"rule": "best"}, {"norm": "l3"}, {"exploration": 1.5}, {"temperature": 0.0}, {"oversampling": 0.5}, {"d": 3}],
)
def test_bad_settings_are_refused(build: Build, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        build("firing_credit", **settings)


def test_spike_activity_reports_rates_by_layer() -> None:
    reported = measured(Spiking(), "spike_activity", resolution="neurons")
    assert reported == {"activity": [0.25] * 8 + [0.25, 0.25, 0.25], "widths": [8, 3]}
    assert measured(Spiking(), "spike_activity", resolution="layers") == {"activity": [0.25, 0.25], "widths": [2]}


def test_spike_activity_covers_layer_by_layer(build: Build, reports: Reports) -> None:
    selection = build("spike_activity")
    # layers of two and one neurons; the second layer fires alike but for silent ones
    activity = [[0.2, 0.0, 0.5], [0.4, 0.0, 0.1], [0.0, 0.9, 0.5], [0.0, 0.1, 0.2], [0.3, 0.0, 0.0]]
    reported = reports([9, 4, 7, 1, 2], activity=activity, widths=[[2, 1]] * 5)
    # distances to 9: 0, 0, 1, 1, 1 (silent second layer) = 3; to 7: 1, 1, 0, 0, 2 = 4: first 9, then 7 (or 1) saves 2
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), reported) == (9, 7)
    assert selection.choose(selection.init(ROSTER), ROSTER, 3, generator(1), reported) == (9, 7, 2)
