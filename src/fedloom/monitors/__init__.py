"""Monitors: label-free quality of the global model on client data."""
