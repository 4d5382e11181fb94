"""Faults on purpose: a real server and real nodes, disturbed by a schedule drawn from a seed, and what came of it."""
