"""Workloads, one folder each: data, model and local training."""
