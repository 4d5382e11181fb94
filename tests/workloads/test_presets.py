from pathlib import Path

import pytest
from support_rounds import build, run_rounds

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import DataMissing
from fedloom.workloads._data.settings import FASHION_MNIST

PRESETS = {name: api.preset_path(name) for name in api.presets()}
REQUIRED = {"digits-fedavg", "digits-fedprox", "digits-fedavgm", "digits-fedadam", "digits-fedyogi"} | {
    "fashion-mnist-fedavg",
    "fashion-mnist-fedprox",
    "text-fedavg",
    "scale-10k",
}
needs_fashion = pytest.mark.skipif(
    not Path(FASHION_MNIST).is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)


def load(name: str, *overrides: str) -> Experiment:
    return Experiment.load(str(PRESETS[name]), overrides)


def test_the_promised_presets_are_there() -> None:
    assert PRESETS.keys() >= REQUIRED


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_valid_named_after_its_file_and_says_what_it_shows(name: str) -> None:
    assert load(name).name == name
    first = PRESETS[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and 20 < len(first) < 120


DIGITS = sorted(name for name in PRESETS if name.startswith("digits-") and "-vit-" not in name)
LONG = ("digits-random-snn", "digits-remembered-snn", "digits-sfedca")
"""Presets that take most of a minute on one core."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in DIGITS]
)
def test_the_digits_are_learned(name: str) -> None:
    assert run_rounds(load(name))["accuracy"] > 0.9


def test_a_preset_on_pretrained_weights_says_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataMissing, match="fedloom run fashion-vit-pretrain --out runs/fashion-vit-pretrain"):
        build(load("digits-vit-sa-fedlora"))


@needs_fashion
def test_ten_thousand_clients_all_hold_examples_and_learn() -> None:
    experiment = load("scale-10k", "rounds=2", "cohort=100")
    info = build(experiment).describe()
    assert info.data["name"] == "Fashion-MNIST" and len(info.client_sizes) == 10_000 and min(info.client_sizes) == 6
    assert run_rounds(experiment)["accuracy"] > 0.2


@pytest.mark.slow
@needs_fashion
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["fashion-mnist-fedavg", "fashion-mnist-fedprox"])
def test_fashion_mnist_reaches_eighty_percent_in_twenty_rounds(name: str) -> None:
    experiment = load(name)
    assert experiment.rounds == 20 and run_rounds(experiment)["accuracy"] >= 0.8
