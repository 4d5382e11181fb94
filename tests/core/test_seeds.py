"""Streams by path: distinct, reproducible, frozen."""

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from fedloom.core.errors import ConfigError
from fedloom.core.seeds import generator, integer_seed

PATHS = [
    (),
    ("train",),
    ("train", 1),
    ("train", 1, 2),
    ("train", 12),
    ("train", "1", "2"),
    ("train", "12"),
    ("train1", 2),
    ("train", 2, 1),
    ("evaluate", 1, 2),
    (1, 2),
    (2, 1),
    ("",),
    ("", ""),
    (0,),
]


def test_different_paths_and_seeds_give_different_streams() -> None:
    draws = {
        (seed, path): tuple(generator(seed, *path).integers(2**63, size=4))
        for seed in (0, 1, 2**63 - 1)
        for path in PATHS
    }
    assert len(set(draws.values())) == len(draws)
    integers = {integer_seed(seed, *path) for seed in (0, 1) for path in PATHS}
    assert len(integers) == 2 * len(PATHS) and all(0 <= value < 2**63 for value in integers)


def test_many_clients_and_rounds_have_streams_of_their_own() -> None:
    firsts = {int(generator(1, "train", r, c).integers(2**63)) for r, c in itertools.product(range(30), range(100))}
    assert len(firsts) == 3000


def test_the_same_path_gives_the_same_stream_however_its_integers_are_typed() -> None:
    one, two = generator(3, "train", 4), generator(3, "train", np.int64(4))  # type: ignore[arg-type]
    np.testing.assert_array_equal(one.random(100), two.random(100))


def test_a_stream_is_pcg64_seeded_by_the_digest_of_its_path() -> None:
    key = np.frombuffer(hashlib.sha256(b"seed:1\0str:train\0int:2\0int:3").digest(), "<u4").tolist()
    by_hand = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
    np.testing.assert_array_equal(generator(1, "train", 2, 3).random(5), by_hand.random(5))


def test_streams_are_what_they_have_always_been() -> None:
    """Frozen: whoever changes these numbers changes the result of every experiment."""
    assert generator(1, "train", 2, 3).integers(0, 2**32, size=3).tolist() == [593918313, 3994557446, 1989460705]
    assert generator(0).integers(0, 2**32, size=3).tolist() == [162615223, 2435690009, 1492222494]
    assert integer_seed(1, "init") == 2943930443776690708
    assert integer_seed(2**63 - 1, "data", "fold", 7) == 1046308913510774529


def test_another_process_draws_the_same() -> None:
    code = "from fedloom.core.seeds import generator; print(generator(5, 'x', 1).integers(2**63))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert int(run.stdout) == int(generator(5, "x", 1).integers(2**63))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_a_seed_out_of_range_is_a_configuration_error(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed: expected an integer from 0 to .*, got {seed}"):
        generator(seed)
