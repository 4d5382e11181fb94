"""fedcor: the fit against the likelihood it maximises, the picks against dense algebra, the schedule of probes."""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
from selecting import Build, Reports

from fedloom.core.protocols import Roster, Selection
from fedloom.core.seeds import generator
from fedloom.selection._choosing.sampling import Floats
from fedloom.selection.fedcor.config import Config
from fedloom.selection.fedcor.covariance import centred, correlated, fit
from fedloom.selection.fedcor.selection import Process

ROSTER = Roster(population=6, sizes=(1, 2, 3, 4, 5, 5))


def likelihood(changes: Floats, weights: Floats, covariance: Floats) -> float:
    """Weighted log-likelihood of rows ~ N(0, covariance), constants left out."""
    _, log_determinant = np.linalg.slogdet(covariance)
    squares = np.einsum("si,ij,sj->s", changes, np.linalg.inv(covariance), changes)
    return float(-0.5 * (weights * (log_determinant + squares)).sum() / weights.sum())


def test_the_fit_has_the_largest_likelihood_of_its_rank() -> None:
    rng, noise, rank = generator(1, "fit"), 0.3, 2
    changes, weights = rng.normal(size=(9, 3)) @ rng.normal(size=(3, 6)), np.float64(0.9) ** np.arange(9)[::-1]
    best = fit(changes, weights, rank, noise)
    assert best.shape == (2, 6)
    top = likelihood(changes, weights, best.T @ best + noise**2 * np.eye(6))
    for seed in range(300):
        other = best + generator(seed, "nearby").normal(size=best.shape) * 10.0 ** -(seed % 4)
        assert likelihood(changes, weights, other.T @ other + noise**2 * np.eye(6)) <= top + 1e-12
    assert fit(changes, weights, rank, 1e6).any() == np.False_  # all of it is noise


def test_picks_follow_the_dense_rule() -> None:
    """argmax_k alpha_k / sqrt(S_kk) sum_i p_i S_ik over those left, then S -= S_:k S_k: / S_kk."""
    for seed in range(20):
        rng = generator(seed, "picks")
        embedding, noise = rng.normal(size=(3, 10)), 0.2
        weights, alpha = rng.dirichlet(np.ones(10)), rng.uniform(0.5, 1.0, 10)
        alpha[4] = -np.inf
        sigma, left, expected = embedding.T @ embedding + noise**2 * np.eye(10), [k for k in range(10) if k != 4], []
        for _ in range(5):
            gain = {k: alpha[k] / np.sqrt(sigma[k, k]) * float(weights @ sigma[:, k]) for k in left}
            best = max(gain, key=lambda k: gain[k])
            expected.append(best)
            left.remove(best)
            sigma = sigma - np.outer(sigma[:, best], sigma[best]) / sigma[best, best]
        assert correlated(embedding, noise, weights, alpha, 5).tolist() == expected


def test_one_of_a_correlated_pair_stands_for_both() -> None:
    # clients 0 and 1 move together, 2 alone, 3 hardly
    embedding = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.9, 0.0], [0.0, 0.0, 0.0, 0.1]])
    even = np.full(4, 0.25)
    assert correlated(embedding, 0.01, even, np.ones(4), 2).tolist() == [0, 2]
    assert correlated(embedding, 0.01, even, np.array([0.9, 1.0, 1.0, 1.0]), 2).tolist() == [1, 2]
    assert correlated(embedding, 0.01, np.array([0.0, 0.0, 0.1, 0.89]), np.ones(4), 1).tolist() == [2]
    assert correlated(embedding, 0.01, np.array([0.0, 0.0, 0.1, 0.91]), np.ones(4), 1).tolist() == [3]


def run(
    selection: Selection[Process], reports: Reports, rounds: int, losses_of: Callable[[int], Floats]
) -> tuple[list[Process], list[int], list[tuple[int, ...]]]:
    """Rounds with everybody's losses known; returns states, probed rounds and cohorts, one entry per round."""
    state = selection.init(ROSTER)
    states: list[Process] = []
    probed_in: list[int] = []
    cohorts: list[tuple[int, ...]] = []
    for round in range(1, rounds + 1):
        probe = selection.probe(state, ROSTER, 2, generator(1, "selection", round))
        reported = reports(list(probe.candidates), losses=losses_of(round).tolist()) if probe else []
        cohort = selection.choose(state, ROSTER, 2, generator(1, "choice", round), reported)
        state = selection.observe(state, reports(cohort, losses=[1.0, 1.0]), reported)
        if probe:
            assert probe.kind == "evaluate" and probe.candidates == tuple(range(6))
            probed_in.append(round)
        states.append(state)
        cohorts.append(cohort)
    return states, probed_in, cohorts


def losses_of(round: int) -> Floats:
    return 3.0 - 0.1 * round + generator(round, "losses").uniform(0, 0.5, 6)


def test_everybody_is_evaluated_in_the_warm_up_and_around_refits(build: Build, reports: Reports) -> None:
    selection = build("fedcor", warm_up=3, refit_every=4, history=8)
    states, probed_in, _ = run(selection, reports, 13, losses_of)
    assert probed_in == [1, 2, 3, 4, 7, 8, 11, 12]  # 4, 8, 12 close the rows that 3, 7, 11 opened
    rows = [losses_of(r + 1) - losses_of(r) for r in (3, 7, 11)]
    np.testing.assert_allclose(states[-1].changes, rows)  # those at most eight rounds older than the newest
    assert states[-1].rounds.tolist() == [3, 7, 11]
    np.testing.assert_allclose(states[1].changes, [losses_of(2) - losses_of(1)])


def test_after_the_warm_up_the_process_chooses(build: Build, reports: Reports) -> None:
    selection = build("fedcor", warm_up=3, refit_every=10, discount=0.5, noise=0.05)
    states, _, cohorts = run(selection, reports, 6, losses_of)
    changes = np.array([losses_of(r + 1) - losses_of(r) for r in (1, 2, 3)])
    weights = np.array([0.9025, 0.95, 1.0])
    embedding = fit(changes - weights @ changes / weights.sum(), weights, 15, 0.05)
    alpha = np.ones(6)
    for round in (4, 5, 6):
        picked = correlated(embedding, 0.05, np.array(ROSTER.sizes) / 20, alpha, 2)
        assert cohorts[round - 1] == tuple(picked.tolist())
        alpha[picked] *= 0.5
        np.testing.assert_array_equal(states[round - 1].alpha, alpha)
    assert (states[2].alpha == 1).all()  # uniform cohorts are not discounted


def test_the_constants_are_those_of_the_published_command() -> None:
    """`--GPR_interval=10 --group_size=100 --GPR_gamma=0.95 --update_mean --warmup=15 --discount=0.9`."""
    made = Config()
    assert (made.warm_up, made.refit_every, made.history) == (16, 10, 100)
    assert (made.forgetting, made.update_mean, made.discount) == (0.95, True, 0.9)
    assert (made.dimension, made.noise) == (15, 0.01)


def test_the_mean_is_weighted_by_gamma_per_round_and_leaves_out_the_unknown() -> None:
    """The code's `MLE_Mean`: mu_k = sum_e gamma^(t - e) y_ek / sum_e gamma^(t - e) over the rounds e that know k."""
    nan = np.nan
    changes = np.array([[-3.0, nan, nan], [-1.0, -2.0, nan]])
    weights = np.array([0.95**10, 1.0])
    mean = (0.95**10 * -3.0 - 1.0) / (0.95**10 + 1.0)
    np.testing.assert_allclose(
        centred(changes, weights, around_mean=True), [[-3.0 - mean, 0.0, 0.0], [-1.0 - mean, 0.0, 0.0]]
    )
    assert centred(changes, weights, around_mean=False).tolist() == [[-3.0, 0.0, 0.0], [-1.0, -2.0, 0.0]]


def test_a_trend_all_clients_share_does_not_choose(build: Build, reports: Reports) -> None:
    """Losses fall for everybody; around that only 1 to 3 move, together, so one of them is first.

    By the dense process: with S the weighted covariance around the mean, argmax_k sum_i p_i S_ik / sqrt(S_kk). With a
    mean of 0 the trend is all there is to explain, and clients that follow nothing else explain most of it.
    """
    drift, wave = np.array([-9.0, -1.0, -1.0, -1.0, -1.0, -1.0]), np.array([0.0, 1.0, 1.2, 0.8, 0.0, 0.0])
    steps = np.array([drift + wave * sign for sign in (1, -1, 1, -1)])
    losses_at = np.cumsum(np.vstack([np.full(6, 50.0), steps]), axis=0)
    even = Roster(population=6)
    firsts = {}
    for update_mean in (True, False):
        selection = build("fedcor", warm_up=4, update_mean=update_mean, forgetting=1.0)
        state = selection.init(even)
        for each in losses_at[:4]:
            state = selection.observe(state, [], reports(list(range(6)), each.tolist()))
        probed = reports(list(range(6)), losses_at[4].tolist())
        firsts[update_mean] = selection.choose(state, even, 1, generator(1), probed)[0]
    apart = steps - steps.mean(axis=0)
    covariance = apart.T @ apart / 4 + 1e-4 * np.eye(6)
    gain = covariance.sum(axis=0) / np.sqrt(np.diag(covariance))
    assert firsts[True] == int(gain.argmax()) and firsts[True] in (1, 2, 3)
    assert firsts[False] in (0, 4, 5)


def test_a_client_that_missed_a_probe_counts_as_its_mean(build: Build, reports: Reports) -> None:
    selection = build("fedcor", warm_up=2)
    state = selection.observe(selection.init(ROSTER), [], reports([0, 1, 2, 3, 4], [1.0] * 5))
    state = selection.observe(state, [], reports([1, 2, 3, 4, 5], [0.5] * 5))
    np.testing.assert_array_equal(state.changes, [[np.nan, -0.5, -0.5, -0.5, -0.5, np.nan]])
    reported = reports([1, 2, 4], [0.25, 0.5, 0.5])
    assert set(selection.choose(state, ROSTER, 3, generator(1), reported)) == {1, 2, 4}


@pytest.mark.parametrize("settings", [{"warm_up": 0}, {"refit_every": 1}, {"noise": 0.0}, {"discount": 0.0}])
def test_bad_settings_are_refused(build: Build, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        build("fedcor", **settings)


def test_a_resumed_process_continues_the_same(build: Build, reports: Reports) -> None:
    from fedloom.core import frames
    from fedloom.core.state import dump_state, load_state

    selection = build("fedcor", warm_up=2, refit_every=3)
    states, _, _ = run(selection, reports, 7, losses_of)
    saved = load_state(Process, frames.decode(bytes(frames.encode(dump_state(states[4])))))
    for field in fields(Process):
        np.testing.assert_array_equal(getattr(saved, field.name), getattr(states[4], field.name))
