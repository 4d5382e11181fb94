"""The federated loop: what a round asks, how updates are aggregated, what a run records."""
