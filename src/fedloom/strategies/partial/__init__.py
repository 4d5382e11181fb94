"""Averaging of partial models: each array is the mean over the clients that trained it."""
