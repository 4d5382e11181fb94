"""Tests for plug-ins: requirements on every part, and a fleet in one process to run it on.

Conformance suites are classes whose methods are tests. Subclass one in a test file, say which plug-in, and pytest
collects it:

    from fedloom.testing.strategy import StrategyConformance

    class TestMine(StrategyConformance):
        name = "mine.py"

`strategy`, `selection`, `workload`, `rule`, `measure`, `monitor`, `accumulator`, `channel` and `run_store` have one
each; `federation` runs a strategy, `explained` checks its docstrings. `fleet` runs whole experiments on
a server and agents, `by_hand` moves agents message by message, `faults` has channels to put something in
between, `clock` moves by hand, `linear` is a workload in NumPy, `records` compares records.

Nothing here needs pytest. Failures read better with `pytest.register_assert_rewrite("fedloom.testing")` at the top of
a `conftest.py`.
"""
