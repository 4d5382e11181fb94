"""Explainers against what can be computed by hand: linear models, Shapley values, completeness."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_geco import SHARED, BagOfWords, build, experiment, make_body
from torch import nn

pytest.importorskip("captum")

from fedloom.core.errors import UnsupportedFeature
from fedloom.core.records import MODEL, Array
from fedloom.core.seeds import generator, integer_seed
from fedloom.workloads._pretrained.text_model import Encoded, TextModel, WordTokens
from fedloom.workloads.geco.config import Generated, Released
from fedloom.workloads.geco.generator import generate
from fedloom.workloads.geco.measures import mass_accuracy, word_importance
from fedloom.workloads.geco.monitor.config import ExplainerSettings
from fedloom.workloads.geco.monitor.explainers import EXPLAINED, random_importance, token_importance
from fedloom.workloads.geco.monitor.pattern import Pattern
from fedloom.workloads.geco.released import read_released
from fedloom.workloads.geco.sentences import Sentence

LOGIT = ExplainerSettings(output="logit", steps=20)
LINEAR = ("input_x_gradient", "integrated_gradients", "gradient_shap", "occlusion", "deep_lift")
"""Explainers that give a linear model's own terms."""


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_body(tmp_path_factory.mktemp("body"))


@pytest.fixture(scope="module")
def tokens(body: str) -> WordTokens:
    from transformers import AutoTokenizer

    return WordTokens(AutoTokenizer.from_pretrained(body), 64)


WORDS = ("The", "queen", "leaves", "her", "house", "at", "the", "harbour", ".")


def linear(tokens: WordTokens, weights: dict[int, float]) -> tuple[TextModel, Encoded]:
    """Return a bag of words that weighs words of `WORDS` by their place, and the sentence; a word may have pieces."""
    encoded = tokens.encode([WORDS])[0]
    values = torch.zeros(tokens.size, dtype=torch.float64)
    for token, word in zip(encoded.ids, encoded.words, strict=True):
        if word in weights:
            values[token] = weights[word]
    return BagOfWords(tokens, values).explained(), encoded


def explain(model: TextModel, encoded: Encoded, name: str, settings: ExplainerSettings = LOGIT, seed: int = 1) -> Array:
    return token_importance(model, encoded, 1, name, settings, seed)


@pytest.mark.parametrize("name", LINEAR)
def test_explanations_of_a_linear_model_are_its_terms(tokens: WordTokens, name: str) -> None:
    model, encoded = linear(tokens, {1: 2.0, 3: -0.5})
    found = explain(model, encoded, name)
    assert isinstance(model.network, BagOfWords)
    terms = model.network.weights.detach().numpy()[encoded.ids]
    assert np.abs(found - terms).max() <= 1e-6
    shares = word_importance(found, encoded.words, len(WORDS))
    assert mass_accuracy(shares, [place in (1, 3) for place in range(len(WORDS))]) >= 0.999


def shapley(model: TextModel, encoded: Encoded) -> Array:
    """Shapley values of the words, by going through all sets of words: v(S) is the logit with padding elsewhere."""
    count = 1 + max(word for word in encoded.words if word is not None)
    values = {}
    for switched in itertools.product((0, 1), repeat=count):
        ids = [
            token if word is None or switched[word] else model.tokens.pad_id
            for token, word in zip(encoded.ids, encoded.words, strict=True)
        ]
        row = torch.tensor([ids])
        with torch.no_grad():
            values[switched] = float(model(model.vectors(row), torch.ones_like(row))[0, 1])
    found = np.zeros(count)
    for word in range(count):
        for switched, value in values.items():
            if not switched[word]:
                on = sum(switched)
                weight = math.factorial(on) * math.factorial(count - on - 1) / math.factorial(count)
                more = tuple(1 if place == word else each for place, each in enumerate(switched))
                found[word] += weight * (values[more] - value)
    return found


def test_explanations_of_a_linear_model_are_its_shapley_values(tokens: WordTokens) -> None:
    model, encoded = linear(tokens, {1: 2.0, 3: -0.5, 4: 0.25})
    exact = shapley(model, encoded)
    signed = np.zeros(len(WORDS))
    for value, word in zip(explain(model, encoded, "integrated_gradients"), encoded.words, strict=True):
        if word is not None:
            signed[word] += value
    assert np.abs(exact - signed).max() <= 1e-6
    many = ExplainerSettings(output="logit", kernel_samples=400)
    kernel = explain(model, encoded, "kernel_shap", many)
    firsts = [encoded.words.index(word) for word in range(len(WORDS))]
    assert np.abs(kernel[firsts] - exact).max() <= 1e-3 and np.count_nonzero(kernel) <= len(WORDS)


def test_a_suppressor_lowers_the_mass_accuracy_of_a_model_but_not_of_the_covariance(tokens: WordTokens) -> None:
    # `harbour` is in one sentence of either version, so it says nothing about the version; the model weighs it
    both = [(("she", "sees", "the", "harbour"), 0), (("he", "sees", "the", "harbour"), 1)]
    both += [(("she", "sees", "the", "inn"), 0), (("he", "sees", "the", "inn"), 1)]
    training = [
        Sentence(words, (True, False, False, False), version, at // 2) for at, (words, version) in enumerate(both)
    ]
    model, encoded = linear(tokens, {1: 2.0, 3: -0.5})
    mask = [place in (1, 3) for place in range(len(WORDS))]
    suppressed, _ = linear(tokens, {1: 2.0, 3: -0.5, 7: 1.0})
    clean, spoilt = (
        mass_accuracy(word_importance(explain(each, encoded, "input_x_gradient"), encoded.words, len(WORDS)), mask)
        for each in (model, suppressed)
    )
    assert clean == pytest.approx(1.0) and spoilt < 0.9
    pattern = Pattern(training)
    assert pattern.importance(("harbour", "inn", "sees", "unknown")) == pytest.approx(np.zeros(4), abs=1e-12)
    assert mass_accuracy(pattern.importance(both[0][0]), training[0].mask) == pytest.approx(1.0)


def test_the_pattern_is_the_covariance_of_tf_idf_and_version() -> None:
    texts = [("a", "b", "b"), ("a", "c"), ("a", "b"), ("c", "c", "d")]
    training = [Sentence(words, tuple(True for _ in words), version % 2, 0) for version, words in enumerate(texts)]
    names = ["a", "b", "c", "d"]
    counts = np.array([[words.count(name) for name in names] for words in texts], np.float64)
    values = counts * (np.log(5.0 / (1.0 + (counts > 0).sum(axis=0))) + 1.0)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    expected = np.abs([np.cov(values[:, place], [0, 1, 0, 1])[0, 1] for place in range(4)])
    assert Pattern(training).importance(names) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scheme", ["all", "subject"])
def test_the_pattern_names_the_relevant_words(scheme: Any) -> None:
    corpus = generate(Generated(altered=scheme, pairs=300, test_pairs=60), 1)
    pattern = Pattern(corpus.train)
    found = [mass_accuracy(pattern.importance(each.words), each.mask) for each in corpus.test]
    assert np.median(found) >= 0.9


def check_random(sentences: tuple[Sentence, ...]) -> None:
    usable = [each for each in sentences if any(each.mask)]
    draws = [
        mass_accuracy(random_importance(len(each.words), seed), each.mask)
        for seed, each in enumerate(each for _ in range(3) for each in usable)
    ]
    assert np.mean(draws) == pytest.approx(np.mean([each.chance for each in usable]), abs=0.02)


@pytest.mark.parametrize("scheme", ["all", "subject"])
def test_the_random_explainer_has_the_mask_share_as_mean(scheme: Any) -> None:
    check_random(generate(Generated(altered=scheme, pairs=2, test_pairs=300), 1).test)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the released data is not beside this checkout")
@pytest.mark.parametrize("variant", ["all", "subj"])
def test_the_random_explainer_on_released_sentences(variant: str) -> None:
    check_random(read_released(Released(folder=str(SHARED / f"binary_gender_{variant}")), 1).test)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the released data is not beside this checkout")
@pytest.mark.parametrize(("variant", "median"), [("all", 0.999), ("subj", 0.782)])
def test_the_pattern_on_released_sentences(variant: str, median: float) -> None:
    corpus = read_released(Released(folder=str(SHARED / f"binary_gender_{variant}")), 1)
    pattern, usable = Pattern(corpus.train), [each for each in corpus.test if any(each.mask)]
    found = [mass_accuracy(pattern.importance(each.words), each.mask) for each in usable]
    assert np.median(found) == pytest.approx(median, abs=5e-4)


@pytest.fixture(scope="module")
def encoder(body: str) -> TextModel:
    """A one-layer BERT of random weights."""
    workload = build(experiment(body))
    with workload.text_models({MODEL: workload.init(generator(1, "init"))}) as models:
        found: TextModel = models["CEf"]
    return found


def gradient(model: TextModel, vectors: torch.Tensor, share: bool) -> torch.Tensor:
    """d output of class 1 / d vectors, for each row."""
    given = vectors.clone().requires_grad_(True)
    logits = model(given, torch.ones(given.shape[:2], dtype=torch.int64))
    out = (logits.softmax(1) if share else logits)[:, 1].sum()
    return torch.autograd.grad(out, given)[0]


@pytest.mark.parametrize("output", ["probability", "logit"])
def test_gradient_methods_follow_their_definitions(encoder: TextModel, output: Any) -> None:
    encoded = encoder.tokens.encode([WORDS])[0]
    ids = torch.from_numpy(encoded.ids)[None]
    special = torch.tensor([[word is None for word in encoded.words]])
    with torch.no_grad():
        x = encoder.vectors(ids)
        x0 = encoder.vectors(torch.where(special, ids, torch.full_like(ids, encoder.tokens.pad_id)))
    share, settings = output == "probability", ExplainerSettings(output=output, steps=30, shap_samples=7)
    plain = gradient(encoder, x, share)
    nodes, weights = np.polynomial.legendre.leggauss(30)
    path = sum(
        (gradient(encoder, x0 + (x - x0) * float(node + 1) / 2, share) * float(weight) / 2)
        for node, weight in zip(nodes, weights, strict=True)
    )
    with torch.random.fork_rng():
        torch.manual_seed(integer_seed(1, "geco", "gradient_shap"))
        shares = torch.rand(7, 1, 1)
    between = torch.stack([gradient(encoder, x0 + (x - x0) * each, share) for each in shares]).mean(0)
    expected = {
        "saliency": plain.abs().sum(2),
        "input_x_gradient": (plain * x).sum(2),
        "integrated_gradients": (path * (x - x0)).sum(2),
        "gradient_shap": (between * (x - x0)).sum(2),
        "guided_backprop": plain.sum(2),  # no ReLU in a BERT, so both are the gradient
        "deconvolution": plain.sum(2),
    }
    for name, each in expected.items():
        found = explain(encoder, encoded, name, settings)
        assert np.abs(found - each[0].numpy()).max() <= 1e-5 * float(each.abs().max()), name


def test_integrated_gradients_are_complete_on_probabilities(encoder: TextModel) -> None:
    sentences = [each.words for each in generate(Generated(pairs=2, test_pairs=6), 1).test]
    errors = []
    for encoded in encoder.tokens.encode(sentences):
        ids = torch.from_numpy(encoded.ids)[None]
        empty = [
            token if word is None else encoder.tokens.pad_id
            for token, word in zip(encoded.ids, encoded.words, strict=True)
        ]
        with torch.no_grad():
            ends = [
                encoder(encoder.vectors(row), torch.ones_like(row)).softmax(1)[0, 1]
                for row in (ids, torch.tensor([empty]))
            ]
        found = explain(encoder, encoded, "integrated_gradients", ExplainerSettings(steps=200))
        errors.append(abs(found.sum() - float(ends[0] - ends[1])))
    assert np.median(errors) <= 0.002 and max(errors) <= 0.02


def test_a_sentences_explanation_depends_on_the_sentence_alone(encoder: TextModel) -> None:
    encoded = encoder.tokens.encode([WORDS])[0]
    small = ExplainerSettings(steps=5, shap_samples=3, kernel_samples=10, lime_samples=10)
    for name in EXPLAINED:
        first = explain(encoder, encoded, name, small)
        torch.rand(3)
        again = explain(encoder, encoder.tokens.encode([WORDS[::-1], WORDS])[1], name, small)
        assert np.array_equal(first, again) and first.shape == encoded.ids.shape, name
    assert not np.array_equal(explain(encoder, encoded, "gradient_shap", small, 2), first)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_doubled_embedding_is_another_function_and_needs_a_block(encoder: TextModel) -> None:
    encoded = encoder.tokens.encode([WORDS])[0]
    twice = ExplainerSettings(steps=5, legacy_double_embedding=True)
    once = ExplainerSettings(steps=5)
    for name, same in (("input_x_gradient", False), ("integrated_gradients", True)):
        first, second = (explain(encoder, encoded, name, settings) for settings in (once, twice))
        assert np.array_equal(first, second) == same
    bare, other = linear(encoder.tokens, {1: 1.0})
    with pytest.raises(UnsupportedFeature, match="BagOfWords has no embedding block to pass twice"):
        explain(bare, other, "saliency", twice)


@pytest.mark.parametrize("name", ["saliency", "integrated_gradients", "gradient_shap", "deep_lift"])
def test_an_explainer_that_cannot_serve_a_network_is_named(tokens: WordTokens, name: str) -> None:
    bag = BagOfWords(tokens, torch.arange(tokens.size).double())  # padding is token 0

    def rounded(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return bag.logits(vectors, mask).detach()  # as of a network that rounds: no gradient reaches the vectors

    model = TextModel(bag, tokens, bag.vectors, rounded)
    encoded = tokens.encode([WORDS])[0]
    with pytest.raises(UnsupportedFeature, match=rf"'{name}' cannot serve the network BagOfWords: \w+Error: "):
        explain(model, encoded, name)
    assert np.abs(explain(model, encoded, "occlusion")).max() > 0.0


def test_words_of_several_pieces_and_blank_words(tokens: WordTokens) -> None:
    encoded = tokens.encode([("she", " ", "harbour", "x9")])[0]
    assert encoded.words[0] is None and encoded.words[-1] is None
    assert set(encoded.words) == {None, 0, 2, 3}  # a blank word has no token
    shares = word_importance(np.ones(len(encoded.ids)), encoded.words, 4)
    assert shares[1] == 0.0 and shares.sum() == pytest.approx((len(encoded.ids) - 2) / len(encoded.ids))


def test_a_slow_tokenizer_is_refused(body: str, tmp_path: Path) -> None:
    class Slow(nn.Module):
        is_fast, name_or_path = False, "slow"

    from fedloom.core.errors import DataMissing

    with pytest.raises(DataMissing, match=r"does not know which token .* tokenizer.json"):
        WordTokens(Slow(), 8)
