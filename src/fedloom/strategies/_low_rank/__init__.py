"""What the federated low-rank strategies share: budgets, shrinking, aggregation, the wire, one engine (NumPy only)."""
