"""Median ensemble of a run's history: the coordinate-wise median of weights over rounds, over clients, or both."""
