"""Shared by the federated low-rank strategies: budgets, shrinking, aggregation, the wire, one engine (NumPy only)."""
