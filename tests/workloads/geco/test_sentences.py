"""Sentence pairs: our own and the released ones; what is broken is refused by name."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_geco import SHARED

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.workloads.geco.config import Generated, Released
from fedloom.workloads.geco.corpus import balanced
from fedloom.workloads.geco.generator import generate, load_attribute
from fedloom.workloads.geco.released import read_released
from fedloom.workloads.geco.sentences import by_pair, differing


@pytest.mark.parametrize("scheme", ["all", "subject"])
@pytest.mark.parametrize(("attribute", "pairs"), [("gender", 200), ("tone", 100)])
def test_versions_are_aligned_and_differ_exactly_in_the_mask(attribute: str, pairs: int, scheme: Any) -> None:
    corpus = generate(Generated(attribute=attribute, altered=scheme, pairs=pairs, test_pairs=20), 3)
    assert len(corpus.train) == 2 * pairs and len(corpus.test) == 40
    for sentences in (corpus.train, corpus.test):
        assert Counter(each.version for each in sentences) == {0: len(sentences) // 2, 1: len(sentences) // 2}
        for first, second in by_pair(sentences).values():
            assert first.mask == second.mask == tuple(a != b for a, b in zip(first.words, second.words, strict=True))
            assert any(first.mask) and {first.version, second.version} == {0, 1}
    assert not by_pair(corpus.train).keys() & by_pair(corpus.test).keys()
    texts = [each.words for each in (*corpus.train, *corpus.test)]
    assert len(set(texts)) == len(texts)
    assert {word for words in texts for word in words} <= set(corpus.lexicon)


def test_the_same_seed_gives_the_same_sentences_and_another_gives_others() -> None:
    one, again, other = (generate(Generated(pairs=20), seed) for seed in (1, 1, 2))
    assert one == again and one.sha256 != other.sha256


def test_the_scheme_subject_leaves_other_people_as_they_are() -> None:
    whole, subject = (generate(Generated(altered=scheme, pairs=300), 1) for scheme in ("all", "subject"))
    shares = [np.mean([each.chance for each in corpus.test]) for corpus in (whole, subject)]
    assert shares[1] < 0.85 * shares[0]  # sentences with a second person exist
    kinds = load_attribute("gender").words
    assert len(kinds["kin"]) + len(kinds["person"]) >= 40
    masked = {word.lower() for each in whole.train for word, of in zip(each.words, each.mask, strict=True) if of}
    assert masked <= {word.lower() for pairs in kinds.values() for pair in pairs for word in pair}


def test_shuffling_words_outside_the_mask_leaves_the_mask() -> None:
    first, second = by_pair(generate(Generated(pairs=2), 1).train)[0]
    outside = [place for place, of in enumerate(first.mask) if not of]
    moved = random.Random(1).sample(outside, len(outside))
    shuffled = [list(each.words) for each in (first, second)]
    for words, each in zip(shuffled, (first, second), strict=True):
        for place, source in zip(outside, moved, strict=True):
            words[place] = each.words[source]
    assert shuffled[0] != list(first.words) and differing(shuffled) == first.mask


def test_an_unknown_attribute_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'gendre'; did you mean 'gender'\? packaged: gender, tone"):
        generate(Generated(attribute="gendre"), 1)
    with pytest.raises(DataMissing, match="no file"):
        generate(Generated(attribute=str(tmp_path / "none.toml")), 1)


GRAMMAR = (
    'versions = ["a", "b"]\nsubject = "S"\npatterns = {patterns}\n[words]\nit = {words}\n[plain]\nx = ["u", "v"]\n'
)


@pytest.mark.parametrize(
    ("patterns", "words", "error", "says"),
    [
        ('["{S.it} {x} ."]', '[["one", "two"]]', None, ""),
        ('["{x} ."]', '[["one", "two"]]', DataMissing, r"the sentence '[UV] \.', in which no word differs"),
        ('["{S.him} ."]', '[["one", "two"]]', DataMissing, r"\{S.him\} is neither a kind of \[words\]"),
        ('["{S.it} ."]', '[["one", "one"]]', DataMissing, "two different single words"),
        ('["{S.it} ."]', '[["one two", "one"]]', DataMissing, "two different single words"),
        ("[]", '[["one", "two"]]', DataMissing, "at least one sentence"),
        ('["{S.it} ."]', '[["one", "two"]]', ConfigError, "3 different sentences are wanted.* gave 1"),
        ('["{S.it} ."', '[["one", "two"]]', DataMissing, "not an attribute's grammar"),
    ],
)
def test_a_grammar_of_ones_own(
    tmp_path: Path, patterns: str, words: str, error: type[Exception] | None, says: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(GRAMMAR.replace("{patterns}", patterns).replace("{words}", words), encoding="utf-8")
    settings = Generated(attribute=str(path), pairs=2, test_pairs=1)
    if error is None:
        small = settings.model_copy(update={"pairs": 1})
        assert {each.words[0] for each in generate(small, 1).train} == {"One", "Two"}
        return
    with pytest.raises(error, match=says):
        generate(settings, 1)


def record(pair: int, target: int, words: list[str], mask: list[int]) -> dict[str, Any]:
    gender = ["female", "male"][target]
    return {"sentence": words, "ground_truth": mask, "gender": gender, "target": target, "sentence_idx": pair}


def write(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Released:
    for name, records in (("train", train), ("test", test)):
        lines = "".join(json.dumps(each) + "\n" for each in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return Released(folder=str(folder))


def pair(number: int, **changes: Any) -> list[dict[str, Any]]:
    both = [record(number, target, [word, "runs", "."], [1, 0, 0]) for target, word in ((0, "She"), (1, "He"))]
    both[1] |= changes
    return both


def test_a_folder_in_the_released_form_is_read_as_it_is(tmp_path: Path) -> None:
    corpus = read_released(write(tmp_path, [*pair(7), *pair(9)], pair(8)), 1)
    assert corpus.versions == ("female", "male") and [each.pair for each in corpus.train] == [7, 7, 9, 9]
    assert corpus.test[1].words == ("He", "runs", ".") and corpus.test[1].mask == (True, False, False)
    some = read_released(Released(folder=str(tmp_path), pairs=2, test_pairs=1), 1)
    assert len(some.train) == 4 and some.sha256 != corpus.sha256
    with pytest.raises(ConfigError, match=r"workload.data.pairs: 3 pairs are wanted, but the file has 2"):
        read_released(Released(folder=str(tmp_path), pairs=3), 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ground_truth": [1, 0]}, r"train.jsonl, line 2: ground_truth: expected 0 or 1 for each of 3 words"),
        ({"ground_truth": [0, 1, 0]}, r"train.jsonl: sentence_idx 7: ground_truth is not 1 where .* at \[0\]"),
        ({"ground_truth": [2, 0, 0]}, "expected 0 or 1"),
        ({"sentence": "He runs ."}, r"line 2: sentence: expected a list of words, got 'He runs \.'"),
        ({"sentence": [], "ground_truth": []}, "expected a list of words"),
        ({"sentence": ["He", "runs"], "ground_truth": [1, 0]}, r"the versions of sentence_idx 7 have \[2, 3\] words"),
        ({"target": "1"}, "target and sentence_idx: expected integers"),
        ({"target": 0}, "target 0 is 'male' here and 'female' above"),
        ({"target": 2}, r"the targets are \[0, 1, 2\]|has targets"),
        ({"sentence_idx": 9}, r"sentence_idx 7 has targets \[0\], expected each of 0 to 1 once"),
    ],
)
def test_a_broken_record_is_named_with_its_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    settings = write(tmp_path, pair(7, **changes), pair(8))
    with pytest.raises(DataMissing, match=says):
        read_released(settings, 1)


def test_broken_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"train.jsonl and test.jsonl"):
        read_released(Released(folder=str(tmp_path / "none")), 1)
    settings = write(tmp_path, pair(7), pair(7))
    with pytest.raises(DataMissing, match="sentence_idx 7 is in both files"):
        read_released(settings, 1)
    same = [record(7, target, ["It", "runs"], [0, 0]) for target in (0, 1)]
    with pytest.raises(DataMissing, match="no sentence has a word that differs"):
        read_released(write(tmp_path, same, pair(8)), 1)
    (tmp_path / "train.jsonl").write_text('{"sentence": ["a"]', encoding="utf-8")
    with pytest.raises(DataMissing, match=r"train.jsonl, line 1: not a JSON record"):
        read_released(settings, 1)
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataMissing, match="cannot be read"):
        read_released(settings, 1)
    del same[0]["ground_truth"]
    with pytest.raises(DataMissing, match="it has no 'ground_truth'"):
        read_released(write(tmp_path, same, pair(8)), 1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the released data is not beside this checkout")
@pytest.mark.parametrize(("variant", "share", "empty"), [("all", 0.169, (2, 0)), ("subj", 0.090, (22, 2))])
def test_the_released_data_has_its_published_counts(variant: str, share: float, empty: tuple[int, int]) -> None:
    corpus = read_released(Released(folder=str(SHARED / f"binary_gender_{variant}")), 1)
    assert (len(corpus.train), len(corpus.test)) == (2576, 644)
    assert np.mean([each.chance for each in corpus.test]) == pytest.approx(share, abs=5e-4)
    assert tuple(sum(not any(each.mask) for each in part) for part in (corpus.train, corpus.test)) == empty


@pytest.mark.parametrize("shares", [(0.9, 0.5, 0.1), (1.0, 0.0), (0.3,), (0.2, 0.2, 0.2)])
def test_clients_have_their_shares_of_the_second_version(shares: tuple[float, ...]) -> None:
    versions = np.arange(200) % 2
    dealt = balanced(versions, shares, 3, 1)
    rows = [dealt.client(client) for client in range(3)]
    assert len({len(each) for each in rows}) <= 2 and min(map(len, rows)) > 20
    assert len(np.unique(np.concatenate(rows))) == sum(map(len, rows))
    for client, each in enumerate(rows):
        assert versions[each].mean() == pytest.approx(shares[client % len(shares)], abs=1.0 / len(each))


def test_too_few_sentences_or_a_third_version_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 sentences are too few for 30 clients"):
        balanced(np.arange(4) % 2, (0.5,), 30, 1)
    with pytest.raises(ConfigError, match="needs sentences in two versions, got 3"):
        balanced(np.arange(30) % 3, (0.5,), 2, 1)
