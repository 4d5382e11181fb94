"""The aggregation server: the federated loop and everything around it."""
