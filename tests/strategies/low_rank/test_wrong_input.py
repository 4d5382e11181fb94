"""Every wrong input of a low-rank run, through the command line: exit code, message, and what is left of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tests.strategies.low_rank.conftest import experiment

from fedloom.cli.app import main

SPOILT = Path(__file__).parents[2] / "support" / "spoilt_adapters.py"


def run(
    capsys: pytest.CaptureFixture[str], *settings: str, strategy: str = "fedlora", **changes: Any
) -> tuple[int, str]:
    """`fedloom run` with settings; its exit code and what it said on stderr, in one line."""
    Path("experiment.toml").write_text(tomli_w.dumps(experiment(strategy, **changes).to_dict()), encoding="utf-8")
    options = [word for setting in settings for word in ("--set", setting)]
    code = main(["run", "experiment.toml", "--out", "run", *options])
    return code, " ".join(capsys.readouterr().err.split())


class TestBeforeAnythingStarts:
    """Exit code 2, and no folder."""

    @pytest.mark.parametrize(
        ("strategy", "settings", "words"),
        [
            ("fedlora", ["strategy.rank=0"], "strategy.rank: Input should be greater than or equal to 1, got 0"),
            ("sa_fedlora", ["strategy.rank_min=0"], "strategy.rank_min: Input should be greater than or equal to 1"),
            ("sa_fedlora", ["strategy.rank_max=0"], "strategy.rank_max: Input should be greater than or equal to 1"),
            ("fedlora", ["strategy.client_ranks=[2, 0]"], "strategy.client_ranks.1: Input should be greater than or"),
            ("sa_fedlora", ["strategy.rank_min=20"], "strategy.rank_min: 20 is above strategy.rank_max = 16"),
            ("fed_adalora", ["strategy.rank_min=20"], "strategy.rank_min: 20 is above strategy.rank_max = 12"),
            ("spd_cfl", ["strategy.rank_min=20"], "strategy.rank_min: 20 is above strategy.rank_max = 16"),
            ("fedlora", ["strategy.rank=17"], "rank 17 is above min(out, in) = 16 of layer '3' (16 x 24)"),
            ("sa_fedlora", ["strategy.rank_max=30"], "rank 30 is above min(out, in) = 24 of layer '1' (24 x 64)"),
            (
                "sa_fedlora",
                ["strategy.heating=0.7", "strategy.cooling=0.7"],
                "4 rounds at rank_max and 4 at rank_min do not fit into the 5 rounds after the initiating ones",
            ),
            (
                "sa_fedlora",
                ["strategy.initiating_rounds=7"],
                "strategy.initiating_rounds: 7 of rounds = 6; expected at most all of them",
            ),
            (
                "fedlora",
                ['strategy.targets=["query"]'],
                "no layer matches 'query'. The model's 2 layers that can carry an adapter are named: 1, 3 (",
            ),
            (
                "fedlora",
                ["strategy.targets=[]"],
                "strategy.targets: expected at least one pattern; the model's 2 layers",
            ),
        ],
    )
    def test_it_says_what_was_wrong(
        self, strategy: str, settings: list[str], words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, said = run(capsys, *settings, strategy=strategy)
        assert code == 2 and said.startswith("fedloom: ") and words in said
        assert not Path("run").exists()


class TestBetweenServerAndAgents:
    """Exit code 1; nothing is lost: the run's folder stays, and the run goes on once both fit."""

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            ("missing", "adapters: group 'lora_b' lacks factors for modules ['1'] and has others for []"),
            ("left_over", "adapters: group 'lora_a' lacks factors for modules [] and has others for ['nowhere']"),
            ("digest", "the adapters need input 'base' with digest 0000000000000000…, this agent has "),
        ],
    )
    def test_it_names_what_does_not_fit(
        self, spoil: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code, said = run(capsys, strategy=str(SPOILT), settings={"spoil": spoil})
        assert code == 1 and "BadUpdate" in said and words in said and "stage train" in said
        assert "internal error" not in said
        settings = Path("run/experiment.toml")
        settings.write_text(
            settings.read_text(encoding="utf-8")
            .replace(f"./plugins/strategy/{SPOILT.name}", "fedlora")
            .replace(f'spoil = "{spoil}"', "rank = 2"),
            encoding="utf-8",
        )
        assert main(["resume", "run"]) == 0
