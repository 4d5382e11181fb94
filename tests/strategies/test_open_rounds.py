"""Where the number of rounds is open, a strategy runs as ever or says that it needs the number."""

import pytest
from made_up_clients import VARIANTS, Federation

from fedloom.core import registry
from fedloom.core.errors import ConfigError
from fedloom.testing.federation import COHORTS
from fedloom.testing.strategy import state_digest

NEEDS_NUMBER = {
    *("fedlora", "ffa_lora", "flora", "flexlora", "hetlora", "flasc", "fed_adalora", "spd_cfl", "sa_fedlora"),
    *("mano", "meat"),
}
"""Those that anneal, or do something in the last round."""
OTHERS = [name for name in registry.names("strategies") if name not in {*NEEDS_NUMBER, "flower_app", "forgetting"}]


@pytest.mark.parametrize("name", sorted(NEEDS_NUMBER))
def test_a_strategy_that_needs_the_number_is_refused_by_name(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"rounds: strategy '{name}' needs the number of rounds, but rounds is 'open'"
    ):
        Federation(name, VARIANTS.get(name, [{}])[0], rounds=None)


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_continues_with_the_same_bits(name: str) -> None:
    for settings in VARIANTS.get(name, [{}]):
        known, open_ = Federation(name, settings), Federation(name, settings, rounds=None)
        assert [state_digest(state) for state in open_.run()] == [state_digest(state) for state in known.run()]
        assert open_.strategy.plan(open_.run(1)[-1], open_.context(len(COHORTS))) is not None
