"""Clients with more examples are selected more often."""
