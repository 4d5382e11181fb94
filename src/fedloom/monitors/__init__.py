"""Monitors: what is told of the global model on data without labels."""
