"""Each member of the family against its formula, with whole matrices; P16 of mixed ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedloom.adapters.names import LORA_A, LORA_B, LORA_E
from fedloom.core import registry
from fedloom.core.accumulators import BUILTIN
from fedloom.core.config import Experiment
from fedloom.core.protocols import Tensors
from fedloom.core.records import MODEL, Array, Exchange, Job, Mean, Record, RoundContext, Update
from fedloom.core.seeds import generator
from fedloom.strategies.fed_adalora.rule import SCORES, Importance
from fedloom.strategies.flasc import sparse
from fedloom.strategies.hetlora.rule import SelfPruning, kept_rank
from fedloom.strategies.spd_cfl.rule import PREVIOUS, TwoAnchors

SHAPES = {"x": (7, 5), "y": (6, 8)}
SCALE = 2.0
WEIGHTS = {0: 3.0, 1: 1.0, 2: 4.0}
COHORT = (2, 0, 1)

Groups = dict[str, dict[str, Array]]


def initial() -> Record:
    rng = generator(1, "initial")
    arrays = {f"{name}.w": rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays["y.w"] = np.ascontiguousarray(arrays["y.w"].T)
    arrays["head"] = np.zeros(3, np.float32)
    arrays["rest"] = np.zeros(1000, np.float32)  # so that a few rounds' changes are smaller than the base
    reported = {
        name: {"kind": "conv1d" if name == "y" else "linear", "weight": f"{name}.w", "out": out, "in": in_}
        for name, (out, in_) in SHAPES.items()
    }
    return Record({MODEL: arrays}, {"adaptable": reported, "head": ["head"]})


def made(name: str, rounds: int = 4, /, **settings: object) -> Any:
    config = registry.part("strategies", name, "config").Config(targets=("x", "y"), scale=SCALE, **settings)
    experiment = Experiment.model_construct(rounds=rounds, clients=3, cohort=3, seed=1)
    return registry.part("strategies", name, "strategy").build_strategy(config, experiment)


def context(round: int, rounds: int = 4) -> RoundContext:
    return RoundContext(round=round, cohort=COHORT, population=3, rounds=rounds, seed=1)


def received(exchange: Exchange, job: Job) -> Record:
    rule = registry.part("strategies", exchange.rules[0], "rule").build_rule()
    record: Record = rule.incoming(exchange.inputs, replace(job, knobs=exchange.knobs))[MODEL]
    return record


def random_training(exchange: Exchange, job: Job) -> Groups:
    """Factors as if trained: anything, in the shapes the client received."""
    rng = generator(job.client, "trained", job.round)
    return {
        group: {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in arrays.items()}
        for group, arrays in received(exchange, job).groups.items()
    }


def round_of(
    strategy: Any, state: Any, round: int, train: Callable[[Exchange, Job], Groups] = random_training
) -> tuple[Any, dict[int, Groups]]:
    """One round; returns the state after it and what each client sent."""
    exchange = strategy.plan(state, context(round))
    kind = BUILTIN.get(exchange.accumulator)
    total: Any = (kind or registry.part("strategies", exchange.accumulator, "accumulator").Accumulator)()
    sent = {}
    for job in exchange.jobs:
        sent[job.client] = train(exchange, job)
        examples = int(WEIGHTS[job.client])
        total.add(Update(num_examples=examples, groups=sent[job.client]), WEIGHTS[job.client], job.client)
    return strategy.finish(state, total, context(round)), sent


def change(strategy: Any, before: Any, after: Any, name: str) -> Array:
    """What a round did to a layer's matrix (o, i), float64."""
    then, now = (strategy.arrays(state)[f"{name}.w"].astype(np.float64) for state in (before, after))
    return np.asarray((now - then).T if name == "y" else now - then)


def carried(state: Any, name: str) -> Array:
    """What adapters and folds add to a layer's matrix (o, i), float64, before it is rounded into float32 weights."""
    pairs = [(fold.groups[LORA_A][name], fold.groups[LORA_B][name]) for fold in state.folds]
    pairs.append((state.lora_a[name], SCALE * state.lora_b[name]))
    return np.asarray(sum(b.astype(np.float64) @ a for a, b in pairs))


def mean_change(sent: Mapping[int, Groups], name: str) -> Array:
    """s Σ p_k B_k A_k, float64."""
    total = sum(WEIGHTS.values())
    changes = {k: g[LORA_B][name].astype(np.float64) @ g[LORA_A][name] for k, g in sent.items()}
    return np.asarray(sum(SCALE * WEIGHTS[k] / total * each for k, each in changes.items()))


def clean(strategy: Any) -> Any:
    """A first state whose adapters change nothing."""
    return strategy.init(initial())


MIXED = {"client_ranks": (1, 4, 2)}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flora", {"rank": 4, **MIXED}),
        ("sa_fedlora", {"initiating_rounds": 0, "rank_max": 4, "rank_min": 4, "aggregation": "stack", **MIXED}),
        ("sa_fedlora", {"initiating_rounds": 0, "rank_max": 4, "rank_min": 4, "aggregation": "residual", **MIXED}),
        ("flexlora", {"rank": 5, "client_ranks": (1, 2, 2)}),  # 1 + 2 + 2 components: the cut to 5 loses nothing
    ],
)
def test_mixed_ranks_come_to_the_mean_of_whole_matrices(name: str, settings: dict[str, Any]) -> None:
    """Promise 16: the aggregation equals the full-matrix mean to 1e-6."""
    strategy = made(name, **settings)
    state = clean(strategy)
    after, sent = round_of(strategy, state, 1)
    assert {k: len(g[LORA_A]["x"]) for k, g in sent.items()} == {
        k: min(limit, settings.get("rank", 4)) for k, limit in enumerate(settings["client_ranks"])
    }
    for layer in SHAPES:
        want = mean_change(sent, layer)
        assert np.abs(carried(after, layer) - want).max() < 1e-6 * np.abs(want).max()
        np.testing.assert_allclose(change(strategy, state, after, layer), want, atol=1e-5)
    assert after.reported["aggregation_error"] < 1e-6


def test_averaged_factors_are_off_by_the_error_they_tell() -> None:
    strategy = made("fedlora", rank=3)
    state = clean(strategy)
    after, sent = round_of(strategy, state, 1)
    apart = sum(np.sum((change(strategy, state, after, n) - mean_change(sent, n)) ** 2) for n in SHAPES)
    whole = sum(np.sum(mean_change(sent, n) ** 2) for n in SHAPES)
    assert after.reported["aggregation_error"] == pytest.approx(np.sqrt(apart / whole), rel=1e-5)


class TestFfaLora:
    def test_b_is_averaged_a_stays_and_nothing_is_lost(self) -> None:
        strategy = made("ffa_lora", rank=3)
        state = clean(strategy)
        after, sent = round_of(strategy, state, 1)
        after, _ = round_of(strategy, after, 2)
        after, sent = round_of(strategy, after, 3)
        assert all(sorted(groups) == [LORA_B, MODEL] for groups in sent.values())
        a = state.frozen_a.groups[LORA_A]
        assert after.frozen_a.sha256 == state.frozen_a.sha256
        shares = {k: w / sum(WEIGHTS.values()) for k, w in WEIGHTS.items()}
        for name in SHAPES:
            whole = sum(SCALE * shares[k] * (g[LORA_B][name].astype(np.float64) @ a[name]) for k, g in sent.items())
            np.testing.assert_allclose(change(strategy, state, after, name), whole, atol=1e-5)


class TestFlora:
    def test_each_client_draws_its_own_a_and_none_travel(self) -> None:
        strategy = made("flora", rank=4, **MIXED)
        state = clean(strategy)
        for round in (1, 2):
            exchange = strategy.plan(state, context(round))
            records = {job.client: received(exchange, job) for job in exchange.jobs}
            for name, (out, in_) in SHAPES.items():
                assert [records[k].groups[LORA_A][name].shape for k in range(3)] == [(1, in_), (4, in_), (2, in_)]
                drawn = [records[k].groups[LORA_A][name][0] for k in range(3)]
                assert all(np.abs(a).max() <= in_**-0.5 for a in drawn)
                assert not any(np.array_equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
                again = received(exchange, exchange.jobs[0]).groups[LORA_A][name]
                assert np.array_equal(again, records[exchange.jobs[0].client].groups[LORA_A][name])
                assert not any(record.groups[LORA_B][name].any() for record in records.values())
                assert records[1].groups[LORA_B][name].shape == (out, 4)
            assert exchange.inputs[MODEL].num_elements == 3  # the head
            state, _ = round_of(strategy, state, round)
        first, second = (fold.num_elements for fold in state.folds)
        widths = sum(out + in_ for out, in_ in SHAPES.values())
        assert first == second <= (1 + 4 + 2) * widths  # Σ r_k (o + i), less where the matrix itself has fewer

    def test_a_first_step_of_every_client_adds_up_to_rank_k_r(self) -> None:
        """One step of gradient descent from B = 0: B_k = -G_k A_kᵀ, A_k unmoved, W += s Σ p_k B_k A_k.

        That is -s Σ p_k G_k A_kᵀ A_k. With one A for all it would have rank r; with own A it has K r.
        """
        strategy = made("flora", rank=1)
        gradients = {k: generator(k, "gradient").standard_normal((7, 5)) for k in range(3)}
        drawn: dict[int, Array] = {}

        def step(exchange: Exchange, job: Job) -> Groups:
            start = received(exchange, job).groups
            drawn[job.client] = start[LORA_A]["x"].astype(np.float64)
            b = -gradients[job.client] @ drawn[job.client].T
            zeros = np.zeros_like(start[LORA_B]["y"])
            return {
                MODEL: dict(start[MODEL]),
                LORA_A: dict(start[LORA_A]),
                LORA_B: {"x": b.astype(np.float32), "y": zeros},
            }

        state = clean(strategy)
        after, _ = round_of(strategy, state, 1, step)
        shares = {k: weight / 8 for k, weight in WEIGHTS.items()}
        want = sum(-SCALE * shares[k] * gradients[k] @ drawn[k].T @ drawn[k] for k in range(3))
        np.testing.assert_allclose(carried(after, "x"), want, atol=1e-5)
        kept = np.linalg.svd(carried(after, "x"))[1]
        assert kept[2] > 0.05 * kept[0] and kept[3] < 1e-5 * kept[0]


class TestFlexLora:
    def test_each_client_gets_the_best_of_its_rank(self) -> None:
        strategy = made("flexlora", rank=4, **MIXED)
        after, sent = round_of(strategy, clean(strategy), 1)
        exchange = strategy.plan(after, context(2))
        for job in exchange.jobs:
            rank = min(4, MIXED["client_ranks"][job.client])
            groups = received(exchange, job).groups
            for name in SHAPES:
                u, sigma, vt = np.linalg.svd(mean_change(sent, name))
                got = SCALE * groups[LORA_B][name].astype(np.float64) @ groups[LORA_A][name]
                np.testing.assert_allclose(got, (u[:, :rank] * sigma[:rank]) @ vt[:rank], atol=1e-5)


class TestHetLora:
    def test_adapters_weigh_by_their_size_and_heads_by_examples(self) -> None:
        strategy = made("hetlora", rank=4, **MIXED)
        state = clean(strategy)
        after, sent = round_of(strategy, state, 1)
        norms = {
            k: np.sqrt(sum(np.sum((g[LORA_B][n].astype(np.float64) @ g[LORA_A][n]) ** 2) for n in SHAPES))
            for k, g in sent.items()
        }
        for name, (out, _) in SHAPES.items():
            want = np.zeros((out, 4))
            for k, groups in sent.items():
                b = groups[LORA_B][name]
                want[:, : b.shape[1]] += norms[k] / sum(norms.values()) * b
            np.testing.assert_allclose(after.lora_b[name], want, atol=1e-5)
        head = sum(WEIGHTS[k] / 8 * g[MODEL]["head"] for k, g in sent.items())
        np.testing.assert_allclose(after.model["head"], head, atol=1e-6)
        assert after.reported["client_ranks"] == {"0": 1, "2": 2}

    def test_a_client_that_pruned_itself_keeps_the_smaller_rank(self) -> None:
        strategy = made("hetlora", rank=4)

        def prune(exchange: Exchange, job: Job) -> Groups:
            groups = random_training(exchange, job)
            keep = 3 if job.client == 1 else 4
            a = {name: array[:keep] for name, array in groups[LORA_A].items()}
            return {**groups, LORA_A: a, LORA_B: {name: array[:, :keep] for name, array in groups[LORA_B].items()}}

        after, _ = round_of(strategy, clean(strategy), 1, prune)
        exchange = strategy.plan(after, context(2))
        ranks = {job.client: len(received(exchange, job).groups[LORA_A]["x"]) for job in exchange.jobs}
        assert ranks == {0: 4, 1: 3, 2: 4}

    def test_the_penalty_is_the_product_of_the_tails_norms(self) -> None:
        rng = generator(3, "het")
        a, b = torch.from_numpy(rng.standard_normal((4, 5))), torch.from_numpy(rng.standard_normal((6, 4)))
        trained = [(LORA_A, "x"), (LORA_B, "x")]
        rule, knobs = SelfPruning(), {"mu": 0.0, "gamma": 0.5, "penalty": 0.7, "wire": "fp32"}
        rule.begin(trained, knobs)
        gradients = [torch.zeros_like(a), torch.zeros_like(b)]
        rule.adjust_gradients(gradients, [a, b], [a, b], knobs)
        leaves = [a.clone().requires_grad_(), b.clone().requires_grad_()]
        (0.7 * leaves[0][2:].norm() * leaves[1][:, 2:].norm()).backward()
        for got, leaf in zip(gradients, leaves, strict=True):
            torch.testing.assert_close(got, leaf.grad, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(("factor", "rank"), [(0.9, 2), (1.1, 4)])
    def test_it_prunes_where_the_tail_came_out_smaller(self, factor: float, rank: int) -> None:
        a, b = np.ones((4, 5), np.float32), np.ones((6, 4), np.float32)
        rule, knobs = SelfPruning(), {"mu": 0.0, "gamma": 0.6, "penalty": 0.0, "wire": "fp32"}
        rule.begin([(LORA_A, "x"), (LORA_B, "x")], knobs)
        rule.adjust_gradients([np.zeros_like(a), np.zeros_like(b)], [a, b], [a, b], knobs)
        groups = {MODEL: {}, LORA_A: {"x": a}, LORA_B: {"x": (b * factor).astype(np.float32)}}
        out = rule.outgoing(Update(num_examples=1, groups=groups), knobs)
        assert out.groups[LORA_A]["x"].shape == (rank, 5) and out.groups[LORA_B]["x"].shape == (6, rank)

    def test_one_component_is_always_kept(self) -> None:
        assert [kept_rank(16, 0.99), kept_rank(1, 0.99), kept_rank(4, 0.5)] == [15, 1, 2]


class TestFlasc:
    def test_the_largest_entries_travel_and_ties_go_to_the_first(self) -> None:
        vector = np.array([0.0, -3.0, 1.0, 2.0, -1.0, 1.0, 0.5], np.float32)
        kept = sparse.sparse(vector, 0.5)
        # int(0.5 * 7) = 3 entries, as `k = int(x.numel() * density)` in the authors' code
        assert kept["values"].tolist() == [-3.0, 1.0, 2.0] and kept["mask"].nbytes == 1
        assert sparse.dense(kept, 7).tolist() == [0.0, -3.0, 1.0, 2.0, 0.0, 0.0, 0.0]
        assert sparse.sparse(vector, 0.01)["values"].tolist() == [-3.0]
        assert sparse.sparse(np.ones(10, np.float32), 0.7)["values"].size == 7  # 0.7 * 10 is below 7 in floats

    def test_the_server_adds_the_mean_of_what_was_sent(self) -> None:
        strategy = made("flasc", rank=3, density_down=0.4, density_up=0.3, server_learning_rate=0.5)
        state = clean(strategy)
        exchange = strategy.plan(state, context(1))
        size = 3 * sum(out + in_ for out, in_ in SHAPES.values())
        vector = sparse.flat({LORA_A: state.lora_a, LORA_B: state.lora_b})
        total: Any = registry.part("strategies", "flasc", "accumulator").Accumulator()
        mean = np.zeros(size)
        for job in exchange.jobs:
            rule = registry.part("strategies", "flasc", "rule").build_rule()
            knobs = dict(exchange.knobs)
            start = rule.incoming(exchange.inputs, replace(job, knobs=knobs))[MODEL]
            sent_down = sparse.flat(start.groups)
            np.testing.assert_array_equal(sent_down, sparse.dense(sparse.sparse(vector, 0.4), size))
            rng = generator(job.client, "flasc")
            moved = {
                group: {
                    name: array + rng.standard_normal(array.shape).astype(np.float32) for name, array in arrays.items()
                }
                for group, arrays in start.groups.items()
            }
            update = rule.outgoing(Update(num_examples=1, groups=moved), knobs)
            assert update.groups[sparse.KEPT]["values"].size == int(0.3 * size)
            moves = sparse.flat(moved) - sent_down
            threshold = np.sort(np.abs(moves))[-int(0.3 * size)]
            mean += WEIGHTS[job.client] / 8 * np.where(np.abs(moves) >= threshold, moves, 0)
            total.add(update, WEIGHTS[job.client], job.client)
        after = strategy.finish(state, total, context(1))
        got = sparse.flat({LORA_A: after.lora_a, LORA_B: after.lora_b})
        np.testing.assert_allclose(got, vector + 0.5 * mean, atol=1e-5)
        # The authors evaluate server_params after the step times server_mask of the round's beginning.
        masked = np.where(sparse.dense(sparse.sparse(vector, 0.4), size) != 0, got, 0.0)
        evaluated = strategy.model_inputs(after)[MODEL].groups
        np.testing.assert_array_equal(sparse.flat(evaluated), masked)
        assert np.count_nonzero(masked) == int(0.4 * size) < np.count_nonzero(got)
        shapes = {name: (3, *shape) for name, shape in SHAPES.items()}
        pairs = sparse.factors(masked.astype(np.float32), shapes)
        for name in SHAPES:
            want = SCALE * pairs[LORA_B][name].astype(np.float64) @ pairs[LORA_A][name]
            np.testing.assert_allclose(change(strategy, state, after, name), want, atol=1e-5)


KNOBS = {"mu": 0.0, "orthogonality": 0.0, "beta1": 0.85, "beta2": 0.7, "wire": "fp32"}
TRAINED = [(MODEL, "head"), (LORA_A, "x"), (LORA_B, "x"), (LORA_E, "x")]


class TestFedAdaLora:
    def values(self, seed: int) -> list[Array]:
        rng = generator(seed, "ada")
        return [rng.standard_normal(shape) for shape in ((3,), (2, 5), (4, 2), (2,))]

    @pytest.mark.parametrize("kind", ["numpy", "torch"])
    def test_scores_are_adaloras(self, kind: str) -> None:
        rule = Importance()
        rule.begin(TRAINED, KNOBS)
        smooth, uncertain = [np.zeros(())] * 4, [np.zeros(())] * 4
        for step in range(3):
            gradients, weights = self.values(step), self.values(step + 10)
            for place, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                importance = np.abs(w * g)
                smooth[place] = 0.85 * smooth[place] + 0.15 * importance
                uncertain[place] = 0.7 * uncertain[place] + 0.3 * np.abs(importance - smooth[place])
            given: tuple[Tensors, Tensors] = gradients, weights
            if kind == "torch":
                given = [torch.from_numpy(g) for g in gradients], [torch.from_numpy(w) for w in weights]
            rule.adjust_gradients(given[0], given[1], given[1], KNOBS)
        a, b, e = (smooth[place] * uncertain[place] for place in (1, 2, 3))
        want = [e[j] + b[:, j].mean() + a[j].mean() for j in range(2)]
        groups = {MODEL: {}, LORA_A: {}, LORA_B: {}, LORA_E: {"x": np.zeros(2, np.float32)}}
        out = rule.outgoing(Update(num_examples=1, groups=groups), KNOBS)
        np.testing.assert_allclose(out.groups[SCORES]["x"], want, rtol=1e-5)

    def test_the_penalty_keeps_rows_and_columns_orthonormal(self) -> None:
        rule, knobs = Importance(), {**KNOBS, "orthogonality": 0.5}
        rule.begin(TRAINED, knobs)
        weights = [torch.from_numpy(array) for array in self.values(1)]
        gradients = [torch.zeros_like(weight) for weight in weights]
        rule.adjust_gradients(gradients, weights, weights, knobs)
        leaves = [weight.clone().requires_grad_() for weight in weights]
        (a, b), eye = leaves[1:3], torch.eye(2, dtype=torch.float64)
        (0.5 * ((a @ a.T - eye).norm() + (b.T @ b - eye).norm()) / 2).backward()
        torch.testing.assert_close(gradients[1], a.grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradients[2], b.grad, rtol=1e-10, atol=1e-10)
        assert not gradients[0].any() and not gradients[3].any()

    def test_the_best_components_of_all_layers_are_left(self) -> None:
        strategy = made("fed_adalora", rank_max=3, rank_min=1, heating=0.25, cooling=0.0)
        state = clean(strategy)
        assert [strategy.method.budget.rank(state, t) for t in (1, 2)] == [3, 2]
        scores = {"x": [0.1, 5.0, 4.0], "y": [0.3, 0.2, 6.0]}

        def train(exchange: Exchange, job: Job) -> Groups:
            reported = {name: np.array(values, np.float32) for name, values in scores.items()}
            return {**random_training(exchange, job), SCORES: reported}

        after, _ = round_of(strategy, state, 1, train)
        exchange = strategy.plan(after, context(2))  # 2 x 2 of the 6 components; of y the best two
        groups = exchange.inputs[MODEL].groups
        for name, kept in (("x", [1, 2]), ("y", [0, 2])):
            assert np.array_equal(groups[LORA_A][name], after.lora_a[name][kept])
            assert np.array_equal(groups[LORA_B][name], after.lora_b[name][:, kept])
            assert np.array_equal(groups[LORA_E][name], after.lora_e[name][kept])


class TestSpdCfl:
    def after_rounds(self, number: int, loss: float = 0.1, *, alike: bool = True, **settings: Any) -> list[int]:
        """Ranks of the rounds in a run whose rounds change the factors alike, or each its own way."""
        strategy = made("spd_cfl", number, rank_max=4, rank_min=1, **settings)
        state, ranks = clean(strategy), []

        def train(exchange: Exchange, job: Job) -> Groups:
            start = received(exchange, job).groups
            rng = generator(job.client, "spd", 0 if alike else job.round)
            moved: Groups = {}
            for group, arrays in start.items():
                steps = {n: rng.random(a.shape) for n, a in arrays.items()}
                steps = {n: 1 + 0.1 * step if alike else step**8 for n, step in steps.items()}
                moved[group] = {n: (a + steps[n]).astype(np.float32) for n, a in arrays.items()}
            return {**moved, "loss": {"loss": np.array(loss, np.float32)}}

        for round in range(1, number + 1):
            exchange = strategy.plan(state, context(round, number))
            ranks.append(len(received(exchange, exchange.jobs[0]).groups[LORA_A]["x"]))
            state, _ = round_of(strategy, state, round, train)
        return ranks

    def test_steps_are_made_while_consistent_and_need_two_rounds_of_a_rank(self) -> None:
        assert self.after_rounds(7, consistency=0.5) == [4, 4, 2, 2, 1, 1, 1]

    def test_no_step_where_rounds_disagree_or_the_target_is_not_met(self) -> None:
        assert self.after_rounds(5, alike=False, consistency=0.999) == [4] * 5
        assert self.after_rounds(5, consistency=0.5, target_loss=0.05) == [4] * 5
        assert self.after_rounds(5, consistency=0.5, target_loss=0.2) == [4, 4, 2, 2, 1]

    def test_factors_are_tied_to_the_present_and_the_previous_global_ones(self) -> None:
        rng = generator(5, "spd")
        w, now, before = (rng.standard_normal((2, 3)).astype(np.float32) for _ in range(3))
        knobs = {"mu": 0.5, "mu_previous": 0.25, "wire": "fp32"}
        for kind in (np.asarray, torch.from_numpy):
            rule = TwoAnchors()
            inputs = {MODEL: Record({LORA_A: {"x": now}}), PREVIOUS: Record({LORA_A: {"x": before}})}
            rule.incoming(inputs, Job(round=2, client=0, inputs=(MODEL, PREVIOUS), knobs=knobs))
            rule.begin([(LORA_A, "x")], knobs)
            gradient = kind(np.zeros((2, 3), np.float32))
            rule.adjust_gradients([gradient], [kind(w)], [kind(now)], knobs)
            np.testing.assert_allclose(np.asarray(gradient), 0.5 * (w - now) + 0.25 * (w - before), rtol=1e-5)

    def test_the_loss_is_reported_as_one_number(self) -> None:
        update = Update(num_examples=2, groups={MODEL: {}}, metrics={"loss": Mean(6.0, 4.0)})
        out = TwoAnchors().outgoing(update, {"wire": "fp32"})
        assert out.groups["loss"]["loss"] == 1.5 and Record(out.groups).num_elements == 1


class TestFolding:
    def test_what_a_cut_takes_off_is_added_to_the_base(self) -> None:
        settings = {"initiating_rounds": 0, "rank_max": 4, "rank_min": 1, "heating": 0.25, "cooling": 0.75}
        fold, cut = (made("sa_fedlora", shrink=operator, **settings) for operator in ("fold", "svd"))
        after, _ = round_of(fold, clean(fold), 1)
        ready, plain = (each.method.resizing.resize(after, 1) for each in (fold, cut))
        for name in SHAPES:
            np.testing.assert_allclose(change(fold, after, ready, name), 0, atol=1e-5)
            assert np.abs(change(cut, after, plain, name)).max() > 0.1
        assert len(ready.folds) == 1 and len(ready.lora_a["x"]) == 1 and not plain.folds
