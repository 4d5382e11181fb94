"""The phases of a round, in the order the loop runs them: probe, train, evaluate, monitor."""
