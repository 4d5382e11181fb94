"""Aggregation strategies, one folder each: the server half, and where there is one, the client half."""
