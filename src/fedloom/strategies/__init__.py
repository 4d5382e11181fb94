"""Aggregation strategies, one folder each: the server half, and the client half if there is one."""
