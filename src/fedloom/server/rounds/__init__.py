"""The federated loop: runs each round, aggregates updates, records and checkpoints."""
