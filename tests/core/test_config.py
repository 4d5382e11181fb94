"""Experiments: what they accept, and what they say to what they do not."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedloom.core.config import INCIDENTAL, Experiment, is_incidental, with_overrides
from fedloom.core.errors import ConfigError, UnknownName, UsageError

WORKLOAD = """
from typing import Literal
from fedloom.core.config import PluginSettings, Settings

class Training(Settings):
    learning_rate: float = 0.1
    batch_size: int = 32

class Config(PluginSettings):
    size: int = 4
    model: Literal["mlp", "cnn"] = "mlp"
    training: Training = Training()
"""


@pytest.fixture
def workload(tmp_path: Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(WORKLOAD, encoding="utf-8")
    return str(path)


@pytest.fixture
def values(workload: str) -> dict[str, Any]:
    return {"rounds": 3, "clients": 10, "strategy": {"name": "fedprox", "mu": 0.5}, "workload": {"name": workload}}


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        Experiment.parse(values)
    return str(caught.value)


def test_defaults_are_filled_in(values: dict[str, Any]) -> None:
    experiment = Experiment.parse(values)
    assert (experiment.cohort_size, experiment.group_size) == (10, 1)
    assert (experiment.selection.name, experiment.runtime.name, experiment.seed) == ("uniform", "ray", 1)
    assert experiment.strategy.mu == 0.5  # type: ignore[attr-defined]
    assert experiment.workload.training.batch_size == 32  # type: ignore[attr-defined]


@pytest.mark.parametrize(("cohort", "expected"), [(1, 1), (12, 1), (13, 2), (100, 9)])
def test_the_group_size_follows_from_the_cohort(values: dict[str, Any], cohort: int, expected: int) -> None:
    assert Experiment.parse(values | {"clients": 100, "cohort": cohort}).group_size == expected
    assert Experiment.parse(values | {"round": {"group_size": 5}}).group_size == 5


def test_a_plug_in_may_be_just_its_name(values: dict[str, Any]) -> None:
    assert Experiment.parse(values | {"strategy": "fedavg"}).strategy.name == "fedavg"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"round": {"qourum_fraction": 0.5}}, ("round.qourum_fraction", "did you mean 'round.quorum_fraction'", "0.5")),
        ({"cohorts": 3}, ("cohorts: unknown", "did you mean 'cohort'", "value 3")),
        ({"xyzzy": 3}, ("xyzzy: unknown", "known here:", "rounds")),
        ({"strategy": {"name": "fedprox", "mi": 1}}, ("strategy.mi: unknown", "did you mean 'strategy.mu'")),
        ({"strategy": {"name": "fedavg", "mu": 1}}, ("strategy.mu: unknown", "known here: name")),
        ({"strategy": {"name": "fedprox", "mu": -1}}, ("strategy.mu: ", "greater than or equal to 0", "got -1")),
        ({"strategy": {"name": "fedprox", "mu": "big"}}, ("strategy.mu: ", "valid number", "got 'big'")),
        ({"strategy": {"mu": 1}}, ("strategy: ", "name", "fedavg", "fedprox")),
        ({"strategy": 3}, ("strategy: ", "got 3")),
        ({"rounds": "many"}, ("rounds: ", "valid integer", "got 'many'")),
        ({"rounds": 0}, ("rounds: ", "greater than or equal to 1", "got 0")),
        ({"rounds": 2.5}, ("rounds: ", "got 2.5")),
        ({"rounds": 2**32}, ("rounds: ", "less than 4294967296", "got 4294967296")),
        ({"name": "x" * 201}, ("name: ", "at most 200 characters")),
        ({"seed": -1}, ("seed: ", "greater than or equal to 0", "got -1")),
        ({"seed": 2**63}, ("seed: ", "less than")),
        ({"clients": 5, "cohort": 6}, ("cohort: 6 clients per round", "the federation has clients = 5")),
        ({"runtime": {"name": "rey"}}, ("runtime.name: ", "'ray'", "'process'", "'inline'", "got 'rey'")),
        ({"runtime": "process"}, ("runtime: ", "got 'process'")),
        ({"round": {"deadline_s": 0}}, ("round.deadline_s: ", "greater than 0")),
        ({"round": {"quorum_fraction": 1.5}}, ("round.quorum_fraction: ", "less than or equal to 1", "got 1.5")),
        ({"evaluation": {"parts": 0}}, ("evaluation.parts: ", "got 0")),
    ],
)
def test_wrong_settings_are_named_as_they_were_written(
    values: dict[str, Any], change: dict[str, Any], says: tuple[str, ...]
) -> None:
    message = refused(values | change)
    for part in says:
        assert part in message, message


def test_wrong_settings_of_a_workload_are_named_down_to_their_table(values: dict[str, Any], workload: str) -> None:
    message = refused(values | {"workload": {"name": workload, "training": {"learning_rat": 1.0}}})
    assert "workload.training.learning_rat: unknown" in message
    assert "did you mean 'workload.training.learning_rate'" in message
    assert "workload.model: " in refused(values | {"workload": {"name": workload, "model": "tree"}})


def test_every_mistake_is_reported_at_once(values: dict[str, Any]) -> None:
    message = refused(values | {"rounds": 0, "seeds": 1})
    assert "rounds: " in message and "seeds: unknown" in message


def test_missing_settings_are_required(values: dict[str, Any]) -> None:
    del values["rounds"]
    assert refused(values) == "rounds: required, but missing"


def test_unknown_plug_ins_name_the_nearest(values: dict[str, Any]) -> None:
    with pytest.raises(UnknownName, match=r"strategies: unknown name 'fedprx'; did you mean 'fedprox'\?"):
        Experiment.parse(values | {"strategy": "fedprx"})
    with pytest.raises(UnknownName, match="workloads: file 'nowhere"):
        Experiment.parse(values | {"workload": "./nowhere.py"})


def test_a_plug_in_without_settings_class_is_an_error_not_a_crash(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("x = 1\n", encoding="utf-8")
    assert "defines no class Config" in refused(values | {"workload": str(tmp_path / "bare.py")})


def test_experiments_and_plug_in_settings_are_frozen(values: dict[str, Any]) -> None:
    experiment = Experiment.parse(values)
    for target, name in ((experiment, "rounds"), (experiment.strategy, "mu"), (experiment.round, "weighting")):
        with pytest.raises(Exception, match="frozen"):
            setattr(target, name, 1)


def test_a_settings_object_may_be_given_in_place_of_a_table(values: dict[str, Any]) -> None:
    from fedloom.strategies.server_opt.config import Config

    chosen = Config(name="server_opt", optimizer="yogi")
    experiment = Experiment.parse(values | {"strategy": chosen})
    assert experiment.strategy == chosen
    assert Experiment.parse(experiment.to_dict()) == experiment


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("rounds=7", {"rounds": 7}),
            ("a.b.c=1.5", {"a": {"b": {"c": 1.5}}}),
            ("a.b=true", {"a": {"b": True}}),
            ('a="7"', {"a": "7"}),
            ("a=plain words", {"a": "plain words"}),
            ("a=[1, 2]", {"a": [1, 2]}),
            ("a={x = 1}", {"a": {"x": 1}}),
            ("a=", {"a": ""}),
            ("a=x=y", {"a": "x=y"}),
            (" a.b = 3 ", {"a": {"b": 3}}),
        ],
    )
    def test_values_are_toml_where_they_parse(self, text: str, expected: Any) -> None:
        assert with_overrides({}, [text]) == expected

    def test_they_win_over_the_file_and_over_earlier_ones_and_change_no_argument(self) -> None:
        values = {"strategy": {"name": "fedprox", "mu": 0.1}, "rounds": 1}
        changed = with_overrides(values, ["strategy.mu=0.2", "strategy.mu=0.3"])
        assert changed["strategy"] == {"name": "fedprox", "mu": 0.3}
        assert values == {"strategy": {"name": "fedprox", "mu": 0.1}, "rounds": 1}

    def test_a_plug_in_given_by_name_grows_into_a_table(self) -> None:
        assert with_overrides({"strategy": "fedprox"}, ["strategy.mu=2"]) == {"strategy": {"name": "fedprox", "mu": 2}}

    @pytest.mark.parametrize("text", ["rounds", "=3", "a..b=3", ".a=1", ""])
    def test_what_is_no_assignment_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="expected KEY=VALUE"):
            with_overrides({}, [text])

    def test_a_value_is_no_table(self) -> None:
        with pytest.raises(ConfigError, match=r"--set rounds.x: 'rounds' is a value \(3\)"):
            with_overrides({"rounds": 3}, ["rounds.x=1"])

    def test_an_unknown_key_gets_the_same_message_as_in_the_file(self, values: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"did you mean 'strategy.mu'"):
            Experiment.parse(values).override(["strategy.my=1"])
        assert Experiment.parse(values).override(["strategy.mu=2"]).strategy.mu == 2  # type: ignore[attr-defined]


class TestFiles:
    def write(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "experiment.toml"
        path.write_text(text, encoding="utf-8")
        return path

    @pytest.mark.parametrize("form", ['workload = "./tiny.py"', '[workload]\nname = "tiny.py"\nsize = 9'])
    def test_a_plug_in_file_is_looked_up_next_to_the_toml(
        self, workload: str, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        path = self.write(tmp_path, f'rounds = 2\nstrategy = "fedavg"\n{form}\n')
        experiment = Experiment.load(path, ["seed=5"])
        assert experiment.workload.name == str(Path(workload).resolve())
        assert experiment.seed == 5

    @pytest.mark.parametrize("text", ["rounds = ", "rounds = 1\nrounds = 2", "[strategy", "\x00"])
    def test_a_file_that_is_no_toml_names_itself_and_the_place(self, tmp_path: Path, text: str) -> None:
        path = self.write(tmp_path, text)
        with pytest.raises(ConfigError, match=r"experiment\.toml: not valid TOML: .*(line \d|end of document)"):
            Experiment.load(path)

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"experiment file .* not found"):
            Experiment.load(tmp_path / "missing.toml")
        with pytest.raises(ConfigError, match="directory"):
            Experiment.load(tmp_path)
        (tmp_path / "latin.toml").write_bytes(b'name = "\xfc"')
        with pytest.raises(ConfigError, match="not valid TOML"):
            Experiment.load(tmp_path / "latin.toml")

    def test_a_toml_date_is_a_wrong_value_not_a_crash(self, tmp_path: Path, workload: str) -> None:
        path = self.write(tmp_path, 'rounds = 2020-01-01\nstrategy = "fedavg"\nworkload = "tiny.py"\n')
        with pytest.raises(ConfigError, match="rounds: "):
            Experiment.load(path)

    def test_what_is_written_is_read_back(self, values: dict[str, Any], tmp_path: Path) -> None:
        experiment = Experiment.parse(values | {"cohort": 4, "round": {"deadline_s": 2.5}})
        assert Experiment.parse(experiment.to_dict()) == experiment
        path = self.write(tmp_path, tomli_w.dumps(experiment.to_dict()))
        assert Experiment.load(path) == experiment
        assert tomllib.loads(path.read_text(encoding="utf-8"))["round"]["deadline_s"] == 2.5


def test_the_fingerprint_is_that_of_what_decides_the_result(values: dict[str, Any]) -> None:
    base = Experiment.parse(values)
    for incidental in (
        {"name": "other"},
        {"runtime": {"name": "inline", "workers": 3}},
        {"checkpoint": {"every": 5}},
        {"fleet": {"labels": {"site": "lab"}}},
        {"cohort": None},
        {"selection": "uniform"},
    ):
        assert Experiment.parse(values | incidental).fingerprint() == base.fingerprint()
    for decisive in (
        {"seed": 2},
        {"rounds": 4},
        {"cohort": 9},
        {"round": {"group_size": 3}},
        {"evaluation": {"parts": 2}},
        {"strategy": {"name": "fedprox", "mu": 0.51}},
    ):
        assert Experiment.parse(values | decisive).fingerprint() != base.fingerprint()


def test_settings_are_incidental_by_their_whole_section() -> None:
    assert set(INCIDENTAL) < set(Experiment.model_fields)
    for key in ("name", "runtime.workers", "checkpoint.every", "fleet.labels.site"):
        assert is_incidental(key)
    for key in ("names", "runtime_s", "strategy.name", "seed"):
        assert not is_incidental(key)


def test_configuration_errors_are_usage_errors() -> None:
    assert issubclass(ConfigError, UsageError) and ConfigError.exit_code == 2


def test_a_label_that_looks_like_a_number_is_a_word() -> None:
    values = {"rounds": 1, "strategy": "fedavg", "workload": "image_classification"}
    assert Experiment.parse(values).override(["fleet.labels.rack=7"]).fleet.labels == {"rack": "7"}


OPINIONATED = """
from fedloom.core.config import PluginSettings

class Config(PluginSettings):
    @classmethod
    def default_for(cls, kind):
        return {"selection": "data_size", "monitors": "mano"}[kind]
"""


def test_a_strategy_may_set_the_default_of_another_section(values: dict[str, Any], tmp_path: Path) -> None:
    """What the experiment names counts. A section without a default, which may be absent, stays absent."""
    (tmp_path / "opinionated.py").write_text(OPINIONATED, encoding="utf-8")
    assert Experiment.parse(values).selection.name == "uniform"
    strategy = {"name": str(tmp_path / "opinionated.py")}
    made = Experiment.parse({**values, "strategy": strategy})
    assert made.selection.name == "data_size" and made.monitor is None
    assert Experiment.parse(made.to_dict()) == made
    assert Experiment.parse({**values, "strategy": strategy, "selection": "uniform"}).selection.name == "uniform"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["workload.partition.scheme=iid"], {"scheme": "iid"}),
        (["workload.partition.scheme=shards", "workload.partition.shards_per_client=3"], {"shards_per_client": 3}),
        (["workload.partition.shards_per_client=3", "workload.partition.scheme=shards"], {"shards_per_client": 3}),
        (["workload.partition.scheme=dirichlet"], {"scheme": "dirichlet", "alpha": 0.1}),
    ],
)
def test_another_kind_drops_the_settings_of_the_old(overrides: list[str], expected: dict[str, Any]) -> None:
    partition = {"scheme": "dirichlet", "alpha": 0.1}
    values = {
        "rounds": 1,
        "strategy": "fedavg",
        "workload": {"name": "image_classification", "partition": partition},
    }
    made = Experiment.parse(values).override(overrides).to_dict()["workload"]["partition"]
    assert expected.items() <= made.items()


def test_another_strategy_drops_the_settings_of_the_old_and_a_runtime_keeps_its_own() -> None:
    values = {"rounds": 1, "strategy": {"name": "fedprox", "mu": 0.5}, "workload": "image_classification"}
    made = Experiment.parse({**values, "runtime": {"workers": 3}}).override(
        ["strategy.name=fedavg", "runtime.name=inline"]
    )
    assert made.strategy.name == "fedavg" and (made.runtime.name, made.runtime.workers) == ("inline", 3)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_setting_is_finite(value: float) -> None:
    with pytest.raises(ConfigError, match="finite"):
        Experiment.parse(
            {"rounds": 1, "clients": 2, "round": {"deadline_s": value}, "workload": "fedloom.testing.linear"}
        )


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("key", ["rounds", "seed", "clients", "round.quorum_fraction", "workload.features"])
def test_true_and_false_are_no_numbers(key: str, value: bool) -> None:
    values: dict[str, Any] = {
        "rounds": 1,
        "clients": 2,
        "strategy": "fedavg",
        "workload": {"name": "fedloom.testing.linear"},
    }
    section, _, name = key.rpartition(".")
    (values.setdefault(section, {}) if section else values)[name or key] = value
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: expected a number, got {str(value).lower()}$"):
        Experiment.parse(values)
